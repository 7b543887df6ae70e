"""What ``opt.step()`` costs beside an older version of the library, and beside torch: both versions take turns in one run.

    git worktree add ../before v0.1.0    # or any commit
    python -m benchmarks.step_time --before ../before/src/hypergradient

Every number is the median over the turns, of the ratio in one turn. Writes docs/results/before.json and the table in docs/performance.md.
"""

import importlib
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from hypergradient.lab.runs.optimizers import OURS, PARTS

from .report import publish, table
from .timing import compared, optimizer

#: Shapes, and how many turns.
MODELS: dict[str, tuple[list[tuple[int, ...]], int]] = {
    "784-10": ([(10, 784), (10,)], 1500),
    "40 of 1,000": ([(10, 100)] * 40, 300),
    "1,000 of 1,000": ([(10, 100)] * 1000, 40),
    "28 M in 40": ([(1000, 700)] * 40, 15),
}

ADAM, SGD = "Adam(lr=1e-9, fused=True)", "SGD(lr=1e-9, fused=True)"

#: By name, what of torch it is compared with, and its optimizer in both versions; nothing moves far: what is timed is the work.
ROWS = {
    "AdamHD, additive": (ADAM, "AdamHD(lr=1e-9, hypergrad_lr=0.0)"),
    "AdamHD, multiplicative": (ADAM, "AdamHD(lr=1e-9, rule=Multiplicative(0.0))"),
    "AdamHD, no lr": (ADAM, "AdamHD"),
    "AdamWHD, additive": (ADAM, "AdamWHD(lr=1e-9, hypergrad_lr=0.0)"),
    'AdamHD, no lr, scope="tensor"': (ADAM, "AdamHD(scope='tensor')"),
    "Hypergradient(Adam fused)": (ADAM, f"Hypergradient({ADAM}, hypergrad_lr=0.0)"),
    "SGDHD, additive": (SGD, "SGDHD(lr=1e-9, hypergrad_lr=0.0)"),
    "SGDHD momentum, additive": (SGD, "SGDHD(lr=1e-9, momentum=0.9, hypergrad_lr=0.0)"),
    "SGDHD Nesterov, no lr": (SGD, "SGDHD(momentum=0.9, nesterov=True)"),
}


def load(source: Path, place: Path) -> dict[str, Any]:
    """What the library of a folder has, beside this one, under another name."""
    shutil.copytree(source, place / "hypergradient_before", ignore=shutil.ignore_patterns("lab", "__pycache__"))
    with patch.object(sys, "path", [str(place), *sys.path]):
        return vars(importlib.import_module("hypergradient_before"))


def measured(before: dict[str, Any], shapes: list[tuple[int, ...]], turns: int) -> dict[str, tuple[float, float, float]]:
    """For each row new over before, new over torch, and before over torch."""
    params = [nn.Parameter(torch.randn(shape) * 0.01) for shape in shapes]
    grads = [torch.randn_like(p) * 1e-3 for p in params]
    made = {call: optimizer(call, params) for call in (ADAM, SGD)} | {name: optimizer(call, params) for name, (_, call) in ROWS.items()}
    with patch.dict(OURS, before), patch.dict(PARTS, before):
        made |= {f"{name}, before": optimizer(call, params) for name, (_, call) in ROWS.items()}

    def fresh(*_: object) -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()

    older = {name: f"{name}, before" for name in ROWS}
    found = compared({name: opt.step for name, opt in made.items()}, older, turns, others={}, warm=5, before=fresh)
    times, ratios = ({row["optimizer"]: row[kind] for row in found} for kind in ("milliseconds", "ratio"))
    return {name: (ratios[name][0], *(times[x] / times[base] for x in (name, older[name]))) for name, (base, _) in ROWS.items()}


def compare(source: Path, docs: Path) -> None:
    """The table of this version beside that of a folder."""
    with TemporaryDirectory() as place:
        before = load(source, Path(place))
        found = {model: measured(before, *entry) for model, entry in MODELS.items()}
    publish(docs, "before", __doc__, {"rows": found}, text(found))


def text(found: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    rows = [[name, *("{:.2f} ({:.1f}, {:.1f})".format(*own[name]) for own in found.values())] for name in ROWS]
    return f"New over before (new, before over torch's fused):\n\n{table(['', *found], rows)}"
