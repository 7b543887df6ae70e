"""The report of an experiment or a run: one HTML page that needs no network, made from what the folder holds.

Whatever becomes text on the page or in a figure is escaped. The page forbids itself every request, and every script without its nonce.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from plotly.offline import get_plotlyjs

from ..compare import table, verdict
from ..compare.runs import Result, results_of
from ..runs.store import DEFAULTS, Folder
from ..workloads import WORKLOADS
from .figures import POINTS, RUNS, chips_of, compare_figures, curve_figures, heat_figures, tower_figures
from .stored import Run, finite, named, read, shown, subject, varied

HEADINGS = {
    "demo": "Six optimizers from one learning rate",
    "tuning": "Six optimizers from one learning rate",
    "sensitivity": "Sensitivity to the initial learning rate",
    "heatmap": "Iterations until the loss is reached",
    "tower": "Levels of adaptation",
    "sweep": "A sweep",
    "compare": "No learning rate to choose",
    "train": "A training run",
}

#: The table's columns behind the options: key in status.json, heading, format.
RESULTS = [
    ("iterations", "iterations", ",.0f"),
    ("epochs", "epochs", ",.0f"),
    ("alpha", "final α", ".4g"),
    ("train_loss", "training loss", ".4g"),
    ("valid_loss", "validation loss", ".4g"),
    ("valid_accuracy", "accuracy", ".2%"),
    ("seconds", "seconds", ",.1f"),
]

READ_CURVES = f"""Losses by epoch are means over the epoch; those by iteration are of single minibatches, at up to {POINTS} iterations
a run. Dashed lines keep their learning rate, solid ones adapt it, dotted ones adapt it by factors. Of several seeds the first is drawn
boldly. Where runs diverged, the panels are as high as the others need. The labels hide and show runs, a double click shows one alone;
drag in a panel to zoom all panels of its column, double-click to go back."""

READ_HEATMAP = """A number is the median over the seeds of the iterations until the loss of a minibatch first reaches the threshold; the
colours are on a logarithmic scale, one for all panels. α₀ goes from left to right, β upwards; the single row on top is the baseline, which
has no β. A red line goes round the cells where the hypergradient version needs more iterations than its baseline from the same α₀."""


READ_COMPARE = """ρ is a method's final loss over the lowest that its base, Adam, AdamW or SGD with Nesterov momentum, reaches with any
constant learning rate, ρ_cos over the lowest with cosine decay; both were chosen with hindsight for each loss. Below 1 is better; ρ
beyond 0.05 and 20 lies at the edge. Grey dots are workloads that the rule was made on, blue ones judge it. Losses are medians over the
seeds, taken once, at the end, in evaluation mode. Below, dashed lines are constant learning rates and dotted ones cosine decay from them;
level lines are without a learning rate, and marks are from the learning rate at which they stand. Bytes are those of the optimizer's state
per parameter."""

READ_TOWER = """A number is the training loss of the last epoch, the median over the seeds; the colours are on a logarithmic scale, one for
all panels. α₀ goes from left to right, β upwards. Height 0 does not adapt, and has no β; height 1 adapts α, height 2 its β too, and so on.
Below height 2 there are no levels above the first, so the panels of both rules show the same. Behind a rule stands in how many cells the
loss is within 1.1 times the best of height 0. The lines show the middle β; where one has a gap, the run diverged."""

READ = {"heatmap": READ_HEATMAP, "compare": READ_COMPARE, "tower": READ_TOWER}


def write(root: Path) -> Path:
    """Write ``root/report.html`` and return its path.

    Args:
        root: the folder of an experiment or of a run, finished or not.

    Raises:
        LabError: the folder holds neither, a file in it is damaged or was written by a newer version, or the page cannot be written.
    """
    about = Folder(root).read_json("experiment.json") or {}
    page = render_compare(about, results_of(Folder(root))) if about.get("experiment") == "compare" else render(*read(root), root)
    Folder(root).write("report.html", lambda file: file.write_text(page, encoding="utf-8", errors="replace"))
    return root / "report.html"


def table_of(root: Path, runs: Sequence[Run]) -> str:
    """The table of runs: options that differ, then how each ended."""
    names = varied(runs) or ["model", "optimizer"]
    heads = [(named(name), isinstance(DEFAULTS[name], str)) for name in names] + [("status", True)]
    heads += [(head, False) for _, head, _ in RESULTS] + [("folder", True)]
    lines = []
    for run in runs:
        options = [None if name in run.idle else run.options[name] for name in names]
        results = [(finite(run.summary.get(key)), form) for key, _, form in RESULTS]
        link = (
            f'<a href="{quote(f"./{run.path.relative_to(root).as_posix()}/", errors="replace")}">{escape(run.path.resolve().name)}</a>'
            if run.path
            else "–"
        )
        cells = [(value, escape(shown(name, value))) for name, value in zip(names, options, strict=True)] + [
            (run.status, escape(run.status))
        ]
        cells += [(value, "–" if value is None else format(value, form)) for value, form in results] + [(run.path, link)]
        lines.append("".join(td(value, code, text) for (value, code), (_, text) in zip(cells, heads, strict=True)))
    return table_code(heads, lines)


def compare_table(rows: Sequence[table.Row]) -> str:
    """The table of ``compare``: a line a workload, base and method."""
    heads = [("workload", True), ("set", True), ("method", True)]
    heads += [(name, False) for name in ("training", "validation", "ρ training", "ρ validation", "ρ_cos training", "ρ_cos validation")]
    heads += [(name, False) for name in ("worst ρ training, lr given", "worst ρ validation, lr given", "bytes")] + [("failed", True)]
    forms = [".4g", ".4g", *[".3g"] * 6, ".1f"]
    lines = []
    for row in rows:
        told = [WORKLOADS[row.workload].title, table.SETS[row.judged].lower(), table.title_of(row.method, row.base)]
        numbers = [value if value is None else finite(value) for value in list(asdict(row).values())[3:12]]
        cells = [td(text, escape(text), True) for text in told]
        cells += [td(x, "–" if x is None else format(x, form), False) for x, form in zip(numbers, forms, strict=True)]
        reason = table.reason(row)
        lines.append("".join([*cells, td(reason or None, escape(reason) or "–", True)]))
    return table_code(heads, lines)


def methods_table(lines: Sequence[verdict.Standing]) -> str:
    """The published methods, a line each, and how to read it."""
    cells = [[td(text, escape(text), i == 0) for i, text in enumerate(verdict.cells(line))] for line in lines]
    code = table_code([(name, i == 0) for i, name in enumerate(verdict.HEADS)], ["".join(own) for own in cells])
    return f'</p><div class="table">{code}</div><p class="read">{escape(verdict.READ, quote=False)}'


def table_code(heads: Sequence[tuple[str, bool]], lines: Sequence[str]) -> str:
    """A table that sorts, from its headings, of which the second part says whether they stand over text, and its rows' cells."""
    head = "".join(
        f'<th scope="col" aria-sort="none"{aligned(text)}><button type="button">{escape(name)}</button></th>' for name, text in heads
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody><tr>{'</tr><tr>'.join(lines)}</tr></tbody></table>"


def td(value: object, code: str, text: bool) -> str:
    """A cell, with what it is sorted by where that is a number, and none where it is missing."""
    number = finite(value)
    key = " data-missing" if value is None else "" if number is None else f' data-value="{number!r}"'
    return f"<td{key}{aligned(text)}>{code}</td>"


def aligned(text: bool) -> str:
    return "" if text else ' class="number"'


def render(kind: str, about: dict[str, Any], runs: Sequence[Run], root: Path) -> str:
    """The page of an experiment or a run."""
    if kind == "heatmap":
        figures, legend = heat_figures(runs)
    elif kind == "tower":
        figures, legend = tower_figures(runs)
    else:
        chips = chips_of(kind, runs)
        rows = [dict.fromkeys(own[i] for own in chips) for i in range(len(chips[0]))]
        figures, legend = curve_figures(kind, runs, chips), "".join(chip.html(i) for i, row in enumerate(rows) for chip in row)
    ended, diverged = sum(bool(run.summary) for run in runs), sum(run.status == "diverged" for run in runs)
    plural = " has" if len(runs) == 1 else "s have"
    seeds = dict.fromkeys(shown("seed", run.options["seed"]) for run in runs)
    alike = [runs[0].told(name) for name in DEFAULTS if name not in varied(runs) and runs[0].options[name] not in (None, "")]
    gaps = {
        "subject": escape(subject(runs)),
        "state": f"{ended} of {len(runs)} run{plural} ended, {diverged or 'none'} diverged",
        "legend": legend,
        "read": READ.get(kind, READ_CURVES + f" Drawn are the first {RUNS} runs." * (len(runs) > RUNS)),
        "rows": "Runs",
        "table": table_of(root, runs),
    }
    return filled(kind, about, figures, gaps, {"Seeds": ", ".join(seeds), "All runs": ", ".join(alike)})


def render_compare(about: dict[str, Any], results: Sequence[Result]) -> str:
    """The page of a comparison."""
    rows = table.rows(results)
    lines = verdict.standings(results, verdict.of_field(rows))
    figures, legend = compare_figures(results, rows)
    failed = sum(x.failed for x in results)
    told = f"</p><p>{escape(verdict.verdict(lines), quote=False)}" if lines else ""
    gaps = {
        "subject": f"{len(dict.fromkeys(row.workload for row in rows))} workloads",
        "state": f"{len(results):,} runs have ended, {failed or 'none'} diverged or failed{told}",
        "legend": legend,
        "read": READ["compare"] + (methods_table(lines) if lines else ""),
        "rows": "Methods",
        "table": compare_table(rows),
    }
    return filled("compare", about, figures, gaps, {"Seeds": ", ".join(map(str, sorted({x.job.seed for x in results})))})


def filled(kind: str, about: dict[str, Any], figures: list[dict[str, Any]], gaps: dict[str, str], facts: dict[str, str]) -> str:
    """The page: report.html with its {{gaps}} filled, all but those of ``gaps`` here."""
    code = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # so that no text in it ends the element, or begins a comment
        code = code.replace(character, f"\\u{ord(character):04x}")
    facts = {"Versions": listed(about.get("versions")), "Machine": listed(about.get("machine"))} | facts
    gaps |= {
        "kind": escape(kind),
        "heading": escape(HEADINGS.get(kind, "Runs")),
        "wide": str(wide(kind, figures)),
        "figures": "".join(map(figure_code, figures)),
        "command": escape(str(about.get("command"))),
        "facts": "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()),
        "data": code,
        "plotly": get_plotlyjs(),
        "nonce": hashlib.sha256(code.encode()).hexdigest(),
    }
    page = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda gap: gaps[gap[1]], page)


def wide(kind: str, figures: Sequence[dict[str, Any]]) -> int:
    """How many figures stand beside one another."""
    return min(3, len(figures)) if kind in ("heatmap", "tower") else 3 if len(figures) == 6 else 2


def figure_code(figure: dict[str, Any]) -> str:
    whole = ' class="whole"' if figure.get("whole") else ""
    return f'<figure{whole}><figcaption>{escape(figure["title"])}</figcaption><div class="plot"></div></figure>'


def listed(value: object) -> str:
    """Names and values in a line."""
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else str(value)
