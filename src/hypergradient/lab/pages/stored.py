"""An experiment or a run as its folder holds it, and how its options are told.

What the stored files hold may come from strangers. Options are taken as data: none is imported, and none has to be valid here.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..errors import LabError, first_line
from ..experiments.curves import STYLES
from ..runs.config import HYPERGRAD_LR, MODEL_TITLES, TITLES
from ..runs.store import DEFAULTS, Folder
from ..sweeps.grid import LEVELLED

#: How options are named, and those that every hover text gives.
NAMES = {"lr": "α₀", "hypergrad_lr": "β", "level_lr": "β above", "epochs": "planned epochs", "iterations": "iterations at most"}
TELLING = {"model", "optimizer", "rule", "lr", "hypergrad_lr", "seed"}


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
    def idle(self) -> set[str]:
        """The options that have no meaning for the run."""
        if self.optimizer not in HYPERGRAD_LR:
            return {"rule", "height", *LEVELLED}
        return {*LEVELLED} if self.options["height"] == 1 else set()

    @property
    def status(self) -> str:
        return str(self.summary.get("status", "under way" if self.path else "not begun"))

    def told(self, name: str) -> str:
        """An option and its value, not escaped yet."""
        value = shown(name, self.options[name])
        return value if name in ("model", "optimizer") else f"{named(name)} = {value}"

    def describe(self, names: Iterable[str]) -> str:
        """The options of these names, a line each, as Plotly's hover text. It reads tags in it, so they are escaped."""
        given = [name for name in DEFAULTS if name in {*names} - self.idle and self.options[name] not in (None, "")]
        return "<br>".join(escape(self.told(name), quote=False) for name in given)


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


def subject(runs: Sequence[Run]) -> str:
    """The models, and what they were trained on."""
    models: dict[str, dict[str, None]] = {}
    for run in runs:
        models.setdefault(shown("data", run.options["data"]), {})[run.told("model")] = None
    return ", ".join(f"{' and '.join(names)} on {data}" for data, names in models.items())
