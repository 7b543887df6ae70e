"""What the report draws, as plain data for its script: charts and heat maps; and the legend, which hides and shows runs."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from ..experiments import charts, flat, heatmap, tower
from ..experiments.charts import VIRIDIS, Chart, Chip, Line, ticks
from ..experiments.maps import Cell, Maps, Panel, tick
from ..experiments.run import TELLING, Run

#: The most iterations drawn per run, evenly spaced on a logarithmic axis, and the most runs.
POINTS, RUNS = 300, 200

#: The most labels in a row of the legend, and the most runs in the hover text of a cell.
CHIPS, HOVERED = 24, 12

#: How powers of ten are written.
POWER = "10<sup>{}</sup>"

#: The experiments with heat maps.
MAPS = {"heatmap": heatmap.maps, "tower": tower.maps}

Figures = list[dict[str, Any]]
Legend = dict[str, Any]


def figures_of(kind: str, runs: Sequence[Run]) -> tuple[Figures, Legend]:
    """The figures of an experiment's page, and its legend."""
    if kind in MAPS and not any(run.summary and run.lr is not None for run in runs):
        return [], legend([])
    if kind in MAPS:
        found = MAPS[kind](runs)
        drawn = [tower.lines(runs)] if kind == "tower" else []
        return [*map(crossed, drawn), *map_figures(found)], legend(drawn) | {"scale": scale(found)}
    first = [charts.over_lr(runs, RUNS)] if kind == "sweep" else [flat.losses(runs), flat.alphas(runs)] if kind == "demo" else []
    drawn = [found for found in first if found and found.lines]
    curves = charts.curves(kind, [run for run in runs if kind != "demo" or not flat.belongs(run)], POINTS, RUNS)
    return [*map(crossed, drawn), *map(chart, curves)], legend(drawn + curves if kind == "demo" else curves + drawn)


def chart(found: Chart) -> dict[str, Any]:
    panels = []
    for column, title in found.panels.items():
        linear, ends = found.scale(column), found.ends(column)
        own = {"title": title, "column": column, "linear": linear, "ends": plain(ends), "frame": found.frame(column) is not None}
        panels.append(own | {"ticks": ticks(linear, *ends) if linear else []})
    return {"title": found.title, "x": found.x, "whole": found.whole, "panels": panels, "runs": [*map(line, found.lines)]}


def crossed(found: Chart) -> dict[str, Any]:
    """A chart with the places where its lines are infinite, for crosses."""
    drawn = chart(found)
    for own, run in zip(found.lines, drawn["runs"], strict=True):
        run["diverged"] = {name: plain(own.values[found.x][np.isposinf(own.values[name])]) for name in found.panels}
    return drawn


def line(found: Line) -> dict[str, Any]:
    """A line or marks, as data for the page's script."""
    look = {"colour": found.chips[0].colour or "currentColor", "dash": found.chips[-1].dash, "marks": found.marks, "level": found.level}
    told = {"text": "<br>".join(escape(text, quote=False) for text in found.told), "labels": [chip.label for chip in found.chips]}
    values = {name: plain(column) for name, column in found.values.items()}
    return look | told | {"values": values, "bands": {name: [*map(plain, band)] for name, band in found.bands.items()}}


def plain(values: Iterable[Any]) -> list[Any]:
    """Values rounded to five digits, with null for NaN and infinity, which JSON lacks."""
    found = values.tolist() if isinstance(values, np.ndarray) else [*values]
    return [x if isinstance(x, str) else float(f"{x:.5g}") if math.isfinite(x) else None for x in found]


def legend(drawn: Sequence[Chart]) -> Legend:
    """The rows of labels, at most CHIPS each, and how many more there are."""
    rows: dict[int, dict[str, Chip]] = {}
    for found in drawn:
        for own in found.lines:
            for i, chip in enumerate(own.chips):
                place = next((row for row, chips in rows.items() if chip.label in chips), i)
                rows.setdefault(place, {}).setdefault(chip.label, chip)
    return {"rows": [([*own.values()][:CHIPS], max(0, len(own) - CHIPS)) for _, own in sorted(rows.items())], "scale": None}


def scale(found: Maps) -> dict[str, Any]:
    """The colour scale of heat maps."""
    low, high = map(found.number, found.ends)
    ramp = ", ".join(reversed(VIRIDIS))
    worse = any(panel.worse for panel in found.panels)
    return {"low": low, "high": high, "ramp": ramp, "label": found.label, "grey": ": ".join(found.beyond), "worse": worse}


def map_figures(found: Maps) -> Figures:
    """A figure for each column of heat maps, with panels below each other."""
    columns = zip(*([(name, panel) for panel in own] for name, own in found.rows), strict=True)
    return [
        {
            "title": "",
            "whole": False,
            "lrs": [tick(lr, POWER) for lr in column[0][1].lrs],
            "ends": found.ends,
            "panels": [map_panel(found, name, panel) for name, panel in reversed(column)],
        }
        for column in columns
    ]


def map_panel(found: Maps, name: str, panel: Panel) -> dict[str, Any]:
    """A panel: cells by increasing β, None if no run has ended, as colours, texts and hover texts; and the red outline."""
    rows = panel.rows()
    sides = [*panel.outline()]
    return {
        "title": ", ".join(filter(None, (name, panel.title))),
        "betas": [tick(beta, POWER) for beta in panel.betas],
        "cells": [[found.beyond[0] if x == math.inf else x for x in row] for row in rows],
        "texts": [["" if x is None else found.beyond[0] if x == math.inf else found.number(x) for x in row] for row in rows],
        "hover": [[hover(panel, (lr, beta)) for lr in panel.lrs] for beta in panel.betas],
        "worse": {axis: [x for side in sides for x in (*side[i], None)] for i, axis in enumerate(("x", "y"))},
    }


def hover(panel: Panel, cell: Cell) -> str:
    """The hover text of a cell: common options, then the results of each run."""
    runs = panel.runs.get(cell, [])
    lines = runs[0].describe(TELLING - {"seed"}) if runs else []
    for run in runs[:HOVERED]:
        numbers = {name: run.summary.get(name) for name in ("iterations", "train_loss", "valid_loss")}
        told = [f"{name.replace('_', ' ')} {x:.4g}" for name, x in numbers.items() if isinstance(x, int | float) and abs(x) < 1e300]
        lines.append(", ".join([*run.describe(["seed"]), run.status, *told]))
    more = [f"and {len(runs) - HOVERED} more"] if len(runs) > HOVERED else []
    return "<br>".join(escape(text, quote=False) for text in lines + more)
