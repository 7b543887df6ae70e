"""What came of the runs, in numbers: a row for each workload, base and method, and what they say together."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from ..runs.config import PEERS
from ..workloads import WORKLOADS
from .methods import FIELD
from .plan import GRID
from .runs import METHODS, OURS, TUNED, Result

#: How figures and tables name the bases, and what ours is called beside each.
BASES = {"adam": "Adam", "adamw": "AdamW", "sgdn": "SGD, Nesterov"}
ADAPTING = {"adam": "AdamHD", "adamw": "AdamWHD", "sgdn": "SGDHD, Nesterov"}

#: Methods over all bases; "given" stands in the figures alone.
TITLES = {
    "constant": "tuned, constant",
    "cosine": "tuned, cosine",
    "ours": "HD, no lr",
    "ours-cosine": "HD, budget known",
    "given": "HD, lr given",
    **PEERS,
    **{name: method.title for name, method in FIELD.items()},
}

#: The two sets of workloads.
SETS = {False: "Made on", True: "Judged on"}

#: From this validation ρ on a method counts as failed.
FAILED = 1.3


def title_of(method: str, base: str) -> str:
    """How the table names a method beside a base."""
    if method in TUNED:
        return f"{BASES[base]}, {method}"
    if method in FIELD:
        return f"{BASES[base]}, {TITLES[method]}"
    return PEERS.get(method) or TITLES[method].replace("HD", ADAPTING[base])


@dataclass(frozen=True)
class Row:
    """A line of the table. Losses are medians over the seeds, infinite where most failed; of a baseline those of the best learning rates.

    rho, rho_cos: over the loss of the tuned base with a constant learning rate, with cosine decay. worst: the largest rho of the runs from
    given learning rates. bytes: of state per parameter. failures: runs that diverged or failed, of ``runs``, with the first
    error.
    """

    workload: str
    base: str
    method: str
    train: float
    valid: float
    rho_train: float
    rho_valid: float
    rho_cos_train: float
    rho_cos_valid: float
    worst_train: float | None
    worst_valid: float | None
    bytes: float | None
    failures: int
    runs: int
    error: str | None

    @property
    def judged(self) -> bool:
        return WORKLOADS[self.workload].judged

    @property
    def pair(self) -> tuple[str, str]:
        return self.workload, self.base


def rows(results: Iterable[Result]) -> list[Row]:
    """The table: for each workload and base the baselines, ours, and the peers; nothing of pairs whose baselines are not there yet."""
    pairs: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for found in results:
        pairs.setdefault((found.job.workload, found.job.base), {}).setdefault(found.job.method, []).append(found)
    places = [(name, base) for name, workload in WORKLOADS.items() for base in workload.bases]
    table = []
    for own in (pairs[place] for place in places if place in pairs):
        if not all(method in own for method in TUNED):
            continue
        lowest = [losses(own[method]) for method in TUNED]
        for method in (name for name in METHODS if name in own and name != "given"):
            if runs := [x for x in own[method] if x.job.untold or method not in FIELD]:
                given = own.get("given", []) if method == "ours" else [x for x in own[method] if method in FIELD and x.job.spread]
                table.append(row(runs, lowest, worst_of(given, lowest[0])))
    return table


def row(runs: Sequence[Result], lowest: Sequence[tuple[float, float]], worst: tuple[float | None, float | None]) -> Row:
    """The line of one method, over the losses of the two baselines."""
    job, own = runs[0].job, losses(runs)
    rho = [ratio(x, y) for low in lowest for x, y in zip(own, low, strict=True)]
    size = next((x.bytes for x in runs if x.bytes is not None), None)
    error = next((x.error for x in runs if x.error), None)
    values: list[Any] = [*own, *rho, *worst, size, sum(x.failed for x in runs), len(runs), error]
    return Row(job.workload, job.base, job.method, *values)


def losses(results: Sequence[Result]) -> tuple[float, float]:
    """For training and validation each, the lowest over the learning rates that ran with most seeds of the median over those."""
    by_lr = grouped(results)
    most = max(len(runs) for runs in by_lr.values())
    columns = [medians(runs) for runs in by_lr.values() if len(runs) == most]
    return min(train for train, _ in columns), min(valid for _, valid in columns)


def grouped(results: Sequence[Result]) -> dict[float | None, list[Result]]:
    by_lr: dict[float | None, list[Result]] = {}
    for found in results:
        by_lr.setdefault(found.job.lr, []).append(found)
    return by_lr


def medians(runs: Sequence[Result]) -> tuple[float, float]:
    return statistics.median_high(x.train for x in runs), statistics.median_high(x.valid for x in runs)


def worst_of(given: Sequence[Result], lowest: tuple[float, float]) -> tuple[float | None, float | None]:
    """The largest ρ of runs from given learning rates."""
    if not given:
        return None, None
    return max(ratio(x.train, lowest[0]) for x in given), max(ratio(x.valid, lowest[1]) for x in given)


def ratio(x: float, y: float) -> float:
    """Infinite where ``x`` is, whatever ``y`` is."""
    return math.inf if math.isinf(x) or y == 0 else x / y


def geometric_mean(values: Iterable[float]) -> float:
    """Infinite where one of them is."""
    logs = [math.log(max(x, 1e-300)) for x in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


@dataclass(frozen=True)
class Line:
    """A method over all pairs of workload and base of a set on which it ran: medians of ρ and ρ_cos, the geometric mean of the validation
    ρ_cos, the worst validation ρ, median bytes, how many pairs it failed on, and the shares on which ours, without lr and without a
    budget, ends below it."""

    method: str
    pairs: int
    rho_train: float
    rho_valid: float
    rho_cos_train: float
    rho_cos_valid: float
    mean: float
    worst: float
    bytes: float | None
    failed: int
    below_train: float
    below_valid: float


def lines(table: Sequence[Row], judged: bool) -> list[Line]:
    """The summary of one set, in the order of METHODS."""
    ours = {row.pair: row for row in table if row.method == "ours"}
    found = []
    for method in METHODS:
        own = [row for row in table if row.method == method and row.judged == judged]
        if not own:
            continue
        middle = [
            statistics.median(getattr(row, name) for row in own) for name in ("rho_train", "rho_valid", "rho_cos_train", "rho_cos_valid")
        ]
        sizes = [row.bytes for row in own if row.bytes is not None]
        beside = [(ours[row.pair], row) for row in own if row.pair in ours]
        below = [sum(a.train < b.train for a, b in beside), sum(a.valid < b.valid for a, b in beside)]
        shares = [x / len(beside) if beside and method != "ours" else math.nan for x in below]
        ends = [geometric_mean(row.rho_cos_valid for row in own), max(row.rho_valid for row in own)]
        values: list[Any] = [*middle, *ends, statistics.median(sizes) if sizes else None, sum(bool(reason(row)) for row in own), *shares]
        found.append(Line(method, len(own), *values))
    return found


def reason(row: Row) -> str:
    """Why a method counts as failed on a workload; empty where it does not, and for the baselines."""
    if row.method in TUNED:
        return ""
    if row.failures:
        return f"{row.failures} of {row.runs} {f'failed, {row.error}' if row.error else 'diverged'}"
    return f"ρ = {number(row.rho_valid, '.2f')}" if row.rho_valid > FAILED else ""


def failures(table: Sequence[Row], judged: bool) -> dict[str, list[str]]:
    """By method, the workloads of a set on which it failed, and why; ours from given learning rates too."""
    found: dict[str, list[str]] = {TITLES[method]: [] for method in METHODS}
    for row in (row for row in table if row.judged == judged):
        place = f"{row.workload}, {BASES[row.base]}"
        if told := reason(row):
            found[TITLES[row.method]].append(f"{place} ({told})")
        if row.worst_valid is not None and row.worst_valid > FAILED:
            found[TITLES["given"]].append(f"{place} (ρ = {number(row.worst_valid, '.2f')})")
    return {method: places for method, places in found.items() if places}


@dataclass(frozen=True)
class OverLr:
    """Final losses, medians over the seeds, over the learning rate of a base; of one method."""

    base: str
    method: str
    lr: list[float]
    train: list[float]
    valid: list[float]


def over_lr(results: Sequence[Result]) -> list[OverLr]:
    """The curves of one workload. Ours without a learning rate is level, from one end of the grid to 1."""
    found = []
    for base in BASES:
        for method in (*TUNED, "ours", "given"):
            by_lr = grouped([x for x in results if x.job.base == base and x.job.method == method])
            if method == "ours" and by_lr:
                by_lr = dict.fromkeys((GRID[0], 1.0), by_lr[None])
            if by_lr:
                lr = sorted(lr for lr in by_lr if lr is not None)
                train, valid = zip(*(medians(by_lr[x]) for x in lr), strict=True)
                found.append(OverLr(base, method, lr, list(train), list(valid)))
    return found


def number(value: float | None, form: str) -> str:
    """A value as people read it."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else format(value, ".3g" if value >= 100 else form)


def pair_of(x: float | None, y: float | None, form: str = ".2f") -> str:
    return "–" if x is None and y is None else f"{number(x, form)} / {number(y, form)}"


#: The columns of the summary: heading, and what a line says there.
HEADS = ("method", "pairs", "ρ", "ρ_cos", "mean ρ_cos", "worst ρ", "bytes", "failed", "ours below")


def cells(line: Line) -> list[str]:
    """A line of the summary as text, under HEADS."""
    return [
        TITLES[line.method],
        str(line.pairs),
        pair_of(line.rho_train, line.rho_valid),
        pair_of(line.rho_cos_train, line.rho_cos_valid),
        number(line.mean, ".2f"),
        number(line.worst, ".2f"),
        number(line.bytes, ".1f"),
        str(line.failed),
        "–" if math.isnan(line.below_train) else f"{line.below_train:.0%} / {line.below_valid:.0%}",
    ]


def row_cells(row: Row) -> list[str]:
    """A row as text: method, losses, ρ, ρ_cos, worst ρ, bytes, why it failed."""
    return [
        title_of(row.method, row.base),
        pair_of(row.train, row.valid, ".4g"),
        pair_of(row.rho_train, row.rho_valid),
        pair_of(row.rho_cos_train, row.rho_cos_valid),
        pair_of(row.worst_train, row.worst_valid),
        number(row.bytes, ".1f"),
        reason(row) or "–",
    ]


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A table; what comes from errors may hold bars and tags."""
    safe = [[text.replace("|", "\\|").replace("<", "&lt;") for text in line] for line in lines]
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *safe)]


def page(table: Sequence[Row]) -> str:
    """The tables as Markdown: for both sets the summary and all failures, then each workload."""
    text = []
    for judged, title in SETS.items():
        if found := lines(table, judged):
            failed = [(method, str(len(places)), "; ".join(places)) for method, places in failures(table, judged).items()]
            text += [f"## {title}", "", *markdown(HEADS, map(cells, found)), ""]
            text += [f"### {title}: failures", "", *markdown(("method", "pairs", "where"), failed), ""] if failed else []
    heads = ("method", "training / validation loss", "ρ", "ρ_cos", "worst ρ, lr given", "bytes", "failed")
    for workload in dict.fromkeys(row.workload for row in table):
        about = WORKLOADS[workload]
        own = [row_cells(row) for row in table if row.workload == workload]
        text += [
            f"## {about.title}",
            "",
            f"`{workload}`, {about.steps:,} steps, {SETS[about.judged].lower()}",
            "",
            *markdown(heads, own),
            "",
        ]
    return "\n".join(text)


def comma_separated(table: Sequence[Row]) -> str:
    """compare.csv: all rows with all columns."""
    return separated(["judged", *(field.name for field in fields(Row))], ([row.judged, *astuple(row)] for row in table))


def separated(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Comma-separated values, empty where one is missing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(["" if value is None else value for value in line] for line in lines)
    return text.getvalue()


def say(table: Sequence[Row]) -> Group:
    """What the command closes with: for each set a line for each method over all pairs."""
    title = "median losses over the tuned base's (ρ) and its cosine's (ρ_cos)"
    found = {name: lines(table, judged) for judged, name in SETS.items()}
    return Group(*(shown(f"{name}: {title}", HEADS, map(cells, own)) for name, own in found.items() if own))


def shown(title: str, heads: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    """A table on the terminal, whose first column is text."""
    told = Table(box=box.SIMPLE_HEAD, title=title, collapse_padding=True)
    for i, name in enumerate(heads):
        told.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        told.add_row(*line)
    return told


def alphas(results: Iterable[Result]) -> Mapping[str, list[Any]]:
    """By workload, the base and the learning rates over time of each run of ours without one."""
    found: dict[str, list[Any]] = {}
    for x in results:
        if x.job.method == OURS[0] and x.alpha:
            found.setdefault(x.job.workload, []).append((x.job.base, *x.alpha))
    return found
