"""The training loop of the experiments: one run, its history, and how it is stopped and resumed."""

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
    Save,
    Saved,
    StoppedError,
    Summary,
    ending,
    loss_of,
    moves_beta,
    shuffled,
    split,
    steps_of,
    stop_signals,
    summarise,
)
from .models import model_for
from .peers import NEED_LOSS, PEERS, take_step
from .store import Folder, History

#: Batches that batch norm's statistics are made of, for an average.
REFRESH = 50

Watch = Callable[[int, int, float, float], None]
"""Called after each iteration with iteration, number of iterations, loss, α."""


def train(
    config: Config,
    data: Data,
    folder: Folder,
    *,
    resume: bool = False,
    every: float = CHECKPOINT_EVERY,
    log: Callable[[Saved], None] | None = None,
    watch: Watch | None = None,
) -> tuple[Summary, History]:
    """Run ``config`` on ``data``, with its history in ``folder``.

    Args:
        config: the run.
        data: what ``config.data`` names, on ``config.device``.
        folder: where the run lies.
        resume: go on from the folder's checkpoint, bit for bit as if the run had never been stopped.
        every: seconds between checkpoints within an epoch; each epoch ends with one.
        log: is given what is written, too.
        watch: follows the progress.

    Raises:
        LabError: the folder holds another run, or cannot be written.
        StoppedError: Ctrl-C or SIGTERM; the run is saved.
    """
    folder.check(config, resume=resume)
    run = Run(config, data, folder.load() if resume else None)
    folder.start(config, resume=resume)
    with stop_signals() as stopped:
        for save in run.go(stopped, every, watch):
            if log:  # first: a run that has ended is not logged again
                log(save.runs[0])
            save.runs[0].write(folder)
    summary = save.runs[0].summary
    assert summary is not None
    return summary, run.history


class Run:
    """A model, its optimizer and how far they are: epochs finished, and batches of the one under way.

    Args:
        config: the run.
        data: what ``config.data`` names, on ``config.device``.
        saved: history and checkpoint to go on from; None begins.
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
        if saved is not None and config.call.name not in PEERS:  # not all of those can be restored: their runs begin anew
            self.history, checkpoint = saved
            try:
                self.model.load_state_dict(checkpoint["model"])
                self.opt.load_state_dict(checkpoint["optimizer"])
                self.epoch, self.batch, self.seconds = (checkpoint[name] for name in ("epoch", "batch", "seconds"))
            except Exception as error:  # RuntimeError, KeyError, ValueError, and what a model of the user's raises
                raise LabError(f"the checkpoint is not of such a run ({first_line(error)}): start anew with another --output") from None

    @property
    def iteration(self) -> int:
        return len(self.history.iterations["loss"])

    @property
    def alpha(self) -> float:
        return float(self.opt.param_groups[0]["lr"])

    def go(self, stopped: threading.Event, every: float, watch: Watch | None = None) -> Iterator[Save]:
        """Train, and give what is to be written: every so many seconds, after each epoch, and at the end.

        Raises:
            StoppedError: ``stopped`` was set; the last that was given is the run as it then was.
        """
        watch = watch or (lambda *_: None)
        epochs, size = self.config.epochs, self.config.batch_size
        assert epochs is not None
        begun, saved_at = time.monotonic() - self.seconds, time.monotonic()
        while self.epoch < epochs:
            order = shuffled(len(self.data.train_y), self.config.seed, self.epoch).to(self.config.device)
            while self.batch < self.batches:
                if status := self.ended():  # here, so that a run which is resumed after its end does not go on
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

    def saved(self, status: str | None = None) -> Save:
        checkpoint = {name: getattr(self, name) for name in ("iteration", "epoch", "batch", "seconds")}
        if self.config.call.name not in PEERS:
            checkpoint |= {"model": self.model.state_dict(), "optimizer": self.opt.state_dict()}
        summary = None
        if status is not None:
            summary = summarise(self.config, self.history, status, self.alpha, self.seconds)
        save = Save([Saved(self.config, self.history, checkpoint, summary)], None, self.steps, self.best)
        self.steps = 0
        return save

    def ended(self) -> str | None:
        """How the run has ended with the last iteration, None where it has not."""
        losses = self.history.iterations["loss"]
        if not losses:
            return None
        lost = not math.isfinite(losses[-1]) or getattr(self.opt, "skipped", 0) > 0
        averages = self.setup is not None and self.averages  # and goes back to its average, and on
        return ending(self.config, len(losses), losses[-1], lost and not averages)

    def step(self, indices: Tensor) -> float:
        """One minibatch; its loss before the step."""
        try:
            value = self.move(indices)
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            told = f"--model {self.config.model} with --optimizer {self.config.optimizer}"
            raise LabError(f"{told}: iteration {self.iteration + 1} failed ({type(error).__name__}: {first_line(error)})") from error
        self.batch += 1
        self.steps, self.best = self.steps + 1, min(self.best, value)
        row = {"iteration": self.iteration + 1, "epoch": self.epoch + 1, "loss": value, "alpha": self.alpha, **self.moved()}
        if self.setup:
            row["h"] = float(next(iter(self.opt.hypergradients), math.nan))
            if self.averages:
                row |= next(iter(self.opt.summary()), {})
        for name, column in self.history.iterations.items():
            column.append(row.get(name))
        return value

    def move(self, indices: Tensor) -> float:
        """The step itself, of a minibatch of these images; its loss."""
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
        """Let the hyperparameters follow the loss on a minibatch of images that are not trained on, with the step's own dropout and crops.

        Statistics of batch norm stay those of what is trained on.
        """
        size = min(self.config.batch_size, len(y))
        turn, batch = divmod(self.iteration, len(y) // size)
        if self.held_order[0] != turn:
            self.held_order = turn, shuffled(len(y), self.config.seed, turn).to(self.config.device)
        indices = self.held_order[1][batch * size : (batch + 1) * size]
        seed_step(self.config, self.iteration)
        with kept_buffers(self.model):
            self.opt.adapt(loss_of(self.model(x[indices]), y[indices]))

    def moved(self) -> dict[str, float]:
        """The β and the other hyperparameters of the step, where they move."""
        if self.setup is None:
            return {}
        group = self.opt.param_groups[0]
        found = {name: float(HYPERPARAMETERS[name].read(group)) for name in self.setup.other_rules}
        return found | ({"hypergrad_lr": group["hypergrad_lr"]} if moves_beta(self.setup.rule) else {})

    def end_epoch(self) -> None:
        """Validate, and add the epoch's row."""
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
        """Loss and accuracy of the model in evaluation mode; of the average where the optimizer has one."""
        if not self.averages:
            return evaluate(self.model, x, y)
        with self.averaged():
            return evaluate(self.model, x, y)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in the model's parameters, with batch norm's statistics of it, from the first REFRESH batches of an epoch."""
        with kept_buffers(self.model):
            self.opt.eval()
            order = shuffled(len(self.data.train_y), self.config.seed, self.epoch).to(self.config.device)
            seed_step(self.config, self.iteration)
            update_bn((self.data.batch(part)[0] for part in torch.split(order, self.config.batch_size)[:REFRESH]), self.model)
            yield
            self.opt.train()


@contextmanager
def kept_buffers(model: torch.nn.Module) -> Iterator[None]:
    """Give the model's buffers, such as the statistics of batch norm, back as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def seed_step(config: Config, iteration: int) -> None:
    """Seed what is random in the model, dropout and crops, by seed and iteration, so that resuming needs no random state."""
    seed = config.seed * 1_000_003 + iteration
    if config.device == "cpu":
        torch.default_generator.manual_seed(seed)  # torch.manual_seed, which asks for every kind of device, takes ten times as long
    else:
        torch.manual_seed(seed)


@torch.no_grad()
def evaluate(model: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """Mean loss and accuracy in evaluation mode; targets that are no labels have no accuracy."""
    model.eval()
    outputs = torch.cat([model(part) for part in torch.split(x, 1_000)])
    model.train()
    accuracy = None if y.is_floating_point() else (outputs.argmax(-1) == y).double().mean().item()
    return loss_of(outputs, y).item(), accuracy
