"""The cost of ``opt.step()`` compared with an older version of the library and with torch, all interleaved in one run.

    git worktree add ../before v0.1.0    # or any commit
    python -m benchmarks.step_time --before ../before/src/hypergradient

Each number is the median, over the turns, of the ratio within a turn. Writes docs/results/before.json and the table in docs/performance.md.
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

#: Shapes and number of turns.
MODELS: dict[str, tuple[list[tuple[int, ...]], int]] = {
    "784-10": ([(10, 784), (10,)], 1500),
    "40 of 1,000": ([(10, 100)] * 40, 300),
    "1,000 of 1,000": ([(10, 100)] * 1000, 40),
    "28 M in 40": ([(1000, 700)] * 40, 15),
}

ADAM, SGD = "Adam(lr=1e-9, fused=True)", "SGD(lr=1e-9, fused=True)"

#: By name: torch's optimizer to compare with, and the optimizer in both versions. Learning rates are tiny so that parameters hardly change.
ROWS = {
    "AdamHD, additive": (ADAM, "AdamHD(lr=1e-9, hypergrad_lr=0.0)"),
    "AdamHD, multiplicative": (ADAM, "AdamHD(lr=1e-9, rule=Multiplicative(0.0))"),
    "AdamHD, tuning-free": (ADAM, "AdamHD"),
    "AdamWHD, additive": (ADAM, "AdamWHD(lr=1e-9, hypergrad_lr=0.0)"),
    'AdamHD, tuning-free, scope="tensor"': (ADAM, "AdamHD(scope='tensor')"),
    "Hypergradient(Adam fused)": (ADAM, f"Hypergradient({ADAM}, hypergrad_lr=0.0)"),
    "SGDHD, additive": (SGD, "SGDHD(lr=1e-9, hypergrad_lr=0.0)"),
    "SGDHD momentum, additive": (SGD, "SGDHD(lr=1e-9, momentum=0.9, hypergrad_lr=0.0)"),
    "SGDHD Nesterov, tuning-free": (SGD, "SGDHD(momentum=0.9, nesterov=True)"),
}


def load(source: Path, place: Path) -> dict[str, Any]:
    """The names of the library in a folder, imported under another name beside this one."""
    shutil.copytree(source, place / "hypergradient_before", ignore=shutil.ignore_patterns("lab", "__pycache__"))
    with patch.object(sys, "path", [str(place), *sys.path]):
        return vars(importlib.import_module("hypergradient_before"))


def measured(before: dict[str, Any], shapes: list[tuple[int, ...]], turns: int) -> dict[str, tuple[float, float, float]]:
    """For each row the ratios new / old, new / torch, and old / torch."""
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
    """Compare this version with that of a folder, and write the table."""
    with TemporaryDirectory() as place:
        before = load(source, Path(place))
        found = {model: measured(before, *entry) for model, entry in MODELS.items()}
    publish(docs, "before", __doc__, {"rows": found}, text(found))


def text(found: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    rows = [[name, *("{:.2f} ({:.1f}, {:.1f})".format(*own[name]) for own in found.values())] for name in ROWS]
    about = "Time of the new core relative to the old one (in parentheses: new and old, each relative to torch's fused optimizer):"
    return f"{about}\n\n{table(['', *found], rows)}"
