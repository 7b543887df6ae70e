"""What ``opt.step()`` costs beside an older version of the library, and beside torch: both versions take turns in one run.

    git worktree add ../before v0.1.0    # or any commit
    python -m benchmarks.step_time --before ../before/src/hypergradient

Every number is the median over the turns, of the ratio in one turn. Writes docs/results/before.json and the table in docs/performance.md.
"""

import importlib
import json
import shutil
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import hypergradient

from .report import machine, sentence
from .timing import fill, interleaved, ratio

LR = 1e-9  # nothing moves far: what is timed is the work

#: Shapes, and how many turns.
MODELS: dict[str, tuple[list[tuple[int, ...]], int]] = {
    "784-10": ([(10, 784), (10,)], 1500),
    "40 of 1,000": ([(10, 100)] * 40, 300),
    "1,000 of 1,000": ([(10, 100)] * 1000, 40),
    "28 M in 40": ([(1000, 700)] * 40, 15),
}

ADAM, SGD = "torch Adam fused", "torch SGD fused"

#: A row's name, the row of torch that it is compared with, and its optimizer by a version of the library.
ROWS: list[tuple[str, str, Any]] = [
    ("AdamHD, additive", ADAM, lambda m, params: m.AdamHD(params, lr=LR, hypergrad_lr=0.0)),
    ("AdamHD, multiplicative", ADAM, lambda m, params: m.AdamHD(params, lr=LR, rule=m.Multiplicative(0.0))),
    ("AdamHD, no lr", ADAM, lambda m, params: m.AdamHD(params)),
    ("AdamWHD, additive", ADAM, lambda m, params: m.AdamWHD(params, lr=LR, hypergrad_lr=0.0)),
    ('AdamHD, no lr, scope="tensor"', ADAM, lambda m, params: m.AdamHD(params, scope="tensor")),
    ("Hypergradient(Adam fused)", ADAM, lambda m, params: m.Hypergradient(torch.optim.Adam(params, lr=LR, fused=True), hypergrad_lr=0.0)),
    ("SGDHD, additive", SGD, lambda m, params: m.SGDHD(params, LR, hypergrad_lr=0.0)),
    ("SGDHD momentum, additive", SGD, lambda m, params: m.SGDHD(params, LR, 0.9, hypergrad_lr=0.0)),
    ("SGDHD Nesterov, no lr", SGD, lambda m, params: m.SGDHD(params, momentum=0.9, nesterov=True)),
]


def load(source: Path, place: Path) -> Any:
    """The library of a folder beside this one, under another name."""
    shutil.copytree(source, place / "hypergradient_before", ignore=shutil.ignore_patterns("lab", "__pycache__"))
    sys.path.insert(0, str(place))
    return importlib.import_module("hypergradient_before")


def measured(before: Any, shapes: list[tuple[int, ...]], turns: int) -> dict[str, tuple[float, float, float]]:
    """For each row new over before, new over torch, and before over torch."""
    params = [nn.Parameter(torch.randn(shape) * 0.01) for shape in shapes]
    grads = [torch.randn_like(p) * 1e-3 for p in params]
    steps: dict[str, Any] = {
        ADAM: torch.optim.Adam(params, lr=LR, fused=True).step,
        SGD: torch.optim.SGD(params, lr=LR, fused=True).step,
    }
    for name, _, make in ROWS:
        steps[f"{name}, new"] = make(hypergradient, params).step
        steps[f"{name}, before"] = make(before, params).step

    def fresh(turn: int) -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()

    seconds = interleaved(steps, turns, warm=5, before=fresh)
    found = {}
    for name, base, _ in ROWS:
        new, old = seconds[f"{name}, new"], seconds[f"{name}, before"]
        torchs = statistics.median(seconds[base])
        found[name] = ratio(new, old)[0], statistics.median(new) / torchs, statistics.median(old) / torchs
    return found


def compare(source: Path, docs: Path) -> None:
    """The table of this version beside that of a folder."""
    with TemporaryDirectory() as place:
        before = load(source, Path(place))
        found = {model: measured(before, *entry) for model, entry in MODELS.items()}
    lines = [sentence(__doc__), machine(), "", "New over before (new, before over torch's fused):", ""]
    lines += ["| | " + " | ".join(MODELS) + " |", "|---|" + "---|" * len(MODELS)]
    for name, _, _ in ROWS:
        lines.append(f"| {name} | " + " | ".join("{:.2f} ({:.1f}, {:.1f})".format(*found[model][name]) for model in MODELS) + " |")
    print("\n".join(lines))
    (docs / "results" / "before.json").write_text(json.dumps({"machine": machine(), "rows": found}, indent=1) + "\n")
    fill(docs / "performance.md", "before", lines)
