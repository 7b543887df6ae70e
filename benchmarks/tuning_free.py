"""The optimizers without a learning rate, beside the best constant learning rate and the best with cosine decay of a grid.

    python -m benchmarks.tuning_free --mnist ../shared/data/mnist --cifar10 ../shared/data/cifar10

Final losses on the whole training set and on the validation set, in evaluation mode, once, at the end; same initial weights and batches.
The grid is {1e-6, 3e-6, ..., 1}. Writes docs/results/tuning-free.json and docs/results/tuning-free.md after each workload; a second start
does what is missing.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hypergradient import SGDHD, AdamHD
from hypergradient.lab.data import Data, load
from hypergradient.lab.engine import limited, shuffled
from hypergradient.lab.models import make_model
from hypergradient.lab.train import evaluate

from .report import machine, sentence

GRID = [10.0 ** (k / 2) for k in range(-12, 1)]
GIVEN = [10.0**k for k in range(-6, 0)]
BASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "Adam": (torch.optim.Adam, AdamHD, {}),
    "SGDN": (torch.optim.SGD, SGDHD, {"momentum": 0.9, "nesterov": True}),
}


@dataclass(frozen=True)
class Work:
    """A workload: ``losses(make, cosine, seed)`` trains from the seed's weights, and gives the final training and validation loss."""

    name: str
    losses: Callable[[Callable[[Any], Any], bool, int], tuple[float, float]]


def network(name: str, data: Data, model_name: str, hidden: int, batch: int, epochs: int) -> Work:
    """One of the lab's models."""
    n = len(data.train_y)
    steps = math.ceil(n / batch) * epochs

    def losses(make: Callable[[Any], Any], cosine: bool, seed: int) -> tuple[float, float]:
        model = make_model(model_name, data.train_x.shape[1:], data.classes, seed, hidden=hidden)

        def minibatches() -> Iterator[Tensor]:
            for epoch in range(epochs):
                for indices in torch.split(shuffled(n, seed, epoch), batch):
                    x, y = data.batch(indices)
                    yield cross_entropy(model(x), y)

        train(make(model.parameters()), minibatches(), steps, cosine)
        return evaluate(model, data.train_x, data.train_y)[0], evaluate(model, data.valid_x, data.valid_y)[0]

    return Work(f"{name}, {steps:,} steps", losses)


def quadratic(steps: int) -> Work:
    """½ Σ k_i w_i² in 100 dimensions, condition 1,000, with the noise of a regression's gradients, 0.3 √k_i."""
    k = torch.logspace(0, -3, 100)

    def losses(make: Callable[[Any], Any], cosine: bool, seed: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed)
        w = nn.Parameter(torch.randn(100, generator=generator))
        noisy = ((k * w**2 / 2 + 0.3 * k.sqrt() * torch.randn(100, generator=generator) * w).sum() for _ in range(steps))
        train(make([w]), noisy, steps, cosine)
        loss = float((k * w.detach() ** 2).sum() / 2)
        return loss, loss

    return Work(f"noisy quadratic, {steps:,} steps", losses)


def train(opt: Any, losses: Iterator[Tensor], steps: int, cosine: bool) -> None:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps) if cosine else None
    for loss in losses:
        opt.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        opt.step()
        if schedule:
            schedule.step()
    if hasattr(opt, "eval"):
        opt.eval()


def workloads(options: argparse.Namespace) -> list[Work]:
    digits, mnist, cifar10 = load("digits"), load(options.mnist), limited(load(options.cifar10), 20_000)
    return [
        network("digits, 64-100-100-10, batch 64", digits, "mlp", 100, 64, 15),
        network("MNIST, logistic regression, batch 128", mnist, "logreg", 0, 128, 5),
        network("MNIST, 784-128-128-10, batch 128", mnist, "mlp", 128, 128, 4),
        network("MNIST, 784-128-128-10, batch 1,024", mnist, "mlp", 128, 1024, 6),
        network("CIFAR-10, 20,000 images, 3072-128-128-10, batch 128", cifar10, "mlp", 128, 128, 4),
        quadratic(300),
        quadratic(30_000),
    ]


def runs(base: str) -> dict[str, tuple[Callable[[Any], Any], bool]]:
    """The runs of one base optimizer: name → how its optimizer is made, and whether a cosine schedule drives it."""
    torchs, ours, extra = BASES[base]
    found: dict[str, tuple[Callable[[Any], Any], bool]] = {}
    for cosine in (False, True):
        for lr in GRID:
            found[f"{'cosine' if cosine else 'constant'} {lr:.0e}"] = (lambda params, lr=lr: torchs(params, lr=lr, **extra), cosine)  # type: ignore[misc]
    for given in [None, *GIVEN]:
        found[f"ours {given}"] = (lambda params, given=given: ours(params, lr=given, **extra), False)  # type: ignore[misc]
    return found


def best(results: dict[str, list[float]], kind: str) -> list[float]:
    """The lowest training and the lowest validation loss of a grid; a run that diverged has none."""
    return [min(losses[i] for name, losses in results.items() if name.startswith(kind) and math.isfinite(losses[i])) for i in range(2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="a folder in the Hugging Face Parquet layout, or a Hub id")
    parser.add_argument("--cifar10", required=True, help="the same")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 1; the table has their medians")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="where table and data are written")
    options = parser.parse_args()
    file = options.output / "tuning-free.json"
    results: dict[str, dict[str, list[float]]] = json.loads(file.read_text()) if file.exists() else {}
    for work in workloads(options):
        for seed in range(1, options.seeds + 1):
            for base in BASES:
                own = results.setdefault(f"{work.name} | {base} | {seed}", {})
                for name, (make, cosine) in runs(base).items():
                    if name not in own:
                        own[name] = [float(f"{loss:.6g}") for loss in work.losses(make, cosine, seed)]
                print(
                    work.name,
                    base,
                    seed,
                    *(round(a / b, 3) for a, b in zip(own["ours None"], best(own, "constant"), strict=True)),
                    flush=True,
                )
                file.write_text(json.dumps(results, indent=1) + "\n")
                (options.output / "tuning-free.md").write_text(page(results, options.seeds))


def page(results: dict[str, dict[str, list[float]]], seeds: int) -> str:
    lines = [
        "# Without a learning rate, beside tuned ones",
        "",
        sentence(__doc__) + (f" Medians of the seeds 1 to {seeds}." if seeds > 1 else " Seed 1."),
        machine(),
        "",
        "Final loss on the whole training set / on validation. ρ is that of `AdamHD(params)` or `SGDHD(params, momentum=0.9,",
        "nesterov=True)` over the best constant learning rate of the grid, ρ_cos over the best with cosine decay; both are chosen for",
        "each loss by itself, with hindsight. Below 1 the run without a choice is better. The last column is the worst ρ of the six",
        "runs with lr = 1e-6, ..., 1e-1 given. No weight decay.",
        "",
        "| work | base | constant | cosine | ours | ρ | ρ_cos | worst ρ, lr given |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ratios: list[float] = []
    for work in dict.fromkeys(key.split(" | ")[0] for key in results):
        for base in BASES:
            rows = [own for key, own in results.items() if key.startswith(f"{work} | {base} | ")]
            columns = [[*best(own, "constant"), *best(own, "cosine"), *own["ours None"]] for own in rows]
            constant, cosine, ours = (medians(columns, i) for i in (0, 2, 4))
            worst = [max(own[f"ours {lr}"][i] / best(own, "constant")[i] for own in rows for lr in GIVEN) for i in range(2)]
            ratios += [a / b for a, b in zip(ours, cosine, strict=True)]
            cells = [pair(x, ".4g") for x in (constant, cosine, ours)]
            cells += [pair([a / b for a, b in zip(ours, other, strict=True)], ".2f") for other in (constant, cosine)] + [pair(worst, ".2f")]
            lines.append(f"| {work} | {base} | {' | '.join(cells)} |")
    mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
    return "\n".join([*lines, "", f"Geometric mean of ρ_cos: {mean:.3f}; the largest: {max(ratios):.2f}."]) + "\n"


def medians(columns: list[list[float]], i: int) -> list[float]:
    return [sorted(column[j] for column in columns)[len(columns) // 2] for j in (i, i + 1)]


def pair(values: list[float], form: str) -> str:
    return " / ".join(format(value, form) for value in values)


if __name__ == "__main__":
    main()
