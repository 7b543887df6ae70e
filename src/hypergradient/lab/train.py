"""The training loop of the experiments: one run, its history, and how it is stopped and resumed."""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .config import Config
from .data import Data
from .models import make_model
from .store import Folder, History

#: Seconds between checkpoints within an epoch; each epoch ends with one.
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
"""Called now and then with iteration, number of iterations, loss, α."""


def train(config: Config, data: Data, folder: Folder, *, resume: bool = False, watch: Watch | None = None) -> tuple[Summary, History]:
    """Run ``config`` on ``data``, with its history in ``folder``.

    Args:
        config: the run.
        data: what ``config.data`` names, on ``config.device``.
        folder: where the run lies.
        resume: go on from the folder's checkpoint, bit for bit as if the run had never been stopped.
        watch: follows the progress.

    Raises:
        LabError: the folder holds another run, or cannot be written.
        StoppedError: Ctrl-C or SIGTERM; the run is saved.
    """
    folder.start(config, resume=resume)
    run = Run(config, data, folder, watch or (lambda *_: None))
    if resume:
        run.load()
    with stop_signals() as stopped, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*skipped a step")  # ends the run, with a status
        summary = run.go(stopped)
    folder.write_json("summary.json", summary.as_dict())
    return summary, run.history


class Run:
    """A model, its optimizer and how far they are: epochs finished, and batches of the one under way."""

    def __init__(self, config: Config, data: Data, folder: Folder, watch: Watch) -> None:
        self.config, self.folder, self.watch = config, folder, watch
        self.data = data = limited(data, config.limit)
        self.model = make_model(config.model, data.train_x.shape[1:], data.classes, config.seed, hidden=config.hidden).to(config.device)
        self.opt = config.make_optimizer(self.model.parameters())
        self.history = History()
        self.epoch = 0
        self.batch = 0
        self.seconds = 0.0
        self.saved_at = time.monotonic()

    @property
    def iteration(self) -> int:
        return len(self.history.iterations["loss"])

    @property
    def alpha(self) -> float:
        return float(self.opt.param_groups[0]["lr"])

    def go(self, stopped: threading.Event) -> Summary:
        epochs, size = self.config.epochs, self.config.batch_size
        assert epochs is not None
        batches = math.ceil(len(self.data.train_y) / size)
        total = min(epochs * batches, self.config.iterations or epochs * batches)
        begun = time.monotonic() - self.seconds
        while self.epoch < epochs:
            order = shuffled(len(self.data.train_y), self.config.seed, self.epoch).to(self.config.device)
            while self.batch < batches:
                if status := self.ended():  # here, so that a run which is resumed after its end does not go on
                    self.save()
                    return self.summary(status)
                loss = self.step(order[self.batch * size : (self.batch + 1) * size])
                self.seconds = time.monotonic() - begun
                self.watch(self.iteration, total, loss, self.alpha)
                if stopped.is_set():
                    self.save()
                    raise StoppedError(self.iteration)
                if time.monotonic() - self.saved_at > CHECKPOINT_EVERY:
                    self.save()
            self.end_epoch(batches)
            self.seconds = time.monotonic() - begun
            self.save()
        return self.summary(self.ended() or "finished")

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
        loss = cross_entropy(self.model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        self.opt.step()
        self.batch += 1
        value = loss.item()
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

    def save(self) -> None:
        checkpoint = {name: getattr(self, name) for name in ("iteration", "epoch", "batch", "seconds")}
        self.folder.save(self.history, checkpoint | {"model": self.model.state_dict(), "optimizer": self.opt.state_dict()})
        self.saved_at = time.monotonic()

    def load(self) -> None:
        found = self.folder.load(self.config.device)
        if found is not None:
            self.history, checkpoint = found
            self.model.load_state_dict(checkpoint["model"])
            self.opt.load_state_dict(checkpoint["optimizer"])
            self.epoch, self.batch, self.seconds = (checkpoint[name] for name in ("epoch", "batch", "seconds"))

    def summary(self, status: str) -> Summary:
        return summarise(self.config, self.history, status, self.alpha, self.seconds)


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
    """The data with the first ``limit`` training images, all of them for None."""
    return data if limit is None else replace(data, train_x=data.train_x[:limit], train_y=data.train_y[:limit])


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in one epoch: a function of seed and epoch, so that resuming needs no random state."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


@torch.no_grad()
def evaluate(model: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in evaluation mode."""
    model.eval()
    logits = torch.cat([model(part) for part in torch.split(x, 10_000)])
    model.train()
    return cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that a run stops between two iterations; a second signal ends it at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
