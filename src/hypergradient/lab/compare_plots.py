"""The figures of ``compare`` for papers: ρ of each method, final loss over the learning rate, α over time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import plots
from .compare import BASES, ENDS, LABELS, OverLr, Row, geometric_mean, inside
from .store import History

#: How the kinds of ``over_lr`` are drawn: a line, or marks alone.
MARKS: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4}
STYLES: dict[str, dict[str, Any]] = {
    "constant": {"linestyle": plots.DASHED},
    "cosine": {"linestyle": plots.DOTTED},
    "ours": {"linestyle": plots.SOLID},
    "given": MARKS,
}


def rho(table: Sequence[Row]) -> Figure:
    """Methods from top to bottom by their geometric mean on validation (the bar), each workload a dot, 1 where the base is tuned."""
    table = [row for row in table if not row.method.endswith("constant")]
    works = list(dict.fromkeys(row.workload for row in table))
    mean = {m: geometric_mean(row.rho_valid for row in table if row.method == m) for m in dict.fromkeys(row.method for row in table)}
    methods = sorted(mean, key=lambda method: -mean[method])
    figure = Figure(figsize=(12, 0.36 * len(methods) + 2.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, title, name in zip(axes, ("training loss", "validation loss"), ("rho_train", "rho_valid"), strict=True):
        axis.set_xscale("log")
        axis.set_xlim(ENDS[0] / 1.15, ENDS[1] * 1.15)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xlabel(f"ρ, {title}")
        axis.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        for i, work in enumerate(works):
            own = [(inside(getattr(row, name)), methods.index(row.method)) for row in table if row.workload == work]
            colour = colormaps["viridis"](0.95 * i / max(1, len(works) - 1))
            axis.plot(*zip(*own, strict=True), "o", color=colour, markersize=6, alpha=0.85, label=work, clip_on=False)
        for y, method in enumerate(methods):
            middle = inside(geometric_mean(getattr(row, name) for row in table if row.method == method))
            axis.plot([middle, middle], [y - 0.35, y + 0.35], color="#CC3311", linewidth=2.5)
    axes[0].set_yticks(range(len(methods)), methods)
    for text in axes[0].get_yticklabels():
        text.set_fontweight("bold" if "HD" in text.get_text() and "no lr" in text.get_text() else "normal")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def loss_over_lr(works: Mapping[str, Sequence[OverLr]]) -> Figure:
    """Final training loss above final validation loss of each workload, over the learning rate."""
    figure, places = grid(len(works), 2)
    for (title, curves), place in zip(works.items(), places, strict=True):
        for axis, name, label in zip(place, ("train", "valid"), ("training", "validation"), strict=True):
            axis.set_xscale("log")
            axis.set_yscale("log")
            finite = [y for curve in curves if curve.kind != "constant" for y in getattr(curve, name) if math.isfinite(y) and y > 0]
            if finite:
                axis.set_ylim(min(finite) / 1.2, min(max(finite), 1e4 * min(finite)) * 1.2)
            for curve in curves:
                axis.plot(curve.lr, getattr(curve, name), color=plots.COLOURS[curve.base], linewidth=1.5, **STYLES[curve.kind])
            plots.fix_ticks(axis)
            axis.grid(alpha=0.3)
            axis.set_ylabel(f"final {label} loss")
        place[0].set_title(title, fontsize=10)
        place[1].set_xlabel("learning rate")
    legend(figure, {LABELS[kind]: Line2D([], [], color="black", **look) for kind, look in STYLES.items()})
    return figure


def alpha_over_time(works: Mapping[str, Sequence[tuple[str, History]]]) -> Figure:
    """A panel a workload: the learning rate of each step of the tuning-free runs without lr, a line a seed."""
    figure, places = grid(len(works), 1)
    for (axis,), (title, runs) in zip(places, works.items(), strict=True):
        axis.set_xscale("log")
        axis.set_yscale("log")
        for base, history in runs:
            axis.plot(history.iterations["iteration"], history.iterations["alpha"], color=plots.COLOURS[base], linewidth=1, alpha=0.7)
        plots.fix_ticks(axis)
        axis.grid(alpha=0.3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("iteration")
        axis.set_ylabel("learning rate α")
    legend(figure, {})
    return figure


def grid(works: int, panels: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure with so many panels for each workload, one below the other, at most four workloads side by side; the panels of each."""
    columns = min(4, works)
    blocks = math.ceil(works / columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.6 * panels * blocks + 0.6), layout="constrained")
    axes = figure.subplots(panels * blocks, columns, squeeze=False)
    places = [[axes[panels * (i // columns) + row, i % columns] for row in range(panels)] for i in range(blocks * columns)]
    for axis in (axis for place in places[works:] for axis in place):
        axis.remove()
    return figure, places[:works]


def legend(figure: Figure, styles: Mapping[str, Line2D]) -> None:
    colours = {title: Line2D([], [], color=plots.COLOURS[base], linewidth=3) for base, title in BASES.items()}
    figure.legend(
        *zip(*[(line, text) for text, line in (colours | dict(styles)).items()], strict=True), loc="outside lower center", ncols=6
    )
