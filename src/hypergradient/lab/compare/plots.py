"""The static figures of ``compare``: ρ of each method, final loss over the learning rate, α over time."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..experiments import plots
from ..workloads import WORKLOADS
from .table import BASES, LOSSES, SETS, TITLES, OverLr, Row

#: ρ outside this range is drawn at the edge of the figure.
ENDS = (0.05, 20.0)

#: How the methods of ``over_lr`` are drawn: as lines, or as marks only.
STYLES: dict[str, dict[str, Any]] = {
    "constant": {"linestyle": plots.DASHED},
    "cosine": {"linestyle": plots.DOTTED},
    "ours": {"linestyle": plots.SOLID},
    "given": {"linestyle": "none", "marker": "o", "markersize": 4},
}

#: The two sets of workloads (False: development, True: held-out): colour and vertical offset.
SET_STYLES = {False: ("#999999", -0.15), True: ("#0072B2", 0.15)}

#: Number of workloads side by side.
COLUMNS = 6


def clipped(value: float) -> float:
    return min(max(value, ENDS[0]), ENDS[1])


def ranked(table: Sequence[Row]) -> list[str]:
    """The methods except the tuned constant baseline, by median validation ρ, highest first."""
    names = [method for method in dict.fromkeys(row.method for row in table) if method != "constant"]
    return sorted(names, key=lambda method: -statistics.median(row.rho_valid for row in table if row.method == method))


def rho(table: Sequence[Row]) -> Figure:
    """Methods from top to bottom by median validation ρ; a dot for each workload and base, bars for the medians of the sets."""
    methods, sets = ranked(table), [held_out for held_out in SET_STYLES if any(row.held_out == held_out for row in table)]
    figure = Figure(figsize=(12, 0.4 * len(methods) + 1.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, title, name in zip(axes, ("training loss", "validation loss"), ("rho_train", "rho_valid"), strict=True):
        axis.set(xscale="log", xlim=(ENDS[0] / 1.15, ENDS[1] * 1.15), xlabel=f"ρ, {title}")
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        for held_out in sets:
            colour, above = SET_STYLES[held_out] if len(sets) > 1 else (SET_STYLES[held_out][0], 0.0)
            for y, method in enumerate(methods):
                own = [clipped(getattr(row, name)) for row in table if row.method == method and row.held_out == held_out]
                if own:
                    axis.plot(own, [y + above] * len(own), "o", color=colour, markersize=4, alpha=0.5, clip_on=False)
                    axis.plot([statistics.median(own)] * 2, [y + above - 0.18, y + above + 0.18], color=colour, linewidth=3)
    axes[0].set_yticks(range(len(methods)), [TITLES[method] for method in methods])
    for text in axes[0].get_yticklabels():
        text.set_fontweight("bold" if text.get_text().startswith("HD,") else "normal")
    handles = {SETS[held_out]: Line2D([], [], color=SET_STYLES[held_out][0], marker="o", linestyle="none") for held_out in sets}
    handles["median"] = Line2D([], [], color="black", marker="|", linestyle="none", markersize=12, markeredgewidth=3)
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=3)
    return figure


def loss_over_lr(works: Mapping[str, Sequence[OverLr]]) -> Figure:
    """Final training and validation loss of each workload over the learning rate."""
    figure, places = grid([*works], 2)
    for curves, place in zip(works.values(), places, strict=True):
        for axis, name, label in zip(place, LOSSES, ("training", "validation"), strict=True):
            finite = [y for curve in curves if curve.method != "constant" for y in getattr(curve, name) if math.isfinite(y) and y > 0]
            if finite:
                axis.set_ylim(min(finite) / 1.2, min(max(finite), 1e4 * min(finite)) * 1.2)
            for curve in curves:
                axis.plot(curve.lr, getattr(curve, name), color=plots.COLOURS[curve.base], linewidth=1.5, **STYLES[curve.method])
            plots.fix_ticks(axis)
            axis.set_ylabel(f"{label} loss")
        place[1].set_xlabel("learning rate")
    legend(figure, {TITLES[method]: Line2D([], [], color="black", **look) for method, look in STYLES.items()})
    return figure


def alpha_over_time(works: Mapping[str, Sequence[tuple[str, list[int], list[float]]]]) -> Figure:
    """α over time of the tuning-free runs: a panel per workload, a line per seed."""
    figure, places = grid([*works], 1)
    for (axis,), runs in zip(places, works.values(), strict=True):
        for base, steps, alpha in runs:
            axis.plot(steps, alpha, color=plots.COLOURS[base], linewidth=1, alpha=0.7)
        plots.fix_ticks(axis)
        axis.set(xlabel="step", ylabel="learning rate α")
    legend(figure, {})
    return figure


def grid(works: Sequence[str], panels: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure with ``panels`` axes below each other per workload, COLUMNS workloads side by side; returns the axes by workload."""
    columns = max(1, min(COLUMNS, len(works)))
    blocks = max(1, math.ceil(len(works) / columns))
    figure = Figure(figsize=(2.8 * columns + 0.6, 2.2 * panels * blocks + 0.6), layout="constrained")
    axes = figure.subplots(panels * blocks, columns, squeeze=False)
    places = [[axes[panels * (i // columns) + row, i % columns] for row in range(panels)] for i in range(blocks * columns)]
    for axis in (axis for place in places[len(works) :] for axis in place):
        axis.remove()
    for work, place in zip(works, places, strict=False):
        place[0].set_title(WORKLOADS[work].title, fontsize=10)
        for axis in place:
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
    return figure, places[: len(works)]


def legend(figure: Figure, styles: Mapping[str, Line2D]) -> None:
    colours = {title: Line2D([], [], color=plots.COLOURS[base], linewidth=3) for base, title in BASES.items()}
    named = colours | dict(styles)
    figure.legend([*named.values()], [*named], loc="outside lower center", ncols=4)
