"""What figures of curves show, on paper and on pages: medians over seeds, bands from lowest to highest, and what tells runs apart."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest
from typing import Any

import numpy as np

from .run import MOVING, TELLING, Array, Run, columns, grouped, shown, subject, varied

#: Okabe and Ito's palette, which colour-blind readers tell apart; and viridis.
COLOURS = {"sgd": "#E69F00", "sgdn": "#CC3311", "adam": "#0072B2", "adamw": "#009E73"}
VIRIDIS = ("#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6dcd59", "#b4de2c", "#fde725")

#: Lines of runs that keep their learning rate, that adapt it additively, by factors, or otherwise; and how legends name them.
DASHES = {"baseline": "dash", "additive": "solid", "multiplicative": "dot", "other": "solid"}
STYLES = {"baseline": "baseline", "additive": "HD", "multiplicative": "HDM (multiplicative)", "other": "another rule"}

#: How runs end that have not diverged.
ENDED = ("finished", "reached", "cap")

#: The figures of curves: table, horizontal axis, and what the panels show.
VIEWS = {
    ("epochs", "epoch"): {"alpha": "Learning rate α", "train_loss": "Training loss", "valid_loss": "Validation loss"},
    ("history", "iteration"): {"alpha": "Learning rate α", "loss": "Minibatch loss"},
}

#: What the figures over learning rates show: the losses, up to so many times the lowest.
FINAL, BEYOND = {"train_loss": "Training loss", "valid_loss": "Validation loss"}, 100.0

#: Optimizers, or other choices, that a sweep over learning rates draws beside one another.
BESIDE = 6


@dataclass(frozen=True)
class Chip:
    """A label of the legend, with what is drawn beside it; no colour is that of the text."""

    label: str
    colour: str
    dash: str


@dataclass(frozen=True)
class Line:
    """What is drawn of one run, or of runs that differ in their seeds: the first chip gives the colour, the last the dashes.

    values: of the horizontal axis and of each panel, missing where they are not finite. bands: lowest and highest, where there are several.
    level: a horizontal line, of runs without a learning rate.
    """

    told: Sequence[str]
    chips: Sequence[Chip]
    values: dict[str, Any]
    bands: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    diverged: bool = False
    marks: bool = False
    level: bool = False


@dataclass(frozen=True)
class Chart:
    """Panels over one horizontal axis: their titles by the names of what they show; what is beyond ``clip`` times the lowest is cut off."""

    title: str
    x: str
    panels: dict[str, str]
    lines: Sequence[Line]
    whole: bool = False
    clip: float = math.inf

    def scale(self, column: str) -> float | None:
        """How far from 0 the vertical axis of a panel is linear, and logarithmic beyond: 0 for never, None for everywhere."""
        low, high = self.ends(column)
        if low > 0:
            return None if column in MOVING and high < 10 * low else 0.0
        found = np.abs(self.all(column))
        return None if column in MOVING or not found.any() else float(max(np.quantile(found[found > 0], 0.05), 1e-7 * found.max()))

    def ends(self, column: str) -> tuple[float, float]:
        """The lowest and the highest value of a panel, but for runs that diverged where others did not."""
        found = self.all(column)
        low, high = (float(found.min()), float(found.max())) if len(found) else (math.nan, math.nan)
        return low, min(high, self.clip * low) if low > 0 else high

    def frame(self, column: str) -> tuple[float, float] | None:
        """What a panel shows, None for all."""
        low, high = self.ends(column)
        return (low, high) if low < high and (self.clip < math.inf or any(line.diverged for line in self.lines)) else None

    def all(self, column: str) -> Array:
        steady = [line for line in self.lines if not line.diverged] or self.lines
        parts = [np.asarray(part, float) for line in steady for part in (line.values[column], *line.bands.get(column, ()))]
        found = np.concatenate(parts) if parts else np.empty(0)
        return found[np.isfinite(found)]


def ticks(linear: float, low: float, high: float) -> list[float]:
    """0 and powers of ten on both sides, for an axis that is linear so far from 0."""
    first, last = math.ceil(math.log10(linear)), math.floor(math.log10(max(-low, high, linear)))
    powers = [10.0**k for k in range(last, first - 1, -max(1, math.ceil((last - first) / 4)))]
    return sorted({0.0, *(x for power in powers for x in (-power, power) if low <= x <= high)})


def viridis(part: float) -> str:
    i, rest = divmod(9 * min(max(part, 0.0), 0.999), 1)
    pair = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in VIRIDIS[int(i) : int(i) + 2]]
    return "#" + "".join(f"{round(a + rest * (b - a)):02x}" for a, b in zip(*pair, strict=True))


def ranked(values: Iterable[Any], end: float) -> dict[Any, str]:
    """A colour for each of the values, in their order, from the dark end of viridis on."""
    order = list(dict.fromkeys(values))
    return {value: viridis(end * i / max(1, len(order) - 1)) for i, value in enumerate(order)}


def rest_of(runs: Sequence[Run], without: Sequence[str] = ()) -> list[Chip]:
    """A label for each run, of what tells it from others with its optimizer: in the optimizer's colour where that tells them apart."""
    passed, titles = {"model", "data", "seed", *without}, [shown("optimizer", run.options.get("optimizer")) for run in runs]
    own = grouped(zip(titles, runs, strict=True))
    telling = {name for group in own.values() for name in varied(group)} - passed
    several = len(own) > 1
    labels = [", ".join([title] * several + run.describe(telling)) or title for run, title in zip(runs, titles, strict=True)]
    colours = ranked(labels, 0.8)
    plain = len(colours) == len(own)
    return [
        Chip(label, COLOURS.get(run.call.family.lower(), colours[label]) if plain else colours[label], DASHES[run.call.style])
        for run, label in zip(runs, labels, strict=True)
    ]


def chips_of(kind: str, runs: Sequence[Run]) -> list[list[Chip]]:
    """The labels of each run: it is seen while all of them are on."""
    if kind in ("tuning", "demo", "train"):
        return [[chip] for chip in rest_of(runs, tuple(varied(runs)))]
    if kind != "sensitivity" and "lr" not in varied(runs):
        return [[chip] for chip in rest_of(runs)]
    lrs = sorted({run.lr or 0.0 for run in runs})
    colours = ranked(lrs, 0.9)
    first = [Chip(f"α₀ = {shown('lr', run.call.options.get('lr'))}", colours[run.lr or 0.0], "solid") for run in runs]
    styles = [Chip(STYLES[run.call.style], "", DASHES[run.call.style]) for run in runs]
    rest = styles if kind == "sensitivity" else rest_of(runs, ["lr"])
    many = len({chip.label for chip in rest}) > BESIDE
    return [[other, chip] if many else [chip, other] for chip, other in zip(first, rest, strict=True)]


def curves(kind: str, runs: Sequence[Run], points: int, most: int) -> list[Chart]:
    """Charts by epoch, a column each, and then as many by iteration.

    Args:
        kind: of the experiment.
        runs: in their order; of a single one there are panels of what moves beside the learning rate.
        points: at most of a line, closer together at the start.
        most: how many runs are drawn, all seeds of one or none.
    """
    groups = [*grouped((repr({**run.options, "seed": None}), run) for run in runs).values()]
    chips, names = chips_of(kind, [group[0] for group in groups]), {*TELLING, *varied(runs)}
    whole = sum(n <= most for n in accumulate(map(len, groups)))
    groups = groups[:whole] or [groups[0][:most]]
    drawn = grouped((beside(kind, group[0], own), (group, own)) for group, own in zip(groups, chips, strict=False))
    charts = []
    for (table, x), panels in VIEWS.items():
        extra = MOVING if table == "history" and len(runs) == 1 else {}
        for title, lines in drawn.items():
            made = [line(group, own, names, table, [x, *panels, *extra], points) for group, own in lines]
            moving = {name: text for name, text in extra.items() if np.isfinite(made[0].values[name]).any()}
            charts.append(Chart(f"{title}, by {x}", x, panels | moving, made))
    return charts


def beside(kind: str, run: Run, chips: Sequence[Chip]) -> str:
    """The title of the column that a run is drawn in: models and data, and an optimizer where colours tell of learning rates."""
    if kind == "sensitivity":
        return f"{subject([run])}, {shown('optimizer', run.call.family)}"
    return f"{subject([run])}, {chips[1].label}" if len(chips) > 1 and chips[0].label.startswith("α₀") else subject([run])


def line(group: Sequence[Run], chips: Sequence[Chip], names: set[str], table: str, read: Sequence[str], points: int) -> Line:
    """Medians of the runs of a group, and their bands: one that diverged counts as infinite from then on."""
    found = [columns(run.path, table, read) if run.path else dict.fromkeys(read, np.empty(0)) for run in group]
    longest = max(found, key=lambda own: len(own[read[0]]))[read[0]]
    rows = len(longest)
    kept = np.unique(np.geomspace(1, rows, points).astype(int)) - 1 if rows > points else np.arange(rows)
    values, bands = {read[0]: longest[kept]}, {}
    lost = [run.status == "diverged" for run in group]
    for name in read[1:]:
        stack = np.array([padded(own[name], kept, ended) for own, ended in zip(found, lost, strict=True)])
        values[name], bands[name] = spread(stack)
    seeds = [f"median of {len(group)} seeds"] if len(group) > 1 else []
    told = group[0].describe(names - ({"seed"} if seeds else set())) + seeds
    return Line(told, chips, values, bands if seeds else {}, sum(lost) > len(lost) / 2)


def spread(stack: Array) -> tuple[Array, tuple[Array, Array]]:
    """Of each column the median, the upper one of two, and the lowest and the highest finite value; NaN is nothing."""
    ordered = np.sort(stack, axis=0)  # NaN comes last
    middle = np.minimum((~np.isnan(stack)).sum(axis=0) // 2, len(stack) - 1)
    highest = np.where(np.isfinite(stack), stack, -math.inf).max(axis=0)
    return np.take_along_axis(ordered, middle[None], axis=0)[0], (ordered[0], highest)


def padded(own: Array, kept: Any, lost: bool) -> Array:
    """The rows that are kept, and beyond the last infinity for a run that is lost."""
    found = np.full(len(kept), math.inf if lost else math.nan)
    there = kept < len(own)
    found[there] = own[kept[there]]
    return found


def over_lr(runs: Sequence[Run], most: int) -> Chart | None:
    """Final losses over the initial learning rate, a line for each optimizer or other choice; None where there is one learning rate."""
    return final_losses([*zip(rest_of(runs, ["lr"]), runs, strict=True)], most)


def final_losses(labelled: Sequence[tuple[Chip, Run]], most: int, clip: float = BEYOND) -> Chart | None:
    """Final losses over the initial learning rate: a line for each label, a horizontal one for runs without a learning rate."""
    ended = [(chip, run) for chip, run in labelled if run.summary and (run.lr or run.without_lr)]
    lrs = sorted({run.lr for _, run in ended if run.lr})
    if len(lrs) < 2:
        return None
    lines = []
    for (chip, level), own in [*grouped(((chip, run.without_lr), run) for chip, run in ended).items()][:most]:
        by_lr = [(lr, own) for lr in lrs] if level else sorted(grouped((run.lr, run) for run in own if run.lr).items())
        values, bands = {"learning rate": np.array([lr for lr, _ in by_lr])}, {}
        for name in FINAL:
            losses = ([run.final(name, *ENDED) for run in same] for _, same in by_lr)
            values[name], bands[name] = spread(np.array([*zip_longest(*losses, fillvalue=math.nan)]))
        bands = bands if max(len(same) for _, same in by_lr) > 1 else {}
        lines.append(Line([chip.label], [chip], values, bands, level=level))
    return Chart("Final loss over the initial learning rate", "learning rate", FINAL, lines, True, clip)
