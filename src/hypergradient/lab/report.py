"""The report of an experiment or a run: one HTML page that needs no network, made from what the folder holds.

What the stored files hold may come from strangers. Options are taken as data: none is imported, none has to be valid here, and whatever
becomes text on the page or in a figure is escaped. The page forbids itself every request, and every script without its nonce.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
from matplotlib import colormaps
from matplotlib.colors import to_hex
from plotly.offline import get_plotlyjs

from . import heatmap, plots
from .config import HYPERGRAD_LR, MODEL_TITLES, TITLES, LabError, first_line
from .curves import STYLES
from .store import DEFAULTS, Folder

#: What is drawn at most: iterations of a run, evenly spread over a logarithmic axis, and runs.
POINTS, RUNS = 300, 200

HEADINGS = {
    "demo": "Six optimizers from one learning rate",
    "tuning": "Six optimizers from one learning rate",
    "sensitivity": "Sensitivity to the initial learning rate",
    "heatmap": "Iterations until the loss is reached",
    "sweep": "A sweep",
    "train": "A training run",
}

#: How options are named, and those that every hover text gives.
NAMES = {"lr": "α₀", "hypergrad_lr": "β", "epochs": "planned epochs", "iterations": "iterations at most"}
TELLING = {"model", "optimizer", "rule", "lr", "hypergrad_lr", "seed"}

#: Plotly's dashes for baseline, HD, HD with the multiplicative rule.
DASHES = dict(zip(STYLES, ("dash", "solid", "dot"), strict=True))

#: The figures of curves: table, horizontal axis, and what the panels show.
VIEWS = [
    ("epochs", "epoch", [(title, column) for title, column, _ in plots.ROWS]),
    ("history", "iteration", [(title.replace("Training", "Minibatch"), column) for title, _, column in plots.ROWS if column]),
]

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


@dataclass(frozen=True)
class Run:
    """Options as they are stored; the run's folder, None where it has not begun; how it ended, empty where it has not."""

    options: dict[str, Any]
    path: Path | None
    summary: dict[str, Any]

    @property
    def optimizer(self) -> str:
        return str(self.options["optimizer"])

    @property
    def family(self) -> str:
        return self.optimizer.removesuffix("-hd")

    @property
    def style(self) -> str:
        """One of ``curves.STYLES``."""
        baseline, additive, multiplicative = STYLES
        return baseline if self.optimizer not in HYPERGRAD_LR else multiplicative if self.options["rule"] == "multiplicative" else additive

    @property
    def status(self) -> str:
        return str(self.summary.get("status", "under way" if self.path else "not begun"))

    def told(self, name: str) -> str:
        """An option and its value, not escaped yet."""
        value = shown(name, self.options[name])
        return value if name in ("model", "optimizer") else f"{named(name)} = {value}"

    def describe(self, names: Iterable[str]) -> str:
        """The options of these names, a line each, as Plotly's hover text. It reads tags in it, so they are escaped."""
        idle = {"rule"} if self.style == "baseline" else set()
        given = [name for name in DEFAULTS if name in {*names} - idle and self.options[name] is not None]
        return "<br>".join(escape(self.told(name), quote=False) for name in given)


@dataclass(frozen=True)
class Chip:
    """A label of the legend, which hides and shows the runs that carry it."""

    label: str
    colour: str
    dash: str

    def html(self, row: int) -> str:
        width = {"solid": "0", "dash": "6 4", "dot": "2 3"}[self.dash]
        line = f'<svg width="28" height="8"><path d="M0 4H28" stroke="{self.colour}" stroke-width="2.5" stroke-dasharray="{width}"/></svg>'
        return f'<li><button type="button" aria-pressed="true" data-row="{row}">{line}<span>{escape(self.label)}</span></button></li>'


def write(root: Path) -> Path:
    """Write ``root/report.html`` and return its path.

    Args:
        root: the folder of an experiment or of a run, finished or not.

    Raises:
        LabError: the folder holds neither, a file in it is damaged or was written by a newer version, or the page cannot be written.
    """
    page = render(*read(root), root)
    Folder(root).write("report.html", lambda file: file.write_text(page, encoding="utf-8", errors="replace"))
    return root / "report.html"


def read(root: Path) -> tuple[str, dict[str, Any], list[Run]]:
    """The experiment's name, what its file says of it, and its runs."""
    folder = Folder(root)
    about = folder.read_json("experiment.json")
    if about is not None:
        wanted = about.get("configurations")
        if not isinstance(wanted, list) or not wanted or not all(isinstance(options, dict) for options in wanted):
            raise LabError(f"{root / 'experiment.json'} holds no configurations: run the experiment again, into another --output")
        places = [file.parent for file in (*root.glob("*/config.json"), *root.glob("runs/*/config.json"))]
        found = {json.dumps(Folder(path).config(), sort_keys=True): path for path in places}
        every = [DEFAULTS | options for options in wanted]
        return str(about.get("experiment")), about, [run(options, found.get(json.dumps(options, sort_keys=True))) for options in every]
    options = folder.config()
    if options is None:
        raise LabError(f"{root} holds neither an experiment (experiment.json) nor a run (config.json): give the --output of a command")
    return "train", folder.read_json("config.json") or {}, [run(options, root)]


def run(options: dict[str, Any], path: Path | None) -> Run:
    return Run(options, path, (path and Folder(path).summary()) or {})


def series(path: Path, name: str, columns: Sequence[str], most: int | None) -> dict[str, list[float | None]]:
    """Columns of a run's table, or so many rows of them at most, closer together at the start; empty where it has not been written yet."""
    file = path / f"{name}.parquet"
    try:
        with pq.ParquetFile(file) as parquet:
            table = parquet.read(columns=columns)
        arrays = {column: table[column].cast("float64").to_numpy() for column in columns}
    except FileNotFoundError:
        return {column: [] for column in columns}
    except Exception as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): remove its folder, and run it again") from None
    rows = table.num_rows
    kept = np.unique(np.geomspace(1, rows, most).astype(int)) - 1 if most and rows > most else np.arange(rows)
    return {column: [rounded(value) for value in array[kept].tolist()] for column, array in arrays.items()}


def rounded(value: float) -> float | None:
    """Five digits are more than a figure shows; JSON has no NaN."""
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.5g}")


def finite(value: object) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(name: str, value: object) -> str:
    """An option's value as people read it, not escaped yet. Of a data set's path the last part alone."""
    if name == "data":
        return re.split(r"[\\/]", str(value).rstrip("\\/"))[-1]
    titles = TITLES if name == "optimizer" else MODEL_TITLES if name == "model" else {}
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else titles.get(str(value), str(value)[:100])


def named(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def varied(runs: Sequence[Run]) -> list[str]:
    """The options in which the runs differ."""
    return [name for name in DEFAULTS if len({json.dumps(run.options[name]) for run in runs}) > 1]


def viridis(part: float) -> str:
    return str(to_hex(colormaps["viridis"](part)))


def chips_of(kind: str, runs: Sequence[Run]) -> list[list[Chip]]:
    """The labels of each run: the first gives its colour, the last its dashes. It is seen while all of them are on."""
    if kind == "sensitivity":  # the looks of curves.by_initial_lr
        lrs = [run.options["lr"] for run in runs]
        colours = [viridis((math.log10(max(finite(lr) or 0, 1e-6)) + 6) / 5.5) for lr in lrs]
        first = [Chip(f"α₀ = {shown('lr', lr)}", colour, "solid") for lr, colour in zip(lrs, colours, strict=True)]
        return [[chip, Chip(run.style, "currentColor", DASHES[run.style])] for chip, run in zip(first, runs, strict=True)]
    names = [name for name in varied(runs) if name not in ("model", "data", "seed")]
    labels = [", ".join(run.told(name) for name in names if run.options[name] is not None) for run in runs]
    order = list(dict.fromkeys(labels))
    colours = [viridis(0.8 * order.index(label) / max(1, len(order) - 1)) for label in labels]
    if kind != "sweep" or len(order) == len({run.optimizer for run in runs}):  # the looks of plots.by_optimizer
        labels = [shown("optimizer", run.optimizer) for run in runs]
        colours = [plots.COLOURS.get(run.family, colour) for run, colour in zip(runs, colours, strict=True)]
    return [[Chip(label, colour, DASHES[run.style])] for run, label, colour in zip(runs, labels, colours, strict=True)]


def curve_figures(kind: str, runs: Sequence[Run], chips: Sequence[Sequence[Chip]]) -> list[dict[str, Any]]:
    """What the page draws: a figure a column by epoch, then a figure a column by iteration."""
    names = {*TELLING, *varied(runs)}
    columns: dict[str, list[tuple[Run, Sequence[Chip]]]] = {}
    for run, own in list(zip(runs, chips, strict=True))[:RUNS]:
        title = subject([run]) if "data" in names else run.told("model")
        family = f", {shown('optimizer', run.family)}" if kind == "sensitivity" else ""
        columns.setdefault(title + family, []).append((run, own))
    figures = []
    for table, x, panels in VIEWS:
        for title, drawn in columns.items():
            curves = []
            for run, own in drawn:
                read = [x, *(column for _, column in panels)]
                values = series(run.path, table, read, POINTS if x == "iteration" else None) if run.path else {}
                look = {"colour": own[0].colour, "dash": own[-1].dash, "bold": run.options["seed"] == runs[0].options["seed"]}
                told = {"text": run.describe(names), "labels": [chip.label for chip in own], "diverged": run.status == "diverged"}
                curves.append(look | told | {"values": values})
            figures.append({"title": f"{title}, by {x}", "x": x, "panels": panels, "runs": curves})
    return figures


class Pen:
    """Takes down what ``heatmap.outline`` draws as one line of Plotly's, with gaps."""

    def __init__(self) -> None:
        self.x: list[float | None] = []
        self.y: list[float | None] = []

    def plot(self, xs: Sequence[float], ys: Sequence[float], **_: object) -> None:
        self.x += [*xs, None]
        self.y += [*ys, None]


Cell = tuple[float, float | None]


def heat_figures(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], str]:
    """What the page draws: a figure a family, the hypergradient version below its baseline; and the legend of the colours."""
    table = []
    told: dict[str, dict[Cell, list[str]]] = {}
    for run in runs:
        lr, beta, took = finite(run.options["lr"]), finite(run.options["hypergrad_lr"]), finite(run.summary.get("iterations"))
        if lr is None:
            continue
        if run.summary:
            reached = int(took) if run.status == "reached" and took is not None else None
            table.append(heatmap.Row(run.optimizer, lr, beta, 0, reached, run.status))
        lines = told.setdefault(run.optimizer, {}).setdefault((lr, beta), [run.describe(TELLING - {"rule", "seed"})])
        lines.append(run.describe(["seed"]) + escape(f", {run.status}" + ("" if took is None else f" after {took:,.0f}"), quote=False))
    found = {method: heatmap.cells(table, method) for method in told}
    counts = [x for cells in found.values() for x in cells.values() if math.isfinite(x)]
    low, high = max(1, min(counts, default=1)), max([2, *counts])
    cap, threshold = (finite(runs[0].options[name]) for name in ("iterations", "threshold"))
    grey = "not reached" if cap is None else f"> {cap:,.0f}"
    figures = []
    for family in heatmap.FAMILIES:
        methods = [method for method in (f"{family}-hd", family) if method in told]
        lrs = sorted({lr for method in methods for lr, _ in told[method]})
        panels = [heat_panel(method, found, told[method], lrs, grey) for method in methods]
        if panels:
            figures.append({"title": "", "lrs": [tick(lr) for lr in lrs], "ends": [low, high], "panels": panels})
    ramp = ", ".join(viridis(1 - i / 8) for i in range(9))
    return figures, (
        f'<li>{low:,.0f} <i class="ramp" style="background: linear-gradient(90deg, {ramp})"></i> {high:,.0f} iterations until a minibatch '
        f'loss ≤ {threshold}</li><li><i class="grey"></i> {grey}</li><li><i class="worse"></i> more than the baseline</li>'
    )


def heat_panel(
    method: str, found: dict[str, dict[Cell, float]], told: dict[Cell, list[str]], lrs: Sequence[float], grey: str
) -> dict[str, Any]:
    """The cells, β upwards: a number, ``grey`` where it was not reached, None before one of the runs has ended; and their hover texts."""
    betas = sorted({beta for _, beta in told}, key=lambda beta: beta or 0.0)
    cells = [[found[method].get((lr, beta)) for lr in lrs] for beta in betas]
    bases = [found.get(method.removesuffix("-hd"), {}).get((lr, None)) for lr in lrs]
    pen = Pen()
    heatmap.outline(pen, [[x is not None and base is not None and x > base for x, base in zip(row, bases, strict=True)] for row in cells])
    return {
        "title": TITLES[method],
        "betas": [tick(beta) for beta in betas],
        "cells": [[grey if x == math.inf else x for x in row] for row in cells],
        "hover": [["<br>".join(told.get((lr, beta), [])) for lr in lrs] for beta in betas],
        "worse": {"x": pen.x, "y": pen.y},
    }


def tick(value: float | None) -> str:
    """A value at an axis: powers of ten as such, nothing for the β of a baseline."""
    if value is None:
        return ""
    power = math.log10(value) if value > 0 else math.inf
    return f"10<sup>{power:.0f}</sup>" if power.is_integer() else f"{value:g}"


def table_of(root: Path, runs: Sequence[Run]) -> str:
    """The table of runs: options that differ, then how each ended."""
    names = varied(runs) or ["model", "optimizer"]
    heads = [(named(name), isinstance(DEFAULTS[name], str)) for name in names] + [("status", True)]
    heads += [(head, False) for _, head, _ in RESULTS] + [("folder", True)]
    lines = []
    for run in runs:
        options = [None if name == "rule" and run.style == "baseline" else run.options[name] for name in names]
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
    """The page: report.html with its {{gaps}} filled."""
    if kind == "heatmap":
        figures, legend = heat_figures(runs)
    else:
        chips = chips_of(kind, runs)
        rows = [dict.fromkeys(own[i] for own in chips) for i in range(len(chips[0]))]
        figures, legend = curve_figures(kind, runs, chips), "".join(chip.html(i) for i, row in enumerate(rows) for chip in row)
    code = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # so that no text in it ends the element, or begins a comment
        code = code.replace(character, f"\\u{ord(character):04x}")
    ended, diverged = sum(bool(run.summary) for run in runs), sum(run.status == "diverged" for run in runs)
    plural = " has" if len(runs) == 1 else "s have"
    seeds = dict.fromkeys(shown("seed", run.options["seed"]) for run in runs)
    alike = [runs[0].told(name) for name in DEFAULTS if name not in varied(runs) and runs[0].options[name] is not None]
    facts = {"Versions": listed(about.get("versions")), "Machine": listed(about.get("machine")), "Seeds": ", ".join(seeds)}
    gaps = {
        "kind": escape(kind),
        "heading": escape(HEADINGS.get(kind, "Runs")),
        "subject": escape(subject(runs)),
        "state": f"{ended} of {len(runs)} run{plural} ended, {diverged or 'none'} diverged",
        "legend": legend,
        "wide": str(min(3, len(figures)) if kind == "heatmap" else 3 if len(figures) == 6 else 2),
        "figures": "".join(f'<figure><figcaption>{escape(x["title"])}</figcaption><div class="plot"></div></figure>' for x in figures),
        "read": READ_HEATMAP if kind == "heatmap" else READ_CURVES + f" Drawn are the first {RUNS} runs." * (len(runs) > RUNS),
        "table": table_of(root, runs),
        "command": escape(str(about.get("command"))),
        "facts": "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in (facts | {"All runs": ", ".join(alike)}).items()),
        "data": code,
        "plotly": get_plotlyjs(),
        "nonce": hashlib.sha256(code.encode()).hexdigest(),
    }
    page = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda gap: gaps[gap[1]], page)


def subject(runs: Sequence[Run]) -> str:
    """The models, and what they were trained on."""
    models: dict[str, dict[str, None]] = {}
    for run in runs:
        models.setdefault(shown("data", run.options["data"]), {})[run.told("model")] = None
    return ", ".join(f"{' and '.join(names)} on {data}" for data, names in models.items())


def listed(value: object) -> str:
    """Names and values in a line."""
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else str(value)
