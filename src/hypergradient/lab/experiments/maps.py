"""The data of heat maps over α_0 × β, for figures and for the report."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .run import Run, grouped, medians

Cell = tuple[float, float | None]


@dataclass(frozen=True)
class Panel:
    """A heat map.

    runs: the runs of each cell. cells: the median over their seeds; infinite if half of them or more failed, missing if none has ended.
    worse: the cells with a red outline.
    """

    title: str
    lrs: Sequence[float]
    betas: Sequence[float | None]
    runs: dict[Cell, list[Run]]
    cells: dict[Cell, float]
    worse: set[Cell] = field(default_factory=set)

    def rows(self) -> list[list[float | None]]:
        """The cells by rows of increasing β."""
        return [[self.cells.get((lr, beta)) for lr in self.lrs] for beta in self.betas]

    def outline(self) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
        """The outline of the cells that are worse, as sides between x coordinates and between y coordinates."""
        places = {(x, y) for x, lr in enumerate(self.lrs) for y, beta in enumerate(self.betas) if (lr, beta) in self.worse}
        for x, y in sorted(places):
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                if (x + dx, y + dy) not in places:
                    across, up = (x + dx / 2, y + dy / 2)
                    yield (across - abs(dy) / 2, across + abs(dy) / 2), (up - abs(dx) / 2, up + abs(dx) / 2)


@dataclass(frozen=True)
class Maps:
    """Heat maps on one logarithmic colour scale.

    rows: rows of panels from top to bottom, each with its name, if any. beyond: the text of an infinite cell, and its meaning. number:
    formats a cell's value.
    """

    title: str
    rows: list[tuple[str, list[Panel]]]
    ends: tuple[float, float]
    label: str
    beyond: tuple[str, str]
    number: Callable[[float], str]

    @property
    def panels(self) -> list[Panel]:
        return [panel for _, own in self.rows for panel in own]


def panel(title: str, lrs: Sequence[float], betas: Sequence[float | None], runs: Sequence[Run], value: Callable[[Run], float]) -> Panel:
    """The heat map of runs; runs without β appear at every β."""
    places = ((run, beta) for run in runs for beta in (betas if run.beta is None else [run.beta]))
    found = grouped(((run.lr, beta), run) for run, beta in places if run.lr is not None)
    return Panel(title, lrs, betas, found, medians((cell, value(run)) for cell, own in found.items() for run in own if run.summary))


def reached(values: Sequence[float], lowest: float = 0.0) -> list[float]:
    return [x for x in values if lowest < x < math.inf]


def tick(value: float | None, power: str) -> str:
    """The label of a tick: powers of ten as such, nothing for the β of a baseline."""
    if value is None or math.isnan(value):
        return ""
    found = math.log10(value) if value > 0 else math.inf
    return power.format(int(found)) if found.is_integer() else f"{value:g}"
