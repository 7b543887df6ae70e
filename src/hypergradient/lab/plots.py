"""Figures in the manner of the paper: baselines dashed, hypergradient versions solid, one colour a family."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from .config import MODEL_TITLES, TITLES, Config
from .store import Folder, History

#: Okabe and Ito's palette, which colour-blind readers tell apart.
COLOURS = {"sgd": "#E69F00", "sgdn": "#CC3311", "adam": "#0072B2"}

KINDS = ("png", "pdf", "svg")

#: A row of the figure: label, column by epoch, column by iteration.
ROWS = [
    ("Learning rate α", "alpha", "alpha"),
    ("Training loss", "train_loss", "loss"),
    ("Validation loss", "valid_loss", None),
]


def tuning(runs: Sequence[tuple[Config, History]], *, title: str) -> Figure:
    """The paper's figure 2: rows α, training loss and validation loss by epoch, a column a model, insets by iteration (log).

    Args:
        runs: configurations and histories, of one data set.
        title: stands above the columns, beside the model's name.
    """
    models = list(dict.fromkeys(config.model for config, _ in runs))
    figure = Figure(figsize=(5.2 * len(models), 10.5), layout="constrained")
    axes = figure.subplots(len(ROWS), len(models), squeeze=False, sharex="col")
    for column, model in enumerate(models):
        own = [(config, history) for config, history in runs if config.model == model]
        for row, (label, by_epoch, by_iteration) in enumerate(ROWS):
            axis = axes[row, column]
            draw(axis, own, "epochs", "epoch", by_epoch)
            axis.set_yscale("linear" if by_epoch == "alpha" else "log")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if column == 0:
                axis.set_ylabel(label)
            if by_iteration:
                make_room(axis)
                inset(axis, own, by_iteration)
        axes[0, column].set_title(f"{MODEL_TITLES[model]} ({title})")
        axes[-1, column].set_xlabel("Epoch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(TITLES))
    return figure


def draw(axis: Axes, runs: Sequence[tuple[Config, History]], table: str, x: str, y: str) -> None:
    for config, history in runs:
        columns: dict[str, Any] = getattr(history, table)
        family = config.optimizer.removesuffix("-hd")
        style = "-" if config.adapts else (0, (3, 2))
        axis.plot(columns[x], columns[y], color=COLOURS[family], linestyle=style, linewidth=1.4, label=TITLES[config.optimizer])
    axis.grid(alpha=0.3)


def make_room(axis: Axes) -> None:
    """Raise the upper end of the y axis until no curve runs behind the inset, which takes the upper right quarter."""
    to, back = (np.log10, lambda y: 10**y) if axis.get_yscale() == "log" else (np.asarray, float)
    left, right = axis.get_xlim()
    low, high = to(axis.get_ylim())
    curves = [np.asarray(line.get_xydata(), dtype=float) for line in axis.get_lines()]
    behind = np.concatenate([curve[curve[:, 0] > left + 0.38 * (right - left), 1] for curve in curves])
    behind = to(behind[np.isfinite(behind)])
    if len(behind):
        ticks = [tick for tick in axis.get_yticks() if back(low) <= tick <= back(high)]
        axis.set_ylim(top=back(max(high, low + (behind.max() - low) / 0.46)))
        axis.set_yticks(ticks)  # none beside the room that was made
        axis.yaxis.set_minor_locator(NullLocator())


def inset(axis: Axes, runs: Sequence[tuple[Config, History]], column: str) -> None:
    """The same quantity by iteration, over a logarithmic axis: the first steps are where the learning rate is found."""
    small = axis.inset_axes((0.47, 0.57, 0.51, 0.41))
    draw(small, runs, "iterations", "iteration", column)
    small.set_xscale("log")
    small.tick_params(labelsize=7)
    small.set_xlabel("Iteration", fontsize=7, labelpad=0)


def save(figure: Figure, folder: Folder, name: str) -> list[Path]:
    """Write the figure as PNG, PDF and SVG."""
    for kind in KINDS:
        folder.write(f"{name}.{kind}", partial(figure.savefig, format=kind, dpi=160))
    return [folder.path / f"{name}.{kind}" for kind in KINDS]
