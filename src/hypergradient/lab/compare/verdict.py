"""What came of the methods of the field: a line for each over all pairs, and which of them is worth a user's time."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

from rich.console import Group

from ..workloads import WORKLOADS
from .methods import FIELD, FIELD_GIVEN
from .runs import TUNED, Result
from .table import BASES, TITLES, Row, both, geometric_mean, grouped, markdown, middle, number, over, pair_of, ratio, separated, shown

#: The methods of the page, beside the tuned constant that ρ is over.
SHOWN = ("cosine", "ours", *FIELD)

#: The geometric mean of ρ up to which a method is worth a user's time, and the ρ beyond which one of its runs is counted.
CLOSE, TWICE = 1.1, 2.0


@dataclass(frozen=True)
class Standing:
    """A method over all pairs of workload and base on which it ran, from where it starts by itself.

    mean, mean_cos: geometric means of ρ and ρ_cos; median, worst: of ρ. runs: how many; failed: those of them that diverged or broke;
    twice: those whose validation loss ends above twice the tuned one. bytes: of state per parameter beside Adam and AdamW, and beside SGD.
    pace: how long a step of training takes over torch's, the median. spread: the validation loss of the worst of a few learning rates over
    that of the best, the median.
    """

    method: str
    pairs: int
    mean_train: float
    mean_valid: float
    mean_cos_train: float
    mean_cos_valid: float
    median_train: float
    median_valid: float
    worst_train: float
    worst_valid: float
    runs: int
    failed: int
    twice: int
    bytes_adam: float | None
    bytes_sgd: float | None
    pace: float | None
    spread: float | None

    @property
    def worth(self) -> bool:
        """Whether it needs no tuning: no run failed, and on the whole it is about as good as what was tuned."""
        return not self.failed and max(self.mean_train, self.mean_valid) <= CLOSE


def of_field(table: Sequence[Row]) -> list[Row]:
    """The rows of the page: of tuned ones, ours and the methods of the field, where those ran."""
    pairs = {row.pair for row in table if row.method in FIELD}
    return [row for row in table if row.pair in pairs and row.method in (*TUNED, *SHOWN)]


def standings(results: Iterable[Result], table: Sequence[Row]) -> list[Standing]:
    """The line of each method of which there are rows."""
    lowest = {row.pair: row.valid for row in table if row.method == "constant"}
    own = [x for x in results if x.job.pair in lowest]
    runs, rows = grouped(own, lambda x: "ours" if x.job.method == "given" else x.job.method), grouped(table, lambda row: row.method)
    return [standing(rows[method], runs[method], lowest) for method in SHOWN if method in rows]


def standing(own: Sequence[Row], every: Sequence[Result], lowest: Mapping[tuple[str, str], float]) -> Standing:
    """The line of the rows of one method, and its runs."""
    method, runs = own[0].method, [x for x in every if x.job.untold]  # none of what was tuned
    values: list[Any] = [*over(own, "rho", geometric_mean), *over(own, "rho_cos", geometric_mean)]
    values += [*over(own, "rho", statistics.median), *over(own, "rho", max), len(runs), sum(x.failed for x in runs)]
    values.append(sum(not x.failed and x.valid > TWICE * lowest[x.job.pair] for x in runs))
    values += [middle(row.bytes for row in own if (row.base == "sgdn") == sgd and method not in TUNED) for sgd in (False, True)]
    values.append(middle(x.pace / x.pace_torch for x in runs if x.pace and x.pace_torch))
    spread = [[x.valid for x in pair] for pair in grouped((x for x in every if runs and x.job.spread), lambda x: x.job.pair).values()]
    values.append(middle(ratio(max(losses), min(losses)) for losses in spread if len(losses) > 1))
    return Standing(method, len(own), *values)


def verdict(lines: Sequence[Standing]) -> str:
    """Which methods are worth a user's time, as the figures have it: geometric means of training / validation ρ, and how runs ended."""
    told = sorted((line for line in lines if line.method not in TUNED), key=lambda line: line.mean_valid)
    good, bad = [line for line in told if line.worth], [line for line in told if not line.worth]
    named = [f"{because(line)} on {line.pairs} pairs, {line.twice} of {line.runs} runs beyond ρ = {TWICE:g}" for line in good]
    close = f"within {100 * (CLOSE - 1):.0f} % of the best constant learning rate"
    text = f"Worth a user's time without tuning, {close} and without a run that failed: {'; '.join(named) or 'none'}."
    if good:
        decayed = [TITLES[line.method] for line in good if max(line.mean_cos_train, line.mean_cos_valid) <= CLOSE]
        text += f" As close to the best cosine decay: {', '.join(decayed) or 'none'}."
    failed = [f"{because(line)}{f', {line.failed} of {line.runs} runs failed' if line.failed else ''}" for line in bad]
    return text + (f" Not without tuning: {'; '.join(failed)}." if bad else "")


def because(line: Standing) -> str:
    return f"{TITLES[line.method]} {both(line, 'mean')}"


#: The columns of the table: heading, and what a line says there.
HEADS = ("method", "pairs", "mean ρ", "mean ρ_cos", "median ρ", "worst ρ", "failed", f"ρ > {TWICE:g}", "bytes", "time", "over lr")


def cells(line: Standing) -> list[str]:
    """A line as text, under HEADS."""
    counts = ["–" if line.method in TUNED else f"{count}/{line.runs}" for count in (line.failed, line.twice)]
    rest = [pair_of(line.bytes_adam, line.bytes_sgd, ".0f"), number(line.pace, ".2f"), number(line.spread, ".2f")]
    losses = (both(line, name) for name in ("mean", "mean_cos", "median", "worst"))
    return [TITLES[line.method], str(line.pairs), *losses, *counts, *rest]


READ = f"""ρ is the final loss over that of torch's Adam, AdamW or SGD with the best constant learning rate, ρ_cos over that with the best
cosine decay, training / validation; both were chosen with hindsight for each loss. A method runs with the defaults that its paper or its
authors' code has, tuned in nothing. Failed are runs that diverged or broke, and ρ > {TWICE:g} counts other runs, by their validation
loss. Bytes are of state per parameter, beside Adam and AdamW / beside SGD; time is that of a step of training, forward and backward pass
included, over torch's in the same process, and memory is without the graph that second derivatives need. "Over lr" is how many times the
validation loss of the worst of lr = {", ".join(f"{lr:g}" for lr in FIELD_GIVEN)} and the method's own is that of the best, the median of
the pairs, with seed 1. Held-out losses are of the minibatch of two steps later, as the workloads have no data to spare."""


def page(lines: Sequence[Standing], table: Sequence[Row]) -> str:
    """The verdict, the table, what the papers say beside what came of it, and validation ρ on each pair."""
    names, field = [line.method for line in lines], [line for line in lines if line.method in FIELD and FIELD[line.method].says]
    says = [(TITLES[line.method], FIELD[line.method].says, both(line, "mean"), number(line.spread, ".2f")) for line in field]
    each = []
    for (work, base), rows in grouped(table, lambda row: row.pair).items():
        own = {row.method: row.rho_valid for row in rows}
        each.append([f"{WORKLOADS[work].title}, {BASES[base]}", *(number(own.get(method), ".2f") for method in names)])
    text = ["## Worth a user's time?", "", verdict(lines), "", *markdown(HEADS, map(cells, lines)), "", READ, ""]
    text += ["## What the papers say", "", *markdown(("method", "its paper", "mean ρ here", "over lr here"), says), ""] if says else []
    text += ["## Validation ρ on each pair", "", *markdown(["workload", *(TITLES[method] for method in names)], each), ""]
    return "\n".join(text)


def comma_separated(lines: Sequence[Standing]) -> str:
    """compare-methods.csv: all lines with all columns."""
    return separated([field.name for field in fields(Standing)], map(astuple, lines))


def say(lines: Sequence[Standing]) -> Group:
    """What the command closes with: the table, and the verdict."""
    title = "Published methods, untuned: losses over the tuned base's (ρ) and its cosine's (ρ_cos)"
    return Group(shown(title, HEADS, map(cells, lines)), verdict(lines))
