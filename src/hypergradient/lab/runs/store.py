"""A run's folder: config.json, history.parquet, epochs.parquet, checkpoint.pt and, when the run has ended, status.json.

An experiment's folder holds experiment.json, and its runs under runs/. Every file is written to the side and renamed into place, so a
killed run leaves whole files; runs.jsonl of a comparison grows by lines, of which a kill tears the last at most. The histories are written
before the checkpoint: what they hold beyond it is cut off on resuming, and computed again. The checkpoint carries its own digest, and it
and status.json carry those of what lies beside them, so that no run goes on from, and no figure shows, what is not what was written.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import LabError, first_line, shortened
from . import files
from .config import Config
from .files import FORMAT, provenance

ITERATIONS = {
    "iteration": pa.int64(),
    "epoch": pa.int64(),
    "loss": pa.float64(),
    "alpha": pa.float64(),
    "h": pa.float64(),
    "signal": pa.float64(),
    "noise": pa.float64(),
    "horizon": pa.float64(),
    **dict.fromkeys(("hypergrad_lr", "momentum", "weight_decay", "beta1", "beta2", "eps"), pa.float64()),
}
EPOCHS = {
    "epoch": pa.int64(),
    "train_loss": pa.float64(),
    "valid_loss": pa.float64(),
    "valid_accuracy": pa.float64(),
    "alpha": pa.float64(),
}
TABLES = {"history": ITERATIONS, "epochs": EPOCHS}

#: What a run's folder holds, in the order in which it is removed: what is left of a run that was removed in part is no run that has ended.
FILES = ("status.json", "checkpoint.pt", "history.parquet", "epochs.parquet", "config.json")


@dataclass
class History:
    """The columns of a run's two tables, as lists of one length each.

    iterations: iteration (from 1), epoch (from 1), minibatch loss before the step, α and h of the step (h is null where the learning
    rate is not adapted); signal, noise and horizon are what the tuning-free rule sees (see ``summary()``); β and the other
    hyperparameters of the step, each null where it does not move.
    epochs: means of loss and α over the epoch, then validation loss and accuracy after it.
    """

    iterations: dict[str, list] = field(default_factory=lambda: {name: [] for name in ITERATIONS})
    epochs: dict[str, list] = field(default_factory=lambda: {name: [] for name in EPOCHS})


DEFAULTS = {field.name: field.default for field in fields(Config)}


class Folder:
    """Where a run lies, or an experiment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, config: Config, *, resume: bool) -> None:
        """Claim the folder for a run; one that had ended, and now goes on for more epochs, has not ended any more.

        Raises:
            LabError: it holds a run already and ``resume`` is not asked for, or a run with other options, or cannot be written.
        """
        self.check(config, resume=resume)
        files.tidy(self.path)
        files.remove(self.path / "status.json")
        found = self.read_json("config.json")
        if found is None:
            self.write_json("config.json", {"format": FORMAT, "config": config.as_dict(), **provenance()})
        elif found["config"].get("epochs") != config.epochs:
            self.write_json("config.json", {**found, "config": {**found["config"], "epochs": config.epochs}})

    def check(self, config: Config, *, resume: bool) -> None:
        """Raise LabError where ``start`` would, but for a folder that cannot be written."""
        about = self.read_json("config.json")
        if about is None:
            return
        refuse_old(self.path, about)
        if not resume:
            raise LabError(f"{self.path} holds a run already: add --resume to go on with it, or choose another --output")
        found, mine = options_of(self.path / "config.json", about), config.as_dict()
        passed = {"epochs"}
        if found["data_digest"]:  # which says what the data are, wherever they lie, once they have been loaded
            passed.add("data")
        passed |= {name for name in ("data_digest", "source_digest") if not mine[name]}
        told = {"data_digest": "other data", "source_digest": "another source of its model"}
        other = [
            told.get(name) or f"--{name.replace('_', '-')} {shortened(str(found[name]))}"
            for name in mine
            if name not in passed and found[name] != mine[name]
        ]
        if other:
            raise LabError(f"{self.path} holds a run with {', '.join(other)}: give the same options to resume it, or another --output")

    def config(self) -> dict[str, Any] | None:
        """The options of the run that the folder holds; None where it holds none."""
        found = self.read_json("config.json")
        return None if found is None else options_of(self.path / "config.json", found)

    def summary(self) -> dict[str, Any] | None:
        """How the run ended; None for one that has not."""
        return summary_of(self.read_json("status.json"))

    def clear(self) -> None:
        """Remove a run's files, and nothing else, from the folder."""
        for name in FILES:
            files.remove(self.path / name)

    def save(self, history: History, checkpoint: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> None:
        """Write the histories, then the checkpoint that belongs to them, then how the run ended.

        Args:
            history: up to now.
            checkpoint: what the run goes on from, after so many rows of the history; empty for one that never does.
            summary: None for a run that has not ended.
        """
        digests = {"config": self._config_digest()}
        for (name, schema), columns in zip(TABLES.items(), (history.iterations, history.epochs), strict=True):
            table = pa.table(columns, schema=pa.schema(list(schema.items())))
            digests[name] = digest(table)
            self.write(f"{name}.parquet", partial(pq.write_table, table, use_dictionary=False))
        if checkpoint:
            self.write_torch("checkpoint.pt", {**checkpoint, "digests": digests})
        else:
            files.remove(self.path / "checkpoint.pt")
        if summary is not None:
            self.write_json("status.json", {"format": FORMAT, **summary, "digests": digests})

    def load(self) -> tuple[History, dict[str, Any]] | None:
        """The last checkpoint and the history up to it; None where the run was stopped before the first.

        Raises:
            LabError: they are damaged, or do not belong together.
        """
        checkpoint = self.read_torch("checkpoint.pt")
        if checkpoint is None:
            return None
        try:
            return self._history(checkpoint["digests"], (checkpoint["iteration"], checkpoint["epoch"])), checkpoint
        except Exception as error:
            raise LabError(
                f"{self.path} cannot be resumed ({first_line(error)}): remove it to run it again, or choose another --output"
            ) from None

    def history(self) -> History:
        """The history that was written; columns that earlier versions had not are null.

        Raises:
            LabError: it cannot be read, or is not the one that the run ended with.
        """
        ended = self.read_json("status.json") or {}
        try:
            return self._history(ended.get("digests", {}))
        except Exception as error:
            raise LabError(f"{self.path} cannot be read ({first_line(error)}): remove it, and run it again") from None

    def _history(self, digests: Mapping[str, str], rows: Sequence[int | None] = (None, None)) -> History:
        """The first so many rows of the two tables, held against their digests."""
        if digests and digests["config"] != self._config_digest():
            raise ValueError("config.json is not the one it began with")
        found = []
        for (name, schema), n in zip(TABLES.items(), rows, strict=True):
            with pq.ParquetFile(self.path / f"{name}.parquet") as parquet:
                table = parquet.read().slice(0, n)
            if digests and digests[name] != digest(table):
                raise ValueError(f"{name}.parquet is not what was written")
            empty = [None] * len(table)
            found.append({column: table[column].to_pylist() if column in table.column_names else empty[:] for column in schema})
        return History(*found)

    def _config_digest(self) -> str:
        """Of what cannot change in config.json while a run goes on."""
        options = {name: value for name, value in (self.config() or {}).items() if name != "epochs" and value != DEFAULTS.get(name)}
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()

    def check_experiment(self) -> None:
        """Raise LabError where another version of hypergradient wrote the folder."""
        refuse_old(self.path, self.read_json("experiment.json") or {"format": FORMAT})

    def start_experiment(self, name: str, configs: Sequence[Config]) -> list[Path]:
        """Write experiment.json: what the runs under this folder are, the command, the versions and the machine.

        Returns:
            The figures, tables and pages that are there, made by the same versions for the same runs; none where one is missing.

        Raises:
            LabError: another version of hypergradient wrote the folder, or it cannot be written.
        """
        self.check_experiment()
        before = self.read_json("experiment.json") or {}
        about = {"format": FORMAT, "experiment": name, **provenance(), "configurations": [config.as_dict() for config in configs]}
        self._write_experiment(about)
        same = all(before.get(key) == about[key] for key in ("experiment", "versions", "configurations"))
        files = [self.path / str(file) for file in before.get("files", ())] if same else []
        return files if all(file.is_file() for file in files) else []

    def end_experiment(self, files: Sequence[Path]) -> None:
        """Add to experiment.json which files were made of the runs."""
        about = self.read_json("experiment.json") or {}
        self._write_experiment(about | {"files": [file.name for file in files]})

    def _write_experiment(self, about: Mapping[str, Any]) -> None:
        self.write(
            "experiment.json", lambda file: file.write_text(json.dumps(about), encoding="utf-8")
        )  # thousands of runs: no indentation

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder, a run's or a whole experiment's, for this process alone."""
        return files.lock(self.path)

    def read_json(self, name: str) -> dict[str, Any] | None:
        return files.read_json(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        files.write_json(self.path / name, value)

    def read_lines(self, name: str) -> list[Any]:
        return files.read_lines(self.path / name)

    def append_json(self, name: str, value: Any) -> None:
        files.append_json(self.path / name, value)

    def read_torch(self, name: str) -> Any:
        return files.read_torch(self.path / name)

    def write_torch(self, name: str, value: Any) -> None:
        files.write_torch(self.path / name, value)

    def write(self, name: str, to: Callable[[Path], Any]) -> None:
        files.write(self.path / name, to)


def digest(table: pa.Table) -> str:
    """Of the values of a table, whatever file they lie in."""
    found = hashlib.sha256()
    for name in table.column_names:
        column = table[name].combine_chunks()
        found.update(f"{name} {column.type} {len(column)} {column.null_count}".encode())
        if 0 < column.null_count < len(column):
            found.update(column.is_null().to_numpy(zero_copy_only=False))
        if column.null_count < len(column):
            found.update(column.fill_null(0).to_numpy())
    return found.hexdigest()


def options_of(file: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The options in what a config.json holds, as this version names them.

    Raises:
        LabError: there are none.
    """
    options = about.get("config")
    if not isinstance(options, dict):
        raise LabError(f"{file} holds no configuration: choose another --output")
    if about.get("format", 1) == 1:
        from .old import modern

        return DEFAULTS | modern(options)
    return DEFAULTS | options


def refuse_old(path: Path, about: Mapping[str, Any]) -> None:
    """Raise LabError where an earlier version wrote a folder's config.json or experiment.json."""
    if (written := about.get("format", 1)) < FORMAT:
        raise LabError(
            f"{path} was written by an earlier version (format {written}): hypergradient report reads it; choose another --output"
        )


def summary_of(status: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How a run ended, in what a status.json holds."""
    return None if status is None else {name: value for name, value in status.items() if name not in ("format", "digests")}
