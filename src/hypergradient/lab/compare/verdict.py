"""The results of the published methods: a row for each over all pairs, and which of them work without tuning."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

from rich.console import Group

from ..workloads import WORKLOADS
from .methods import PUBLISHED, PUBLISHED_LRS
from .runs import TUNED, Result
from .table import BASES, TITLES, Row, fmt, fmt_pair, geo_mean, grouped, loss_pair, markdown, median, per_loss, ratio, rich_table, separated

#: The methods on the page, besides the tuned constant baseline, to which ρ is relative.
SHOWN = ("cosine", "ours", *PUBLISHED)

#: The largest geometric mean of ρ for a method to count as working without tuning; and the ρ above which runs are counted.
CLOSE, TWICE = 1.1, 2.0


@dataclass(frozen=True)
class MethodSummary:
    """A method over all pairs of workload and base on which it ran, from its own initial learning rate.

    mean, mean_cos: geometric means of ρ and ρ_cos; median, worst: of ρ. runs: number of runs; failed: those that diverged or raised
    an error; twice: others whose validation loss is more than twice the tuned one. bytes: bytes of state per parameter, with Adam and
    AdamW, and with SGD. pace: median time of a training step relative to torch's. spread: the validation loss at the worst of a few
    initial learning rates relative to that at the best, median over the pairs.
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
    def works_untuned(self) -> bool:
        """Whether it works without tuning: no run failed, and on average it is within CLOSE of the tuned baseline."""
        return not self.failed and max(self.mean_train, self.mean_valid) <= CLOSE


def published_rows(table: Sequence[Row]) -> list[Row]:
    """The rows of the page: the tuned baselines, HD and the published methods, on the pairs where those ran."""
    pairs = {row.pair for row in table if row.method in PUBLISHED}
    return [row for row in table if row.pair in pairs and row.method in (*TUNED, *SHOWN)]


def summarize(results: Iterable[Result], table: Sequence[Row]) -> list[MethodSummary]:
    """The summary of each method that has rows."""
    lowest = {row.pair: row.valid for row in table if row.method == "constant"}
    own = [x for x in results if x.job.pair in lowest]
    runs, rows = grouped(own, lambda x: "ours" if x.job.method == "given" else x.job.method), grouped(table, lambda row: row.method)
    return [method_summary(rows[method], runs[method], lowest) for method in SHOWN if method in rows]


def method_summary(own: Sequence[Row], every: Sequence[Result], lowest: Mapping[tuple[str, str], float]) -> MethodSummary:
    """The summary of one method, from its rows and runs."""
    method, runs = own[0].method, [x for x in every if x.job.from_own_lr]  # none for tuned baselines
    values: list[Any] = [*per_loss(own, "rho", geo_mean), *per_loss(own, "rho_cos", geo_mean)]
    values += [*per_loss(own, "rho", statistics.median), *per_loss(own, "rho", max), len(runs), sum(x.failed for x in runs)]
    values.append(sum(not x.failed and x.valid > TWICE * lowest[x.job.pair] for x in runs))
    values += [median(row.bytes for row in own if (row.base == "sgdn") == sgd and method not in TUNED) for sgd in (False, True)]
    values.append(median(x.pace / x.pace_torch for x in runs if x.pace and x.pace_torch))
    spread = [[x.valid for x in pair] for pair in grouped((x for x in every if runs and x.job.spread), lambda x: x.job.pair).values()]
    values.append(median(ratio(max(losses), min(losses)) for losses in spread if len(losses) > 1))
    return MethodSummary(method, len(own), *values)


def verdict(lines: Sequence[MethodSummary]) -> str:
    """Which methods work without tuning, computed from the geometric means of training / validation ρ and failed runs."""
    ranked = sorted((line for line in lines if line.method not in TUNED), key=lambda line: line.mean_valid)
    good, bad = [line for line in ranked if line.works_untuned], [line for line in ranked if not line.works_untuned]
    worthwhile = [f"{title_and_mean(line)} on {line.pairs} pairs, {line.twice} of {line.runs} runs with ρ > {TWICE:g}" for line in good]
    close = f"mean loss within {100 * (CLOSE - 1):.0f} % of the best constant learning rate, no failed run"
    text = f"Works without tuning ({close}): {'; '.join(worthwhile) or 'none'}."
    if good:
        decayed = [TITLES[line.method] for line in good if max(line.mean_cos_train, line.mean_cos_valid) <= CLOSE]
        text += f" Also within {100 * (CLOSE - 1):.0f} % of the best cosine decay: {', '.join(decayed) or 'none'}."
    failed = [f"{title_and_mean(line)}{f', {line.failed} of {line.runs} runs failed' if line.failed else ''}" for line in bad]
    return text + (f" Needs tuning: {'; '.join(failed)}." if bad else "")


def title_and_mean(line: MethodSummary) -> str:
    return f"{TITLES[line.method]} {loss_pair(line, 'mean')}"


#: The columns of the table.
HEADS = ("method", "pairs", "mean ρ", "mean ρ_cos", "median ρ", "worst ρ", "failed", f"ρ > {TWICE:g}", "bytes", "time", "lr spread")


def cells(line: MethodSummary) -> list[str]:
    """A summary as text, under HEADS."""
    counts = ["–" if line.method in TUNED else f"{count}/{line.runs}" for count in (line.failed, line.twice)]
    rest = [fmt_pair(line.bytes_adam, line.bytes_sgd, ".0f"), fmt(line.pace, ".2f"), fmt(line.spread, ".2f")]
    losses = (loss_pair(line, name) for name in ("mean", "mean_cos", "median", "worst"))
    return [TITLES[line.method], str(line.pairs), *losses, *counts, *rest]


EXPLANATION = f"""ρ is the final loss relative to that of torch's Adam, AdamW or SGD at the best constant learning rate, ρ_cos relative to
the best cosine decay, training / validation; both learning rates were chosen with hindsight, for each loss. Each method runs at the
defaults of its paper or its authors' code; nothing is tuned. "Failed" counts runs that diverged or raised an error, "ρ > {TWICE:g}" other
runs, by validation loss. "Bytes" is optimizer state per parameter, with Adam and AdamW / with SGD. "Time" is that of a training step
(forward, backward, update) relative to torch's optimizer in the same process. Memory excludes the graph that second derivatives need.
"lr spread" is the validation loss at the worst of lr = {", ".join(f"{lr:g}" for lr in PUBLISHED_LRS)} and the method's own, relative to
that at the best: the median over the pairs, with seed 1. Held-out losses are those of the minibatch two steps later, as the workloads
have no data to spare."""


def page(lines: Sequence[MethodSummary], table: Sequence[Row]) -> str:
    """The verdict, the table, the papers' claims with the results here, and validation ρ on each pair."""
    names, field = [line.method for line in lines], [line for line in lines if line.method in PUBLISHED and PUBLISHED[line.method].claim]
    says = [(TITLES[line.method], PUBLISHED[line.method].claim, loss_pair(line, "mean"), fmt(line.spread, ".2f")) for line in field]
    each = []
    for (work, base), rows in grouped(table, lambda row: row.pair).items():
        own = {row.method: row.rho_valid for row in rows}
        each.append([f"{WORKLOADS[work].title}, {BASES[base]}", *(fmt(own.get(method), ".2f") for method in names)])
    text = ["## Which methods work without tuning?", "", verdict(lines), "", *markdown(HEADS, map(cells, lines)), "", EXPLANATION, ""]
    text += ["## What the papers say", "", *markdown(("method", "its paper", "mean ρ here", "lr spread here"), says), ""] if says else []
    text += ["## Validation ρ on each pair", "", *markdown(["workload", *(TITLES[method] for method in names)], each), ""]
    return "\n".join(text)


def comma_separated(lines: Sequence[MethodSummary]) -> str:
    """compare-methods.csv: all summaries with all columns."""
    return separated([field.name for field in fields(MethodSummary)], map(astuple, lines))


def rich_tables(lines: Sequence[MethodSummary]) -> Group:
    """What the command prints at its end: the table and the verdict."""
    title = "Published methods, untuned: loss relative to the tuned base: constant lr (ρ), cosine decay (ρ_cos)"
    return Group(rich_table(title, HEADS, map(cells, lines)), verdict(lines))
