"""The tuning-free rule where it was not made: other networks on the digits, beside four constant learning rates.

    python -m benchmarks.unseen

Networks: nine hidden layers without normalisation, tanh at batch 1, a recurrent one, and pixels a hundred times too large. Final losses on
training / validation, under ``opt.eval()`` where there is one, seed 0. Writes docs/results/unseen.md.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hypergradient import SGDHD, AdamHD
from hypergradient.lab.data import load

from .report import machine, sentence

BASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "Adam": (torch.optim.Adam, AdamHD, {}),
    "SGD, Nesterov": (torch.optim.SGD, SGDHD, {"momentum": 0.9, "nesterov": True}),
}


class Recurrent(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.RNN(8, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rows(x.squeeze(1))[0][:, -1])
        return logits


def deep() -> nn.Module:
    hidden = [layer for a, b in pairwise([64] * 10) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


def shallow(width: int, activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), activation, nn.Linear(width, 10))


@dataclass(frozen=True)
class Work:
    """A network, its batches and steps, and what pixels are multiplied by."""

    make: Callable[[], nn.Module]
    batch: int
    steps: int
    scale: float = 1.0


WORKS = {
    "nine hidden layers, batch 32": Work(deep, 32, 2_000),
    "tanh, batch 1": Work(lambda: shallow(200, nn.Tanh()), 1, 3_000),
    "recurrent, batch 32": Work(Recurrent, 32, 2_000),
    "pixels x 100, batch 32": Work(lambda: shallow(64, nn.ReLU()), 32, 1_000, 100.0),
}


def losses(work: Work, make: Callable[[Any], Any]) -> list[float]:
    """Final training and validation loss."""
    data = load("digits")
    torch.manual_seed(0)
    model, batches = work.make(), torch.Generator().manual_seed(0)
    opt = make(model.parameters())
    for _ in range(work.steps):
        indices = torch.randint(len(data.train_y), (work.batch,), generator=batches)
        x, y = data.batch(indices)
        opt.zero_grad()
        cross_entropy(model(x * work.scale), y).backward()  # type: ignore[no-untyped-call]
        opt.step()
    if hasattr(opt, "eval"):
        opt.eval()
    with torch.no_grad():
        pairs = ((data.train_x, data.train_y), (data.valid_x, data.valid_y))
        return [cross_entropy(model(x * work.scale), y).item() for x, y in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="where the table is written")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    lines = [
        "# Where the tuning-free rule was not made",
        "",
        sentence(__doc__)
        + " Other networks on scikit-learn's digits, final training / validation loss, seed 0. The best of torch's own with",
        "lr = 1e-4, 1e-3, 1e-2, 1e-1, for each loss by itself; ours without `lr`, and from `lr=0.1` and `lr=1000`. " + machine(),
        "",
        "One part of the rule was chosen on these networks: that a late guard takes two sudden gradients in succession.",
        "",
        "| network | base | best constant | no lr | lr = 0.1 | lr = 1000 |",
        "|---|---|---|---|---|---|",
    ]
    for name, work in WORKS.items():
        for base, (torchs, ours, options) in BASES.items():
            constants = [losses(work, partial(torchs, lr=lr, **options)) for lr in (1e-4, 1e-3, 1e-2, 1e-1)]
            best = [min(x for x in column if math.isfinite(x)) for column in zip(*constants, strict=True)]
            found = [losses(work, partial(ours, lr=lr, **options)) for lr in (None, 0.1, 1000.0)]
            lines.append(f"| {name} | {base} | {' | '.join(f'{x:.4g} / {y:.3g}' for x, y in (best, *found))} |")
            print(lines[-1], flush=True)
    (output / "unseen.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
