"""A run's folder: config.json, history.parquet, epochs.parquet, checkpoint.pt and, once the run has ended, status.json.

An experiment's folder contains experiment.json, and its runs under runs/. Every file is written to a temporary file and renamed into
place, so a killed run leaves intact files; runs.jsonl of a comparison grows by lines, and a kill damages at most the last. Histories are
written before the checkpoint: rows beyond it are cut off on resuming, and computed again. The checkpoint contains its own digest; it and
status.json contain the digests of the other files, so that no run resumes from, and no figure shows, files that were altered.
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

#: The files of a run, in the order of deletion: status.json goes first, so a partly deleted run never looks finished.
FILES = ("status.json", "checkpoint.pt", "history.parquet", "epochs.parquet", "config.json")


@dataclass
class History:
    """The columns of a run's two tables, as lists of equal length.

    iterations: iteration (from 1), epoch (from 1), minibatch loss before the step, α and h of the step (h is null if the learning
    rate is not adapted); signal, noise and horizon of the tuning-free rule (see ``summary()``); β and the other hyperparameters of
    the step, each null if it is not adapted.
    epochs: mean loss and α over the epoch, validation loss and accuracy after it.
    """

    iterations: dict[str, list] = field(default_factory=lambda: {name: [] for name in ITERATIONS})
    epochs: dict[str, list] = field(default_factory=lambda: {name: [] for name in EPOCHS})


DEFAULTS = {field.name: field.default for field in fields(Config)}


class Folder:
    """The folder of a run or of an experiment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, config: Config, *, resume: bool) -> None:
        """Prepare the folder for a run. A finished run that is resumed for more epochs counts as unfinished again.

        Raises:
            LabError: it contains a run and ``resume`` is False, or a run with other options, or cannot be written.
        """
        self.check(config, resume=resume)
        files.remove_partial_files(self.path)
        files.remove(self.path / "status.json")
        found = self.read_json("config.json")
        if found is None:
            self.write_json("config.json", {"format": FORMAT, "config": config.as_dict(), **provenance()})
        elif found["config"].get("epochs") != config.epochs:
            self.write_json("config.json", {**found, "config": {**found["config"], "epochs": config.epochs}})

    def check(self, config: Config, *, resume: bool) -> None:
        """Raise LabError if ``start`` would, except for a folder that cannot be written."""
        about = self.read_json("config.json")
        if about is None:
            return
        refuse_old(self.path, about)
        if not resume:
            raise LabError(f"{self.path} already contains a run: add --resume to continue it, or choose another --output")
        found, mine = options_of(self.path / "config.json", about), config.as_dict()
        ignored = {"epochs"}
        if found["data_digest"]:  # identifies the data once it is loaded, whatever its path
            ignored.add("data")
        ignored |= {name for name in ("data_digest", "source_digest") if not mine[name]}
        descriptions = {"data_digest": "other data", "source_digest": "another source code of its model"}
        other = [
            descriptions.get(name) or f"--{name.replace('_', '-')} {shortened(str(found[name]))}"
            for name in mine
            if name not in ignored and found[name] != mine[name]
        ]
        if other:
            raise LabError(f"{self.path} contains a run with {', '.join(other)}: give the same options to resume it, or another --output")

    def config(self) -> dict[str, Any] | None:
        """The options of the run in the folder; None if there is none."""
        found = self.read_json("config.json")
        return None if found is None else options_of(self.path / "config.json", found)

    def summary(self) -> dict[str, Any] | None:
        """The results of the run; None if it has not ended."""
        return summary_of(self.read_json("status.json"))

    def clear(self) -> None:
        """Delete a run's files from the folder, and nothing else."""
        for name in FILES:
            files.remove(self.path / name)

    def save(self, history: History, checkpoint: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> None:
        """Write the histories, then the checkpoint, then the results.

        Args:
            history: the history so far.
            checkpoint: the state to resume from, with the number of history rows; empty for a run that cannot resume.
            summary: the results; None for an unfinished run.
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
        """The last checkpoint and the history up to it; None if there is no checkpoint yet.

        Raises:
            LabError: they are damaged, or do not match.
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
        """The stored history; columns unknown to earlier versions are null.

        Raises:
            LabError: it cannot be read, or does not match the digest in status.json.
        """
        ended = self.read_json("status.json") or {}
        try:
            return self._history(ended.get("digests", {}))
        except Exception as error:
            raise LabError(f"{self.path} cannot be read ({first_line(error)}): remove it and run it again") from None

    def _history(self, digests: Mapping[str, str], rows: Sequence[int | None] = (None, None)) -> History:
        """The first ``rows`` rows of the two tables, checked against their digests."""
        if digests and digests["config"] != self._config_digest():
            raise ValueError("config.json has changed since the run started")
        found = []
        for (name, schema), n in zip(TABLES.items(), rows, strict=True):
            with pq.ParquetFile(self.path / f"{name}.parquet") as parquet:
                table = parquet.read().slice(0, n)
            if digests and digests[name] != digest(table):
                raise ValueError(f"{name}.parquet does not match its digest")
            empty = [None] * len(table)
            found.append({column: table[column].to_pylist() if column in table.column_names else empty[:] for column in schema})
        return History(*found)

    def _config_digest(self) -> str:
        """Digest of the options in config.json that cannot change while a run continues."""
        options = {name: value for name, value in (self.config() or {}).items() if name != "epochs" and value != DEFAULTS.get(name)}
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()

    def check_experiment(self) -> None:
        """Raise LabError if an earlier version wrote the folder."""
        refuse_old(self.path, self.read_json("experiment.json") or {"format": FORMAT})

    def start_experiment(self, name: str, configs: Sequence[Config]) -> list[Path]:
        """Write experiment.json: the configurations of the runs in this folder, the command, versions and machine.

        Returns:
            The existing figures, tables and reports, if the same versions made them for the same runs; nothing if one is missing.

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
        """Record in experiment.json the files that were written."""
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
    """Digest of a table's values, independent of the file's encoding."""
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
    """The options in the content of a config.json, converted to this version's names.

    Raises:
        LabError: it contains none.
    """
    options = about.get("config")
    if not isinstance(options, dict):
        raise LabError(f"{file} contains no configuration: choose another --output")
    if about.get("format", 1) == 1:
        from .legacy import upgraded

        return DEFAULTS | upgraded(options)
    return DEFAULTS | options


def refuse_old(path: Path, about: Mapping[str, Any]) -> None:
    """Raise LabError if an earlier version wrote a folder's config.json or experiment.json."""
    if (written := about.get("format", 1)) < FORMAT:
        raise LabError(
            f"{path} was written by an earlier version (format {written}): hypergradient report can still read it; choose another --output"
        )


def summary_of(status: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The results in the content of a status.json."""
    return None if status is None else {name: value for name, value in status.items() if name not in ("format", "digests")}
