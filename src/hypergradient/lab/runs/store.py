"""A run's folder: config.json, history.parquet, epochs.parquet, checkpoint.pt and, when the run has ended, status.json.

An experiment's folder holds experiment.json, and its runs under runs/. Every file is written to the side and renamed into place, so a
killed run leaves whole files; runs.jsonl of a comparison grows by lines, of which a kill tears the last at most. The histories are written
before the checkpoint: what they hold beyond it is cut off on resuming, and computed again.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import hypergradient

from ..errors import LabError, first_line
from .config import Config

#: Of the layout that is written; a folder with a higher number is left alone.
FORMAT = 1

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
        """Claim the folder for a run.

        Raises:
            LabError: it holds a run already and ``resume`` is not asked for, or a run with other options, or cannot be written.
        """
        self.check(config, resume=resume)
        if self.config() is None:
            self.write_json("config.json", {"format": FORMAT, "config": config.as_dict(), **provenance()})

    def check(self, config: Config, *, resume: bool) -> None:
        """Raise LabError where ``start`` would, but for a folder that cannot be written."""
        found = self.config()
        if found is None:
            return
        if not resume:
            raise LabError(f"{self.path} holds a run already: add --resume to go on with it, or choose another --output")
        mine = config.as_dict()
        other = [f"--{key.replace('_', '-')} {found[key]}" for key in mine if key != "epochs" and found[key] != mine[key]]
        if other:
            raise LabError(f"{self.path} holds a run with {', '.join(other)}: give the same options to resume it, or another --output")

    def config(self) -> dict[str, Any] | None:
        """The options of the run that the folder holds; None where it holds none."""
        found = self.read_json("config.json")
        if found is None:
            return None
        options = found.get("config")
        if not isinstance(options, dict):
            raise LabError(f"{self.path / 'config.json'} holds no configuration: choose another --output")
        return DEFAULTS | options

    def summary(self) -> dict[str, Any] | None:
        """How the run ended; None for one that has not."""
        found = self.read_json("status.json")
        return found and {key: value for key, value in found.items() if key != "format"}

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A file that ``write_json`` wrote; None where there is none.

        Raises:
            LabError: it cannot be read, or a newer version of hypergradient wrote it.
        """
        file = self.path / name
        try:
            found = json.loads(file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise LabError(f"{file} cannot be read ({first_line(error)}): remove its folder, or choose another --output") from None
        if not isinstance(found, dict):
            raise LabError(f"{file} cannot be read (it holds no table): remove its folder, or choose another --output")
        check_format(file, found)
        return found

    def clear(self) -> None:
        """Remove a run's files, and nothing else, from the folder."""
        for name in ("config.json", "checkpoint.pt", "status.json", "history.parquet", "epochs.parquet"):
            (self.path / name).unlink(missing_ok=True)

    def save(self, history: History, checkpoint: dict[str, Any]) -> None:
        """Write the histories, then the checkpoint that belongs to them."""
        for name, columns, schema in (("history", history.iterations, ITERATIONS), ("epochs", history.epochs, EPOCHS)):
            table = pa.table(columns, schema=pa.schema(list(schema.items())))
            self.write(f"{name}.parquet", partial(pq.write_table, table))
        self.write("checkpoint.pt", partial(torch.save, checkpoint))

    def load(self) -> tuple[History, dict[str, Any]] | None:
        """The last checkpoint and the history up to it; None where the run was stopped before the first."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            history = self.history(checkpoint["iteration"], checkpoint["epoch"])
        except Exception as error:
            raise LabError(f"{self.path} cannot be resumed ({first_line(error)}): start anew with another --output") from None
        return history, checkpoint

    def history(self, iterations: int | None = None, epochs: int | None = None) -> History:
        """The history that was written, or its first so many iterations and epochs; columns that earlier versions had not are null."""
        found = []
        for name, schema, rows in (("history", ITERATIONS, iterations), ("epochs", EPOCHS, epochs)):
            table = pq.read_table(self.path / f"{name}.parquet").slice(0, rows)
            found.append({column: [None] * len(table) for column in schema} | table.to_pydict())
        return History(*found)

    def check_experiment(self) -> None:
        """Raise LabError where a newer version of hypergradient wrote the folder."""
        self.read_json("experiment.json")

    def start_experiment(self, name: str, configs: Sequence[Config]) -> None:
        """Write experiment.json: what the runs under this folder are, the command, the versions and the machine.

        Raises:
            LabError: a newer version of hypergradient wrote the folder, or it cannot be written.
        """
        self.check_experiment()
        about = {"format": FORMAT, "experiment": name, **provenance()}
        self.write_json("experiment.json", about | {"configurations": [config.as_dict() for config in configs]})

    def append_json(self, name: str, value: Any) -> None:
        """Add a line to a file of lines; what a kill has torn off one is cut off before.

        Raises:
            LabError: the file cannot be written.
        """
        line = json.dumps(value, allow_nan=False) + "\n"
        try:
            with (self.path / name).open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":
                        file.seek(0)
                        file.truncate(file.read().rfind(b"\n") + 1)
                file.write(line.encode())
        except OSError as error:
            raise LabError(f"cannot write {self.path / name} ({first_line(error)}): make room, or choose another --output") from None

    def read_lines(self, name: str) -> list[Any]:
        """What ``append_json`` wrote, but for a last line that was torn.

        Raises:
            LabError: the file cannot be read.
        """
        file = self.path / name
        try:
            return [json.loads(line) for line in file.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0].splitlines()]
        except (OSError, ValueError) as error:
            raise LabError(f"{file} cannot be read ({first_line(error)}): run hypergradient compare into another --output") from None

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, lambda file: file.write_text(json.dumps(value, indent=2) + "\n"))

    def write(self, name: str, to: Callable[[Path], Any]) -> None:
        """Let ``to`` write a file to the side, then rename it into place."""
        side = self.path / f".{name}.part"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            to(side)
            side.replace(self.path / name)
        except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by a RuntimeError
            with suppress(OSError):
                side.unlink()
            raise LabError(f"cannot write {self.path / name} ({first_line(error)}): make room, or choose another --output") from None


def check_format(file: Path, found: Mapping[str, Any]) -> None:
    """Raise LabError where a newer version wrote ``found`` into the file."""
    written = found.get("format", FORMAT)
    if not isinstance(written, int) or written > FORMAT:
        raise LabError(
            f"{file} was written by a newer hypergradient (format {written}, this one knows {FORMAT}): "
            "upgrade hypergradient, or choose another --output"
        )


def provenance() -> dict[str, Any]:
    """What a result depends on beside its configuration: the command, the versions and the machine."""
    return {
        "command": shlex.join(["hypergradient", *sys.argv[1:]]),
        "versions": {"hypergradient": hypergradient.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"processor": platform.machine(), "system": platform.system(), "threads": torch.get_num_threads()},
    }
