"""What came of the runs, in numbers: a row for each workload, base and method, and what they say together."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, TypeVar

from rich import box
from rich.console import Group
from rich.table import Table

from ..runs.peers import PEERS
from ..workloads import WORKLOADS
from .methods import FIELD, OTHERS
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
    **{name: PEERS[kind][0] for name, kind in OTHERS.items()},
    **{name: method.title for name, method in FIELD.items()},
}

#: The two sets of workloads.
SETS = {False: "Made on", True: "Judged on"}

#: From this validation ρ on a method counts as failed.
FAILED = 1.3

#: How losses end the names of what is of training and of validation.
LOSSES = ("train", "valid")

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def title_of(method: str, base: str) -> str:
    """How the table names a method beside a base."""
    if method in TUNED:
        return f"{BASES[base]}, {method}"
    if method in FIELD:
        return f"{BASES[base]}, {TITLES[method]}"
    return TITLES[method] if method in OTHERS else TITLES[method].replace("HD", ADAPTING[base])


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
    pairs = grouped(results, lambda x: x.job.pair)
    table = []
    for place in ((name, base) for name, workload in WORKLOADS.items() for base in workload.bases):
        own = grouped(pairs.get(place, []), lambda x: x.job.method)
        if not all(method in own for method in TUNED):
            continue
        lowest = [losses(own[method]) for method in TUNED]
        for method in (name for name in METHODS if name in own and name != "given"):
            if runs := [x for x in own[method] if x.job.untold or method not in FIELD]:
                given = own.get("given", []) if method == "ours" else [x for x in own[method] if method in FIELD and x.job.spread]
                table.append(row(runs, lowest, given))
    return table


def row(runs: Sequence[Result], lowest: Sequence[tuple[float, float]], given: Sequence[Result]) -> Row:
    """The line of one method, over the losses of the two baselines; with its runs from given learning rates."""
    job, own = runs[0].job, losses(runs)
    values: list[Any] = [*own, *(ratio(x, y) for low in lowest for x, y in zip(own, low, strict=True))]
    values += [max((ratio(getattr(x, name), low) for x in given), default=None) for name, low in zip(LOSSES, lowest[0], strict=True)]
    values += [first(x.bytes for x in runs), sum(x.failed for x in runs), len(runs), first(x.error for x in runs)]
    return Row(job.workload, job.base, job.method, *values)


def losses(results: Sequence[Result]) -> tuple[float, float]:
    """For training and validation each, the lowest over the learning rates that ran with most seeds of the median over those."""
    by_lr = grouped(results, lambda x: x.job.lr)
    most = max(map(len, by_lr.values()))
    train, valid = map(min, zip(*(medians(runs) for runs in by_lr.values() if len(runs) == most), strict=True))
    return train, valid


def medians(runs: Sequence[Result]) -> tuple[float, float]:
    return statistics.median_high(x.train for x in runs), statistics.median_high(x.valid for x in runs)


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def first(values: Iterable[T | None]) -> T | None:
    return next((x for x in values if x is not None), None)


def ratio(x: float, y: float) -> float:
    """Infinite where ``x`` is, whatever ``y`` is."""
    return math.inf if math.isinf(x) or y == 0 else x / y


def geometric_mean(values: Iterable[float]) -> float:
    """Infinite where one of them is."""
    logs = [math.log(max(x, 1e-300)) for x in values]
    return math.exp(math.fsum(logs) / len(logs))


def middle(values: Iterable[float | None]) -> float | None:
    """The median of those that are there."""
    found = [x for x in values if x is not None]
    return statistics.median(found) if found else None


def over(table: Sequence[Row], name: str, how: Callable[[list[float]], float]) -> tuple[float, float]:
    """What becomes of a column of training losses, and of that of validation losses."""
    train, valid = (how([getattr(row, f"{name}_{loss}") for row in table]) for loss in LOSSES)
    return train, valid


#: The columns of the summary.
HEADS = ("method", "pairs", "ρ", "ρ_cos", "mean ρ_cos", "worst ρ", "bytes", "failed", "ours below")


def summary(table: Sequence[Row], judged: bool) -> list[list[str]]:
    """A line for each method on the pairs of a set, under HEADS: medians of ρ and ρ_cos, the geometric mean of the validation ρ_cos, the
    worst validation ρ, median bytes, how many pairs it failed on, and the shares on which ours, without lr and without a budget, ends
    below it."""
    ours = {row.pair: row for row in table if row.method == "ours"}
    found = []
    for method in METHODS:
        own = [row for row in table if row.method == method and row.judged == judged]
        beside = [(ours[row.pair], row) for row in own if row.pair in ours and method != "ours"]
        below = [sum(getattr(a, loss) < getattr(b, loss) for a, b in beside) / len(beside) for loss in LOSSES if beside]
        if own:
            texts = [TITLES[method], str(len(own)), *(pair_of(*over(own, name, statistics.median)) for name in ("rho", "rho_cos"))]
            texts += [number(over(own, "rho_cos", geometric_mean)[1], ".2f"), number(over(own, "rho", max)[1], ".2f")]
            texts += [number(middle(row.bytes for row in own), ".1f"), str(sum(bool(reason(row)) for row in own))]
            found.append([*texts, " / ".join(f"{share:.0%}" for share in below) or "–"])
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
    found, lines = grouped(results, lambda x: (x.job.base, x.job.method)), []
    for base, method in ((base, method) for base in BASES for method in (*TUNED, "ours", "given") if (base, method) in found):
        by_lr = grouped(found[base, method], lambda x: x.job.lr)
        if method == "ours":
            by_lr = dict.fromkeys((GRID[0], 1.0), by_lr[None])
        lr = sorted(lr for lr in by_lr if lr is not None)
        train, valid = zip(*(medians(by_lr[x]) for x in lr), strict=True)
        lines.append(OverLr(base, method, lr, [*train], [*valid]))
    return lines


def alphas(results: Iterable[Result]) -> Mapping[str, list[Any]]:
    """By workload, the base and the learning rates over time of each run of ours without one."""
    own = [x for x in results if x.job.method == OURS[0] and x.alpha]
    return {work: [(x.job.base, *(x.alpha or ())) for x in runs] for work, runs in grouped(own, lambda x: x.job.workload).items()}


def number(value: float | None, form: str) -> str:
    """A value as people read it."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else format(value, ".3g" if value >= 100 else form)


def pair_of(x: float | None, y: float | None, form: str = ".2f") -> str:
    return "–" if x is None and y is None else f"{number(x, form)} / {number(y, form)}"


def both(line: object, name: str) -> str:
    """What a line says of training and of validation losses."""
    return pair_of(*(getattr(line, f"{name}_{loss}") for loss in LOSSES))


def row_cells(row: Row) -> list[str]:
    """A row as text: method, losses, ρ, ρ_cos, worst ρ, bytes, why it failed."""
    rhos = (both(row, name) for name in ("rho", "rho_cos", "worst"))
    losses = pair_of(row.train, row.valid, ".4g")
    return [title_of(row.method, row.base), losses, *rhos, number(row.bytes, ".1f"), reason(row) or "–"]


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A table; what comes from errors may hold bars and tags."""
    safe = [[text.replace("|", "\\|").replace("<", "&lt;") for text in line] for line in lines]
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *safe)]


def page(table: Sequence[Row]) -> str:
    """The tables as Markdown: for both sets the summary and all failures, then each workload."""
    text = []
    for judged, title in SETS.items():
        if found := summary(table, judged):
            failed = [(method, str(len(places)), "; ".join(places)) for method, places in failures(table, judged).items()]
            text += [f"## {title}", "", *markdown(HEADS, found), ""]
            text += [f"### {title}: failures", "", *markdown(("method", "pairs", "where"), failed), ""] if failed else []
    heads = ("method", "training / validation loss", "ρ", "ρ_cos", "worst ρ, lr given", "bytes", "failed")
    for workload, own in grouped(table, lambda row: row.workload).items():
        about = WORKLOADS[workload]
        text += [f"## {about.title}", "", f"`{workload}`, {about.steps:,} steps, {SETS[about.judged].lower()}", ""]
        text += [*markdown(heads, map(row_cells, own)), ""]
    return "\n".join(text)


def comma_separated(table: Sequence[Row]) -> str:
    """compare.csv: all rows with all columns."""
    return separated(["judged", *(field.name for field in fields(Row))], ([row.judged, *astuple(row)] for row in table))


def separated(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Comma-separated values, empty where one is missing."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *lines])
    return text.getvalue()


def say(table: Sequence[Row]) -> Group:
    """What the command closes with: for each set a line for each method over all pairs."""
    title = "median losses over the tuned base's (ρ) and its cosine's (ρ_cos)"
    found = {name: summary(table, judged) for judged, name in SETS.items()}
    return Group(*(shown(f"{name}: {title}", HEADS, own) for name, own in found.items() if own))


def shown(title: str, heads: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    """A table on the terminal, whose first column is text."""
    told = Table(box=box.SIMPLE_HEAD, title=title, collapse_padding=True)
    for i, name in enumerate(heads):
        told.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        told.add_row(*line)
    return told
