"""The training loop of an ensemble, with the histories of its runs."""

import math
import time
from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any

import torch

from .config import Config
from .data import Data
from .engine import SaveRequest, Snapshot, StoppedError, adapts_beta, end_status, shuffled, split, steps_of, summarise
from .ensemble import Ensemble
from .store import History


class Chunk:
    """Runs trained together as one program.

    Args:
        configs: the runs; ``ensemble.shared`` must be equal for all.
        data: the loaded data set, on the runs' device.
        state: saved state of the same configurations to resume from; None starts from the beginning.
    """

    def __init__(self, configs: Sequence[Config], data: Data, state: dict[str, Any] | None = None) -> None:
        self.data, _ = split(configs[0], data)
        self.batches, _ = steps_of(configs[0], self.data)
        self.ensemble = Ensemble(configs, self.data.train_x.shape[1:], self.data.classes)
        self.histories = {config.name: History() for config in configs}
        self.ended: list[Snapshot] = []
        self.epoch = self.batch = self.steps = 0
        self.seconds, self.best = 0.0, math.inf
        if state:
            self.ensemble.load(state["ensemble"])
            self.epoch, self.batch, self.seconds = state["epoch"], state["batch"], state["seconds"]
            self.histories = {name: History(*tables) for name, tables in state["histories"].items()}

    def go(self, stopped: Event, every: float) -> Iterator[SaveRequest]:
        """Train, and yield what is to be written: every ``every`` seconds and at the end.

        Raises:
            StoppedError: ``stopped`` was set; the last item yielded holds the state at that point.
        """
        first = self.ensemble.runs[0]
        size, n = first.batch_size, len(self.data.train_y)
        assert first.epochs is not None
        begun, saved_at = time.monotonic() - self.seconds, time.monotonic()
        while self.ensemble.runs:
            order = shuffled(n, first.seed, self.epoch).to(first.device)
            while self.batch * size < n and self.ensemble.runs:
                self._step(order[self.batch * size : (self.batch + 1) * size])
                now = time.monotonic()
                self.seconds = now - begun
                if self.ensemble.runs and (stopped.is_set() or now - saved_at > every):
                    yield self._saved()
                    if stopped.is_set():
                        raise StoppedError(self.ensemble.steps)
                    saved_at = time.monotonic()
            if self.ensemble.runs:
                self._end_epoch(self.epoch + 1 == first.epochs)
        yield self._saved()

    def _step(self, indices: torch.Tensor) -> None:
        losses, h = self.ensemble.step(*self.data.batch(indices))
        self.batch += 1
        self.steps += len(losses)
        self.best = min(self.best, *losses)
        leaving: dict[int, str] = {}
        for i, config in enumerate(self.ensemble.runs):
            row = {"iteration": self.ensemble.steps, "epoch": self.epoch + 1, "loss": losses[i], "alpha": self.ensemble.alphas[i]}
            row |= {"h": h[i]} if config.call.adapts else {}
            row |= {"hypergrad_lr": self.ensemble.betas[i]} if adapts_beta(self.ensemble.rules[i]) else {}
            for name, column in self.histories[config.name].iterations.items():
                column.append(row.get(name))
            failed = not math.isfinite(losses[i]) or self.ensemble.skipped[i]
            status = end_status(config, self.ensemble.steps, losses[i], failed)
            if status:
                leaving[i] = status
        self._leave(leaving)

    def _end_epoch(self, last: bool) -> None:
        runs, batches = self.ensemble.runs, self.batches
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
            history = self.histories.pop(config.name)
            self.ended.append(Snapshot(config, history, {}, summarise(config, history, status, self.ensemble.alphas[i], self.seconds)))
        self.ensemble.retain([i for i in range(len(self.ensemble.runs)) if i not in statuses])

    def _saved(self) -> SaveRequest:
        state = None
        if self.ensemble.runs:
            histories = {name: (history.iterations, history.epochs) for name, history in self.histories.items()}
            place = {"epoch": self.epoch, "batch": self.batch, "seconds": self.seconds}
            configs = [config.as_dict() for config in self.ensemble.runs]
            state = {"configs": configs, "ensemble": self.ensemble.state(), "histories": histories, **place}
        saved = SaveRequest(self.ended, state, self.steps, self.best)
        self.ended, self.steps = [], 0
        return saved
