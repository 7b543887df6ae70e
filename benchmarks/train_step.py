"""The cost of a whole training step, forward, backward and ``opt.step()``: all optimizers interleaved in one run.

    python -m benchmarks.train_step

Models: the paper's 784-1000-1000-10 network with ReLU at batch 128, a small convolutional network on 32 x 32 images at batch 128, and a
transformer with four layers of width 256 and a vocabulary of 2,000 at batch 16 and length 64; random data. Each number is the median, over
the turns, of the ratio to another row within a turn, with quartiles. "gdtuo" is gradient-descent-the-ultimate-optimizer, which keeps the
autograd graph alive through the update. Writes docs/results/train-step.json and the table in docs/performance.md.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from torch import Tensor, nn

from hypergradient.lab.runs.engine import loss_of
from hypergradient.lab.runs.models import mlp
from hypergradient.lab.workloads.problem import seeded
from hypergradient.lab.workloads.sequence import Gpt

from .gpu_parts import convolution
from .report import command, publish, table
from .timing import Step, compared, optimizer, peer, told

FUSED, DEFAULT = "torch Adam fused", "torch Adam"

#: By name: the row to compare with, and the optimizer. Learning rates are tiny, so that no gradient vanishes.
ROWS = {
    FUSED: (FUSED, "Adam(lr=1e-7, fused=True)"),
    "AdamHD fused": (FUSED, "AdamHD(lr=1e-7, hypergrad_lr=0.0, fused=True)"),
    "AdamHD fused, tuning-free": (FUSED, "AdamHD(fused=True)"),
    "AdamWHD fused": (FUSED, "AdamWHD(lr=1e-7, hypergrad_lr=0.0, fused=True)"),
    "Hypergradient(Adam fused)": (FUSED, "Hypergradient(Adam(lr=1e-7, fused=True), hypergrad_lr=0.0)"),
    DEFAULT: (FUSED, "Adam(lr=1e-7)"),
    "AdamHD": (DEFAULT, "AdamHD(lr=1e-7, hypergrad_lr=0.0)"),
    "AdamHD, tuning-free": (DEFAULT, "AdamHD"),
}

#: The cost of further hyperparameters and levels, on the first network only.
A = "Additive(0.0)"
ALL = f"weight_decay=1e-4, adapt={{'lr': {A}, 'betas': ({A}, {A}), 'weight_decay': {A}}}"
MORE = {
    "AdamHD, with weight decay": ("AdamHD", "AdamHD(lr=1e-7, weight_decay=1e-4, hypergrad_lr=0.0)"),
    "AdamHD, lr, betas and weight decay": ("AdamHD, with weight decay", f"AdamHD(lr=1e-7, {ALL})"),
    "AdamHD fused, with weight decay": (FUSED, "AdamHD(lr=1e-7, weight_decay=1e-4, hypergrad_lr=0.0, fused=True)"),
    "AdamHD fused, lr, betas and weight decay": ("AdamHD fused, with weight decay", f"AdamHD(lr=1e-7, {ALL}, fused=True)"),
    "AdamHD, two levels": ("AdamHD", f"AdamHD(lr=1e-7, rule=Additive(Adapted(0.0, {A})))"),
    "AdamHD, three levels": ("AdamHD, two levels", f"AdamHD(lr=1e-7, rule=Additive(Adapted(0.0, Additive(Adapted(0.0, {A})))))"),
    "AdamHD, four levels": (
        "AdamHD, three levels",
        f"AdamHD(lr=1e-7, rule=Additive(Adapted(0.0, Additive(Adapted(0.0, Additive(Adapted(0.0, {A})))))))",
    ),
    "torch SGD momentum": (FUSED, "SGD(lr=1e-7, momentum=0.9)"),
    "SGDHD momentum": ("torch SGD momentum", "SGDHD(lr=1e-7, momentum=0.9, hypergrad_lr=0.0)"),
    "SGDHD, lr, momentum and weight decay": (
        "SGDHD momentum",
        f"SGDHD(lr=1e-7, momentum=0.9, weight_decay=1e-4, adapt={{'lr': {A}, 'momentum': {A}, 'weight_decay': {A}}})",
    ),
}


def peers() -> dict[str, Any]:
    return {
        "gdtuo: Adam/SGD, lr and betas": gdtuo.Adam(1e-7, optimizer=gdtuo.SGD(0.0)),
        "gdtuo: Adam/SGD/SGD": gdtuo.Adam(1e-7, optimizer=gdtuo.SGD(0.0, optimizer=gdtuo.SGD(0.0))),
    }


def convolutions() -> nn.Module:
    layers = [convolution(3, 32, 2), convolution(32, 64, 2), convolution(64, 128, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10))


def batches() -> dict[str, tuple[Any, Tensor, Tensor]]:
    """Models, inputs and targets by name."""
    generator = torch.Generator().manual_seed(0)
    tokens, labels = (torch.randint(*size, generator=generator) for size in [(2000, (16, 65)), (10, (128,))])
    rows, images = (torch.randn(128, *shape, generator=generator) for shape in [(784,), (3, 32, 32)])
    return {
        "784-1000-1000-10": (lambda: mlp(784, 1000, 10), rows, labels),
        "convolutional": (convolutions, images, labels),
        "transformer": (lambda: Gpt(2000, 64, 256, 4, 4), tokens[:, :-1], tokens[:, 1:]),
    }


def measure(make_model: Any, x: Tensor, y: Tensor, first: bool, turns: int, each: int) -> list[dict[str, Any]]:
    """Measure the rows of one model."""

    def training(call: str) -> Step:
        model = seeded(make_model, 0)
        opt = optimizer(call, model.parameters())

        def step() -> None:
            opt.zero_grad()
            loss_of(model(x), y).backward()  # type: ignore[no-untyped-call]
            opt.step()

        return step

    def of_peer(own: Any) -> Step:
        prepare, step = peer(seeded(make_model, 0), own, lambda model: loss_of(model(x), y))
        return lambda: (prepare(), step())

    rows = ROWS | (MORE if first else {})
    steps = {name: training(call) for name, (_, call) in rows.items()}
    steps |= {name: of_peer(own) for name, own in peers().items() if first}
    return compared(steps, {name: other for name, (other, _) in rows.items()}, turns, others={"to fused": FUSED}, each=each)


def text(models: dict[str, list[dict[str, Any]]]) -> str:
    parts = []
    for model, rows in models.items():
        others = ["" if row["against"] == FUSED else f"{row['against']}: {told(row['ratio'])}" for row in rows]
        cells = [[row["optimizer"], told(row["to fused"], 3), other] for row, other in zip(rows, others, strict=True)]
        parts.append(f"**{model}**\n\n" + table(["optimizer", "time / torch's fused Adam", "time / another row"], cells))
    return "\n\n".join(parts)


def main(*, turns: int = 40, steps: int = 3, docs: Path = Path("docs")) -> None:
    """
    Args:
        turns: number of turns
        steps: training steps per turn
        docs: folder for table and data
    """
    for message in ("Using backward", "weight_decay is adapted on the training loss", "`torch.jit"):
        warnings.filterwarnings("ignore", message)
    rows = {name: measure(*batch, not i, turns, steps) for i, (name, batch) in enumerate(batches().items())}
    publish(docs, "train-step", __doc__, {"models": rows}, text(rows))


if __name__ == "__main__":
    command(main)
