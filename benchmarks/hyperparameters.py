"""Adapted momentum, betas and weight decay on MNIST, compared with constant ones.

    python -m benchmarks.hyperparameters --data ../shared/data/mnist

Writes docs/results/hyperparameters.md, hyperparameters.csv (every epoch of every run) and hyperparameters.png. Runs
already in the csv are not repeated.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hypergradient.lab.compare.workers import prepare
from hypergradient.lab.experiments import plots
from hypergradient.lab.runs.config import Config
from hypergradient.lab.runs.data import Data, load
from hypergradient.lab.runs.store import History

from .kept import histories
from .report import command, page, table, write

SEEDS = (1, 2, 3)
HEAD = ["part", "start", "moved_by", "seed", "epoch", "train_loss", "valid_loss", "value", "beta2"]


@dataclass(frozen=True)
class Part:
    """One hyperparameter, and the workload to try it on.

    Args:
        symbol: its symbol in tables.
        column: its column of the history.
        model: the lab's model.
        epochs: length of a run.
        cases: optimizers, by the initial value and what adapts it.
        limit: number of training images, of which a tenth is held out in all cases.
    """

    symbol: str
    column: str
    model: str
    epochs: int
    cases: dict[tuple[str, str], str]
    limit: int | None = None


MOMENTUM = {
    (f"{mu:g}", name): f"SGDHD(lr=0.01, momentum={mu}, nesterov=True, weight_decay=1e-4, adapt={{'momentum': {rule}}})"
    for mu in (0.5, 0.9, 0.99)
    for name, rule in {"constant": "None", "multiplicative, 0.01": "Multiplicative(0.01)", "additive, 0.1": "Additive(0.1)"}.items()
}
BETAS = {
    (f"{a:g}, {b:g}", name): f"AdamHD(lr=1e-3, betas=({a}, {b}), weight_decay=1e-4, adapt={{'betas': ({rule}, {rule})}})"
    for a, b in ((0.5, 0.9), (0.9, 0.999), (0.99, 0.9999))
    for name, rule in {"constant": "None", "multiplicative, 0.01": "Multiplicative(0.01)", "additive, 1": "Additive(1.0)"}.items()
}
DECAY = {
    (f"{decay:g}", name): f"SGDHD(lr=0.1, weight_decay={decay}, adapt={{'weight_decay': {rule}}})"
    for decay in (1e-4, 1e-2)
    for name, rule in {"constant": "None", "training loss": "Multiplicative(0.02)", "held-out loss": "Multiplicative(0.02)"}.items()
}
PARTS = {
    "Momentum, logistic regression": Part("μ", "momentum", "logreg", 10, MOMENTUM),
    "Momentum, ReLU network": Part("μ", "momentum", "mlp", 10, MOMENTUM),
    "Betas, logistic regression": Part("β1", "beta1", "logreg", 10, BETAS),
    "Betas, ReLU network": Part("β1", "beta1", "mlp", 10, BETAS),
    "Weight decay, ReLU network on 1,000 images": Part("λ", "weight_decay", "mlp", 200, DECAY, 1000),
}


def run(title: str, start: str, moved_by: str, data: Data, root: Path) -> pd.DataFrame:
    """The epochs of a case with all seeds."""
    part, held_out = PARTS[title], moved_by == "held-out loss"
    kept = part.limit if held_out or not part.limit else part.limit * 9 // 10
    own = replace(data, train_x=data.train_x[:kept], train_y=data.train_y[:kept])
    base = Config("MNIST", part.model, part.cases[start, moved_by], epochs=part.epochs, hidden=100)
    base = replace(base, hypergrad_data="validation" if held_out else "train")
    found = zip(SEEDS, histories([replace(base, seed=seed) for seed in SEEDS], own, root), strict=True)
    return pd.concat(
        [of_epochs(history, part.column, start).assign(part=title, start=start, moved_by=moved_by, seed=s) for s, history in found]
    )


def of_epochs(history: History, column: str, start: str) -> pd.DataFrame:
    """Each epoch's losses, the value at its end, and β2 if any; a constant hyperparameter keeps its initial value."""
    constant = [*map(float, start.split(", ")), math.nan]
    ends = pd.DataFrame(history.iterations).groupby("epoch")[[column, "beta2"]].last().astype(float).reset_index(drop=True)
    return pd.DataFrame(history.epochs).assign(value=ends[column].fillna(constant[0]), beta2=ends.beta2.fillna(constant[1]))


def text(rows: pd.DataFrame) -> str:
    """The page: medians over the seeds after the last epoch."""
    tables = {}
    for title, part in PARTS.items():
        last = rows[(rows.part == title) & (rows.epoch == part.epochs)].groupby(["start", "moved_by"]).median(numeric_only=True)
        lines = []
        for start, moved_by in part.cases:
            end = last.loc[(start, moved_by)]
            ends = f"{end.value:.4g}" if math.isnan(end.beta2) else f"{end.value:.4g}, {end.beta2:.5g}"
            lines.append([start, moved_by, ends, f"{end.train_loss:.4g}", f"{end.valid_loss:.4f}"])
        tables[title] = table([f"initial {part.symbol}", "adapted by", f"final {part.symbol}", "training loss", "validation loss"], lines)
    return page("hyperparameters.md", __doc__, tables=tables)


def figure(rows: pd.DataFrame) -> Figure:
    """Each hyperparameter by epoch for seed 1, and below it the validation loss."""
    found = Figure(figsize=(11, 6.4), layout="constrained")
    axes = found.subplots(2, 3)
    styles: dict[str, Any] = {"constant": plots.DOTTED} | dict.fromkeys(("training loss", "additive, 0.1", "additive, 1"), plots.DASHED)
    for (above, below), title in zip(axes.T, [title for title in PARTS if "ReLU" in title], strict=True):
        part = PARTS[title]
        colours = dict(zip(dict.fromkeys(start for start, _ in part.cases), ("#E69F00", "#0072B2", "#CC3311"), strict=False))
        for start, moved_by in part.cases:
            own = rows[(rows.part == title) & (rows.start == start) & (rows.moved_by == moved_by) & (rows.seed == SEEDS[0])]
            style = styles.get(moved_by, plots.SOLID)
            above.plot(own.epoch, own.value, color=colours[start], linestyle=style)
            smooth = own.valid_loss.rolling(part.epochs // 10, min_periods=1).median()
            below.plot(own.epoch, smooth, color=colours[start], linestyle=style)
        above.set(title=title.replace("ReLU network on ", ""), ylabel=part.symbol)
        below.set(xlabel="Epoch", ylabel="Validation loss", yscale="log")
        below.yaxis.set_major_formatter("{x:.3g}")
        below.yaxis.set_minor_formatter("{x:.2g}")
        below.tick_params(axis="y", which="minor", labelsize=7)
        handles = [Line2D([], [], color=colour, label=f"from {start}") for start, colour in colours.items()]
        kinds = dict.fromkeys(moved_by for _, moved_by in part.cases)
        handles += [Line2D([], [], color="0.3", linestyle=styles.get(kind, plots.SOLID), label=kind) for kind in kinds]
        below.legend(handles=handles, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    axes[0, 2].set_yscale("log")
    return found


def main(*, data: str, runs: Path = Path("runs/hyperparameters"), output: Path = Path("docs/results")) -> None:
    """
    Args:
        data: MNIST: a folder in the Hugging Face Parquet layout, or a Hub id
        runs: folder of the runs
        output: folder for table, data and figure
    """
    prepare()
    file, images = output / "hyperparameters.csv", load(data)
    tables = [pd.read_csv(file, dtype={"start": str})] if file.exists() else []
    done = {case for own in tables for case in own[["part", "start", "moved_by"]].itertuples(index=False, name=None)}
    for case in [(title, *case) for title, part in PARTS.items() for case in part.cases]:
        if case not in done:
            tables.append(run(*case, images, runs))
            write(file, pd.concat(tables)[HEAD].to_csv(index=False, float_format="%.6g", na_rep="nan"))
    write(output / "hyperparameters.md", text(pd.concat(tables)))
    write(output / "hyperparameters.png", figure(pd.concat(tables)))


if __name__ == "__main__":
    command(main)
