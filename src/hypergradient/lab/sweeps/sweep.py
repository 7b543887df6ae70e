"""Many runs: a folder each under one root, by one of the engines. The process that calls ``sweep`` alone writes the store.

A run that is finished is never run again. An ensemble saves itself now and then, so that it goes on with the very runs it had: the
results do not depend on where a sweep was stopped.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

import torch

from ..errors import LabError, first_line
from ..loggers.tensorboard import Events
from ..runs.chunk import Chunk
from ..runs.config import PEERS, Config, choose
from ..runs.data import Data
from ..runs.engine import CHECKPOINT_EVERY, Save, Summary, split, stop_signals
from ..runs.ensemble import MODELS, SHARED, stackable
from ..runs.models import model_for
from ..runs.peers import check_peer
from ..runs.store import FORMAT, Folder, check_format
from ..runs.train import Run

ENGINES = ("auto", "batched", "sequential", "ray")

#: Runs of one ensemble, and bytes of their parameters, at most: on a processor more of them leave its cache, and 36 networks of
#: 784-1000-1000-10 take twice as long together as one after the other; elsewhere they fill its memory.
CHUNK, CPU_BYTES, DEVICE_BYTES = 64, 2**23, 2**30

Watch = Callable[[int, float, float], None]
"""Called now and then: runs that have ended, iterations a second of all together, lowest loss of a minibatch (infinite where unknown)."""


@dataclass(frozen=True)
class Work:
    """What one process does at a time.

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


class Store:
    """The runs under ``root``: what has ended, what can be gone on with, what is written."""

    def __init__(self, root: Path, events: Events | None = None) -> None:
        self.root, self.events = root, events
        self.unfinished = Folder(root / "unfinished")

    def load(self, work: Work) -> Work:
        """The same work with what was saved of it."""
        if not work.stacked:
            return replace(work, saved=folder_of(self.root, work.configs[0]).load())
        path = self.unfinished.path / f"{work.name}.pt"
        if not path.exists():
            return work
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            check_format(path, state)
            return replace(work, configs=tuple(Config(**options) for options in state["configs"]), saved=state)
        except LabError:
            raise
        except Exception as error:
            raise LabError(f"{path} cannot be read ({first_line(error)}): remove it to run its runs again") from None

    def write(self, work: Work, save: Save) -> int:
        """Write the runs, then the state of the others, from which the next start goes on; returns how many have ended."""
        ended = 0
        for saved in save.runs:
            folder = folder_of(self.root, saved.config)
            ended += saved.summary is not None
            if finished(self.root, saved.config) is None:
                folder.start(saved.config, resume=True)
                saved.write(folder)
                if self.events:
                    self.events.write(saved)
        file = f"{work.name}.pt"
        if (state := save.state) is not None:
            self.unfinished.write(file, lambda path: torch.save({"format": FORMAT, **state}, path))
        else:
            (self.unfinished.path / file).unlink(missing_ok=True)
        return ended


def folder_of(root: Path, config: Config) -> Folder:
    return Folder(root / "runs" / config.name)


def finished(root: Path, config: Config) -> Summary | None:
    """The summary of a run that has ended; None for one that has not."""
    folder = folder_of(root, config)
    found = folder.summary()
    try:
        return Summary(**found) if found and folder.config() else None
    except TypeError as error:
        raise LabError(f"{folder.path / 'status.json'} cannot be read ({first_line(error)}): remove its folder to run it again") from None


def sweep(
    configs: Sequence[Config],
    data: Data,
    root: Path,
    *,
    engine: str = "auto",
    address: str | None = None,
    tensorboard: bool = False,
    every: float = CHECKPOINT_EVERY,
    watch: Watch | None = None,
) -> list[Summary]:
    """Run what is missing of ``configs`` under ``root``, and return the summaries of all.

    Args:
        configs: the runs, all on ``data``.
        data: what their ``data`` names.
        root: each run's folder is ``root/runs/NAME``, with the name that its configuration gives it.
        engine: ``batched`` trains runs that differ only in numbers as one program; ``sequential`` one after the other; ``auto`` is
            batched where the model can be stacked and is small enough to gain by it; ``ray`` is auto spread over a cluster.
        address: of the Ray cluster, or "auto" for the one that is found; None starts one on this machine.
        tensorboard: whether to write event files too.
        every: seconds between two writings of what is under way.
        watch: follows the progress.

    Raises:
        LabError: no runs, an unknown engine, a model that cannot be stacked, no Ray, or a root that cannot be written.
        StoppedError: Ctrl-C or SIGTERM; what was done is saved.
    """
    check(configs, data, engine, address)
    store = Store(root, Events(root) if tensorboard else None)
    ended = sum(finished(root, config) is not None for config in dict.fromkeys(configs))
    steps, best, begun = 0, math.inf, time.monotonic()
    watch = watch or (lambda *_: None)
    watch(ended, 0.0, best)
    with stop_signals() as stopped:
        if engine == "ray":
            from .cluster import on_ray

            saves = on_ray(lambda slots: plan(configs, data, root, engine, slots), store.load, data, address, stopped, every)
        else:
            saves = ((work, save) for work in plan(configs, data, root, engine) for save in store.load(work).go(data, stopped, every))
        for work, save in saves:
            ended += store.write(work, save)
            steps, best = steps + save.steps, min(best, save.best)
            watch(ended, steps / (time.monotonic() - begun), best)
    summaries = [finished(root, config) for config in configs]
    assert all(summaries)
    return [summary for summary in summaries if summary]


def check(configs: Sequence[Config], data: Data, engine: str, address: str | None = None) -> None:
    """Raise LabError where a sweep could not begin: what ``check_engine`` finds, no runs, a model that cannot be made or stacked."""
    check_engine(engine, address)
    if not configs:
        raise LabError("the grid is empty: give at least one value for each option")
    kinds = ("model", "optimizer", "rule", "limit", "adapt", "hypergrad_data")
    for config in {tuple(getattr(config, name) for name in kinds): config for config in configs}.values():
        if engine == "batched" and not stackable(config, data):
            raise LabError(
                f"--engine batched takes the models {', '.join(MODELS)} on labels, and optimizers without averages, --adapt and "
                f"--hypergrad-data, got {config.model} with {config.optimizer}: use --engine auto"
            )
        split(config, data)
        if config.optimizer in PEERS:
            check_peer(config.optimizer)
    for config in {config.model: config for config in configs}.values():
        model_for(config, data)


def check_engine(engine: str, address: str | None = None) -> None:
    """Raise LabError where there is no such engine."""
    choose("engine", engine, ENGINES)
    if engine == "ray" and find_spec("ray") is None:
        raise LabError("--engine ray needs Ray: pip install 'hypergradient[ray]', or use --engine auto")
    if engine != "ray" and address is not None:
        raise LabError(f"--address has no meaning for --engine {engine}: leave it out, or add --engine ray")


def plan(configs: Iterable[Config], data: Data, root: Path, engine: str, slots: int = 1) -> list[Work]:
    """What is missing of ``configs``, in parts for ``slots`` processes, each of which does one part at a time."""
    alike: dict[Any, list[Config]] = {}
    for config in dict.fromkeys(configs):
        alike.setdefault((stackable(config, data), *(getattr(config, name) for name in SHARED)), []).append(config)
    works = []
    for (stacks, *_), group in alike.items():
        stacks = stacks and engine != "sequential"
        size = min(math.ceil(len(group) / slots), largest(group[0], data)) if stacks else 1
        stacked = stacks and (engine == "batched" or size > 1)
        for i in range(0, len(group), size):
            chunk = group[i : i + size]
            missing = tuple(config for config in chunk if finished(root, config) is None)
            name = hashlib.sha256(" ".join(config.name for config in chunk).encode()).hexdigest()[:16]
            if missing:
                works.append(Work(name, missing, stacked))
    return works


def largest(config: Config, data: Data) -> int:
    """How many such runs one ensemble holds at most."""
    size = sum(p.numel() * p.element_size() for p in model_for(config, data).parameters())
    room = CPU_BYTES if data.train_x.device.type == "cpu" else DEVICE_BYTES
    return max(1, min(CHUNK, room // size))
