"""The results of a comparison in numbers: a row for each workload, base and method, and summaries."""

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

from ..runs.peers import PEER_CLASSES, PEERS
from ..workloads import WORKLOADS
from .methods import PUBLISHED
from .plan import GRID
from .runs import METHODS, OURS, TUNED, Result

#: The names of the bases in figures and tables, and of our optimizer for each.
BASES = {"adam": "Adam", "adamw": "AdamW", "sgdn": "SGD, Nesterov"}
ADAPTING = {"adam": "AdamHD", "adamw": "AdamWHD", "sgdn": "SGDHD, Nesterov"}

#: The names of methods over all bases; "given" appears in figures only.
TITLES = {
    "constant": "tuned, constant",
    "cosine": "tuned, cosine",
    "ours": "HD, tuning-free",
    "ours-cosine": "HD, with cosine",
    "given": "HD, lr set",
    **{name: PEERS[kind][0] for name, kind in PEER_CLASSES.items()},
    **{name: method.title for name, method in PUBLISHED.items()},
}

#: The two sets of workloads, by ``Workload.held_out``.
SETS = {False: "Development", True: "Held-out"}

#: A method with a validation ρ above this counts as failed.
FAILED_RHO = 1.3

#: The suffixes of columns for training and validation.
LOSSES = ("train", "valid")

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def title_of(method: str, base: str) -> str:
    """The name of a method for a base, in the table."""
    if method in TUNED:
        return f"{BASES[base]}, {method}"
    if method in PUBLISHED:
        return f"{BASES[base]}, {TITLES[method]}"
    return TITLES[method] if method in PEER_CLASSES else TITLES[method].replace("HD", ADAPTING[base])


@dataclass(frozen=True)
class Row:
    """A row of the table. Losses are medians over the seeds, infinite if most runs failed; for baselines at the best learning rates.

    rho, rho_cos: ratio to the loss of the tuned base with a constant learning rate, with cosine decay. worst: the largest rho over the
    given initial learning rates. bytes: bytes of state per parameter. failures: number of ``runs`` that diverged or failed; error: the
    first error.
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
    def held_out(self) -> bool:
        return WORKLOADS[self.workload].held_out

    @property
    def pair(self) -> tuple[str, str]:
        return self.workload, self.base


def rows(results: Iterable[Result]) -> list[Row]:
    """The table: baselines, HD and peers for each workload and base; pairs with incomplete baselines are left out."""
    pairs = grouped(results, lambda x: x.job.pair)
    table = []
    for place in ((name, base) for name, workload in WORKLOADS.items() for base in workload.bases):
        own = grouped(pairs.get(place, []), lambda x: x.job.method)
        if not all(method in own for method in TUNED):
            continue
        lowest = [losses(own[method]) for method in TUNED]
        for method in (name for name in METHODS if name in own and name != "given"):
            if runs := [x for x in own[method] if x.job.from_own_lr or method not in PUBLISHED]:
                given = own.get("given", []) if method == "ours" else [x for x in own[method] if method in PUBLISHED and x.job.spread]
                table.append(row(runs, lowest, given))
    return table


def row(runs: Sequence[Result], lowest: Sequence[tuple[float, float]], given: Sequence[Result]) -> Row:
    """The row of one method, given the losses of the two baselines and the method's runs from given learning rates."""
    job, own = runs[0].job, losses(runs)
    values: list[Any] = [*own, *(ratio(x, y) for low in lowest for x, y in zip(own, low, strict=True))]
    values += [max((ratio(getattr(x, name), low) for x in given), default=None) for name, low in zip(LOSSES, lowest[0], strict=True)]
    values += [first(x.bytes for x in runs), sum(x.failed for x in runs), len(runs), first(x.error for x in runs)]
    return Row(job.workload, job.base, job.method, *values)


def losses(results: Sequence[Result]) -> tuple[float, float]:
    """Training and validation loss: the median over the seeds, minimised over the learning rates that ran with most seeds."""
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
    """x / y; infinite if ``x`` is infinite or ``y`` is 0."""
    return math.inf if math.isinf(x) or y == 0 else x / y


def geo_mean(values: Iterable[float]) -> float:
    """The geometric mean; infinite if a value is."""
    logs = [math.log(max(x, 1e-300)) for x in values]
    return math.exp(math.fsum(logs) / len(logs))


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are not None."""
    found = [x for x in values if x is not None]
    return statistics.median(found) if found else None


def per_loss(table: Sequence[Row], name: str, how: Callable[[list[float]], float]) -> tuple[float, float]:
    """Aggregate a column's training values and its validation values."""
    train, valid = (how([getattr(row, f"{name}_{loss}") for row in table]) for loss in LOSSES)
    return train, valid


#: The columns of the summary.
HEADS = ("method", "pairs", "ρ", "ρ_cos", "mean ρ_cos", "worst ρ", "bytes", "failed", "HD lower")


def summary(table: Sequence[Row], held_out: bool) -> list[list[str]]:
    """A row for each method on the pairs of a set, under HEADS: medians of ρ and ρ_cos, the geometric mean of the validation ρ_cos, the
    worst validation ρ, median bytes, the number of pairs on which it failed, and the shares on which tuning-free HD ends with a lower
    training and validation loss."""
    ours = {row.pair: row for row in table if row.method == "ours"}
    found = []
    for method in METHODS:
        own = [row for row in table if row.method == method and row.held_out == held_out]
        compared = [(ours[row.pair], row) for row in own if row.pair in ours and method != "ours"]
        below = [sum(getattr(a, loss) < getattr(b, loss) for a, b in compared) / len(compared) for loss in LOSSES if compared]
        if own:
            texts = [TITLES[method], str(len(own)), *(fmt_pair(*per_loss(own, name, statistics.median)) for name in ("rho", "rho_cos"))]
            texts += [fmt(per_loss(own, "rho_cos", geo_mean)[1], ".2f"), fmt(per_loss(own, "rho", max)[1], ".2f")]
            texts += [fmt(median(row.bytes for row in own), ".1f"), str(sum(bool(why_failed(row)) for row in own))]
            found.append([*texts, " / ".join(f"{share:.0%}" for share in below) or "–"])
    return found


def why_failed(row: Row) -> str:
    """Why a method counts as failed on a workload; empty if it does not, and for the baselines."""
    if row.method in TUNED:
        return ""
    if row.failures:
        return f"{row.failures} of {row.runs} {f'failed, {row.error}' if row.error else 'diverged'}"
    return f"ρ = {fmt(row.rho_valid, '.2f')}" if row.rho_valid > FAILED_RHO else ""


def failures(table: Sequence[Row], held_out: bool) -> dict[str, list[str]]:
    """By method, the workloads of a set on which it failed, and why; also for HD from given learning rates."""
    found: dict[str, list[str]] = {TITLES[method]: [] for method in METHODS}
    for row in (row for row in table if row.held_out == held_out):
        place = f"{row.workload}, {BASES[row.base]}"
        if reason := why_failed(row):
            found[TITLES[row.method]].append(f"{place} ({reason})")
        if row.worst_valid is not None and row.worst_valid > FAILED_RHO:
            found[TITLES["given"]].append(f"{place} (ρ = {fmt(row.worst_valid, '.2f')})")
    return {method: places for method, places in found.items() if places}


@dataclass(frozen=True)
class OverLr:
    """Final losses of one method, medians over the seeds, over the learning rate of a base."""

    base: str
    method: str
    lr: list[float]
    train: list[float]
    valid: list[float]


def over_lr(results: Sequence[Result]) -> list[OverLr]:
    """The curves of one workload. Tuning-free HD is a horizontal line, from the lower end of the grid to 1."""
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
    """By workload, the base and the learning rates over time of each tuning-free HD run."""
    own = [x for x in results if x.job.method == OURS[0] and x.alpha]
    return {work: [(x.job.base, *(x.alpha or ())) for x in runs] for work, runs in grouped(own, lambda x: x.job.workload).items()}


def fmt(value: float | None, form: str) -> str:
    """A value as text; a dash if it is missing."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else format(value, ".3g" if value >= 100 else form)


def fmt_pair(x: float | None, y: float | None, form: str = ".2f") -> str:
    return "–" if x is None and y is None else f"{fmt(x, form)} / {fmt(y, form)}"


def loss_pair(line: object, name: str) -> str:
    """The training and the validation value of a row, as text."""
    return fmt_pair(*(getattr(line, f"{name}_{loss}") for loss in LOSSES))


def row_cells(row: Row) -> list[str]:
    """A row as text: method, losses, ρ, ρ_cos, worst ρ, bytes, reason of failure."""
    rhos = (loss_pair(row, name) for name in ("rho", "rho_cos", "worst"))
    losses = fmt_pair(row.train, row.valid, ".4g")
    return [title_of(row.method, row.base), losses, *rhos, fmt(row.bytes, ".1f"), why_failed(row) or "–"]


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; bars and tags, which error texts may contain, are escaped."""
    safe = [[text.replace("|", "\\|").replace("<", "&lt;") for text in line] for line in lines]
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *safe)]


def page(table: Sequence[Row]) -> str:
    """The tables as Markdown: summary and failures of both sets, then each workload."""
    text = []
    for held_out, title in SETS.items():
        if found := summary(table, held_out):
            failed = [(method, str(len(places)), "; ".join(places)) for method, places in failures(table, held_out).items()]
            text += [f"## {title} workloads", "", *markdown(HEADS, found), ""]
            text += [f"### {title} workloads: failures", "", *markdown(("method", "pairs", "where"), failed), ""] if failed else []
    heads = ("method", "training / validation loss", "ρ", "ρ_cos", "worst ρ, lr set", "bytes", "failed")
    for workload, own in grouped(table, lambda row: row.workload).items():
        about = WORKLOADS[workload]
        text += [f"## {about.title}", "", f"`{workload}`, {about.steps:,} steps, {SETS[about.held_out].lower()} workload", ""]
        text += [*markdown(heads, map(row_cells, own)), ""]
    return "\n".join(text)


def comma_separated(table: Sequence[Row]) -> str:
    """compare.csv: all rows with all columns."""
    return separated(["held_out", *(field.name for field in fields(Row))], ([row.held_out, *astuple(row)] for row in table))


def separated(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Comma-separated values; missing ones are empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *lines])
    return text.getvalue()


def rich_tables(table: Sequence[Row]) -> Group:
    """What the command prints at its end: for each set a table with a row per method, over all pairs."""
    title = "median loss relative to the tuned base: constant lr (ρ), cosine decay (ρ_cos)"
    found = {name: summary(table, held_out) for held_out, name in SETS.items()}
    return Group(*(rich_table(f"{name} workloads: {title}", HEADS, own) for name, own in found.items() if own))


def rich_table(title: str, heads: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    """A table for the terminal, with a text column first."""
    reason = Table(box=box.SIMPLE_HEAD, title=title, collapse_padding=True)
    for i, name in enumerate(heads):
        reason.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        reason.add_row(*line)
    return reason
