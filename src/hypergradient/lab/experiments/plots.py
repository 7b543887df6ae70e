"""Charts and heat maps on paper, in the manner of the paper: baselines dashed, hypergradient versions solid, one colour a family."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ..runs.store import Folder
from .charts import COLOURS as COLOURS
from .charts import Chart, Line, ticks
from .maps import Maps, Panel, tick
from .run import Run

KINDS = ("png", "pdf", "svg")

SOLID, DASHED, DOTTED = "-", (0, (3, 2)), (0, (1, 1.2))
DASHES: dict[str, Any] = {"solid": SOLID, "dash": DASHED, "dot": DOTTED}

#: Columns of a figure of curves at most, and how powers of ten are written.
COLUMNS, POWER = 12, "$10^{{{}}}$"


def curves(charts: Sequence[Chart]) -> Figure:
    """The paper's figures of curves: rows α, training loss and validation loss by epoch, insets by iteration over a logarithmic axis."""
    n = min(len(charts) // 2, COLUMNS)
    by_epoch, by_iteration = charts[:n], charts[len(charts) // 2 :][:n]
    figure = Figure(figsize=(5.2 * n, 10.5), layout="constrained")
    axes = figure.subplots(3, n, squeeze=False, sharex="col")
    for i, (chart, detail) in enumerate(zip(by_epoch, by_iteration, strict=True)):
        for axis, column, small in zip_longest(axes[:, i], chart.panels, [*detail.panels][:2]):
            draw(axis, chart, column)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if i == 0:
                axis.set_ylabel(chart.panels[column])
            if small:
                make_room(axis)
                inset(axis, detail, small)
        axes[0, i].set_title(chart.title.removesuffix(", by epoch"), fontsize=11)
        axes[-1, i].set_xlabel("Epoch")
    legend(figure, (line for chart in by_epoch for line in chart.lines), 3 * n)
    return figure


def lines(chart: Chart) -> Figure:
    """Panels side by side over a logarithmic axis."""
    figure = Figure(figsize=(1 + 4.6 * len(chart.panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(chart.panels), squeeze=False)[0]
    for axis, column in zip(axes, chart.panels, strict=True):
        over_lr(axis, chart, column)
        axis.set_title(chart.panels[column], fontsize=10)
        axis.set_xlabel("α$_0$")
    legend(figure, chart.lines, 3 * len(chart.panels), crosses(chart))
    figure.suptitle(chart.title, fontsize=11)
    return figure


def narrow(charts: Sequence[Chart], columns: int = 2) -> Figure:
    """Charts below one another, in ``columns`` columns and with text that is legible on a phone; a single panel spans the row."""
    rows = [math.ceil(len(chart.panels) / columns) for chart in charts]
    with rc_context({"font.size": 12, "axes.titlesize": "medium"}):
        figure = Figure(figsize=(3.7 * columns, 0.9 + 2.7 * sum(rows)), layout="constrained")
        grid = figure.add_gridspec(sum(rows), columns)
        for chart, own, end in zip(charts, rows, accumulate(rows), strict=True):
            for i, (column, title) in enumerate(chart.panels.items()):
                row = end - own + i // columns
                axis = figure.add_subplot(grid[row, i % columns if len(chart.panels) > 1 else slice(None)])
                if chart.x == "learning rate":
                    over_lr(axis, chart, column, linewidth=2)
                    axis.xaxis.set_major_locator(LogLocator(numticks=5))
                    axis.xaxis.set_minor_locator(NullLocator())
                else:
                    draw(axis, chart, column, linewidth=2)
                    axis.yaxis.set_major_locator(LogLocator(numticks=5))
                    axis.yaxis.set_major_formatter(LogFormatterMathtext())
                axis.set_title(title)
                if row == end - 1:
                    axis.set_xlabel("learning rate given" if chart.x == "learning rate" else chart.x)
        legend(figure, [line for chart in charts for line in chart.lines], columns, next(filter(None, map(crosses, charts)), []))
        figure.suptitle(charts[0].title if len(charts) == 1 else "")
    return figure


def over_lr(axis: Axes, chart: Chart, column: str, **look: Any) -> None:
    """A panel over a logarithmic axis of learning rates; crosses at the top are runs that diverged."""
    axis.set_xscale("log")
    draw(axis, chart, column, marker="o", markersize=4, **look)
    for i, line in enumerate(chart.lines):
        diverged = line.values[chart.x][np.isposinf(line.values[column])]
        place: dict[str, Any] = {"transform": axis.get_xaxis_transform(), "color": line.chips[0].colour or "black"}
        axis.plot(diverged, np.full(len(diverged), 0.97 - 0.6 * i / (20 + len(chart.lines))), linestyle="none", marker="x", **place)


def crosses(chart: Chart) -> list[Line2D]:
    """The legend's entry for runs that diverged, if there are any."""
    diverged = any(np.isposinf(line.values[column]).any() for line in chart.lines for column in chart.panels)
    return [Line2D([], [], color="black", linestyle="none", marker="x", label="diverged")] if diverged else []


def draw(axis: Axes, chart: Chart, column: str, **look: Any) -> None:
    """A panel: medians, and behind them the bands; what diverged leaves the frame of the others."""
    linear = chart.scale(column)
    if linear is not None:
        axis.set_yscale("asinh", linear_width=linear) if linear else axis.set_yscale("log")
    for line in chart.lines:
        x, colour, dash = line.values[chart.x], line.chips[0].colour or "black", DASHES[line.chips[-1].dash]
        shown = np.where(np.isfinite(line.values[column]), line.values[column], math.nan)
        own: dict[str, Any] = {"linewidth": 1.4, **look, **({"marker": ""} if line.level else {})}
        axis.plot(x, shown, color=colour, linestyle=dash, **own)
        if column in line.bands:
            low, high = (np.where(np.isfinite(band), band, math.nan) for band in line.bands[column])
            axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.grid(alpha=0.3)
    if frame := chart.frame(column):
        (low, high), back = axis.transScale.transform([(1, end) for end in frame])[:, 1], axis.transScale.inverted()
        margin = 0.05 * (high - low)
        axis.set_ylim(*back.transform([(1, low - margin), (1, high + margin)])[:, 1])
    fix_ticks(axis, linear)


def fix_ticks(axis: Axes, linear: float | None = 0.0) -> None:
    """Ticks for what the axis shows now, in plain numbers, and none beside the room that may be made above it."""
    low, high = axis.get_ylim()
    shown = ticks(linear, low, high) if linear else MaxNLocator(5).tick_values(low, high)
    if axis.get_yscale() == "log":
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        for parts in ((1, 2, 3, 5), (1, 3), (1,)):
            fine = [place for k in powers for part in parts if low <= (place := part * 10.0**k) <= high]
            shown = fine if 2 < len(fine) < 9 or len(shown) > 9 else shown
    shown = [place for place in shown[:: math.ceil(len(shown) / 9) or 1] if low <= place <= high]
    axis.set_yticks(shown, [f"{place:.6g}" for place in shown])
    axis.yaxis.set_minor_locator(NullLocator())


def make_room(axis: Axes) -> None:
    """Raise the upper end of the y axis until no curve runs behind the inset, which takes the upper right quarter."""
    scale = axis.transScale
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    curves = [np.asarray(line.get_xydata(), dtype=float) for line in axis.get_lines()]
    curves += [np.asarray(path.vertices) for band in axis.collections for path in band.get_paths()]
    behind = np.concatenate([curve[curve[:, 0] > left + 0.38 * (right - left), 1] for curve in curves])
    behind = behind[behind <= high]  # what leaves the frame needs no room
    if len(behind):
        bottom, top, most = scale.transform([(1, low), (1, high), (1, behind.max())])[:, 1]
        axis.set_ylim(top=scale.inverted().transform((1, max(top, bottom + (most - bottom) / 0.46)))[1])


def inset(axis: Axes, chart: Chart, column: str) -> None:
    """The same quantity by iteration, over a logarithmic axis: the first steps are where the learning rate is found."""
    small = axis.inset_axes((0.47, 0.57, 0.51, 0.41))
    draw(small, chart, column)
    small.set_xscale("log")
    small.xaxis.set_minor_formatter(NullFormatter())
    small.tick_params(labelsize=7)
    small.set_xlabel("Iteration", fontsize=7, labelpad=0)


def legend(figure: Figure, lines: Iterable[Line], columns: int, more: Sequence[Any] = ()) -> None:
    drawn = [line.chips for line in lines]
    chips = dict.fromkeys([own[0] for own in drawn] + [chip for own in drawn for chip in own[1:] if not chip.colour])
    handles = [Line2D([], [], color=chip.colour or "black", linestyle=DASHES[chip.dash], label=chip.label) for chip in chips]
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=columns)


def maps(found: Maps) -> Figure:
    """Heat maps: α_0 from left to right, β upwards, one scale of colours; a red line goes round the cells that are worse."""
    losses = [x for panel in found.panels for x in panel.cells.values()]
    width = 0.2 + 0.07 * max(len(found.number(x)) if x < math.inf else len(found.beyond[0]) for x in losses)
    wide = sum(max(2.2, width * len(panel.lrs)) for panel in found.rows[0][1])
    heights = [0.42 if own[0].betas == [None] else max(1.2, 0.42 * len(own[0].betas)) for _, own in found.rows]
    figure = Figure(figsize=(2 + wide, 1.6 + sum(heights) + 0.4 * len(heights)), layout="constrained")
    axes = figure.subplots(len(heights), len(found.rows[0][1]), squeeze=False, sharex="col", height_ratios=heights)
    norm = LogNorm(*found.ends)
    for places, (side, own) in zip(axes, found.rows, strict=True):
        for axis, panel in zip(places, own, strict=True):
            image = heat(axis, panel, norm, found)
            axis.set_yticks(range(len(panel.betas)), [tick(beta, POWER) if axis is places[0] else "" for beta in panel.betas])
        places[0].set_ylabel("" if own[0].betas == [None] else f"{side}\nβ".strip())
    for axis in axes[-1]:
        axis.set_xlabel("α$_0$")
    beyond = any(found.ends[1] < x < math.inf for x in losses)
    bar = figure.colorbar(image, ax=axes, label=found.label, extend="max" if beyond else "neither", shrink=0.85)
    fix_ticks(bar.ax)
    if math.inf in losses:
        figure.legend(handles=[Patch(facecolor="#cccccc", label=f"{found.beyond[0]}: {found.beyond[1]}")], loc="outside lower center")
    figure.suptitle(found.title, fontsize=11)
    return figure


def heat(axis: Axes, panel: Panel, norm: LogNorm, found: Maps) -> Any:
    """One heat map; grey cells are beyond."""
    values = np.array([[math.nan if x is None else x for x in row] for row in panel.rows()])
    axis.set_facecolor("#cccccc")
    image = axis.imshow(np.where(np.isfinite(values), values, math.nan), norm=norm, cmap="viridis_r", origin="lower", aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if not math.isnan(value):
            text = found.number(value) if math.isfinite(value) else found.beyond[0]
            dark = math.isfinite(value) and norm(value) > 0.6
            axis.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    for xs, ys in panel.outline():
        axis.plot(xs, ys, color="#D00000", linewidth=2.5, clip_on=False, solid_capstyle="projecting")
    axis.set_xticks(range(len(panel.lrs)), [tick(lr, POWER) for lr in panel.lrs])
    axis.set_title(panel.title, fontsize=10)
    axis.tick_params(length=0, labelsize=9)
    return image


def save(figure: Figure, folder: Folder, name: str) -> list[Path]:
    """Write the figure as PNG, PDF and SVG."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out now, once for all kinds
    for kind in KINDS:
        folder.write(f"{name}.{kind}", partial(figure.savefig, format=kind, dpi=160))
    return [folder.path / f"{name}.{kind}" for kind in KINDS]


def table(folder: Folder, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table as CSV, a row a run; what a run does not have is empty."""
    folder.write(f"{name}.csv", partial(pd.DataFrame(rows, dtype=object).to_csv, index=False))
    return folder.path / f"{name}.csv"


def labelled(name: str, runs: Sequence[Run], options: Sequence[str]) -> pd.DataFrame:
    """One of the tables of all runs, behind the columns that say which run it is: among them β, which these runs do not move."""
    parts = []
    for run in runs:
        assert run.path is not None
        rule = "tuning-free" if run.tuning_free else run.call.style if run.call.adapts else None
        told = {"lr": run.lr, "rule": rule, "hypergrad_lr": math.nan if run.beta is None else run.beta}
        part = pd.read_parquet(run.path / f"{name}.parquet").drop(columns="hypergrad_lr", errors="ignore")
        parts.append(pd.concat([pd.DataFrame({option: {**run.options, **told}[option] for option in options}, part.index), part], axis=1))
    return pd.concat(parts)
