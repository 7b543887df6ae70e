"""The training loop of the experiments: one run, its history, and how it is stopped and resumed."""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .config import Config
from .data import Data
from .events import Events
from .models import make_model
from .store import FORMAT, Folder, History

#: Seconds between two writings of what is under way.
CHECKPOINT_EVERY = 10.0


class StoppedError(Exception):
    """Ctrl-C or SIGTERM came; the run is saved up to the iteration that it names."""

    def __init__(self, iteration: int) -> None:
        super().__init__(f"stopped after iteration {iteration}")
        self.iteration = iteration


@dataclass(frozen=True)
class Summary:
    """How a run ended: "finished" its epochs, "reached" its threshold, met its "cap" of iterations, or "diverged", where a minibatch
    loss or a gradient was not finite. Losses are of the last whole epoch."""

    model: str
    optimizer: str
    status: str
    iterations: int
    epochs: int
    alpha: float
    train_loss: float | None
    valid_loss: float | None
    valid_accuracy: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Watch = Callable[[int, int, float, float], None]
"""Called after each iteration with iteration, number of iterations, loss, α."""


@dataclass(frozen=True)
class Saved:
    """A run as it is to be written: ``checkpoint`` is what it goes on from, ``summary`` how it ended, None for one that has not."""

    config: Config
    history: History
    checkpoint: dict[str, Any]
    summary: Summary | None

    def write(self, folder: Folder) -> None:
        folder.save(self.history, self.checkpoint)
        if self.summary is not None:
            folder.write_json("status.json", {"format": FORMAT, **self.summary.as_dict()})


@dataclass(frozen=True)
class Save:
    """What an engine gives to whoever writes the store.

    Args:
        runs: those to be written.
        state: what the other runs of an ensemble go on from; None where there are none.
        steps: how many were made since the last.
        best: the lowest loss of a minibatch so far.
    """

    runs: list[Saved]
    state: dict[str, Any] | None
    steps: int
    best: float


def train(
    config: Config,
    data: Data,
    folder: Folder,
    *,
    resume: bool = False,
    every: float = CHECKPOINT_EVERY,
    events: Events | None = None,
    watch: Watch | None = None,
) -> tuple[Summary, History]:
    """Run ``config`` on ``data``, with its history in ``folder``.

    Args:
        config: the run.
        data: what ``config.data`` names, on ``config.device``.
        folder: where the run lies.
        resume: go on from the folder's checkpoint, bit for bit as if the run had never been stopped.
        every: seconds between checkpoints within an epoch; each epoch ends with one.
        events: writes event files for TensorBoard too.
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
            save.runs[0].write(folder)
            if events:
                events.write(save.runs[0])
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
        self.data = data = limited(data, config.limit)
        self.model = make_model(config.model, data.train_x.shape[1:], data.classes, config.seed, hidden=config.hidden).to(config.device)
        self.opt = config.make_optimizer(self.model.parameters())
        self.history = History()
        self.epoch = 0
        self.batch = 0
        self.seconds = 0.0
        self.steps, self.best = 0, math.inf
        if saved is not None:
            self.history, checkpoint = saved
            self.model.load_state_dict(checkpoint["model"])
            self.opt.load_state_dict(checkpoint["optimizer"])
            self.epoch, self.batch, self.seconds = (checkpoint[name] for name in ("epoch", "batch", "seconds"))

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
        batches = math.ceil(len(self.data.train_y) / size)
        total = min(epochs * batches, self.config.iterations or epochs * batches)
        begun, saved_at = time.monotonic() - self.seconds, time.monotonic()
        while self.epoch < epochs:
            order = shuffled(len(self.data.train_y), self.config.seed, self.epoch).to(self.config.device)
            while self.batch < batches:
                if status := self.ended():  # here, so that a run which is resumed after its end does not go on
                    yield self.saved(status)
                    return
                loss = self.step(order[self.batch * size : (self.batch + 1) * size])
                now = time.monotonic()
                self.seconds = now - begun
                watch(self.iteration, total, loss, self.alpha)
                if stopped.is_set() or now - saved_at > every:
                    yield self.saved()
                    saved_at = time.monotonic()
                if stopped.is_set():
                    raise StoppedError(self.iteration)
            self.end_epoch(batches)
            self.seconds = time.monotonic() - begun
            if self.epoch < epochs:
                yield self.saved()
        yield self.saved(self.ended() or "finished")

    def saved(self, status: str | None = None) -> Save:
        checkpoint = {name: getattr(self, name) for name in ("iteration", "epoch", "batch", "seconds")}
        checkpoint |= {"model": self.model.state_dict(), "optimizer": self.opt.state_dict()}
        summary = None if status is None else summarise(self.config, self.history, status, self.alpha, self.seconds)
        save = Save([Saved(self.config, self.history, checkpoint, summary)], None, self.steps, self.best)
        self.steps = 0
        return save

    def ended(self) -> str | None:
        """How the run has ended with the last iteration, None where it has not."""
        losses = self.history.iterations["loss"]
        if not losses:
            return None
        return ending(self.config, len(losses), losses[-1], getattr(self.opt, "skipped", 0) > 0)

    def step(self, indices: Tensor) -> float:
        """One minibatch; its loss before the step."""
        self.opt.zero_grad()
        x, y = self.data.batch(indices)
        seed_step(self.config, self.iteration)
        loss = cross_entropy(self.model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        self.opt.step()
        self.batch += 1
        value = loss.item()
        self.steps, self.best = self.steps + 1, min(self.best, value)
        h = self.opt.hypergradients[0] if self.config.adapts else None  # type: ignore[attr-defined]
        row = {"iteration": self.iteration + 1, "epoch": self.epoch + 1, "loss": value, "alpha": self.alpha, "h": h}
        for name, column in self.history.iterations.items():
            column.append(row[name])
        return value

    def end_epoch(self, batches: int) -> None:
        """Validate, and add the epoch's row."""
        own = {name: self.history.iterations[name][-batches:] for name in ("loss", "alpha")}
        validate = self.config.threshold is None
        loss, accuracy = evaluate(self.model, self.data.valid_x, self.data.valid_y) if validate else (None, None)
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


def summarise(config: Config, history: History, status: str, alpha: float, seconds: float) -> Summary:
    """A run's summary from its history."""
    train_loss, valid_loss, accuracy = (
        history.epochs[name][-1] if history.epochs[name] else None for name in ("train_loss", "valid_loss", "valid_accuracy")
    )
    counts = len(history.iterations["loss"]), len(history.epochs["epoch"])
    return Summary(config.model, config.optimizer, status, *counts, alpha, train_loss, valid_loss, accuracy, round(seconds, 3))


def ending(config: Config, iteration: int, loss: float, skipped: bool) -> str | None:
    """The status that ``loss``, the minibatch loss of ``iteration``, ends a run with; None where it goes on."""
    if not math.isfinite(loss) or skipped:
        return "diverged"
    if config.threshold is not None and loss <= config.threshold:
        return "reached"
    if config.iterations is not None and iteration >= config.iterations:
        return "cap"
    return None


def limited(data: Data, limit: int | None) -> Data:
    """The data with the first ``limit`` images for training and for validation, all of them for None."""
    if limit is None:
        return data
    return Data(data.train_x[:limit], data.train_y[:limit], data.valid_x[:limit], data.valid_y[:limit], data.classes)


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in one epoch: a function of seed and epoch, so that resuming needs no random state."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def seed_step(config: Config, iteration: int) -> None:
    """Seed what is random in the model, dropout and crops, by seed and iteration, so that resuming needs no random state."""
    seed = config.seed * 1_000_003 + iteration
    if config.device == "cpu":
        torch.default_generator.manual_seed(seed)  # torch.manual_seed, which asks for every kind of device, takes ten times as long
    else:
        torch.manual_seed(seed)


@torch.no_grad()
def evaluate(model: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in evaluation mode."""
    model.eval()
    logits = torch.cat([model(part) for part in torch.split(x, 1_000)])
    model.train()
    return cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that a run stops between two iterations; a second signal ends it at once.

    The optimizers' warning of a skipped step is not shown meanwhile: here it ends the run, with a status.
    """
    stopped = threading.Event()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*skipped a step")
            yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
