"""TensorBoard event files. View them with ``tensorboard --logdir OUTPUT/tensorboard``."""

import json
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar, text

from ..runs.config import Config
from .base import Log, label


class Run(Log):
    """One event file, in a folder named after the run's options.

    It is written in this thread: torch's SummaryWriter has a thread of its own, whose errors cannot be caught.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__(folder, config)
        folder = folder / label(config)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.records = RecordWriter((folder / f"events.out.tfevents.{time.time_ns()}").open("wb"))
        self.event(file_version="brain.Event:2")
        self.text("configuration", config.as_dict())

    def add(self, table: str, rows: list[tuple[int, dict[str, float]]]) -> None:
        for step, values in rows:
            for name, value in values.items():
                self.event(step=step, summary=scalar(name, value))  # type: ignore[no-untyped-call]
        self.records.flush()

    def end(self, summary: dict[str, Any] | None) -> None:
        if summary is not None:
            self.text("summary", summary)
        self.records.close()

    def text(self, name: str, value: dict[str, Any]) -> None:
        self.event(summary=text(name, f"```\n{json.dumps(value, indent=2)}\n```"))  # type: ignore[no-untyped-call]

    def event(self, **event: Any) -> None:
        self.records.write(Event(wall_time=time.time(), **event).SerializeToString())
