"""Momentum, betas and weight decay that adapt themselves, on MNIST, beside constant ones.

    python -m benchmarks.hyperparameters --data ../shared/data/mnist

Writes docs/results/hyperparameters.md, hyperparameters.csv (every epoch of every run) and hyperparameters.png. Runs that the csv holds are
not made again.
"""

import argparse
import csv
import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch.nn.functional import cross_entropy

from hypergradient import SGDHD, AdamHD, Additive, Multiplicative
from hypergradient.lab.runs.data import Data, load
from hypergradient.lab.runs.engine import flush_denormals, limited, shuffled
from hypergradient.lab.runs.models import make_model
from hypergradient.lab.runs.train import evaluate

from .report import machine, sentence

SEEDS = (1, 2, 3)
SGDN: dict[str, Any] = {"lr": 0.01, "weight_decay": 1e-4, "nesterov": True}
ADAM: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-4}
FACTOR = Multiplicative(0.01)

LEAD = """
Batch 128, L2 1e-4; SGD with Nesterov momentum from lr 0.01, Adam from 1e-3, which stay; the network is 784-100-100-10. Medians of three
seeds after the last epoch, training loss over the minibatches of that epoch. Weight decay: SGD at lr 0.1 on 900 of 1,000 images for 200
epochs; the held-out loss is that of minibatches of the other 100.

![The hyperparameter and the validation loss by epoch](hyperparameters.png)

*Seed 1; validation losses of weight decay are running medians over twenty epochs.*

What helps: a momentum that is too high comes down, and weight decay finds its way up on held-out images. What does not: from a good or low
start the hypergradient, which sees one step, takes momentum and β1 down and the training loss of the network up. Betas move far and change
little. Weight decay on the training loss falls, and overfits more.
""".strip().splitlines()

Make = Callable[[Any], torch.optim.Optimizer]


@dataclass(frozen=True)
class Case:
    """A row of the tables: how the hyperparameter starts, what moves it, and the optimizer."""

    start: str
    moved_by: str
    make: Make
    held_out: bool = False


@dataclass(frozen=True)
class Part:
    """One hyperparameter, the workload that it is tried on, and where it is read."""

    title: str
    column: str
    model: str
    epochs: int
    limit: int | None
    cases: list[Case]
    read: Callable[[dict[str, Any]], float]


def momenta() -> list[Case]:
    def make(mu: float, rule: Any) -> Make:
        return lambda params: SGDHD(params, momentum=mu, adapt={"momentum": rule}, **SGDN)

    kinds = {"constant": None, "multiplicative, 0.01": FACTOR, "additive, 0.1": Additive(0.1)}
    return [Case(f"{mu:g}", name, make(mu, rule)) for mu in (0.5, 0.9, 0.99) for name, rule in kinds.items()]


def both_betas() -> list[Case]:
    def make(pair: tuple[float, float], rule: Any) -> Make:
        return lambda params: AdamHD(params, betas=pair, adapt={"betas": (rule, rule)}, **ADAM)

    kinds = {"constant": None, "multiplicative, 0.01": FACTOR, "additive, 1": Additive(1.0)}
    return [
        Case(f"{pair[0]:g}, {pair[1]:g}", name, make(pair, rule))
        for pair in ((0.5, 0.9), (0.9, 0.999), (0.99, 0.9999))
        for name, rule in kinds.items()
    ]


def decays() -> list[Case]:
    """All are trained on the same nine tenths of the images."""

    def make(decay: float, rule: Any) -> Make:
        return lambda ps: SGDHD(ps, lr=0.1, weight_decay=decay, adapt={"weight_decay": rule})

    return [
        Case(f"{decay:g}", name, make(decay, rule), held_out)
        for decay in (1e-4, 1e-2)
        for name, rule, held_out in [
            ("constant", None, False),
            ("training loss", Multiplicative(0.02), False),
            ("held-out loss", Multiplicative(0.02), True),
        ]
    ]


PARTS = [
    *(Part(f"Momentum, {title}", "μ", model, 10, None, momenta(), lambda group: group["momentum"]) for model, title in
      (("logreg", "logistic regression"), ("mlp", "ReLU network"))),
    *(Part(f"Betas, {title}", "β1", model, 10, None, both_betas(), lambda group: group["betas"][0]) for model, title in
      (("logreg", "logistic regression"), ("mlp", "ReLU network"))),
    Part("Weight decay, ReLU network on 1,000 images", "λ", "mlp", 200, 1_000, decays(), lambda group: group["weight_decay"]),
]  # fmt: skip


def run(part: Part, case: Case, data: Data, seed: int) -> list[list[float]]:
    """Each epoch's training loss (mean over its batches), validation loss, value at its end, and β2 where there is one."""
    own = limited(data, part.limit)
    x, y = own.train_x, own.train_y
    kept = len(y) * 9 // 10 if part.limit else len(y)
    model = make_model(part.model, x.shape[1:], data.classes, seed, hidden=100)
    opt: Any = case.make(model.parameters())
    rows, step = [], 0
    for epoch in range(part.epochs):
        losses = []
        for batch in torch.split(shuffled(kept, seed, epoch), 128):
            if case.held_out:
                others = kept + torch.arange(step * 50, step * 50 + 50) % (len(y) - kept)
                opt.adapt(cross_entropy(model(x[others]), y[others]))
            opt.zero_grad()
            loss = cross_entropy(model(x[batch]), y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            opt.step()
            losses.append(loss.item())
            step += 1
        group = opt.param_groups[0]
        valid = evaluate(model, data.valid_x, data.valid_y)[0]
        rows.append([math.fsum(losses) / len(losses), valid, part.read(group), group.get("betas", (math.nan,) * 2)[1]])
    return rows


Rows = dict[tuple[str, str, str, int], list[list[float]]]
HEAD = ("part", "start", "moved_by", "seed", "epoch", "train_loss", "valid_loss", "value", "beta2")


def read(path: Path) -> Rows:
    """The runs that the csv holds."""
    rows: Rows = {}
    if path.exists():
        with path.open(newline="") as file:
            for part, start, moved_by, seed, _, *values in list(csv.reader(file))[1:]:
                rows.setdefault((part, start, moved_by, int(seed)), []).append([float(value) for value in values])
    return rows


def write(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for key, epochs in rows.items():
            writer.writerows([*key, i + 1, *(f"{value:.6g}" for value in epoch)] for i, epoch in enumerate(epochs))


def table(part: Part, rows: Rows) -> list[str]:
    lines = [
        f"## {part.title}",
        "",
        f"| {part.column} starts at | moved by | ends at | training loss | validation loss |",
        "|---|---|---|---|---|",
    ]
    for case in part.cases:
        last = [rows[part.title, case.start, case.moved_by, seed][-1] for seed in SEEDS]
        train, valid, value, second = (statistics.median(column) for column in zip(*last, strict=True))
        ends = f"{value:.4g}" if math.isnan(second) else f"{value:.4g}, {second:.5g}"
        lines.append(f"| {case.start} | {case.moved_by} | {ends} | {train:.4g} | {valid:.4f} |")
    return [*lines, ""]


def smooth(values: list[float], over: int) -> list[float]:
    """Running medians, so that single epochs do not hide the rest."""
    return [statistics.median(values[max(0, i + 1 - over) : i + 1]) for i in range(len(values))]


def draw(rows: Rows) -> Figure:
    """Each hyperparameter by epoch, seed 1; and the validation loss under it."""
    shown = [PARTS[1], PARTS[3], PARTS[4]]
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    styles = {"constant": (0, (1, 1.2)), "training loss": (0, (3, 2)), "additive, 0.1": (0, (3, 2)), "additive, 1": (0, (3, 2))}
    colours = ("#E69F00", "#0072B2", "#CC3311")
    for column, part in zip(axes.T, shown, strict=True):
        starts = list(dict.fromkeys(case.start for case in part.cases))
        for case in part.cases:
            epochs = rows[part.title, case.start, case.moved_by, SEEDS[0]]
            look = {"color": colours[starts.index(case.start)], "linestyle": styles.get(case.moved_by, "-")}
            at = range(1, len(epochs) + 1)
            column[0].plot(at, [row[2] for row in epochs], **look)
            column[1].plot(at, smooth([row[1] for row in epochs], part.epochs // 10), **look)
        column[0].set(title=part.title.replace("ReLU network on ", ""), ylabel=part.column)
        column[1].set(xlabel="Epoch", ylabel="Validation loss", yscale="log")
        column[1].yaxis.set_major_formatter("{x:.3g}")
        column[1].yaxis.set_minor_formatter("{x:.2g}")
        column[1].tick_params(axis="y", which="minor", labelsize=7)
        kinds = dict.fromkeys(case.moved_by for case in part.cases)
        handles = [Line2D([], [], color=colour, label=f"from {start}") for start, colour in zip(starts, colours, strict=False)]
        handles += [Line2D([], [], color="0.3", linestyle=styles.get(kind, "-"), label=kind) for kind in kinds]
        column[1].legend(handles=handles, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    axes[0, 2].set_yscale("log")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="MNIST: a folder in the Hugging Face Parquet layout, or a Hub id")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="where table, data and figure are written")
    options = parser.parse_args()
    flush_denormals()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "weight_decay is adapted on the training loss")

    path = options.output / "hyperparameters.csv"
    data, rows = load(options.data), read(path)
    for part in PARTS:
        for case in part.cases:
            for seed in SEEDS:
                key = part.title, case.start, case.moved_by, seed
                if key not in rows:
                    rows[key] = run(part, case, data, seed)
                    write(path, rows)
                    print(*key, *(f"{value:.4g}" for value in rows[key][-1]), flush=True)
    lines = ["# Hyperparameters that move, on MNIST", "", sentence(__doc__), machine(), "", *LEAD, ""]
    for part in PARTS:
        lines += table(part, rows)
    (options.output / "hyperparameters.md").write_text("\n".join(lines))
    draw(rows).savefig(options.output / "hyperparameters.png", dpi=150)


if __name__ == "__main__":
    main()
