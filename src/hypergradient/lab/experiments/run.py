"""A run as figures and tables use it: options, folder and results.

Stored files may come from anywhere: options are plain data here; nothing is imported, and values need not be valid.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from ..errors import LabError, first_line
from ..runs.calls import Call, parse
from ..runs.config import MODELS, Config, flat
from ..runs.engine import Summary
from ..runs.store import Folder, digest
from ..sweeps.sweep import folder_of

#: The titles of options; those in every hover text; and those that follow from others.
NAMES = {"lr": "α₀", "hypergrad_lr": "β", "epochs": "planned epochs", "iterations": "max iterations"}
TELLING = {"model", "optimizer", "rule", "lr", "hypergrad_lr", "seed"}
HIDDEN = {"data_digest", "source_digest", "nesterov"}

#: Columns of a run's history that are empty if not adapted, with their titles; earlier versions lack them.
MOVING = {
    "signal": "Signal",
    "noise": "Noise",
    "horizon": "Horizon",
    "hypergrad_lr": "Hypergradient learning rate β",
    "momentum": "Momentum μ",
    "weight_decay": "Weight decay",
    "beta1": "β₁",
    "beta2": "β₂",
    "eps": "ε",
}

Key = TypeVar("Key")
Value = TypeVar("Value")
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Run:
    """Options as table columns, the optimizer's call, the folder (None before it starts), and the results (empty until it ends)."""

    options: Mapping[str, Any]
    call: Call
    path: Path | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lr(self) -> float | None:
        return finite(self.call.options.get("lr"))

    @property
    def tuning_free(self) -> bool:
        """Whether the tuning-free rule adapts its learning rate."""
        rule = self.call.options.get("rule", Call("TuningFree"))
        own = isinstance(rule, Call) and rule.name == "TuningFree" and not self.call.options.keys() & {"hypergrad_lr", "adapt"}
        return own and self.call.title.endswith("-HD")

    @property
    def without_lr(self) -> bool:
        """Whether it is tuning-free and has no initial learning rate."""
        return self.tuning_free and "lr" not in self.call.options

    @property
    def beta(self) -> float | None:
        try:
            return finite(self.call.beta)
        except OverflowError:
            return None

    @property
    def status(self) -> str:
        return str(self.summary.get("status", "unfinished" if self.path else "not started"))[:100]

    def final(self, name: str, *statuses: str) -> float:
        """A final value of the run if its status is among ``statuses``; else infinity."""
        found = finite(self.summary.get(name))
        return found if found is not None and self.status in statuses else math.inf

    def told(self, name: str) -> str:
        """An option with its value, as text, not yet escaped."""
        value = shown(name, self.options.get(name))
        return value if name in ("model", "optimizer") else f"{named(name)} = {value}"

    def describe(self, names: Iterable[str]) -> list[str]:
        """Those of the named options that the run has, as text."""
        chosen = {*names}
        return [self.told(name) for name, value in self.options.items() if name in chosen and value not in (None, "")]


def run_of(options: Mapping[str, Any], path: Path | None = None, summary: Mapping[str, Any] | None = None) -> Run:
    """The run of stored options."""
    try:
        call = parse(str(options.get("optimizer")))
    except LabError:  # a file may hold anything
        call = Call(str(options.get("optimizer")))
    return Run(flat(options), call, path, summary or {})


def runs_of(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Run]:
    """The runs of a finished experiment."""
    pairs = zip(configs, summaries, strict=True)
    return [run_of(config.as_dict(), folder_of(folder.path, config).path, summary.as_dict()) for config, summary in pairs]


def columns(path: Path, table: str, names: Sequence[str]) -> dict[str, Array]:
    """Columns of a run's table; empty if it has not been written yet.

    Raises:
        LabError: it cannot be read, or does not match its digest in status.json.
    """
    file, digests = path / f"{table}.parquet", (Folder(path).read_json("status.json") or {}).get("digests")
    try:
        with pq.ParquetFile(file) as parquet:
            found = parquet.read()
        if digests and digests[table] != digest(found):
            raise ValueError("its content does not match its digest")
        missing = np.full(len(found), math.nan)
        passed = MOVING.keys() - {*found.column_names}
        return {name: missing if name in passed else found[name].cast("float64").to_numpy() for name in names}
    except FileNotFoundError:
        return {name: np.empty(0) for name in names}
    except Exception as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): remove its folder and run it again") from None


def grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    found: dict[Key, list[Value]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def medians(pairs: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    """The (upper) median of the values of each key: infinite if half of them or more are."""
    return {key: sorted(values)[len(values) // 2] for key, values in grouped(pairs).items()}


def finite(value: object) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(name: str, value: object) -> str:
    """An option's value as text, not yet escaped; of a data set's path only the last part."""
    if name == "data":
        value = re.split(r"[\\/]", str(value).rstrip("\\/"))[-1]
    text = "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return MODELS.get(text, text)[:100] if name == "model" else text[:100]


def named(name: str) -> str:
    return NAMES.get(name, name.replace("_", " ")[:100])


def varied(runs: Sequence[Run]) -> list[str]:
    """The options in which the runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.options if name not in HIDDEN)
    return [name for name in names if any(run.options.get(name) != runs[0].options.get(name) for run in runs)]


def subject(runs: Sequence[Run]) -> str:
    """The models and the data sets they were trained on."""
    models: dict[str, dict[str, None]] = {}
    for run in runs:
        models.setdefault(shown("data", run.options.get("data")), {})[run.told("model")] = None
    return ", ".join(f"{' and '.join(names)} on {data}" for data, names in models.items())
