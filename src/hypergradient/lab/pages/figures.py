"""What the report's page draws, as plain data for its script: curves, heat maps, and the labels that hide and show runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex

from ..compare import plots as compare_plots
from ..compare.runs import Result
from ..compare.table import BASES, SETS, Row, over_lr
from ..compare.table import TITLES as METHODS
from ..experiments import heatmap, plots, tower
from ..experiments.curves import STYLES
from ..runs.config import HYPERGRAD_LR, LEVELS, TITLES
from ..sweeps.grid import LEVELLED
from ..workloads import WORKLOADS
from .stored import TELLING, Run, finite, series, shown, subject, varied

#: What is drawn at most: iterations of a run, evenly spread over a logarithmic axis, and runs.
POINTS, RUNS = 300, 200

#: Plotly's dashes for baseline, HD, HD with the multiplicative rule.
DASHES = dict(zip(STYLES, ("dash", "solid", "dot"), strict=True))

#: The figures of curves: table, horizontal axis, and what the panels show.
VIEWS = [
    ("epochs", "epoch", [(title, column) for title, column, _ in plots.ROWS]),
    ("history", "iteration", [(title.replace("Training", "Minibatch"), column) for title, _, column in plots.ROWS if column]),
]


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
    labels = [", ".join(run.told(name) for name in names if name not in run.idle and run.options[name] not in (None, "")) for run in runs]
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


#: The dashes of the methods of ``table.over_lr`` that are lines; "given" is marks.
LINES = {"constant": "dash", "cosine": "dot", "ours": "solid"}


def compare_figures(results: Sequence[Result], rows: Sequence[Row]) -> tuple[list[dict[str, Any]], str]:
    """What the page draws: ρ of each method, and for each workload final losses over the learning rate; the legend."""
    bases = {base: Chip(title, plots.COLOURS[base], "solid") for base, title in BASES.items()}
    kinds = {method: Chip(METHODS[method], "currentColor", dash) for method, dash in LINES.items()}
    legend = "".join(chip.html(i) for i, own in enumerate((bases, kinds)) for chip in own.values())
    panels = [("ρ, training loss", "rho_train"), ("ρ, validation loss", "rho_valid")]
    title = "Final loss over that of the best constant learning rate"
    found = [{"title": title, "x": "method", "panels": panels, "runs": rho_dots(rows), "whole": True}]
    panels = [("Final training loss", "train"), ("Final validation loss", "valid")]
    for work in dict.fromkeys(row.workload for row in rows):
        lines = []
        for curve in over_lr([x for x in results if x.job.workload == work]):
            dash = LINES.get(curve.method)
            labels = [bases[curve.base].label, kinds[curve.method if dash else "ours"].label]
            losses = {name: [finite(y) for y in getattr(curve, name)] for name in ("train", "valid")}
            text = f"{bases[curve.base].label}, {METHODS[curve.method]}"
            lines.append(drawn(text, labels, bases[curve.base].colour, dash or "solid", not dash, {"learning rate": curve.lr} | losses))
        found.append({"title": WORKLOADS[work].title, "x": "learning rate", "panels": panels, "runs": lines})
    return found, legend


def rho_dots(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A dot for each method of each pair of workload and base, coloured by the set that the workload is of."""
    methods = compare_plots.ranked(rows)[::-1]
    dots = []
    for pair in dict.fromkeys(row.pair for row in rows):
        own = {row.method: row for row in rows if row.pair == pair}
        named = [method for method in methods if method in own]
        values: dict[str, Any] = {
            name: [compare_plots.inside(getattr(own[method], name)) for method in named] for name in ("rho_train", "rho_valid")
        }
        judged = WORKLOADS[pair[0]].judged
        text = f"{WORKLOADS[pair[0]].title}, {BASES[pair[1]]}, {SETS[judged].lower()}"
        values["method"] = [METHODS[method] for method in named]
        dots.append(drawn(text, [], compare_plots.LOOKS[judged][0], "solid", True, values))
    return dots


def drawn(text: str, labels: list[str], colour: str, dash: str, marks: bool, values: Mapping[str, Any]) -> dict[str, Any]:
    """A line or marks, as the page's script takes them."""
    look = {"colour": colour, "dash": dash, "bold": True, "marks": marks, "diverged": False}
    return {"text": text, "labels": labels, "values": values} | look


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


def tower_figures(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], str]:
    """What the page draws: the losses over α_0 at the middle β, a line a height, then a heat map a height; and the legend."""
    table, told = [], dict[tuple[str, int], dict[Cell, list[str]]]()
    for run in runs:
        if (row := tower_row(run)) is None:
            continue
        if run.summary:
            table.append(row)
        place = told.setdefault((row.level or "", row.height), {})
        lines = place.setdefault((row.lr, row.hypergrad_lr), [run.describe((TELLING | {"height", *LEVELLED}) - {"rule", "seed"})])
        loss = "" if row.train_loss is None else f": training {row.train_loss:.4g}, validation {shown('', row.valid_loss)}"
        lines.append(run.describe(["seed"]) + escape(f", {run.status}{loss}", quote=False))
    if not table:
        return [], ""
    found = tower.towers(table)
    chips = [
        Chip(f"height {height}", viridis(0.9 * i / max(1, len(found.heights) - 1)), "solid" if height else "dash")
        for i, height in enumerate(found.heights)
    ]
    losses = [{level: [finite(x) for x in tower.line(found, level, height)] for level in found.levels} for height in found.heights]
    curves = [
        drawn(chip.label, [chip.label], chip.colour, chip.dash, False, {"learning rate": found.lrs, **own})
        for chip, own in zip(chips, losses, strict=True)
    ]
    panels = [(f"{level} levels above the first".strip().capitalize(), level) for level in found.levels]
    title = f"Training loss of the last epoch from each α₀, at β = {found.middle:g}"
    figures = [{"title": title, "x": "learning rate", "panels": panels, "runs": curves, "whole": True}]
    figures += [tower_panels(found, height, told) for height in found.heights]
    low, high = found.ends
    ramp = ", ".join(viridis(1 - i / 8) for i in range(9))
    return figures, "".join(chip.html(0) for chip in chips) + (
        f'<li>{low:.3g} <i class="ramp" style="background: linear-gradient(90deg, {ramp})"></i> {high:.3g} training loss of the last '
        'epoch</li><li><i class="grey"></i> diverged</li>'
    )


def tower_row(run: Run) -> tower.Row | None:
    """A run as ``tower`` takes it; None for one that is not of such an experiment."""
    numbers = {name: finite(run.options[name]) for name in ("lr", "hypergrad_lr", "level_lr", "height", "seed")}
    if numbers["lr"] is None or numbers["height"] is None or numbers["seed"] is None:
        return None
    height, seed = int(numbers["height"]), int(numbers["seed"])
    level = str(run.options["level"])
    if run.optimizer in HYPERGRAD_LR and (numbers["hypergrad_lr"] is None or (height > 1 and level not in LEVELS)):
        return None
    losses = {name: finite(run.summary.get(name)) for name in ("train_loss", "valid_loss", "alpha")}
    return tower.row(run.options | numbers | {"height": height, "seed": seed, "level": level}, losses | {"status": run.status})


def tower_panels(found: tower.Towers, height: int, told: dict[tuple[str, int], dict[Cell, list[str]]]) -> dict[str, Any]:
    """A figure of a height: the rules of the levels above the first one below the other, as the page draws heat maps."""
    panels = []
    for level in reversed(found.levels):
        cells = found.cells[level, height]
        hover = told.get((level, height), {}) | told.get(("", height), {})
        panels.append(
            {
                "title": f"{level} {found.close(level, height)}/{len(cells)}",
                "betas": [tick(beta) for beta in found.betas],
                "cells": [[tower_cell(cells.get((lr, beta))) for lr in found.lrs] for beta in found.betas],
                "hover": [["<br>".join(hover.get((lr, None if height == 0 else beta), [])) for lr in found.lrs] for beta in found.betas],
                "worse": {"x": [], "y": []},
            }
        )
    return {"title": f"Height {height}", "lrs": [tick(lr) for lr in found.lrs], "ends": found.ends, "panels": panels}


def tower_cell(loss: float | None) -> float | str | None:
    """Three digits are what a cell has room for; a word where it diverged."""
    return None if loss is None else float(f"{loss:.3g}") if math.isfinite(loss) else "–"
