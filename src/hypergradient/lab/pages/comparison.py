"""The page of a comparison: ρ of each method, final losses over the learning rate of each workload, and tables."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..compare import plots, table, verdict
from ..compare.runs import Result
from ..compare.table import BASES, SETS, Row, over_lr
from ..compare.table import TITLES as METHODS
from ..experiments.charts import COLOURS, Chart, Chip, Line
from ..workloads import WORKLOADS
from .figures import chart, legend
from .tables import cell

#: The line styles of methods in ``table.over_lr``; "given" is drawn as marks.
LINES = {"constant": "dash", "cosine": "dot", "ours": "solid"}


def charts_of(results: Sequence[Result], rows: Sequence[Row]) -> list[Chart]:
    """The chart of ρ, then one of final losses for each workload."""
    bases = {base: Chip(title, COLOURS[base], "solid") for base, title in BASES.items()}
    kinds = {method: Chip(METHODS[method], "", dash) for method, dash in LINES.items()}
    panels = {"rho_train": "ρ, training loss", "rho_valid": "ρ, validation loss"}
    found = [Chart("Final loss over that of the best constant learning rate", "method", panels, rho_dots(rows), whole=True)]
    panels = {"train": "Final training loss", "valid": "Final validation loss"}
    for work in dict.fromkeys(row.workload for row in rows):
        lines = []
        for curve in over_lr([x for x in results if x.job.workload == work]):
            marks = curve.method not in LINES
            chips = [bases[curve.base], kinds["ours" if marks else curve.method]]
            values = {"learning rate": curve.lr, "train": curve.train, "valid": curve.valid}
            lines.append(Line([f"{chips[0].label}, {METHODS[curve.method]}"], chips, values, marks=marks))
        found.append(Chart(WORKLOADS[work].title, "learning rate", panels, lines))
    return found


def rho_dots(rows: Sequence[Row]) -> list[Line]:
    """A dot for each method and pair of workload and base, coloured by set (development or held-out)."""
    methods = plots.ranked(rows)[::-1]
    dots = []
    for pair in dict.fromkeys(row.pair for row in rows):
        own = {row.method: row for row in rows if row.pair == pair}
        named = [method for method in methods if method in own]
        held_out = WORKLOADS[pair[0]].held_out
        values: dict[str, Any] = {"method": [METHODS[method] for method in named]}
        values |= {name: [plots.clipped(getattr(own[method], name)) for method in named] for name in ("rho_train", "rho_valid")}
        label = f"{WORKLOADS[pair[0]].title}, {BASES[pair[1]]}, {SETS[held_out].lower()}"
        dots.append(Line([label], [Chip(SETS[held_out], plots.SET_STYLES[held_out][0], "mark")], values, marks=True))
    return dots


def contents(results: Sequence[Result]) -> dict[str, Any]:
    """The contents of the page."""
    rows = table.rows(results)
    lines = verdict.summarize(results, verdict.published_rows(rows))
    drawn, failed = charts_of(results, rows), sum(x.failed for x in results)
    dots, kinds = legend(drawn[:1]), legend(drawn[1:])
    return {
        "subject": f"{len(dict.fromkeys(row.workload for row in rows))} workloads",
        "state": f"Runs finished: {len(results):,}, of which {failed or 'none'} diverged or failed",
        "verdict": verdict.verdict(lines) if lines else "",
        "figures": [chart(own) for own in drawn],
        "legend": kinds | {"rows": dots["rows"] + kinds["rows"]},
        "standings": {
            "heads": [(name, i == 0) for i, name in enumerate(verdict.HEADS)],
            "rows": [[cell(text, text) for text in verdict.cells(line)] for line in lines],
        }
        if lines
        else None,
        "read_standings": verdict.EXPLANATION,
        "named": "Methods",
        "table": methods(rows),
        "facts": {"Seeds": ", ".join(map(str, sorted({x.job.seed for x in results})))},
    }


def methods(rows: Sequence[Row]) -> dict[str, Any]:
    """One row per workload, base and method."""
    heads = [("workload", True), ("set", True), ("method", True)]
    heads += [(name, False) for name in ("training", "validation", "ρ training", "ρ validation", "ρ_cos training", "ρ_cos validation")]
    heads += [(name, False) for name in ("worst ρ training, lr set", "worst ρ validation, lr set", "bytes")] + [("failed", True)]
    forms = [".4g", ".4g", *[".3g"] * 6, ".1f"]
    lines = []
    for row in rows:
        texts = [WORKLOADS[row.workload].title, SETS[row.held_out].lower(), table.title_of(row.method, row.base)]
        numbers = [cell(x, form) for x, form in zip([*asdict(row).values()][3:12], forms, strict=True)]
        lines.append([*(cell(text) for text in texts), *numbers, cell(table.why_failed(row) or None)])
    return {"heads": heads, "rows": lines, "more": 0}
