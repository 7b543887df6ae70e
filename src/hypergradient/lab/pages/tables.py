"""The page's tables: headings, each with whether its column is text, and rows of cells."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..experiments.run import Run, finite, named, shown, varied

#: The columns after the options: key in status.json, heading, format.
RESULTS = [
    ("iterations", "iterations", ",.0f"),
    ("epochs", "epochs", ",.0f"),
    ("alpha", "final α", ".4g"),
    ("train_loss", "training loss", ".4g"),
    ("valid_loss", "validation loss", ".4g"),
    ("valid_accuracy", "accuracy", ".2%"),
    ("seconds", "seconds", ",.1f"),
]

#: The most runs and options in the table.
ROWS, OPTIONS = 500, 30


def cell(value: object, form: str = "", link: str = "") -> dict[str, Any]:
    """A cell, with the number by which it is sorted, if any; a dash for a missing value."""
    number = finite(value)
    missing = value is None or (bool(form) and number is None)
    text = "–" if missing else format(number, form) if form else str(value)
    return {"text": text, "missing": missing, "number": None if number is None else repr(number), "link": link}


def runs_table(root: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """The table of runs: options that differ, then the results of each run."""
    names = (varied(runs) or ["model", "optimizer"])[:OPTIONS]
    numbers = [all(isinstance(run.options.get(name), int | float | None) for run in runs) for name in names]
    heads = [(named(name), not number) for name, number in zip(names, numbers, strict=True)] + [("status", True)]
    heads += [(head, False) for _, head, _ in RESULTS] + [("folder", True)]
    rows = []
    for run in runs[:ROWS]:
        own = [(run.options.get(name), name) for name in names]
        options = [cell(value) | ({} if value is None else {"text": shown(name, value)}) for value, name in own]
        results = [cell(run.summary.get(key), form) for key, _, form in RESULTS]
        link = quote(f"./{run.path.relative_to(root).as_posix()}/", errors="replace") if run.path else ""
        rows.append([*options, cell(run.status), *results, cell(run.path and run.path.resolve().name, link=link)])
    return {"heads": heads, "rows": rows, "more": max(0, len(runs) - ROWS)}
