"""The cost of ``opt.step()``: time relative to torch's optimizers, all interleaved in one run, and memory.

    python -m benchmarks.step_time

Parameters: 28 million in 40 tensors, 1,000 tensors of 1,000, one of 50 million. All rows of a model step on the same parameters with the
same gradients, which are new tensors at each step, as after ``zero_grad``. Each number is the median, over the turns, of the ratio within a
turn, with quartiles. "State" is the optimizer's state, "temporary" the peak memory of a step, both in bytes per parameter.
Writes docs/results/step-time.json, docs/images/step-time.png, and the table in docs/performance.md.

    python -m benchmarks.step_time --before ../before/src/hypergradient

compares with an older version of the library instead: see before.py.
"""

import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from matplotlib.figure import Figure
from torch import nn

from hypergradient.lab.compare.runs import state_bytes

from .before import compare
from .report import command, publish, table, write
from .timing import Step, compared, optimizer, peak_bytes, peer, told

LR = 1e-9  # so that parameters hardly change

#: The models by name: their shapes, and their heading in tables.
MODELS: dict[str, tuple[list[tuple[int, ...]], str]] = {
    "28 million in 40 tensors": ([(1000, 700)] * 40, "28 M in 40"),
    "1,000 tensors of 1,000": ([(10, 100)] * 1000, "1,000 of 1,000"),
    "one of 50 million": ([(50_000, 1000)], "1 of 50 M"),
}

ADAM, SGD, MOMENTUM = "torch Adam fused", "torch SGD fused", "torch SGD momentum fused"
DEFAULT, FOREACH = "torch Adam default", "torch Adam foreach"

#: By name: the row to compare with, and the optimizer.
ROWS = {
    ADAM: (ADAM, "Adam(lr=1e-9, fused=True)"),
    FOREACH: (ADAM, "Adam(lr=1e-9, foreach=True)"),
    DEFAULT: (ADAM, "Adam(lr=1e-9)"),
    "AdamHD fused": (ADAM, "AdamHD(lr=1e-9, rule=Multiplicative(0.0), fused=True)"),
    "AdamHD fused, additive": (ADAM, "AdamHD(lr=1e-9, hypergrad_lr=0.0, fused=True)"),
    "AdamHD fused, tuning-free": (ADAM, "AdamHD(fused=True)"),
    "AdamWHD fused, additive": (ADAM, "AdamWHD(lr=1e-9, hypergrad_lr=0.0, fused=True)"),
    "AdamHD, additive": (DEFAULT, "AdamHD(lr=1e-9, hypergrad_lr=0.0)"),
    "AdamHD, tuning-free": (DEFAULT, "AdamHD"),
    "Hypergradient(Adam fused), additive": (ADAM, "Hypergradient(Adam(lr=1e-9, fused=True), hypergrad_lr=0.0)"),
    MOMENTUM: (ADAM, "SGD(lr=1e-9, momentum=0.9, fused=True)"),
    "SGDHD momentum fused, additive": (MOMENTUM, "SGDHD(lr=1e-9, momentum=0.9, hypergrad_lr=0.0, fused=True)"),
    "SGDHD momentum, additive": (MOMENTUM, "SGDHD(lr=1e-9, momentum=0.9, hypergrad_lr=0.0)"),
    SGD: (ADAM, "SGD(lr=1e-9, fused=True)"),
    "SGDHD fused, additive": (SGD, "SGDHD(lr=1e-9, hypergrad_lr=0.0, fused=True)"),
    "SGDHD, additive": (SGD, "SGDHD(lr=1e-9, hypergrad_lr=0.0)"),
}

#: Optimizers of other packages by themselves; the lab wraps some of them, such as DoG with its average.
OTHERS = {
    "Prodigy (prodigyopt)": "prodigyopt:Prodigy",
    "Prodigy (pytorch_optimizer)": "pytorch_optimizer:Prodigy",
    "DAdaptAdam (dadaptation)": "dadaptation:DAdaptAdam",
    "DoG (dog-optimizer)": "dog:DoG",
    "AdamWScheduleFree (schedulefree)": "schedulefree:AdamWScheduleFree",
}
PEER = "Adam/SGD (gdtuo)"

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences torch's profiler


def measure(shapes: list[tuple[int, ...]], turns: int) -> list[dict[str, Any]]:
    """Measure the rows of one model."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator) * 0.01) for shape in shapes]
    gradients = [[torch.randn(shape, generator=generator) * 1e-3 for shape in shapes] for _ in range(2)]
    size = sum(p.numel() for p in params)

    def give(turn: int) -> None:
        for p, g in zip(params, gradients[turn % 2], strict=True):
            p.grad = g.data  # a new tensor that shares memory

    opts = {name: optimizer(call, params) for name, (_, call) in ROWS.items()}
    opts |= {name: resolve_name(kind)(params, lr=LR) for name, kind in OTHERS.items()}
    for opt in opts.values():
        getattr(opt, "train", bool)()
    steps: dict[str, Step] = {name: opt.step for name, opt in opts.items()}
    prepare: Step | None = None
    if size < 40_000_000:  # the graphs of gdtuo hold about ten buffers
        prepare, steps[PEER] = peer(
            nn.ParameterList([p.detach().clone() for p in params]),
            gdtuo.Adam(LR, optimizer=gdtuo.SGD(0.0)),
            lambda tensors: sum((p * g).sum() for p, g in zip(tensors, gradients[0], strict=True)),
        )
    against, others = {name: other for name, (other, _) in ROWS.items()}, {"to Adam": ADAM, "to foreach": FOREACH}

    def before(name: str, turn: int) -> None:
        prepare() if name == PEER and prepare else give(turn)

    rows = compared(steps, against, turns, others=others, warm=4, before=before)
    for row, opt in zip(rows, opts.values(), strict=False):  # gdtuo is the last, and has no optimizer object
        give(turns)
        row |= {"state": state_bytes(opt, nn.ParameterList(params)), "peak": peak_bytes(opt.step) / size}
    return rows


def first_steps(tensors: int) -> float:
    """Extra seconds of the first two steps of a fused AdamHD; for a process that has not imported the compiler yet."""
    params = [nn.Parameter(torch.zeros(100 + i, 200)) for i in range(tensors)]
    opt, times = optimizer("AdamHD(lr=1e-9, hypergrad_lr=0.0, fused=True)", params), []
    for _ in range(4):
        for p in params:
            p.grad = torch.ones_like(p)
        begun = time.perf_counter()
        opt.step()
        times.append(time.perf_counter() - begun)
    assert opt.setup.run.fused
    return sum(times[:2]) - sum(times[2:])


def compile_times() -> dict[str, float]:
    """Extra seconds of the first steps, with an empty cache and with the disk cache of an earlier process."""
    found = {}
    for tensors in (40, 400):
        with TemporaryDirectory() as folder, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
            for kind in ("empty cache", "from torch's disk cache"):
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    found[f"{tensors} tensors, {kind}"] = process.submit(first_steps, tensors).result()
    return found


def text(models: dict[str, list[dict[str, Any]]], seconds: dict[str, float]) -> str:
    by_name = [{row["optimizer"]: row for row in rows} for rows in models.values()]
    lines = []
    for name, first in by_name[0].items():
        cells = [told(rows[name]["ratio"]) if name in rows else "" for rows in by_name]
        lines.append([name, first["against"], *cells, *(f"{first[kind]:.1f}" if kind in first else "" for kind in ("state", "peak"))])
    small = told(by_name[1]["AdamHD, additive"]["to foreach"])
    took = "; ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    heads = ["optimizer", "relative to", *(MODELS[model][1] for model in models), "state, bytes/parameter", "temporary, bytes/parameter"]
    return f"""{table(heads, lines)}

`AdamHD` without a compiler, relative to torch's Adam with `foreach=True`, 1,000 tensors of 1,000 elements: {small}.

Extra time of the first steps of a fused `AdamHD`, which compile: {took}."""


def plot(models: dict[str, list[dict[str, Any]]]) -> Figure:
    """Times relative to torch's fused Adam as bars, one panel per model."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(1, len(models), sharey=True)
    names = [row["optimizer"] for row in next(iter(models.values()))][::-1]
    for axis, (model, rows) in zip(axes, models.items(), strict=True):
        for row in rows:
            (middle, low, high), name = row["to Adam"], row["optimizer"]
            color = "#c1440e" if "HD" in name or name.startswith("Hyper") else "#4a6c8c" if name.startswith("torch ") else "#9a9a9a"
            axis.barh(i := names.index(name), middle, color=color, height=0.7)
            axis.plot([low, high], [i, i], color="black", linewidth=1)
            axis.text(max(middle, high) * 1.06, i, f"{middle:.2f}", va="center", fontsize=7)
        axis.set(title=MODELS[model][1], xscale="log", xlim=(0.15, 60), yticks=range(len(names)), yticklabels=names)
        axis.axvline(1, color="black", linewidth=0.6, linestyle=":")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("time of opt.step() relative to torch's fused Adam, median and quartiles", fontsize=9)
    return figure


def main(*, turns: int = 25, models: list[str] | None = None, before: Path | None = None, docs: Path = Path("docs")) -> None:
    """
    Args:
        turns: number of turns
        models: names of the models; the table is written only for all of them
        before: the folder src/hypergradient of an older version
        docs: folder for table, plot and data
    """
    for message in ("Using backward", "`torch.jit"):
        warnings.filterwarnings("ignore", message)
    if before:
        compare(before, docs)
        return
    rows = {model: measure(MODELS[model][0], turns) for model in models or MODELS}
    if list(rows) == list(MODELS):
        seconds = compile_times()
        write(docs / "images" / "step-time.png", plot(rows))
        publish(docs, "step-time", __doc__, {"models": rows, "first steps": seconds}, text(rows, seconds))


if __name__ == "__main__":
    command(main)
