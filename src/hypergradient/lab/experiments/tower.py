"""Towers of adaptation: the final training loss over α_0 × β, for each height, and how far taller towers make both matter less."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator
from rich import box
from rich.table import Table

from ..errors import LabError
from ..runs.config import HYPERGRAD_LR, LEVELS, TITLES, Config, choose
from ..runs.engine import Summary
from ..runs.store import Folder
from . import plots

HEIGHTS = (0, 1, 2, 3, 4)
LRS = {"sgd": tuple(10.0**k for k in range(-5, 1)), "adam": tuple(10.0**k for k in range(-6, 0))}
BETAS = {"sgd": tuple(10.0**k for k in range(-6, -1)), "adam": tuple(10.0**k for k in range(-9, -4))}

#: A loss within this factor of the best without adaptation counts as close, and one beyond the other over the lowest has the last colour.
CLOSE, SHOWN = 1.1, 50.0

Cells = dict[tuple[float, float], float]
"""(α_0, β) → the median loss of the seeds; infinite where half of them or more diverged."""


@dataclass(frozen=True)
class Row:
    """One run: height 0 is the optimizer without adaptation, which has no β; ``level`` is None below height 2."""

    height: int
    level: str | None
    lr: float
    hypergrad_lr: float | None
    level_lr: float | None
    seed: int
    status: str
    train_loss: float | None
    valid_loss: float | None
    alpha: float

    @property
    def loss(self) -> float:
        """What is drawn: the training loss of the last epoch, infinite where the run did not come to its end."""
        loss = math.inf if self.train_loss is None or self.status != "finished" else self.train_loss
        return loss if math.isfinite(loss) else math.inf


def row(options: Mapping[str, Any], summary: Mapping[str, Any]) -> Row:
    """A run of these options that ended so."""
    height: int = options["height"] if options["optimizer"] in HYPERGRAD_LR else 0
    level = options["level"] if height > 1 else None
    ended = (summary.get(name) for name in ("status", "train_loss", "valid_loss", "alpha"))
    return Row(height, level, *(options[name] for name in ("lr", "hypergrad_lr", "level_lr", "seed")), *ended)


def values(name: str, text: str | None, default: Sequence[float], kind: Callable[[str], float], lowest: float) -> list[Any]:
    """The numbers of an option ``--name A,B``, in order, each once."""
    if text is None:
        return [*default]
    try:
        found = sorted({kind(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(lowest <= value < math.inf for value in found):
        kinds = "whole numbers >= 0" if kind is int else "numbers > 0"
        raise LabError(f"--{name} takes {kinds} with commas, such as {','.join(f'{value:g}' for value in default)}, got {text!r}")
    return found


def level_lrs(text: str | None) -> dict[str, float]:
    """β of the levels above the first, by rule: of ``NUMBER`` for both, or ``RULE=NUMBER`` with commas."""
    if text is None:
        return {}
    try:
        if "=" not in text:
            return dict.fromkeys(LEVELS, float(text))
        found = {rule: float(value) for rule, _, value in (entry.partition("=") for entry in text.split(","))}
    except ValueError:
        found = {}
    if not found or not found.keys() <= LEVELS.keys():
        raise LabError(f"--level-lr takes a number, or additive=NUMBER,multiplicative=NUMBER, got {text!r}")
    return found


def base_of(optimizer: str, **options: Any) -> Config:
    """What all runs of an experiment have in common, but for what ``grid`` varies."""
    choose("optimizer", optimizer, HYPERGRAD_LR)
    return Config(optimizer=optimizer, **options)


def grid(
    base: Config,
    heights: str | None = None,
    lrs: str | None = None,
    betas: str | None = None,
    level: str = "both",
    level_lr: str | None = None,
    seeds: int = 1,
) -> list[Config]:
    """The runs: height 0 over α_0, height 1 over α_0 × β, those above for each rule of the levels too, for the seeds from 1.

    Args:
        base: everything but height, level, lr, hypergrad_lr and seed.
        heights: with commas, as the next two; None takes HEIGHTS.
        lrs: None takes those of LRS.
        betas: None takes those of BETAS.
        level: ``additive``, ``multiplicative``, or ``both``.
        level_lr: of the levels above the first, as ``level_lrs`` reads it.
        seeds: how many.

    Raises:
        LabError: one of them is out of its range.
    """
    choose("level", level, [*LEVELS, "both"])
    tall = values("heights", heights, HEIGHTS, int, 0)
    kind = "adam" if base.family == "adam" else "sgd"
    starts = values("lr", lrs, LRS[kind], float, math.ulp(0.0))
    steps = values("hypergrad-lr", betas, BETAS[kind], float, math.ulp(0.0))
    above = level_lrs(level_lr)
    configs = []
    for seed in range(1, seeds + 1):
        for height in tall:
            for own in LEVELS if level == "both" else [level]:
                for lr in starts:
                    for beta in steps:
                        plain: dict[str, Any] = {"optimizer": base.family, "hypergrad_lr": None}
                        tower = {"height": height, "level": own, "level_lr": above.get(own)} if height > 1 else {}
                        options = {"lr": lr, "seed": seed} | ({"hypergrad_lr": beta, **tower} if height else plain)
                        configs.append(Config(**(base.as_dict() | options)))
    return list(dict.fromkeys(configs))


def rows(configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Row]:
    return [row(config.as_dict(), summary.as_dict()) for config, summary in zip(configs, summaries, strict=True)]


@dataclass(frozen=True)
class Towers:
    """The cells of each rule and height, over the same α_0 × β: height 0, and height 1, are those of every rule; height 0 of every β."""

    levels: list[str]
    heights: list[int]
    lrs: list[float]
    betas: list[float]
    cells: dict[tuple[str, int], Cells]

    @property
    def plain(self) -> list[float]:
        """The finite losses of height 0; of all where that is left out."""
        heights = [0] if 0 in self.heights else self.heights
        return [x for (_, height), cells in self.cells.items() if height in heights for x in cells.values() if math.isfinite(x)]

    @property
    def best(self) -> float:
        return min(self.plain, default=math.inf)

    def close(self, level: str, height: int) -> int:
        """In how many cells the loss is within CLOSE times the best."""
        return sum(x <= CLOSE * self.best and math.isfinite(x) for x in self.cells[level, height].values())

    @property
    def ends(self) -> tuple[float, float]:
        """The losses that the colours go between: up to the worst of height 0."""
        low = min((x for cells in self.cells.values() for x in cells.values() if 0 < x < math.inf), default=0.1)
        return low, min(max([1.01 * low, *self.plain]), SHOWN * low)

    @property
    def middle(self) -> float:
        return self.betas[(len(self.betas) - 1) // 2]


def towers(table: Sequence[Row]) -> Towers:
    """The medians of the seeds."""
    levels = [level for level in LEVELS if any(row.level == level for row in table)] or [""]
    heights = sorted({row.height for row in table})
    lrs = sorted({row.lr for row in table})
    betas = sorted({row.hypergrad_lr for row in table if row.height and row.hypergrad_lr is not None}) or [math.nan]
    found: dict[tuple[str, int], dict[tuple[float, float], list[float]]] = {(level, height): {} for level in levels for height in heights}
    for row in table:
        for level in [row.level] if row.level in levels else levels:
            for beta in betas if row.hypergrad_lr is None else [row.hypergrad_lr]:
                found[level or "", row.height].setdefault((row.lr, beta), []).append(row.loss)
    cells = {key: {place: statistics.median_high(losses) for place, losses in own.items()} for key, own in found.items()}
    return Towers(levels, heights, lrs, betas, cells)


def write(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    """The table and the two figures; returns the files."""
    table = rows(configs, summaries)
    found, base, seeds = towers(table), configs[-1], len({row.seed for row in table})
    return [
        write_csv(folder, table),
        *plots.save(figure(found, base, seeds), folder, "tower"),
        *plots.save(lines(found, base, seeds), folder, "tower-lr"),
    ]


def write_csv(folder: Folder, table: Sequence[Row]) -> Path:
    """tower.csv: one row a run; what a run does not have is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    writer.writerows(["" if value is None else value for value in astuple(row)] for row in table)
    folder.write("tower.csv", lambda file: file.write_text(text.getvalue()))
    return folder.path / "tower.csv"


def say(configs: Sequence[Config], summaries: Sequence[Summary]) -> Table:
    """For each rule and height how many cells are close to the best, and how the others are."""
    found = towers(rows(configs, summaries))
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("levels", "height"):
        table.add_column(name, no_wrap=True)
    best = "height 0" if 0 in found.heights else "all"
    for name in (f"within {CLOSE:g} × the best of {best} ({found.best:.4g})", "worst finite", "diverged"):
        table.add_column(name, justify="right")
    for level in found.levels:
        for height in found.heights:
            losses = found.cells[level, height].values()
            finite = [x for x in losses if math.isfinite(x)]
            worst = f"{max(finite):.4g}" if finite else "-"
            table.add_row(level, str(height), f"{found.close(level, height)} of {len(losses)}", worst, f"{len(losses) - len(finite)}")
    return table


def named(height: int, base: Config) -> str:
    """A height, with the name that the paper gives it."""
    names = {0: TITLES[base.family], 1: TITLES[f"{base.family}-hd"]}
    return f"height {height}" + (f" ({names[height]})" if height in names else "")


def medians(seeds: int) -> str:
    return f", median of {seeds} seeds" if seeds > 1 else ""


def tick(value: float) -> str:
    power = math.log10(value) if value > 0 else math.nan
    return f"$10^{{{power:.0f}}}$" if power.is_integer() else f"{value:g}"


def figure(found: Towers, base: Config, seeds: int) -> Figure:
    """Heat maps, a row a rule of the levels above the first, a column a height: α_0 from left to right, β upwards, one scale of colours."""
    width, height = len(found.lrs), len(found.betas)
    size = (1.6 + len(found.heights) * max(2.3, 0.46 * width + 0.2), 1.5 + len(found.levels) * max(1.8, 0.46 * height + 0.4))
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(len(found.levels), len(found.heights), squeeze=False, sharex=True, sharey=True)
    norm = LogNorm(*found.ends)
    for i, level in enumerate(found.levels):
        for j, tall in enumerate(found.heights):
            panel(axes[i, j], found, level, tall, norm)
            axes[i, j].set_title(f"{named(tall, base)}: {found.close(level, tall)}/{width * height}", fontsize=10)
        axes[i, 0].set_ylabel(f"{level} levels above\nβ" if level else "β")
    for axis in axes[-1]:
        axis.set_xlabel("α$_0$")
    beyond = any(found.ends[1] < x < math.inf for cells in found.cells.values() for x in cells.values())
    bar = fig.colorbar(axes[0, 0].images[0], ax=axes, extend="max" if beyond else "neither", shrink=0.85)
    bar.set_label("training loss of the last epoch")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_ticks(ticks := numbers(*found.ends), labels=[f"{x:g}" for x in ticks])
    fig.suptitle(
        f"{base.title} on {base.data_title}{medians(seeds)}; behind the heights: cells within {CLOSE:g} × {found.best:.3g}, the best of "
        f"{'height 0' if 0 in found.heights else 'all'}",
        fontsize=11,
    )
    if any(x == math.inf for cells in found.cells.values() for x in cells.values()):
        fig.legend(handles=[Patch(facecolor="#cccccc", edgecolor="#888888", hatch="////", label="diverged")], loc="outside lower center")
    return fig


def panel(axis: Axes, found: Towers, level: str, height: int, norm: LogNorm) -> None:
    """One heat map; hatched cells diverged."""
    cells = found.cells[level, height]
    losses = [[cells.get((lr, beta), math.nan) for lr in found.lrs] for beta in found.betas]
    shown = [[x if math.isfinite(x) else math.nan for x in line] for line in losses]
    axis.imshow(shown, norm=norm, cmap="viridis_r", origin="lower", aspect="auto")
    for y, line in enumerate(losses):
        for x, value in enumerate(line):
            if value == math.inf:
                corner = (x - 0.5, y - 0.5)
                axis.add_patch(Rectangle(corner, 1, 1, facecolor="#cccccc", edgecolor="#888888", hatch="////", linewidth=0))
            elif math.isfinite(value):
                text = f"{value:.2f}" if 0.01 <= value < 9.995 else f"{value:.2g}" if value < 0.01 else f"{value:.0f}"
                dark = norm(value) > 0.6
                axis.text(x, y, text if len(text) < 5 else "≫", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(len(found.lrs)), [tick(lr) for lr in found.lrs])
    axis.set_yticks(range(len(found.betas)), ["" if math.isnan(beta) else tick(beta) for beta in found.betas])
    axis.tick_params(length=0, labelsize=9)


def line(found: Towers, level: str, height: int) -> list[float]:
    """The losses over α_0 at the middle β."""
    return [found.cells[level, height].get((lr, found.middle), math.nan) for lr in found.lrs]


def colour(found: Towers, height: int) -> Any:
    """From dark to light with the height; black without adaptation."""
    return "black" if height == 0 else colormaps["viridis"](0.9 * found.heights.index(height) / max(1, len(found.heights) - 1))


def lines(found: Towers, base: Config, seeds: int) -> Figure:
    """The loss over α_0 at the middle β, a panel a rule, a line a height; crosses at the top diverged."""
    fig = Figure(figsize=(1 + 4.6 * len(found.levels), 4.4), layout="constrained")
    axes = fig.subplots(1, len(found.levels), squeeze=False, sharey=True)[0]
    for axis, level in zip(axes, found.levels, strict=True):
        axis.set_xscale("log")
        axis.set_yscale("log")
        for height in found.heights:
            losses = line(found, level, height)
            style = plots.SOLID if height else plots.DASHED
            finite = [x if x < math.inf else math.nan for x in losses]
            axis.plot(found.lrs, finite, color=colour(found, height), linestyle=style, marker="o", markersize=4, label=named(height, base))
            wild = [lr for lr, x in zip(found.lrs, losses, strict=True) if x == math.inf]
            top = 0.97 - 0.035 * (len(found.heights) - 1 - found.heights.index(height))
            place = {"transform": axis.get_xaxis_transform(), "color": colour(found, height)}
            axis.plot(wild, [top] * len(wild), linestyle="none", marker="x", **place)
        axis.grid(alpha=0.3)
        axis.set_title(f"{level} levels above the first" if level else "")
        axis.set_xlabel("α$_0$")
    axes[0].set_ylabel("Training loss of the last epoch")
    make_frame(axes[0], found)
    handles, labels = axes[0].get_legend_handles_labels()
    if any(x == math.inf for level in found.levels for height in found.heights for x in line(found, level, height)):
        handles, labels = [*handles, Line2D([], [], color="black", linestyle="none", marker="x")], [*labels, "diverged"]
    fig.legend(handles, labels, loc="outside lower center", ncols=6)
    at = "" if math.isnan(found.middle) else f", β = {found.middle:g}"
    fig.suptitle(f"{base.title} on {base.data_title}{at}{medians(seeds)}", fontsize=11)
    return fig


def make_frame(axis: Axes, found: Towers) -> None:
    """A vertical axis from the lowest loss to the highest that has a colour, with room for the crosses above, in plain numbers."""
    low, high = found.ends
    axis.set_ylim(low / 1.15, high * (high / low) ** 0.3)
    axis.set_yticks(ticks := numbers(*axis.get_ylim()), [f"{x:g}" for x in ticks])
    axis.yaxis.set_minor_locator(NullLocator())


def numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, between two losses."""
    first = math.floor(math.log10(low))
    return [x for k in range(first, math.ceil(math.log10(high)) + 1) for x in (10.0**k, 2 * 10.0**k, 5 * 10.0**k) if low <= x <= high]
