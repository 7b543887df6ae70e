"""What a whole training step costs, forward, backward and step: all optimizers interleaved in one run.

    python -m benchmarks.train_step

Models: the paper's 784-1000-1000-10 network with ReLU at batch 128, a small convolutional network on 32 x 32 images at batch 128, and a
transformer of four layers of width 256 over a vocabulary of 2,000 at batch 16 and length 64; random data. Each number is the median over
the turns of the ratio to another row in the same turn, and the middle half of them. "peer" is gradient-descent-the-ultimate-optimizer,
which adapts by a graph that is kept alive through the update. Writes docs/results/train-step.json and the table in docs/performance.md.
"""

import argparse
import json
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
from .timing import Step, fill, interleaved, ratio

LR, BETA = 1e-7, 0.0  # nothing moves, and no gradient vanishes: what is timed is the work


class Transformer(nn.Module):
    """Predicts the next of 2,000 tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.tokens, self.body, self.head = nn.Embedding(2000, 256), nn.TransformerEncoder(layer, 4), nn.Linear(256, 2000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        found: torch.Tensor = self.head(self.body(self.tokens(x), mask=mask, is_causal=True)).flatten(0, 1)
        return found


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))


def convolutions() -> nn.Module:
    sizes = [(3, 32), (32, 64), (64, 128)]
    layers = [x for a, b in sizes for x in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10))


def data(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A minibatch of inputs and targets."""
    generator = torch.Generator().manual_seed(0)
    if name == "transformer":
        tokens = torch.randint(2000, (16, 65), generator=generator)
        return tokens[:, :-1], tokens[:, 1:].flatten()
    shape = (784,) if name == "784-1000-1000-10" else (3, 32, 32)
    return torch.randn(128, *shape, generator=generator), torch.randint(10, (128,), generator=generator)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "784-1000-1000-10": network,
    "convolutional": convolutions,
    "transformer": Transformer,
}


def training(make_model: Callable[[], nn.Module], make: Callable[[Any], torch.optim.Optimizer], x: torch.Tensor, y: torch.Tensor) -> Step:
    torch.manual_seed(0)
    model = make_model()
    opt = make(model.parameters())

    def step() -> None:
        opt.zero_grad()
        cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        opt.step()

    return step


def peer(make_model: Callable[[], nn.Module], optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> Step:
    torch.manual_seed(0)
    model = gdtuo.ModuleWrapper(make_model(), optimizer=optimizer)
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

FUSED, DEFAULT = "torch Adam fused", "torch Adam"

#: A row's name, the row that it is compared with, and its optimizer; the names of ours are what a user writes.
ROWS: list[tuple[str, str, Callable[[Any], torch.optim.Optimizer]]] = [
    (FUSED, FUSED, lambda params: torch.optim.Adam(params, lr=LR, fused=True)),
    ("AdamHD fused", FUSED, lambda params: AdamHD(params, lr=LR, hypergrad_lr=BETA, fused=True)),
    ("AdamHD fused, no lr (TuningFree)", FUSED, lambda params: AdamHD(params, fused=True)),
    ("AdamWHD fused", FUSED, lambda params: AdamWHD(params, lr=LR, hypergrad_lr=BETA, fused=True)),
    ("Hypergradient(Adam fused)", FUSED, lambda params: Hypergradient(torch.optim.Adam(params, lr=LR, fused=True), hypergrad_lr=BETA)),
    (DEFAULT, FUSED, lambda params: torch.optim.Adam(params, lr=LR)),
    ("AdamHD", DEFAULT, lambda params: AdamHD(params, lr=LR, hypergrad_lr=BETA)),
    ("AdamHD, no lr (TuningFree)", DEFAULT, lambda params: AdamHD(params)),
]

#: What more hyperparameters and levels cost, on the first network alone.
MORE: list[tuple[str, str, Callable[[Any], torch.optim.Optimizer]]] = [
    ("AdamHD, with weight decay", "AdamHD", lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, hypergrad_lr=BETA)),
    (
        "AdamHD, lr, betas and weight decay",
        "AdamHD, with weight decay",
        lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, adapt=ALL),
    ),
    (
        "AdamHD fused, with weight decay",
        FUSED,
        lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, hypergrad_lr=BETA, fused=True),
    ),
    (
        "AdamHD fused, lr, betas and weight decay",
        "AdamHD fused, with weight decay",
        lambda params: AdamHD(params, lr=LR, weight_decay=1e-4, adapt=ALL, fused=True),
    ),
    ("AdamHD, two levels", "AdamHD", lambda params: AdamHD(params, lr=LR, rule=tower(2))),
    ("AdamHD, three levels", "AdamHD, two levels", lambda params: AdamHD(params, lr=LR, rule=tower(3))),
    ("AdamHD, four levels", "AdamHD, three levels", lambda params: AdamHD(params, lr=LR, rule=tower(4))),
    ("torch SGD momentum", FUSED, lambda params: torch.optim.SGD(params, LR, 0.9)),
    ("SGDHD momentum", "torch SGD momentum", lambda params: SGDHD(params, LR, 0.9, hypergrad_lr=BETA)),
    (
        "SGDHD, lr, momentum and weight decay",
        "SGDHD momentum",
        lambda params: SGDHD(
            params, LR, 0.9, weight_decay=1e-4, adapt={name: Additive(BETA) for name in ("lr", "momentum", "weight_decay")}
        ),
    ),
]
PEERS: list[tuple[str, str, Callable[[], Any]]] = [
    ("peer: Adam/SGD, lr and betas", FUSED, lambda: gdtuo.Adam(LR, optimizer=gdtuo.SGD(BETA))),
    ("peer: Adam/SGD/SGD", FUSED, lambda: gdtuo.Adam(LR, optimizer=gdtuo.SGD(BETA, optimizer=gdtuo.SGD(BETA)))),
]


def measure(model: str, turns: int, each: int) -> list[dict[str, Any]]:
    """The rows of one model."""
    x, y = data(model)
    first = model == next(iter(MODELS))
    rows = [*ROWS, *(MORE if first else [])]
    steps = {name: training(MODELS[model], make, x, y) for name, _, make in rows}
    steps |= {name: peer(MODELS[model], make(), x, y) for name, _, make in PEERS if first}
    against = {name: other for name, other, _ in [*rows, *PEERS]}

    def several(step: Step) -> Step:
        return lambda: [step() for _ in range(each)]

    seconds = interleaved({name: several(step) for name, step in steps.items()}, turns)
    found = []
    for name, times in seconds.items():
        row: dict[str, Any] = {"optimizer": name, "milliseconds": sorted(times)[turns // 2] / each * 1e3, "against": against[name]}
        row |= {"ratio": ratio(times, seconds[against[name]]), "to fused": ratio(times, seconds[FUSED])}
        found.append(row)
        print(f"{name:42s} {row['milliseconds']:8.2f} ms {row['to fused'][0]:6.2f} {row['ratio'][0]:6.3f} of {row['against']}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40, help="how many times each takes its turn")
    parser.add_argument("--steps", type=int, default=3, help="training steps a turn")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where table and data are written")
    options = parser.parse_args()
    for message in ("Using backward", "weight_decay is adapted on the training loss", "`torch.jit"):
        warnings.filterwarnings("ignore", message)
    rows = {}
    for model in MODELS:
        print(model)
        rows[model] = measure(model, options.turns, options.steps)
    (options.docs / "results" / "train-step.json").write_text(json.dumps({"machine": machine(), "models": rows}, indent=1) + "\n")
    fill(options.docs / "performance.md", "train_step", page(rows))


def page(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [sentence(__doc__), machine()]
    for model, table in rows.items():
        lines += ["", f"**{model}**", "", "| optimizer | over torch's fused Adam | over another row |", "|---|---|---|"]
        for row in table:
            other = "" if row["against"] == FUSED else f"{row['against']}: " + "{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"])
            lines.append(f"| {row['optimizer']} | " + "{:.3f} ({:.3f} to {:.3f})".format(*row["to fused"]) + f" | {other} |")
    return lines


if __name__ == "__main__":
    main()
