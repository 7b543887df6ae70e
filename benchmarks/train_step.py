"""What adapting costs: whole training steps of a network, all optimizers interleaved in one run.

    python -m benchmarks.step_time

The network is 784-1000-1000-10 with ReLU, at batch 128, on random images: forward, backward, step. Each number is the median over the
turns of the ratio to another row in the same turn, and the middle half of them. "peer" is gradient-descent-the-ultimate-optimizer, which
adapts by a graph that is kept alive through the update. Writes docs/results/step-time.md and docs/results/step-time.json.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from torch import nn
from torch.nn.functional import cross_entropy

from hypergradient import SGDHD, AdamHD, AdamWHD, Adapted, Additive, Hypergradient

from .report import machine, sentence

Step = Callable[[], None]
LR, BETA = 1e-7, 0.0  # nothing moves, and no gradient vanishes: what is timed is the work


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))


def training(make: Callable[[Any], torch.optim.Optimizer], x: torch.Tensor, y: torch.Tensor) -> Step:
    model = network()
    opt = make(model.parameters())

    def step() -> None:
        opt.zero_grad()
        cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        opt.step()

    return step


def peer(optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> Step:
    model = gdtuo.ModuleWrapper(network(), optimizer=optimizer)
    model.initialize()

    def step() -> None:
        model.begin()
        loss = cross_entropy(model.forward(x), y)
        model.zero_grad()
        loss.backward(create_graph=True)  # type: ignore[no-untyped-call]
        model.step()

    return step


def tower(height: int) -> Additive:
    """``height`` levels above the learning rate."""
    rule = Additive(BETA)
    for _ in range(height - 1):
        rule = Additive(Adapted(BETA, rule))
    return rule


ALL = {"lr": Additive(BETA), "betas": (Additive(BETA), Additive(BETA)), "weight_decay": Additive(BETA)}

#: A row's name, the row that it is compared with, and its optimizer; the names of ours are what a user writes.
OURS: list[tuple[str, str, Callable[[Any], torch.optim.Optimizer]]] = [
    ("torch Adam", "torch Adam", lambda params: torch.optim.Adam(params, lr=LR)),
    ("AdamHD, lr", "torch Adam", lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, hypergrad_lr=BETA)),
    ("AdamHD, lr, betas and weight decay", "AdamHD, lr", lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, adapt=ALL)),
    ("AdamHD, two levels", "AdamHD, lr", lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, rule=tower(2))),
    ("AdamHD, three levels", "AdamHD, two levels", lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, rule=tower(3))),
    ("AdamHD, four levels", "AdamHD, three levels", lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, rule=tower(4))),
    ("AdamWHD, lr", "torch Adam", lambda params: AdamWHD(params, lr=LR, hypergrad_lr=BETA)),
    ("AdamWHD, lr, betas and weight decay", "AdamWHD, lr", lambda params: AdamWHD(params, lr=LR, adapt=ALL)),
    ("SGDHD, lr", "torch Adam", lambda params: SGDHD(params, lr=LR, momentum=0.9, weight_decay=1e-4, hypergrad_lr=BETA)),
    (
        "SGDHD, lr, momentum and weight decay",
        "SGDHD, lr",
        lambda params: SGDHD(
            params, LR, 0.9, weight_decay=1e-4, adapt={name: Additive(BETA) for name in ("lr", "momentum", "weight_decay")}
        ),
    ),
    ("AdamHD fused, lr", "AdamHD, lr", lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, hypergrad_lr=BETA, fused=True)),
    (
        "AdamHD fused, lr, betas and weight decay",
        "AdamHD fused, lr",
        lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, adapt=ALL, fused=True),
    ),
    ("torch Adam fused", "torch Adam", lambda params: torch.optim.Adam(params, lr=LR, fused=True)),
    ("Hypergradient(Adam)", "AdamHD, lr", lambda params: Hypergradient(torch.optim.Adam(params, lr=LR), hypergrad_lr=BETA)),
]
PEERS: list[tuple[str, str, Callable[[], Any]]] = [
    ("peer: Adam/SGD, lr and betas", "torch Adam", lambda: gdtuo.Adam(LR, optimizer=gdtuo.SGD(BETA))),
    ("peer: Adam/SGD/SGD", "torch Adam", lambda: gdtuo.Adam(LR, optimizer=gdtuo.SGD(BETA, optimizer=gdtuo.SGD(BETA)))),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60, help="how many times each takes its turn")
    parser.add_argument("--steps", type=int, default=5, help="training steps a turn")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="where table and data are written")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "Using backward")
    warnings.filterwarnings("ignore", "weight_decay is adapted on the training loss")

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(128, 784, generator=generator), torch.randint(10, (128,), generator=generator)
    steps = {name: training(make, x, y) for name, _, make in OURS} | {name: peer(make(), x, y) for name, _, make in PEERS}
    against = {name: other for name, other, _ in [*OURS, *PEERS]}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.turns + 2):
        for name, step in steps.items():
            begun = time.perf_counter()
            for _ in range(options.steps):
                step()
            if turn >= 2:  # warm
                seconds[name].append((time.perf_counter() - begun) / options.steps)

    rows = []
    for name, times in seconds.items():
        ratios = {}
        for kind, other in (("to Adam", "torch Adam"), ("to its own", against[name])):
            each = sorted(mine / theirs for mine, theirs in zip(times, seconds[other], strict=True))
            ratios[kind] = [statistics.median(each), each[len(each) // 4], each[3 * len(each) // 4]]
        rows.append({"optimizer": name, "milliseconds": statistics.median(times) * 1e3, "against": against[name], **ratios})
        print(
            f"{name:40s} {rows[-1]['milliseconds']:8.2f} ms {ratios['to Adam'][0]:6.2f} {ratios['to its own'][0]:6.3f} of {against[name]}"
        )

    (options.output / "step-time.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    (options.output / "step-time.md").write_text("\n".join(page(rows)))


def page(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "# What a step costs",
        "",
        sentence(__doc__),
        machine(),
        "",
        "Whole training steps of a 784-1000-1000-10 ReLU network at batch 128: forward, backward and step, all rows interleaved in one",
        "run. Medians of the ratios turn by turn, and their middle half.",
        "",
        "| optimizer | over torch's Adam | over another row |",
        "|---|---|---|",
    ]
    for row in rows:
        (adam, low, high), (own, own_low, own_high) = row["to Adam"], row["to its own"]
        other = "" if row["against"] == "torch Adam" else f"{row['against']}: {own:.2f} ({own_low:.2f} to {own_high:.2f})"
        lines.append(f"| {row['optimizer']} | {adam:.2f} ({low:.2f} to {high:.2f}) | {other} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
