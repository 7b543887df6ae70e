"""Sweeps: many runs by one of the engines, each in its own folder under one root. Only the process that calls ``sweep`` writes.

A finished run is never run again. An ensemble saves checkpoints, from which it resumes with the same runs stacked: the results do not
depend on where a sweep was stopped.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any, Literal, get_args

from ..errors import LabError, first_line
from ..runs.config import Config
from ..runs.data import Data
from ..runs.engine import CHECKPOINT_EVERY, SaveRequest, Snapshot, Summary, split, stop_signals
from ..runs.ensemble import MODELS, shared, stackable
from ..runs.models import check_model, model_for
from ..runs.store import Folder
from .index import ended as summary_of
from .index import entries
from .work import Work

Engine = Literal["auto", "batched", "sequential", "ray"]

#: The most runs in an ensemble, and bytes of their parameters. On a CPU larger ensembles exceed the cache: 36 networks of
#: 784-1000-1000-10 take twice as long together as one after the other. On other devices the limit is memory.
CHUNK, CPU_BYTES, DEVICE_BYTES = 64, 2**23, 2**30

Watch = Callable[[int, float, float], None]
"""Called regularly with finished runs, iterations per second in total, and the lowest minibatch loss (infinite if unknown)."""


class Store:
    """The runs under ``root``: finished ones, saved states, and writing."""

    def __init__(self, root: Path, ended: Mapping[str, Summary], log: Callable[[Snapshot], None] | None = None) -> None:
        self.root, self.log = root, log
        self.unfinished = Folder(root / "unfinished")
        self.ended = dict(ended)

    def load(self, work: Work) -> Work:
        """The same work, with its saved state."""
        if not work.stacked:
            return replace(work, saved=folder_of(self.root, work.configs[0]).load())
        state = self.unfinished.read_torch(f"{work.name}.pt")
        if state is None:
            return work
        return replace(work, configs=tuple(Config(**options) for options in state["configs"]), saved=state)

    def write(self, work: Work, save: SaveRequest) -> None:
        """Write the given runs, then the state from which the others resume."""
        for saved in save.runs:
            if saved.config.name not in self.ended:
                folder = folder_of(self.root, saved.config)
                folder.start(saved.config, resume=True)
                if self.log:  # before writing: a finished run is never logged again
                    self.log(saved)
                saved.write(folder)
            if saved.summary is not None:
                self.ended[saved.config.name] = saved.summary
        file = f"{work.name}.pt"
        if (state := save.state) is not None:
            self.unfinished.write_torch(file, state)
        else:
            (self.unfinished.path / file).unlink(missing_ok=True)


def folder_of(root: Path, config: Config) -> Folder:
    return Folder(root / "runs" / config.name)


def ended(root: Path, configs: Iterable[Config]) -> dict[str, Summary]:
    """The results of those of the runs that have ended under a root, by name."""
    there, found = entries(root), {}
    for config in configs:
        summary = summary_of(there.get(config.name), config)
        if summary is not None:
            try:
                found[config.name] = Summary(**summary)
            except TypeError as error:
                file = folder_of(root, config).path / "status.json"
                raise LabError(f"{file} cannot be read ({first_line(error)}): remove its folder to run it again") from None
    return found


def sweep(
    configs: Sequence[Config],
    data: Data,
    root: Path,
    engine: Engine = "auto",
    address: str | None = None,
    log: Callable[[Snapshot], None] | None = None,
    *,
    every: float = CHECKPOINT_EVERY,
    watch: Watch | None = None,
    known: Mapping[str, Summary] | None = None,
) -> list[Summary]:
    """Run what is missing of ``configs`` under ``root``, and return all summaries.

    Args:
        configs: the runs' configurations, all on ``data``.
        data: the loaded data set.
        root: each run's folder is ``root/runs/NAME``, with the configuration's name.
        engine: ``batched`` trains runs that differ only in hyperparameters as one program; ``sequential`` one after the other; ``auto``
            is batched if the model can be stacked and is small enough to benefit; ``ray`` is auto, distributed over a cluster.
        address: address of the Ray cluster, or "auto" to find one; None starts one on this machine.
        log: called with each snapshot that is written.
        every: seconds between two checkpoints of unfinished runs.
        watch: called with the progress.
        known: the result of ``ended``, if already computed.

    Raises:
        LabError: no runs, an unknown engine, a model that cannot be stacked, Ray is missing, or the root cannot be written.
        StoppedError: after Ctrl-C or SIGTERM; all progress is saved.
    """
    check(configs, data, engine, address)
    store, names = Store(root, ended(root, configs) if known is None else known, log), {config.name for config in configs}
    steps, best, begun = 0, math.inf, time.monotonic()

    def report_progress() -> None:
        if watch:
            watch(len(names & store.ended.keys()), steps / (time.monotonic() - begun), best)

    report_progress()
    with stop_signals() as stopped:
        for work, save in results_of_parts(configs, data, store, engine, address, stopped, every):
            store.write(work, save)
            steps, best = steps + save.steps, min(best, save.best)
            report_progress()
    return [store.ended[config.name] for config in configs]


def results_of_parts(
    configs: Sequence[Config], data: Data, store: Store, engine: Engine, address: str | None, stopped: Event, every: float
) -> Iterator[tuple[Work, SaveRequest]]:
    """Train all parts of a sweep, and yield what is to be written as it arrives."""
    if engine == "ray":
        from .cluster import run_on_ray

        yield from run_on_ray(lambda slots: plan(configs, data, store.ended, engine, slots), store.load, data, address, stopped, every)
    else:
        for work in plan(configs, data, store.ended, engine):
            for save in store.load(work).go(data, stopped, every):
                yield work, save


def check(configs: Sequence[Config], data: Data, engine: Engine, address: str | None = None) -> None:
    """Raise LabError if a sweep cannot start: a wrong engine, no runs, or a model that cannot be built or stacked."""
    check_engine(engine, address)
    if not configs:
        raise LabError("the grid is empty: give at least one value for each option")
    for config in {
        (config.model, config.call.title, config.call.style, config.limit, config.hypergrad_data): config for config in configs
    }.values():
        if engine == "batched" and not stackable(config, data):
            raise LabError(
                f"--engine batched needs a model of {', '.join(MODELS)} on labels, and the paper's optimizers with the additive or the "
                f"multiplicative rule; got {config.model} with {config.optimizer}: use --engine auto"
            )
        split(config, data)
    for config in {(config.model, config.hidden): config for config in configs}.values():
        check_model(config, data)


def check_engine(engine: Engine, address: str | None = None) -> None:
    """Raise LabError if an engine is unknown, not installed, or does not go with an address."""
    if engine not in get_args(Engine):
        raise LabError(f"--engine must be one of {', '.join(get_args(Engine))}, got {engine!r}")
    if engine == "ray" and find_spec("ray") is None:
        raise LabError("--engine ray needs Ray: pip install 'hypergradient[ray]', or use --engine auto")
    if engine != "ray" and address is not None:
        raise LabError(f"--address is only for --engine ray, got --engine {engine}: leave it out, or add --engine ray")


def plan(configs: Iterable[Config], data: Data, ended: Mapping[str, Summary], engine: Engine, slots: int = 1) -> list[Work]:
    """What is missing of ``configs``, split into parts for ``slots`` processes."""
    groups: dict[Any, list[Config]] = {}
    for config in {config.name: config for config in configs}.values():
        groups.setdefault((stackable(config, data), *shared(config)), []).append(config)
    works = []
    for (stacks, *_), group in groups.items():
        stacks = stacks and engine != "sequential"
        size = min(math.ceil(len(group) / slots), max_stacked(group[0], data)) if stacks else 1
        stacked = stacks and (engine == "batched" or size > 1)
        for i in range(0, len(group), size):
            chunk = group[i : i + size]
            missing = tuple(config for config in chunk if config.name not in ended)
            name = hashlib.sha256(" ".join(config.name for config in chunk).encode()).hexdigest()[:16]
            if missing:
                works.append(Work(name, missing, stacked))
    return works


def max_stacked(config: Config, data: Data) -> int:
    """The largest ensemble of such runs."""
    size = sum(p.numel() * p.element_size() for p in model_for(config, data).parameters())
    limit = CPU_BYTES if data.train_x.device.type == "cpu" else DEVICE_BYTES
    return max(1, min(CHUNK, limit // size))
