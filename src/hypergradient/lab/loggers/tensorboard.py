"""Event files for TensorBoard: ``tensorboard --logdir DIR``."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LabError, first_line
from ..runs.config import Config

if TYPE_CHECKING:
    from ..runs.engine import Saved


class Events:
    """Writes the histories of runs as scalars, each run in a folder of its own under ``root/tensorboard``, named by its options.

    A run's events are written anew by each process, so they are whole however often it was stopped. They are written by this thread:
    torch's SummaryWriter has one of its own, whose errors cannot be told in a line.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "tensorboard"
        self.files: dict[str, EventFile] = {}

    def write(self, saved: "Saved") -> None:
        """Add what is new in the run's history.

        Raises:
            LabError: the event file cannot be written.
        """
        name = saved.config.name
        try:
            if name not in self.files:
                self.files[name] = EventFile(self.root / label(saved.config), saved.config)
            self.files[name].add("iteration", saved.history.iterations)
            self.files[name].add("epoch", saved.history.epochs)
            self.files[name].records.flush()
        except OSError as error:
            mend = "make room, or leave --tensorboard out"
            raise LabError(f"cannot write event files in {self.root} ({first_line(error)}): {mend}") from None
        if saved.summary is not None:
            self.files.pop(name).records.close()


class EventFile:
    """One run's file, in place of those that earlier processes wrote."""

    def __init__(self, folder: Path, config: Config) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import scalar, text

        self.event, self.scalar = Event, scalar
        self.written = {"iteration": 0, "epoch": 0}
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.records = RecordWriter((folder / f"events.out.tfevents.{time.time_ns()}").open("wb"))
        self._write(file_version="brain.Event:2")
        self._write(summary=text("configuration", f"```\n{json.dumps(config.as_dict(), indent=2)}\n```"))  # type: ignore[no-untyped-call]

    def add(self, x: str, columns: dict[str, list]) -> None:
        """Add the rows of a table since the last call: each column but those that count is a curve over column ``x``."""
        since = self.written[x]
        for name in columns.keys() - {"iteration", "epoch"}:
            for step, value in zip(columns[x][since:], columns[name][since:], strict=True):
                if value is not None:
                    self._write(step=step, summary=self.scalar(f"{x}/{name}", value))  # type: ignore[no-untyped-call]
        self.written[x] = len(columns[x])

    def _write(self, **event: Any) -> None:
        self.records.write(self.event(wall_time=time.time(), **event).SerializeToString())


def label(config: Config) -> str:
    """A folder's name that tells a run's options, and is no other run's."""
    options = [config.model.replace(":", "."), config.optimizer, f"lr{config.lr:g}"]
    if config.adapts:
        options += [f"beta{config.hypergrad_lr:g}", config.rule]
    return "-".join([*options, f"seed{config.seed}", config.name[:6]])
