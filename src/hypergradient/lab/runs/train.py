"""The training loop of a single run: its history, stopping and resuming."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from hypergradient.hyperparameters import HYPERPARAMETERS
from hypergradient.optimizer import HypergradientOptimizer

from ..errors import LabError, first_line
from .config import Config
from .data import Data
from .engine import (
    CHECKPOINT_EVERY,
    SaveRequest,
    Snapshot,
    StoppedError,
    Summary,
    adapts_beta,
    end_status,
    loss_of,
    shuffled,
    split,
    steps_of,
    stop_signals,
    summarise,
)
from .models import model_for
from .peers import NEED_LOSS, PEERS, take_step
from .store import Folder, History

#: Number of batches from which batch norm's statistics are recomputed for an average.
BATCH_NORM_BATCHES = 50

Watch = Callable[[int, int, float, float], None]
"""Called after each iteration with iteration, total iterations, loss and α."""


def train(
    config: Config,
    data: Data,
    folder: Folder,
    *,
    resume: bool = False,
    every: float = CHECKPOINT_EVERY,
    log: Callable[[Snapshot], None] | None = None,
    watch: Watch | None = None,
) -> tuple[Summary, History]:
    """Train ``config`` on ``data``, with its history in ``folder``.

    Args:
        config: the run.
        data: the loaded data set, on ``config.device``.
        folder: the run's folder.
        resume: resume from the folder's checkpoint; the result equals that of an uninterrupted run bit for bit.
        every: seconds between checkpoints within an epoch; there is one at the end of each epoch.
        log: called with each snapshot that is written.
        watch: called after each iteration.

    Raises:
        LabError: the folder contains another run, or cannot be written.
        StoppedError: after Ctrl-C or SIGTERM; the run is saved.
    """
    folder.check(config, resume=resume)
    run = Run(config, data, folder.load() if resume else None)
    folder.start(config, resume=resume)
    with stop_signals() as stopped:
        for save in run.go(stopped, every, watch):
            if log:  # before writing: a finished run is never logged again
                log(save.runs[0])
            save.runs[0].write(folder)
    summary = save.runs[0].summary
    assert summary is not None
    return summary, run.history


class Run:
    """A model with its optimizer and progress: finished epochs, and batches of the current one.

    Args:
        config: the run.
        data: the loaded data set, on ``config.device``.
        saved: history and checkpoint to resume from; None starts from the beginning.
    """

    def __init__(self, config: Config, data: Data, saved: tuple[History, dict[str, Any]] | None = None) -> None:
        self.config = config
        self.data, self.held_out = split(config, data)
        self.held_order: tuple[int, Tensor] = (-1, torch.empty(0))
        self.model = model_for(config, self.data).to(config.device)
        self.opt = config.make_optimizer(self.model)
        self.setup = self.opt.setup if isinstance(self.opt, HypergradientOptimizer) else None
        self.averages = self.setup.rule.averages if self.setup else hasattr(self.opt, "eval")
        self.batches, self.total = steps_of(config, self.data)
        self.history = History()
        self.epoch = 0
        self.batch = 0
        self.seconds = 0.0
        self.steps, self.best = 0, math.inf
        if saved is not None and config.call.name not in PEERS:  # not all of these can be restored: their runs start over
            self.history, checkpoint = saved
            try:
                self.model.load_state_dict(checkpoint["model"])
                self.opt.load_state_dict(checkpoint["optimizer"])
                self.epoch, self.batch, self.seconds = (checkpoint[name] for name in ("epoch", "batch", "seconds"))
            except Exception as error:  # a custom model may raise anything
                raise LabError(f"the checkpoint does not fit this run ({first_line(error)}): start over in another --output") from None

    @property
    def iteration(self) -> int:
        return len(self.history.iterations["loss"])

    @property
    def alpha(self) -> float:
        return float(self.opt.param_groups[0]["lr"])

    def go(self, stopped: threading.Event, every: float, watch: Watch | None = None) -> Iterator[SaveRequest]:
        """Train, and yield what is to be written: every ``every`` seconds, after each epoch, and at the end.

        Raises:
            StoppedError: ``stopped`` was set; the last item yielded holds the state at that point.
        """
        watch = watch or (lambda *_: None)
        epochs, size = self.config.epochs, self.config.batch_size
        assert epochs is not None
        begun, saved_at = time.monotonic() - self.seconds, time.monotonic()
        while self.epoch < epochs:
            order = shuffled(len(self.data.train_y), self.config.seed, self.epoch).to(self.config.device)
            while self.batch < self.batches:
                if status := self.ended():  # checked here so that resuming a finished run does not continue it
                    yield self.saved(status)
                    return
                loss = self.step(order[self.batch * size : (self.batch + 1) * size])
                now = time.monotonic()
                self.seconds = now - begun
                watch(self.iteration, self.total, loss, self.alpha)
                if stopped.is_set() or now - saved_at > every:
                    yield self.saved()
                    saved_at = time.monotonic()
                if stopped.is_set():
                    raise StoppedError(self.iteration)
            self.end_epoch()
            self.seconds = time.monotonic() - begun
            if self.epoch < epochs:
                yield self.saved()
        yield self.saved(self.ended() or "finished")

    def saved(self, status: str | None = None) -> SaveRequest:
        checkpoint = {name: getattr(self, name) for name in ("iteration", "epoch", "batch", "seconds")}
        if self.config.call.name not in PEERS:
            checkpoint |= {"model": self.model.state_dict(), "optimizer": self.opt.state_dict()}
        summary = None
        if status is not None:
            summary = summarise(self.config, self.history, status, self.alpha, self.seconds)
        save = SaveRequest([Snapshot(self.config, self.history, checkpoint, summary)], None, self.steps, self.best)
        self.steps = 0
        return save

    def ended(self) -> str | None:
        """The status with which the run ended at the last iteration; None if it continues."""
        losses = self.history.iterations["loss"]
        if not losses:
            return None
        failed = not math.isfinite(losses[-1]) or getattr(self.opt, "skipped", 0) > 0
        averages = self.setup is not None and self.averages  # the tuning-free rule returns to its average and continues
        return end_status(self.config, len(losses), losses[-1], failed and not averages)

    def step(self, indices: Tensor) -> float:
        """Train on one minibatch, record it, and return its loss before the step."""
        try:
            value = self.update(indices)
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            description = f"--model {self.config.model} with --optimizer {self.config.optimizer}"
            raise LabError(f"{description}: iteration {self.iteration + 1} failed ({type(error).__name__}: {first_line(error)})") from error
        self.batch += 1
        self.steps, self.best = self.steps + 1, min(self.best, value)
        row = {"iteration": self.iteration + 1, "epoch": self.epoch + 1, "loss": value, "alpha": self.alpha, **self.adapted_values()}
        if self.setup:
            row["h"] = float(next(iter(self.opt.hypergradients), math.nan))
            if self.averages:
                row |= next(iter(self.opt.summary()), {})
        for name, column in self.history.iterations.items():
            column.append(row.get(name))
        return value

    def update(self, indices: Tensor) -> float:
        """The optimizer's step on a minibatch; returns its loss."""
        if self.held_out:
            self.adapt(*self.held_out)
        self.opt.zero_grad()
        x, y = self.data.batch(indices)
        seed_step(self.config, self.iteration)
        loss = loss_of(self.model(x), y)
        loss.backward(create_graph=self.setup is not None and self.setup.signal.curvature == "hessian")  # type: ignore[no-untyped-call]
        needs_loss = self.setup.direction.monotone if self.setup else self.config.call.name in NEED_LOSS
        take_step(self.opt, loss, needs_loss)
        return loss.item()

    def adapt(self, x: Tensor, y: Tensor) -> None:
        """Adapt the hyperparameters on the loss of a held-out minibatch, with the same dropout and crops as the step.

        Batch norm's statistics stay those of the training data.
        """
        size = min(self.config.batch_size, len(y))
        turn, batch = divmod(self.iteration, len(y) // size)
        if self.held_order[0] != turn:
            self.held_order = turn, shuffled(len(y), self.config.seed, turn).to(self.config.device)
        indices = self.held_order[1][batch * size : (batch + 1) * size]
        seed_step(self.config, self.iteration)
        with restored_buffers(self.model):
            self.opt.adapt(loss_of(self.model(x[indices]), y[indices]))

    def adapted_values(self) -> dict[str, float]:
        """The current β and other hyperparameters, if they are adapted."""
        if self.setup is None:
            return {}
        group = self.opt.param_groups[0]
        found = {name: float(HYPERPARAMETERS[name].read(group)) for name in self.setup.other_rules}
        return found | ({"hypergrad_lr": group["hypergrad_lr"]} if adapts_beta(self.setup.rule) else {})

    def end_epoch(self) -> None:
        """Validate, and append the epoch's row."""
        batches = self.batches
        own = {name: self.history.iterations[name][-batches:] for name in ("loss", "alpha")}
        validate = self.config.threshold is None
        loss, accuracy = self.evaluate(self.data.valid_x, self.data.valid_y) if validate else (None, None)
        self.epoch, self.batch = self.epoch + 1, 0
        row = {
            "epoch": self.epoch,
            "train_loss": math.fsum(own["loss"]) / batches,
            "valid_loss": loss,
            "valid_accuracy": accuracy,
            "alpha": math.fsum(own["alpha"]) / batches,
        }
        for name, column in self.history.epochs.items():
            column.append(row[name])

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        """Loss and accuracy in evaluation mode, at the average if the optimizer has one."""
        if not self.averages:
            return evaluate(self.model, x, y)
        with self.averaged():
            return evaluate(self.model, x, y)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Swap in the average, with batch norm's statistics recomputed from the first BATCH_NORM_BATCHES batches of an epoch."""
        with restored_buffers(self.model):
            self.opt.eval()
            order = shuffled(len(self.data.train_y), self.config.seed, self.epoch).to(self.config.device)
            seed_step(self.config, self.iteration)
            update_bn((self.data.batch(part)[0] for part in torch.split(order, self.config.batch_size)[:BATCH_NORM_BATCHES]), self.model)
            yield
            self.opt.train()


@contextmanager
def restored_buffers(model: torch.nn.Module) -> Iterator[None]:
    """Restore the model's buffers, such as batch norm's statistics, on exit."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def seed_step(config: Config, iteration: int) -> None:
    """Seed dropout and crops by seed and iteration, so that resuming needs no random state."""
    seed = config.seed * 1_000_003 + iteration
    if config.device == "cpu":
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every device and takes ten times as long
    else:
        torch.manual_seed(seed)


@torch.no_grad()
def evaluate(model: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """Mean loss and accuracy in evaluation mode; None for the accuracy of real-valued targets."""
    model.eval()
    outputs = torch.cat([model(part) for part in torch.split(x, 1_000)])
    model.train()
    accuracy = None if y.is_floating_point() else (outputs.argmax(-1) == y).double().mean().item()
    return loss_of(outputs, y).item(), accuracy
