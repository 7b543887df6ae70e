"""What ``opt.step()`` costs: ratios to torch's optimizers, all interleaved in one run, with the memory that each takes.

    python -m benchmarks.step_time

Parameters: 28 million in 40 tensors, 1,000 tensors of 1,000, one of 50 million; all rows of a model step on the same parameters, with the
same gradients, new tensors at each step, as ``zero_grad`` leaves them. Every number is the median over the turns of the ratio in one turn,
with the middle half. "state" is what an optimizer keeps, "peak" what it allocates for a time within a step, both in bytes a parameter.
Writes docs/results/step-time.json, docs/images/step-time.png, and the table in docs/performance.md.

    python -m benchmarks.step_time --before ../before/src/hypergradient

is the step beside an older version of the library instead: see before.py.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dadaptation
import dog
import prodigyopt
import pytorch_optimizer
import schedulefree
import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from matplotlib.figure import Figure
from torch import Tensor, nn

from hypergradient import SGDHD, AdamHD, AdamWHD, Hypergradient, Multiplicative

from .before import compare
from .report import machine, sentence
from .timing import fill, interleaved, peak_bytes, ratio

LR = 1e-9  # nothing moves far: what is timed is the work

MODELS: dict[str, list[tuple[int, ...]]] = {
    "28 million in 40 tensors": [(1000, 700)] * 40,
    "1,000 tensors of 1,000": [(10, 100)] * 1000,
    "one of 50 million": [(50_000, 1000)],
}
SHORT = dict(zip(MODELS, ("28 M in 40", "1,000 of 1,000", "1 of 50 M"), strict=True))

Make = Callable[[list[Any]], Any]

ADAM, SGD, MOMENTUM = "torch Adam fused", "torch SGD fused", "torch SGD momentum fused"
DEFAULT, FOREACH = "torch Adam default", "torch Adam foreach"

#: A row's name, the row that it is compared with, and its optimizer.
ROWS: list[tuple[str, str, Make]] = [
    (ADAM, ADAM, lambda params: torch.optim.Adam(params, lr=LR, fused=True)),
    (FOREACH, ADAM, lambda params: torch.optim.Adam(params, lr=LR, foreach=True)),
    (DEFAULT, ADAM, lambda params: torch.optim.Adam(params, lr=LR)),
    ("AdamHD fused", ADAM, lambda params: AdamHD(params, lr=LR, rule=Multiplicative(0.0), fused=True)),
    ("AdamHD fused, additive", ADAM, lambda params: AdamHD(params, lr=LR, hypergrad_lr=0.0, fused=True)),
    ("AdamHD fused, no lr (TuningFree)", ADAM, lambda params: AdamHD(params, fused=True)),
    ("AdamWHD fused, additive", ADAM, lambda params: AdamWHD(params, lr=LR, hypergrad_lr=0.0, fused=True)),
    ("AdamHD, additive", DEFAULT, lambda params: AdamHD(params, lr=LR, hypergrad_lr=0.0)),
    ("AdamHD, no lr (TuningFree)", DEFAULT, lambda params: AdamHD(params)),
    (
        "Hypergradient(Adam fused), additive",
        ADAM,
        lambda params: Hypergradient(torch.optim.Adam(params, lr=LR, fused=True), hypergrad_lr=0.0),
    ),
    (MOMENTUM, ADAM, lambda params: torch.optim.SGD(params, lr=LR, momentum=0.9, fused=True)),
    ("SGDHD momentum fused, additive", MOMENTUM, lambda params: SGDHD(params, LR, 0.9, hypergrad_lr=0.0, fused=True)),
    ("SGDHD momentum, additive", MOMENTUM, lambda params: SGDHD(params, LR, 0.9, hypergrad_lr=0.0)),
    (SGD, ADAM, lambda params: torch.optim.SGD(params, lr=LR, fused=True)),
    ("SGDHD fused, additive", SGD, lambda params: SGDHD(params, LR, hypergrad_lr=0.0, fused=True)),
    ("SGDHD, additive", SGD, lambda params: SGDHD(params, LR, hypergrad_lr=0.0)),
    ("Prodigy (prodigyopt)", ADAM, lambda params: prodigyopt.Prodigy(params, lr=LR)),
    ("Prodigy (pytorch_optimizer)", ADAM, lambda params: pytorch_optimizer.Prodigy(params, lr=LR)),
    ("DAdaptAdam (dadaptation)", ADAM, lambda params: dadaptation.DAdaptAdam(params, lr=LR)),
    ("DoG (dog-optimizer)", ADAM, lambda params: dog.DoG(params, lr=LR)),
    ("AdamWScheduleFree (schedulefree)", ADAM, lambda params: schedulefree.AdamWScheduleFree(params, lr=LR)),
]
PEER = "Adam/SGD (gdtuo)"


def peer(params: list[nn.Parameter], gradients: list[Tensor]) -> tuple[Callable[[], None], Callable[[], None]]:
    """The step of gradient-descent-the-ultimate-optimizer, and what must come before it: a loss with these gradients, with a graph."""
    module = nn.Module()
    module.tensors = nn.ParameterList([p.detach().clone() for p in params])
    wrapped = gdtuo.ModuleWrapper(module, optimizer=gdtuo.Adam(LR, optimizer=gdtuo.SGD(0.0)))
    wrapped.initialize()

    def prepare() -> None:
        wrapped.begin()
        loss = sum((p * g).sum() for p, g in zip(wrapped.module.tensors, gradients, strict=True))
        wrapped.zero_grad()
        loss.backward(create_graph=True)

    return wrapped.step, prepare


def state_bytes(opt: torch.optim.Optimizer) -> int:
    """What it keeps in tensors, but for those of one number."""
    tensors = [x for own in opt.state.values() for x in own.values() if isinstance(x, Tensor) and x.numel() > 1]
    lists = [x if isinstance(x, list) else [x] for group in opt.param_groups for name, x in group.items() if name != "params"]
    tensors += [x for values in lists for x in values if isinstance(x, Tensor) and x.numel() > 1]
    return sum({x.data_ptr(): x.nbytes for x in tensors}.values())


def measure(shapes: list[tuple[int, ...]], turns: int) -> list[dict[str, Any]]:
    """The rows of one model."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator) * 0.01) for shape in shapes]
    gradients = [[torch.randn(shape, generator=generator) * 1e-3 for shape in shapes] for _ in range(2)]
    size = sum(p.numel() for p in params)

    def give(turn: int) -> None:
        for p, g in zip(params, gradients[turn % 2], strict=True):
            p.grad = g.data  # a tensor of its own, over the same memory

    optimizers = {name: make(params) for name, _, make in ROWS}
    for opt in optimizers.values():
        if hasattr(opt, "train"):
            opt.train()
    steps: dict[str, Callable[[], Any]] = {name: opt.step for name, opt in optimizers.items()}
    with_peer = size < 40_000_000  # its graphs keep some ten buffers
    prepare: Callable[[], None] | None = None
    if with_peer:
        steps[PEER], prepare = peer(params, gradients[0])
    names = list(steps)

    count = 0

    def before(turn: int) -> None:
        nonlocal count
        if prepare is not None and names[count % len(names)] == PEER:
            prepare()
        else:
            give(turn)
        count += 1

    seconds = interleaved(steps, turns, warm=4, before=before)
    rows = []
    against = {name: other for name, other, _ in ROWS} | {PEER: ADAM}
    for name in names:
        row: dict[str, Any] = {"optimizer": name, "milliseconds": sorted(seconds[name])[turns // 2] * 1e3, "against": against[name]}
        others = {"ratio": against[name], "to Adam": ADAM, "to foreach": FOREACH}
        row |= {kind: ratio(seconds[name], seconds[other]) for kind, other in others.items()}
        if name in optimizers:
            give(turns)
            row |= {"state": state_bytes(optimizers[name]) / size, "peak": peak_bytes(steps[name]) / size}
        rows.append(row)
        print(f"{name:38s} {row['milliseconds']:9.2f} ms {row['ratio'][0]:6.2f} of {row['against']}", flush=True)
    return rows


def first_steps(tensors: int) -> None:
    """Prints what the first two steps of a fused AdamHD take beyond two others, in seconds, with torch's compiler not yet imported."""
    params = [nn.Parameter(torch.zeros(100 + i, 200)) for i in range(tensors)]
    opt = AdamHD(params, lr=LR, hypergrad_lr=0.0, fused=True)
    times = []
    for _ in range(4):
        for p in params:
            p.grad = torch.ones_like(p)
        begun = time.perf_counter()
        opt.step()
        times.append(time.perf_counter() - begun)
    assert opt.setup.run.fused
    print(json.dumps(sum(times[:2]) - sum(times[2:])))


def compile_times() -> dict[str, float]:
    """Seconds of the first steps, without and with what an earlier process has left on the disk."""
    found = {}
    for tensors in (40, 400):
        with TemporaryDirectory() as folder:
            for kind in ("cold", "from the disk"):
                command = [sys.executable, "-m", "benchmarks.step_time", "--first-steps", str(tensors)]
                output = subprocess.run(
                    command, env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder}, capture_output=True, text=True, check=True
                )
                found[f"{tensors} tensors, {kind}"] = json.loads(output.stdout.splitlines()[-1])
    return found


def page(rows: dict[str, list[dict[str, Any]]], seconds: dict[str, float]) -> list[str]:
    lines = [sentence(__doc__), machine(), ""]
    lines.append("| optimizer | over | " + " | ".join(SHORT[model] for model in rows) + " | state, bytes | peak, bytes |")
    lines.append("|---|---|" + "---|" * len(rows) + "---|---|")
    for first in next(iter(rows.values())):
        cells = []
        for table in rows.values():
            row = next((row for row in table if row["optimizer"] == first["optimizer"]), None)
            cells.append("" if row is None else "{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"]))
        memory = [f"{first[name]:.1f}" if name in first else "" for name in ("state", "peak")]
        lines.append(f"| {first['optimizer']} | {first['against']} | {' | '.join([*cells, *memory])} |")
    small = next(row for row in list(rows.values())[1] if row["optimizer"] == "AdamHD, additive")
    lines += [
        "",
        "`AdamHD` without a compiler over torch's Adam `foreach=True`, 1,000 tensors of 1,000: {:.2f} ({:.2f} to {:.2f}).".format(
            *small["to foreach"]
        ),
    ]
    lines += ["", "First steps of a fused `AdamHD`, beyond what later ones take: "]
    lines[-1] += "; ".join(f"{name} {value:.1f} s" for name, value in seconds.items()) + "."
    return lines


def plot(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Bars over torch's fused Adam, a panel for each model."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(1, len(rows), sharey=True)
    names = [row["optimizer"] for row in next(iter(rows.values()))][::-1]
    for ax, (model, table) in zip(axes, rows.items(), strict=True):
        values = {row["optimizer"]: row["to Adam"] for row in table}
        for i, name in enumerate(names):
            if name in values:
                middle, low, high = values[name]
                ours = "HD" in name or name.startswith("Hypergradient")
                color = "#c1440e" if ours else "#4a6c8c" if name.startswith("torch ") else "#9a9a9a"
                ax.barh(i, middle, color=color, height=0.7)
                ax.plot([low, high], [i, i], color="black", linewidth=1)
                ax.text(max(middle, high) * 1.06, i, f"{middle:.2f}", va="center", fontsize=7)
        ax.set(title=SHORT[model], xscale="log", yticks=range(len(names)), yticklabels=names)
        ax.set_xlim(0.15, 60)
        ax.axvline(1, color="black", linewidth=0.6, linestyle=":")
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("time of opt.step() over torch's fused Adam, median and middle half", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks otherwise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=25, help="how many times each takes its turn")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), help="which parameters; the table needs all")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where table, plot and data are written")
    parser.add_argument("--first-steps", type=int, metavar="TENSORS", help="time compilation alone, in this process")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="the folder hypergradient of an older version, to compare with")
    options = parser.parse_args()
    if options.before:
        return compare(options.before, options.docs)
    if options.first_steps:
        return first_steps(options.first_steps)
    warnings.filterwarnings("ignore", "Using backward")
    warnings.filterwarnings("ignore", "`torch.jit")
    rows = {}
    for model in options.models:
        print(model)
        rows[model] = measure(MODELS[model], options.turns)
    if list(rows) != list(MODELS):
        return None
    seconds = compile_times()
    print(seconds)
    found = {"machine": machine(), "models": rows, "first steps": seconds}
    (options.docs / "results" / "step-time.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(rows, options.docs / "images" / "step-time.png")
    fill(options.docs / "performance.md", "step_time", page(rows, seconds))
    return None


if __name__ == "__main__":
    main()
