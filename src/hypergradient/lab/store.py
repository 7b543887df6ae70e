"""A run's folder: config.json, iterations.parquet, epochs.parquet, checkpoint.pt and summary.json.

Every file is written to the side and renamed into place, so a killed run leaves whole files. The histories are written before the
checkpoint: what they hold beyond it is cut off on resuming, and computed again.
"""

import json
import platform
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import hypergradient

from .config import Config, LabError, first_line

ITERATIONS = {"iteration": pa.int64(), "epoch": pa.int64(), "loss": pa.float64(), "alpha": pa.float64(), "h": pa.float64()}
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
    rate is not adapted). epochs: means of loss and α over the epoch, then validation loss and accuracy after it.
    """

    iterations: dict[str, list] = field(default_factory=lambda: {name: [] for name in ITERATIONS})
    epochs: dict[str, list] = field(default_factory=lambda: {name: [] for name in EPOCHS})


class Folder:
    """Where a run lies."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, config: Config, *, resume: bool) -> None:
        """Claim the folder for a run.

        Raises:
            LabError: it holds a run already and ``resume`` is not asked for, or a run with other options, or cannot be written.
        """
        found = self._found()
        if found is None:
            self.write_json("config.json", {"config": config.as_dict(), **provenance()})
            return
        if not resume:
            raise LabError(f"{self.path} holds a run already: add --resume to go on with it, or choose another --output")
        mine = config.as_dict()
        other = [f"--{key.replace('_', '-')} {found.get(key)}" for key in mine if key != "epochs" and found.get(key) != mine[key]]
        if other:
            raise LabError(f"{self.path} holds a run with {', '.join(other)}: give the same options to resume it, or another --output")

    def _found(self) -> dict[str, Any] | None:
        file = self.path / "config.json"
        if not file.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(file.read_text())["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"{file} cannot be read ({first_line(error)}): choose another --output") from None
        return found

    def clear(self) -> None:
        """Remove a run's files, and nothing else, from the folder."""
        for name in ("config.json", "checkpoint.pt", "summary.json", "iterations.parquet", "epochs.parquet"):
            (self.path / name).unlink(missing_ok=True)

    def save(self, history: History, checkpoint: dict[str, Any]) -> None:
        """Write the histories, then the checkpoint that belongs to them."""
        for name, columns, schema in (("iterations", history.iterations, ITERATIONS), ("epochs", history.epochs, EPOCHS)):
            table = pa.table(columns, schema=pa.schema(list(schema.items())))
            self.write(f"{name}.parquet", partial(pq.write_table, table))
        self.write("checkpoint.pt", partial(torch.save, checkpoint))

    def load(self, device: str) -> tuple[History, dict[str, Any]] | None:
        """The last checkpoint and the history up to it; None where the run was stopped before the first."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            checkpoint = torch.load(file, map_location=device, weights_only=True)
            history = self.history(checkpoint["iteration"], checkpoint["epoch"])
        except Exception as error:
            raise LabError(f"{self.path} cannot be resumed ({first_line(error)}): start anew with another --output") from None
        return history, checkpoint

    def history(self, iterations: int | None = None, epochs: int | None = None) -> History:
        """The history that was written, or its first so many iterations and epochs."""
        tables = [pq.read_table(self.path / f"{name}.parquet") for name in ("iterations", "epochs")]
        return History(*(table.slice(0, rows).to_pydict() for table, rows in zip(tables, (iterations, epochs), strict=True)))

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


def provenance() -> dict[str, Any]:
    """What a result depends on beside its configuration: the command, the versions and the machine."""
    return {
        "command": shlex.join(["hypergradient", *sys.argv[1:]]),
        "versions": {"hypergradient": hypergradient.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"processor": platform.machine(), "system": platform.system(), "threads": torch.get_num_threads()},
    }
