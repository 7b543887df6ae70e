"""What the engines share: how a run ends, what is written of it, the order of the images, and how Ctrl-C stops it."""

import math
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from hypergradient import Adapted
from hypergradient.rules import Rule

from ..errors import LabError
from .config import Config
from .data import Data, Split
from .store import Folder, History

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


@dataclass(frozen=True)
class Saved:
    """A run as it is to be written: ``checkpoint`` is what it goes on from, ``summary`` how it ended, None for one that has not."""

    config: Config
    history: History
    checkpoint: dict[str, Any]
    summary: Summary | None

    def write(self, folder: Folder) -> None:
        folder.save(self.history, self.checkpoint, None if self.summary is None else self.summary.as_dict())


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


def summarise(config: Config, history: History, status: str, alpha: float, seconds: float) -> Summary:
    """A run's summary from its history."""
    train_loss, valid_loss, accuracy = (
        history.epochs[name][-1] if history.epochs[name] else None for name in ("train_loss", "valid_loss", "valid_accuracy")
    )
    counts = len(history.iterations["loss"]), len(history.epochs["epoch"])
    return Summary(config.model, config.call.title, status, *counts, alpha, train_loss, valid_loss, accuracy, round(seconds, 3))


def ending(config: Config, iteration: int, loss: float, lost: bool) -> str | None:
    """The status that ``loss``, the minibatch loss of ``iteration``, ends a run with; None where it goes on. ``lost``: it cannot."""
    if lost:
        return "diverged"
    if config.threshold is not None and loss <= config.threshold:
        return "reached"
    if config.iterations is not None and iteration >= config.iterations:
        return "cap"
    return None


def moves_beta(rule: Rule) -> bool:
    """Whether β follows its own hypergradient."""
    return isinstance(getattr(rule, "beta", None), Adapted)


def limited(data: Data, limit: int | None) -> Data:
    """The data with the first ``limit`` images for training and for validation, all of them for None."""
    if limit is None:
        return data
    return replace(data, **{name: getattr(data, name)[:limit] for name in ("train_x", "train_y", "valid_x", "valid_y")})


def split(config: Config, data: Data) -> tuple[Data, Split | None]:
    """What the run trains and validates on, and the images whose loss its hypergradients are of, where those are others.

    Raises:
        LabError: there are too few images to hold some out.
    """
    data = limited(data, config.limit)
    if config.hypergrad_data == "train":
        return data, None
    n = len(data.train_y)
    if n < 10:
        raise LabError(f"--hypergrad-data validation holds out a tenth of the training images, got {n}: give 10 or more")
    cut = n - n // 10
    kept = replace(data, train_x=data.train_x[:cut], train_y=data.train_y[:cut])
    return kept, (data.train_x[cut:], data.train_y[cut:])


def steps_of(config: Config, data: Data) -> tuple[int, int]:
    """Batches of an epoch over the data of ``split``, and steps of the whole run."""
    assert config.epochs is not None
    batches = math.ceil(len(data.train_y) / config.batch_size)
    return batches, min(config.epochs * batches, config.iterations or config.epochs * batches)


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy for labels of any shape; half the mean square of the errors for targets that are no labels."""
    if y.is_floating_point():
        return mse_loss(outputs, y) / 2
    return cross_entropy(outputs.flatten(0, -2), y.flatten())


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in one epoch: a function of seed and epoch, so that resuming needs no random state."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def flush_denormals() -> None:
    """Let numbers below 1e-38 count as 0, for as long as this process lives; to be called before it starts threads, which do as it did.

    Adam's moments of dead units shrink to such numbers, and a processor takes ten times as long over them.
    """
    torch.set_flush_denormal(True)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that a run stops between two iterations; a second signal ends it at once.

    The optimizers' warnings are not shown meanwhile: here a skipped step ends the run, with a status, and the command itself tells of
    weight decay that follows the training loss.
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
            for message in (".*skipped a step", "weight_decay is adapted on the training loss", r"Using backward\(\) with create_graph"):
                warnings.filterwarnings("ignore", message=message)
            yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
