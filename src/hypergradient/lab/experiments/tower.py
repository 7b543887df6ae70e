"""Towers of hypergradients: the final training loss over α_0 × β for each height, and whether taller towers make both matter less."""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from ..errors import LabError, shortened
from ..runs.calls import Call
from ..runs.config import BETA, Config, paper
from ..runs.engine import Summary
from ..runs.store import Folder
from .charts import Chart, Chip, Line, ranked
from .maps import Maps, Panel, panel, reached
from .run import Run, finite, run_of, runs_of, subject

HEIGHTS, HIGHEST = (0, 1, 2, 3, 4), 100
LRS = {"SGD": tuple(10.0**k for k in range(-5, 1)), "Adam": tuple(10.0**k for k in range(-6, 0))}
BETAS = {"SGD": tuple(10.0**k for k in range(-6, -1)), "Adam": tuple(10.0**k for k in range(-9, -4))}

#: The rules of the levels above the first, and their default β: None for that of the first level.
LEVELS = {"additive": None, "multiplicative": 0.02}

#: A loss within the first factor of the best without adaptation counts as close; the second is the range of the colour scale.
CLOSE, SHOWN = 1.1, 50.0


def values(name: str, text: str | None, default: Sequence[float], kind: Callable[[str], float], lowest: float) -> list[Any]:
    """Parse an option ``--name A,B`` to sorted numbers without duplicates."""
    if text is None:
        return [*default]
    try:
        found = sorted({kind(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(lowest <= value < math.inf for value in found):
        kinds = "integers >= 0" if kind is int else "numbers > 0"
        raise LabError(f"--{name} takes comma-separated {kinds}, such as {','.join(f'{value:g}' for value in default)}; got {text!r}")
    return found


def level_lrs(text: str | None) -> dict[str, float]:
    """Parse β of the levels above the first, by rule: ``NUMBER`` for both, or comma-separated ``RULE=NUMBER``."""
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


def grid(
    base: Config, optimizer: str, heights: str | None, lrs: str | None, betas: str | None, level: str, level_lr: str | None, seeds: int = 1
) -> list[Config]:
    """The runs: height 0 over α_0, height 1 over α_0 × β, greater heights also for each rule of the levels; for each seed.

    Args:
        base: all options except optimizer and seed.
        optimizer: SGD-HD, SGDN-HD or Adam-HD.
        heights: comma-separated, as the next two; default HEIGHTS.
        lrs: default: those of LRS.
        betas: default: those of BETAS.
        level: ``additive``, ``multiplicative``, or ``both``.
        level_lr: β of the levels above the first, as parsed by ``level_lrs``.
        seeds: number of seeds.

    Raises:
        LabError: an option is malformed or out of range.
    """
    if optimizer not in BETA:
        raise LabError(f"--optimizer must be one of {', '.join(BETA)}, got {shortened(optimizer)!r}")
    tall = values("heights", heights, HEIGHTS, int, 0)
    if tall[-1] > HIGHEST:
        raise LabError(f"--heights must be at most {HIGHEST}, got {tall[-1]}")
    kind = "Adam" if optimizer == "Adam-HD" else "SGD"
    starts = values("lr", lrs, LRS[kind], float, sys.float_info.min)
    steps = values("hypergrad-lr", betas, BETAS[kind], float, sys.float_info.min)
    above, levels = level_lrs(level_lr), [*LEVELS] if level == "both" else [level]
    places = itertools.product(tall, levels, starts, steps)
    calls = [tower_of(optimizer, height, lr, beta, own, above.get(own, LEVELS[own])) for height, own, lr, beta in places]
    return [replace(base, optimizer=call, seed=seed) for seed in range(1, seeds + 1) for call in dict.fromkeys(calls)]


def tower_of(optimizer: str, height: int, lr: float, first: float, level: str, above: float | None) -> str:
    """The call of a tower: the levels above the first adapt β, the β of that, and so on; the topmost is constant."""
    if height == 0:
        return paper(optimizer.removesuffix("-HD"), lr)
    if height == 1:
        return paper(optimizer, lr, first)
    beta: float | Call = first if above is None else above
    for i in range(height, 1, -1):
        beta = Call("Adapted", (first if i == 2 or above is None else above, Call(level.capitalize(), (beta,))))
    return paper(optimizer, lr, rule=Call("Additive", (beta,)))


def levels_of(call: Call) -> tuple[int, str, float | None]:
    """Height, and rule and β of the levels above the first. Height 0 does not adapt; below height 2 there are no such levels."""
    found, above, name = call.options.get("rule"), [], ""
    while isinstance(found, Call) and found.args:
        if found.name == "Adapted":
            above.append(found)
        elif above:
            name = found.name.lower()
        found = found.args[-1]
    return len(above) + 1 if call.adapts else 0, name, finite(found) if above else None


@dataclass(frozen=True)
class Towers:
    """The heat maps of each rule and height, over the same α_0 × β. Heights 0 and 1 are the same for all rules, height 0 for all β."""

    levels: list[str]
    heights: list[int]
    lrs: list[float]
    betas: list[float]
    panels: dict[tuple[str, int], Panel]

    def losses(self, *heights: int) -> list[float]:
        """The finite losses of these heights; of all heights if none of them is there."""
        chosen = set(heights) & {*self.heights} or {*self.heights}
        return reached([x for (_, height), own in self.panels.items() if height in chosen for x in own.cells.values()], -1)

    @property
    def best(self) -> float:
        return min(self.losses(0), default=math.inf)

    @property
    def of(self) -> str:
        return "height 0" if 0 in self.heights else "all"

    def close(self, level: str, height: int) -> int:
        """The number of cells whose loss is within CLOSE times the best."""
        return sum(x <= CLOSE * self.best and math.isfinite(x) for x in self.panels[level, height].cells.values())

    @property
    def ends(self) -> tuple[float, float]:
        """The range of the colour scale: up to the worst loss of height 0."""
        low = min(reached(self.losses()), default=0.1)
        return low, min(max([1.01 * low, *self.losses(0)]), SHOWN * low)

    @property
    def middle(self) -> float:
        return self.betas[(len(self.betas) - 1) // 2]


def towers(runs: Sequence[Run]) -> Towers:
    """The runs by rule and height, without those that are not towers."""
    kinds = {id(run): levels_of(run.call) for run in runs}
    runs = [run for run in runs if run.lr is not None and (run.beta is not None or not run.call.adapts)]
    levels = [level for level in LEVELS if any(kinds[id(run)][1] == level for run in runs)] or [""]
    heights = sorted({kinds[id(run)][0] for run in runs})
    lrs = sorted({run.lr for run in runs if run.lr is not None})
    betas = sorted({run.beta for run in runs if run.beta is not None}) or [math.nan]
    panels = {}
    for level, height in itertools.product(levels, heights):
        own = [run for run in runs if kinds[id(run)][0] == height and kinds[id(run)][1] in ("", level)]
        panels[level, height] = panel("", lrs, betas, own, lambda run: run.final("train_loss", "finished"))
    return Towers(levels, heights, lrs, betas, panels)


def write(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    """Write the table and the two figures; returns the files. tower.csv has a row per run; missing values are empty."""
    from . import plots

    runs = runs_of(folder, configs, summaries)
    rows = []
    for run in runs:
        height, level, level_lr = levels_of(run.call)
        own = {"height": height, "level": level or None, "lr": run.lr, "hypergrad_lr": run.beta, "level_lr": level_lr}
        ended = {name: run.summary[name] for name in ("status", "train_loss", "valid_loss", "alpha")}
        rows.append(own | {"seed": run.options["seed"]} | ended)
    return [
        plots.table(folder, "tower", rows),
        *plots.save(plots.maps(maps(runs)), folder, "tower"),
        *plots.save(plots.lines(lines(runs)), folder, "tower-lr"),
    ]


def say(configs: Sequence[Config], summaries: Sequence[Summary]) -> Table:
    """A table: for each rule and height, how many cells are close to the best, the worst finite loss, and diverged cells."""
    found = towers([run_of(config.as_dict(), None, summary.as_dict()) for config, summary in zip(configs, summaries, strict=True)])
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("levels", "height"):
        table.add_column(name, no_wrap=True)
    for name in (f"within {CLOSE:g} × the best of {found.of} ({found.best:.4g})", "worst finite", "diverged"):
        table.add_column(name, justify="right")
    for (level, height), own in found.panels.items():
        finite = [x for x in own.cells.values() if math.isfinite(x)]
        worst, wild = f"{max(finite):.4g}" if finite else "-", len(own.cells) - len(finite)
        table.add_row(level, str(height), f"{found.close(level, height)} of {len(own.cells)}", worst, f"{wild}")
    return table


def height_title(height: int, runs: Sequence[Run]) -> str:
    """The title of a height, with the paper's name for it."""
    return f"height {height}" + (f" ({runs[0].call.family}{'-HD' * height})" if height < 2 else "")


def figure_title(runs: Sequence[Run]) -> str:
    seeds = len({repr(run.options.get("seed")) for run in runs})
    return subject(runs) + (f", median of {seeds} seeds" if seeds > 1 else "")


def maps(runs: Sequence[Run]) -> Maps:
    """Heat maps: a row for each rule of the levels above the first, a column for each height."""
    found = towers(runs)
    titles = {
        key: f"{height_title(key[1], runs)}: {found.close(*key)}/{len(own.lrs) * len(own.betas)}" for key, own in found.panels.items()
    }
    panels = {key: replace(own, title=titles[key]) for key, own in found.panels.items()}
    rows = [(f"{level} levels" if level else "", [panels[level, height] for height in found.heights]) for level in found.levels]
    title = f"{figure_title(runs)}; after each height: cells within {CLOSE:g} × {found.best:.3g}, the best of {found.of}"
    return Maps(title, rows, found.ends, "training loss of the last epoch", ("–", "diverged"), cell_text)


def cell_text(x: float) -> str:
    """A loss as short as a cell needs."""
    text = f"{x:.2f}" if 0.01 <= x < 9.995 else f"{x:.2g}" if x < 0.01 else f"{x:.0f}"
    return text if len(text) < 5 else "≫" if x > 1 else f"{x:.0e}"


def lines(runs: Sequence[Run]) -> Chart:
    """The loss over α_0 at the middle β: a panel per rule, a line per height."""
    found, drawn = towers(runs), []
    colours = ranked(found.heights, 0.9)
    for height in found.heights:
        own = {level: found.panels[level, height].cells for level in found.levels}
        values = {level: np.array([cells.get((lr, found.middle), math.nan) for lr in found.lrs]) for level, cells in own.items()}
        chip = Chip(height_title(height, runs), colours[height], "solid" if height else "dash")
        drawn.append(Line([chip.label], [chip], {"learning rate": np.array(found.lrs)} | values))
    panels = {level: f"{level} levels above the first".strip().capitalize() if level else "" for level in found.levels}
    at = "" if math.isnan(found.middle) else f", at β = {found.middle:g}"
    return Chart(f"Training loss of the last epoch from each α₀{at}", "learning rate", panels, drawn, True, SHOWN)
