"""What the engines share: end status, snapshots to be written, minibatch order, and stopping by Ctrl-C."""

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

#: Seconds between two checkpoints of unfinished runs.
CHECKPOINT_EVERY = 10.0


class StoppedError(Exception):
    """Raised after Ctrl-C or SIGTERM, once the run is saved up to ``iteration``."""

    def __init__(self, iteration: int) -> None:
        super().__init__(f"stopped after iteration {iteration}")
        self.iteration = iteration


@dataclass(frozen=True)
class Summary:
    """The results of a run. ``status``: "finished" all epochs, "reached" the threshold, hit the "cap" of iterations, or "diverged": a
    minibatch loss or a gradient was not finite. Losses are those of the last complete epoch."""

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
class Snapshot:
    """A run at one moment, to be written: ``checkpoint`` is the state to resume from, ``summary`` None for an unfinished run."""

    config: Config
    history: History
    checkpoint: dict[str, Any]
    summary: Summary | None

    def write(self, folder: Folder) -> None:
        folder.save(self.history, self.checkpoint, None if self.summary is None else self.summary.as_dict())


@dataclass(frozen=True)
class SaveRequest:
    """What an engine yields for the store to write.

    Args:
        runs: the runs to be written.
        state: the state from which the remaining runs of an ensemble resume; None if there are none.
        steps: number of steps since the last request.
        best: the lowest minibatch loss so far.
    """

    runs: list[Snapshot]
    state: dict[str, Any] | None
    steps: int
    best: float


def summarise(config: Config, history: History, status: str, alpha: float, seconds: float) -> Summary:
    """Summarise a run from its history."""
    train_loss, valid_loss, accuracy = (
        history.epochs[name][-1] if history.epochs[name] else None for name in ("train_loss", "valid_loss", "valid_accuracy")
    )
    counts = len(history.iterations["loss"]), len(history.epochs["epoch"])
    return Summary(config.model, config.call.title, status, *counts, alpha, train_loss, valid_loss, accuracy, round(seconds, 3))


def end_status(config: Config, iteration: int, loss: float, failed: bool) -> str | None:
    """The status with which a run ends after ``iteration`` with minibatch loss ``loss``; None if it continues. ``failed``: it cannot."""
    if failed:
        return "diverged"
    if config.threshold is not None and loss <= config.threshold:
        return "reached"
    if config.iterations is not None and iteration >= config.iterations:
        return "cap"
    return None


def adapts_beta(rule: Rule) -> bool:
    """Whether β is adapted by its own hypergradient."""
    return isinstance(getattr(rule, "beta", None), Adapted)


def limited(data: Data, limit: int | None) -> Data:
    """The first ``limit`` training and the first ``limit`` validation images; all for None."""
    if limit is None:
        return data
    return replace(data, **{name: getattr(data, name)[:limit] for name in ("train_x", "train_y", "valid_x", "valid_y")})


def split(config: Config, data: Data) -> tuple[Data, Split | None]:
    """The data a run trains and validates on, and, with ``hypergrad_data="validation"``, the held-out images for its hypergradients.

    Raises:
        LabError: there are too few images to hold any out.
    """
    data = limited(data, config.limit)
    if config.hypergrad_data == "train":
        return data, None
    n = len(data.train_y)
    if n < 10:
        raise LabError(f"--hypergrad-data validation holds out a tenth of the training images: it needs 10 or more, got {n}")
    cut = n - n // 10
    training = replace(data, train_x=data.train_x[:cut], train_y=data.train_y[:cut])
    return training, (data.train_x[cut:], data.train_y[cut:])


def steps_of(config: Config, data: Data) -> tuple[int, int]:
    """Batches per epoch over the data of ``split``, and steps of the whole run."""
    assert config.epochs is not None
    batches = math.ceil(len(data.train_y) / config.batch_size)
    return batches, min(config.epochs * batches, config.iterations or config.epochs * batches)


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy for labels of any shape; half the mean squared error for real-valued targets."""
    if y.is_floating_point():
        return mse_loss(outputs, y) / 2
    return cross_entropy(outputs.flatten(0, -2), y.flatten())


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch: a function of seed and epoch, so that resuming needs no random state."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def flush_denormals() -> None:
    """Flush denormal numbers (below 1e-38) to 0 in this process; call it before threads start, which inherit the setting.

    Adam's moments of dead units decay to denormals, which take a CPU ten times as long.
    """
    torch.set_flush_denormal(True)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event set by Ctrl-C and SIGTERM, so that a run stops between two iterations; a second signal ends the process at once.

    Meanwhile the optimizers' own warnings are silenced: here a skipped step ends the run with a status, and the command itself warns
    about weight decay adapted on the training loss.
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
