"""The report of an experiment or a run: one self-contained HTML page, made from the files in its folder.

All text on the page and in figures is escaped. The page's security policy forbids every request, and every script without its nonce.
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

#: The most seeds that are listed.
SEEDS = 50

HEADINGS = {
    "demo": "Any learning rate, or none",
    "tuning": "Six optimizers from one learning rate",
    "sensitivity": "Sensitivity to the initial learning rate",
    "heatmap": "Iterations to reach the loss",
    "tower": "Towers of hypergradients",
    "sweep": "Sweep",
    "compare": "Training without a learning rate",
    "train": "Training run",
}


def write(root: Path) -> Path:
    """Write ``root/report.html`` and return its path.

    Args:
        root: the output folder of an experiment or a run, finished or not.

    Raises:
        LabError: the folder contains neither, a file is damaged or was written by a newer version, or the page cannot be written.
    """
    about = Folder(root).read_json("experiment.json") or {}
    if about.get("experiment") == "compare":
        from ..compare.runs import read_results
        from .comparison import contents

        page = filled("compare", about, contents(read_results(Folder(root))))
    else:
        kind, about, runs = read(root)
        page = filled(kind, about, contents_of(kind, root, runs))
    Folder(root).write("report.html", lambda file: file.write_text(page, encoding="utf-8", errors="replace"))
    return root / "report.html"


def contents_of(kind: str, root: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """The contents of the page of an experiment or a run."""
    figures, legend = figures_of(kind, runs)
    ended, diverged = sum(bool(run.summary) for run in runs), sum(run.status == "diverged" for run in runs)
    seeds = list(dict.fromkeys(shown("seed", run.options.get("seed")) for run in runs))
    listed_seeds = ", ".join(seeds[:SEEDS]) + f" and {len(seeds) - SEEDS:,} more" * (len(seeds) > SEEDS)
    alike = runs[0].describe({*runs[0].options} - {*varied(runs)} - HIDDEN)
    return {
        "subject": subject(runs)[:1000],
        "state": f"Runs finished: {ended:,} of {len(runs):,}, of which {diverged or 'none'} diverged",
        "verdict": flat.verdict(runs) if kind == "demo" else "",
        "legend": legend,
        "figures": figures,
        "named": "Runs",
        "table": runs_table(root, runs),
        "facts": {"Seeds": listed_seeds, "All runs": ", ".join(alike)},
        "points": POINTS,
        "drawn": RUNS if len(runs) > RUNS and kind not in MAPS else None,
    }


def filled(kind: str, about: dict[str, Any], contents: dict[str, Any]) -> str:
    """Render the page from its template."""
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
    """Names and values, comma-separated."""
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else str(value)
