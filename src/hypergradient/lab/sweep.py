"""Many runs: a folder each under one root, run one after the other or as ensembles, whichever is asked for and possible.

A run that is finished is never run again. An ensemble saves itself now and then, so that it goes on with the very runs it had: the
results do not depend on where a sweep was stopped.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import torch

from .config import Config, LabError, choose, first_line
from .data import Data
from .ensemble import MODELS, SHARED, Ensemble
from .store import Folder, History
from .train import CHECKPOINT_EVERY, StoppedError, Summary, ending, limited, shuffled, stop_signals, summarise, train

ENGINES = ("auto", "batched", "sequential")

#: Runs of one ensemble; more of them would leave the processor's cache.
CHUNK = 64

Watch = Callable[[int, float], None]
"""Called now and then with how many runs have ended, and how many iterations a second all of them together make."""


def folder_of(root: Path, config: Config) -> Folder:
    return Folder(root / "runs" / config.name)


def finished(root: Path, config: Config) -> Summary | None:
    """The summary of a run that has ended; None for one that has not."""
    file = folder_of(root, config).path / "summary.json"
    if not file.exists():
        return None
    try:
        return Summary(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): remove its folder to run it again") from None


def sweep(configs: Sequence[Config], data: Data, root: Path, *, engine: str = "auto", watch: Watch | None = None) -> list[Summary]:
    """Run what is missing of ``configs`` under ``root``, and return the summaries of all.

    Args:
        configs: the runs, all on ``data``.
        data: what their ``data`` names.
        root: each run's folder is ``root/runs/NAME``, with the name that its configuration gives it.
        engine: ``batched`` trains runs that differ only in numbers as one program; ``sequential`` one after the other; ``auto`` is
            batched where there is more than one such run, and the model can be stacked.
        watch: follows the progress.

    Raises:
        LabError: no runs, an unknown engine, a model that cannot be stacked, or a root that cannot be written.
        StoppedError: Ctrl-C or SIGTERM; what was done is saved.
    """
    check_engine(engine)
    if not configs:
        raise LabError("the grid is empty: give at least one value for each option")
    watch = watch or (lambda *_: None)
    for chunk in chunks(configs):
        missing = [config for config in chunk if finished(root, config) is None]
        done = sum(finished(root, config) is not None for config in configs)
        watch(done, 0.0)
        if not missing:
            continue
        stackable = chunk[0].model in MODELS
        if engine == "batched" and not stackable:
            raise LabError(f"--engine batched takes the models {', '.join(MODELS)}, got {chunk[0].model}: use --engine sequential")
        if engine == "sequential" or not stackable or (engine == "auto" and len(chunk) == 1):
            for config in missing:
                train(config, data, folder_of(root, config), resume=True)
                done += 1
                watch(done, 0.0)
        else:
            Chunk(chunk, missing, data, root, lambda ended, rate, done=done: watch(done + ended, rate)).go()  # type: ignore[misc]
    summaries = [finished(root, config) for config in configs]
    assert all(summaries)
    return [summary for summary in summaries if summary]


def check_engine(engine: str) -> None:
    """Raise LabError where there is no such engine."""
    choose("engine", engine, ENGINES)


def chunks(configs: Iterable[Config]) -> list[list[Config]]:
    """The runs in parts that one ensemble can hold."""
    alike: dict[Any, list[Config]] = {}
    for config in dict.fromkeys(configs):
        alike.setdefault(tuple(getattr(config, name) for name in SHARED), []).append(config)
    return [part[i : i + CHUNK] for part in alike.values() for i in range(0, len(part), CHUNK)]


class Chunk:
    """An ensemble on its way through the epochs, the histories of its runs, and the file that it can be resumed from."""

    def __init__(self, configs: Sequence[Config], missing: Sequence[Config], data: Data, root: Path, watch: Watch) -> None:
        self.data = limited(data, configs[0].limit)
        self.root, self.watch = root, watch
        name = hashlib.sha256(" ".join(config.name for config in configs).encode()).hexdigest()[:16]
        self.folder = Folder(root / "unfinished")
        self.file = f"{name}.pt"
        saved = self._saved()
        self.ensemble = Ensemble(configs if saved else missing, self.data.train_x.shape[1:], self.data.classes)
        self.histories = {config.name: History() for config in self.ensemble.runs}
        self.pending: list[tuple[Config, Summary]] = []
        self.epoch = self.batch = self.ended = 0
        self.seconds = 0.0
        if saved:
            self.ensemble.load(saved["ensemble"])
            self.epoch, self.batch, self.seconds = saved["epoch"], saved["batch"], saved["seconds"]
            self.histories = {name: History(*tables) for name, tables in saved["histories"].items()}
            self.ended = len(missing) - len(self.ensemble.runs)

    def _saved(self) -> dict[str, Any] | None:
        path = self.folder.path / self.file
        if not path.exists():
            return None
        try:
            saved: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:
            raise LabError(f"{path} cannot be read ({first_line(error)}): remove it to run its runs again") from None
        return saved

    def go(self) -> None:
        size, first = self.ensemble.runs[0].batch_size, self.ensemble.runs[0]
        n = len(self.data.train_y)
        assert first.epochs is not None
        begun, saved_at, stepped = time.monotonic() - self.seconds, time.monotonic(), 0
        with stop_signals() as stopped:
            while self.ensemble.runs:
                order = shuffled(n, first.seed, self.epoch).to(first.device)
                while self.batch * size < n and self.ensemble.runs:
                    self._step(order[self.batch * size : (self.batch + 1) * size])
                    stepped += len(self.ensemble.runs)
                    now = time.monotonic()
                    self.seconds = now - begun
                    if now - saved_at > CHECKPOINT_EVERY or stopped.is_set():
                        self._save(stopped)
                        self.watch(self.ended, stepped / (time.monotonic() - saved_at))
                        saved_at, stepped = time.monotonic(), 0
                if self.ensemble.runs:
                    self._end_epoch(math.ceil(n / size), self.epoch + 1 == first.epochs)
            self._save(stopped)
        (self.folder.path / self.file).unlink(missing_ok=True)
        self.watch(self.ended, 0.0)

    def _step(self, indices: torch.Tensor) -> None:
        losses, h = self.ensemble.step(*self.data.batch(indices))
        self.batch += 1
        leaving: dict[int, str] = {}
        for i, config in enumerate(self.ensemble.runs):
            row = (self.ensemble.steps, self.epoch + 1, losses[i], self.ensemble.alphas[i], h[i] if config.adapts else None)
            for column, value in zip(self.histories[config.name].iterations.values(), row, strict=True):
                column.append(value)
            status = ending(config, self.ensemble.steps, losses[i], not math.isfinite(h[i]))
            if status:
                leaving[i] = status
        self._leave(leaving)

    def _end_epoch(self, batches: int, last: bool) -> None:
        runs = self.ensemble.runs
        validate = runs[0].threshold is None
        results = self.ensemble.evaluate(self.data.valid_x, self.data.valid_y) if validate else ([None] * len(runs),) * 2
        self.epoch, self.batch = self.epoch + 1, 0
        for config, loss, accuracy in zip(runs, *results, strict=True):
            history = self.histories[config.name]
            means = [math.fsum(history.iterations[name][-batches:]) / batches for name in ("loss", "alpha")]
            for column, value in zip(history.epochs.values(), (self.epoch, means[0], loss, accuracy, means[1]), strict=True):
                column.append(value)
        if last:
            self._leave(dict.fromkeys(range(len(runs)), "finished"))

    def _leave(self, statuses: dict[int, str]) -> None:
        if not statuses:
            return
        for i, status in statuses.items():
            config = self.ensemble.runs[i]
            summary = summarise(config, self.histories[config.name], status, self.ensemble.alphas[i], self.seconds)
            self.pending.append((config, summary))
        self.ended += len(statuses)
        self.ensemble.keep([i for i in range(len(self.ensemble.runs)) if i not in statuses])

    def _save(self, stopped: Event) -> None:
        """Write the runs that have ended, then the state of the others, from which the next start goes on."""
        for config, summary in self.pending:
            folder = folder_of(self.root, config)
            folder.start(config, resume=True)
            folder.save(self.histories.pop(config.name), {})
            folder.write_json("summary.json", summary.as_dict())
        self.pending = []
        if self.ensemble.runs:
            histories = {name: (history.iterations, history.epochs) for name, history in self.histories.items()}
            place = {"epoch": self.epoch, "batch": self.batch, "seconds": self.seconds}
            saved = {"ensemble": self.ensemble.state(), "histories": histories, **place}
            self.folder.write(self.file, lambda file: torch.save(saved, file))
            if stopped.is_set():
                raise StoppedError(self.ensemble.steps)
