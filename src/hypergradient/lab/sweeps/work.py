"""A unit of work for one process: a run, or several runs trained as one program."""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

from ..runs.chunk import Chunk
from ..runs.config import Config
from ..runs.data import Data
from ..runs.engine import SaveRequest
from ..runs.train import Run


@dataclass(frozen=True)
class Work:
    """A part of a sweep.

    Args:
        name: name of its file under ``unfinished``.
        configs: one configuration, or those of an ensemble.
        stacked: whether they are trained as one program.
        saved: the state to resume from; None starts from the beginning.
    """

    name: str
    configs: tuple[Config, ...]
    stacked: bool
    saved: Any = None

    def go(self, data: Data, stopped: Event, every: float) -> Iterator[SaveRequest]:
        """Train, and yield what is to be written: every ``every`` seconds and at the end.

        Raises:
            StoppedError: ``stopped`` was set; the last item yielded holds the state at that point.
        """
        if self.stacked:
            return Chunk(self.configs, data, self.saved).go(stopped, every)
        return Run(self.configs[0], data, self.saved).go(stopped, every)
