"""The report of an experiment or a run: one HTML page that needs no network, made from what the folder holds.

Whatever becomes text on the page or in a figure is escaped. The page forbids itself every request, and every script without its nonce.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from ..experiments import flat
from ..experiments.run import HIDDEN, Run, shown, subject, varied
from ..runs.store import Folder
from .figures import MAPS, POINTS, RUNS, figures_of
from .stored import read
from .tables import runs_table

#: Seeds that are told at most.
SEEDS = 50

HEADINGS = {
    "demo": "Any learning rate, or none",
    "tuning": "Six optimizers from one learning rate",
    "sensitivity": "Sensitivity to the initial learning rate",
    "heatmap": "Iterations until the loss is reached",
    "tower": "Levels of adaptation",
    "sweep": "A sweep",
    "compare": "No learning rate to choose",
    "train": "A training run",
}


def write(root: Path) -> Path:
    """Write ``root/report.html`` and return its path.

    Args:
        root: the folder of an experiment or of a run, finished or not.

    Raises:
        LabError: the folder holds neither, a file in it is damaged or was written by a newer version, or the page cannot be written.
    """
    about = Folder(root).read_json("experiment.json") or {}
    if about.get("experiment") == "compare":
        from ..compare.runs import results_of
        from .comparison import contents

        page = filled("compare", about, contents(results_of(Folder(root))))
    else:
        kind, about, runs = read(root)
        page = filled(kind, about, contents_of(kind, root, runs))
    Folder(root).write("report.html", lambda file: file.write_text(page, encoding="utf-8", errors="replace"))
    return root / "report.html"


def contents_of(kind: str, root: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """What the page of an experiment or a run shows."""
    figures, legend = figures_of(kind, runs)
    ended, diverged = sum(bool(run.summary) for run in runs), sum(run.status == "diverged" for run in runs)
    plural = " has" if len(runs) == 1 else "s have"
    seeds = list(dict.fromkeys(shown("seed", run.options.get("seed")) for run in runs))
    told = ", ".join(seeds[:SEEDS]) + f" and {len(seeds) - SEEDS:,} more" * (len(seeds) > SEEDS)
    alike = runs[0].describe({*runs[0].options} - {*varied(runs)} - HIDDEN)
    return {
        "subject": subject(runs)[:1000],
        "state": f"{ended:,} of {len(runs):,} run{plural} ended, {diverged or 'none'} diverged",
        "verdict": flat.verdict(runs) if kind == "demo" else "",
        "legend": legend,
        "figures": figures,
        "named": "Runs",
        "table": runs_table(root, runs),
        "facts": {"Seeds": told, "All runs": ", ".join(alike)},
        "points": POINTS,
        "drawn": RUNS if len(runs) > RUNS and kind not in MAPS else None,
    }


def filled(kind: str, about: dict[str, Any], contents: dict[str, Any]) -> str:
    """The page: report.html with its gaps filled."""
    figures = contents["figures"]
    columns = sum(not figure["whole"] for figure in figures) // (1 if kind in MAPS else 2)
    data = htmlsafe_json_dumps(figures, dumps=json.dumps, separators=(",", ":"), allow_nan=False)
    shown = {
        "kind": kind,
        "heading": HEADINGS.get(kind, "Runs"),
        "wide": 3 if columns and columns % 3 == 0 and kind != "compare" else 2,
        "command": str(about.get("command")),
        "data": data,
        "nonce": hashlib.sha256(data.encode()).hexdigest(),
        "plotly": Markup(files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")),
    }
    facts = {"Versions": listed(about.get("versions")), "Machine": listed(about.get("machine"))}
    pages = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)
    return pages.get_template("report.html").render(contents | shown | {"facts": facts | contents["facts"]})


def listed(value: object) -> str:
    """Names and values in a line."""
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else str(value)
