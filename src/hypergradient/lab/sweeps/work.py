"""What one process does at a time: a run, or runs that train as one program."""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

from ..runs.chunk import Chunk
from ..runs.config import Config
from ..runs.data import Data
from ..runs.engine import Save
from ..runs.train import Run


@dataclass(frozen=True)
class Work:
    """A part of a sweep.

    Args:
        name: of the file under ``unfinished``.
        configs: one run, or those of an ensemble.
        stacked: whether they train as one program.
        saved: what they go on from; None begins.
    """

    name: str
    configs: tuple[Config, ...]
    stacked: bool
    saved: Any = None

    def go(self, data: Data, stopped: Event, every: float) -> Iterator[Save]:
        """Train, and give what is to be written every so many seconds and at the end.

        Raises:
            StoppedError: ``stopped`` was set; the last that was given is the work as it then was.
        """
        if self.stacked:
            return Chunk(self.configs, data, self.saved).go(stopped, every)
        return Run(self.configs[0], data, self.saved).go(stopped, every)
