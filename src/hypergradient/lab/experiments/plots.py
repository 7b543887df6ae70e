"""Figures in the manner of the paper: baselines dashed, hypergradient versions solid, one colour a family."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..runs.config import TITLES, Config
from ..runs.store import Folder, History

#: Okabe and Ito's palette, which colour-blind readers tell apart.
COLOURS = {"sgd": "#E69F00", "sgdn": "#CC3311", "adam": "#0072B2", "adamw": "#009E73"}

KINDS = ("png", "pdf", "svg")

SOLID, DASHED, DOTTED = "-", (0, (3, 2)), (0, (1, 1.2))

#: A row of the figure: label, column by epoch, column by iteration.
ROWS = [
    ("Learning rate α", "alpha", "alpha"),
    ("Training loss", "train_loss", "loss"),
    ("Validation loss", "valid_loss", None),
]


@dataclass(frozen=True)
class Look:
    """How a run is drawn; ``label`` None keeps it out of the legend."""

    colour: Any
    style: Any
    label: str | None


def by_optimizer(config: Config) -> Look:
    """One colour a family, baselines dashed."""
    return Look(COLOURS[config.family], SOLID if config.adapts else DASHED, TITLES[config.optimizer])


def curves(
    runs: Sequence[tuple[Config, History]],
    *,
    column: Callable[[Config], str],
    look: Callable[[Config], Look],
    styles: Mapping[str, Any] | None = None,
) -> Figure:
    """The paper's figures of curves: rows α, training loss and validation loss by epoch, insets by iteration over a logarithmic axis.

    Args:
        runs: configurations and histories.
        column: the title of the column that a run is drawn in.
        look: how it is drawn there.
        styles: line styles that the legend explains beside the runs' labels.
    """
    titles = list(dict.fromkeys(column(config) for config, _ in runs))
    figure = Figure(figsize=(5.2 * len(titles), 10.5), layout="constrained")
    axes = figure.subplots(len(ROWS), len(titles), squeeze=False, sharex="col")
    for i, title in enumerate(titles):
        own = [(look(config), history) for config, history in runs if column(config) == title]
        for row, (label, by_epoch, by_iteration) in enumerate(ROWS):
            axis = axes[row, i]
            axis.set_yscale("linear" if by_epoch == "alpha" else "log")
            draw(axis, own, "epochs", "epoch", by_epoch)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if i == 0:
                axis.set_ylabel(label)
            fix_ticks(axis)
            if by_iteration:
                make_room(axis)
                inset(axis, own, by_iteration)
        axes[0, i].set_title(title)
        axes[-1, i].set_xlabel("Epoch")
    handles: dict[str, Any] = {}
    for axis in axes[0]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    handles |= {label: Line2D([], [], color="black", linestyle=style) for label, style in (styles or {}).items()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3 * len(titles))
    return figure


def draw(axis: Axes, runs: Sequence[tuple[Look, History]], table: str, x: str, y: str) -> None:
    for look, history in runs:
        columns: dict[str, Any] = getattr(history, table)
        label = look.label or "_"
        axis.plot(columns[x], columns[y], color=look.colour, linestyle=look.style, linewidth=1.4, label=label)
    axis.grid(alpha=0.3)
    steady = [getattr(history, table)[y] for _, history in runs if not diverged(history)]
    if 0 < len(steady) < len(runs):  # those that diverged leave the frame of the others
        to, back = scale(axis)
        low, high = to(min(map(min, steady))), to(max(map(max, steady)))
        margin = 0.05 * (high - low or abs(low) or 1)
        axis.set_ylim(back(low - margin), back(high + margin))


def diverged(history: History) -> bool:
    losses = history.iterations["loss"]
    return bool(losses) and not math.isfinite(losses[-1])


def fix_ticks(axis: Axes) -> None:
    """Ticks for what the axis shows now, in plain numbers, and none beside the room that may be made above it."""
    low, high = axis.get_ylim()

    def inside(ticks: Any) -> list[float]:
        return [float(tick) for tick in ticks if low <= tick <= high]

    shown = inside(axis.get_yticks())
    if axis.get_yscale() == "log":
        fine = inside(LogLocator(subs=(1, 2, 3, 5)).tick_values(low, high))
        shown = fine if len(fine) < 8 else inside(LogLocator().tick_values(low, high))
    axis.set_yticks(shown, [f"{tick:.6g}" for tick in shown])
    axis.yaxis.set_minor_locator(NullLocator())


def scale(axis: Axes) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """From the values of the y axis to where they are drawn, and back."""
    return (np.log10, lambda y: 10**y) if axis.get_yscale() == "log" else (np.asarray, float)


def make_room(axis: Axes) -> None:
    """Raise the upper end of the y axis until no curve runs behind the inset, which takes the upper right quarter."""
    to, back = scale(axis)
    left, right = axis.get_xlim()
    low, high = to(axis.get_ylim())
    curves = [np.asarray(line.get_xydata(), dtype=float) for line in axis.get_lines()]
    behind = np.concatenate([curve[curve[:, 0] > left + 0.38 * (right - left), 1] for curve in curves])
    behind = to(behind[behind <= back(high) * (1 + 1e-9)])  # what leaves the frame needs no room
    if len(behind):
        axis.set_ylim(top=back(max(high, low + (behind.max() - low) / 0.46)))


def inset(axis: Axes, runs: Sequence[tuple[Look, History]], column: str) -> None:
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
