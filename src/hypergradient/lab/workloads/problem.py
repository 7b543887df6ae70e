"""The definition of a workload: model, data and evaluation, independent of the optimizer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..runs.data import Data, Split, load

T = TypeVar("T")
Losses = tuple[float, float]

#: The base optimizers of workloads that have others than just Adam.
ADAMW, SGD, ADAM_SGD, ADAMW_SGD = ("adamw",), ("sgdn",), ("adam", "sgdn"), ("adamw", "sgdn")

#: The training and the validation set; and a function that makes them, from the workload's data if it needs files.
TrainValid = tuple[Split, Split]
Sets = Callable[[Data | None], TrainValid]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Problem:
    """A training problem made from a seed: initial weights and minibatches are the same for every optimizer.

    Args:
        model: the model to be trained; frozen parameters may be thawed by ``before``.
        loss: the loss of the minibatch of step i, from 0; randomness comes from torch's global generator or its own.
        evaluate: final training and validation loss in evaluation mode, deterministic for given weights.
        before: called before each step with its number, for example to thaw layers.
        inputs: some training inputs, to recompute batch norm's statistics; None without batch norm.
    """

    model: nn.Module
    loss: Callable[[int], Tensor]
    evaluate: Callable[[], Losses]
    before: Callable[[int], None] | None = None
    inputs: Callable[[], Iterator[Tensor]] | None = None


@dataclass(frozen=True)
class Workload:
    """A workload: problems by seed, and how they are trained.

    Args:
        title: its name in tables and figures.
        steps: number of training steps.
        make: builds the problem of a seed, given the data set ``data``.
        bases: the base optimizers: "adam", "adamw", "sgdn".
        held_out: whether it is held out: never used to develop a rule, only to evaluate it.
        data: "mnist" or "cifar10" if it needs files; None if its data is generated or shipped with a package.
        weight_decay: weight decay of "adamw".
        one_group: whether "adamw" decays all parameters, in one param group, or only matrices, in a separate group.
    """

    title: str
    steps: int
    make: Callable[[int, Data | None], Problem]
    bases: tuple[str, ...] = ("adam",)
    held_out: bool = False
    data: str | None = None
    weight_decay: float = 0.01
    one_group: bool = False


def fit(make: Callable[[], nn.Module], sets: Sets, batch: int, loss: Loss = cross_entropy, **options: Any) -> Callable[..., Problem]:
    """A function of seed and data that builds a supervised problem: the seed sets the initial weights and the minibatch order."""
    return lambda seed, data: supervised(seeded(make, seed), loss, sets(data), batch, seed, **options)


def supervised(
    model: nn.Module,
    loss: Loss,
    sets: TrainValid,
    batch: int,
    seed: int,
    *,
    eval_size: int = 2000,
    norm: bool = False,
    final_loss: Loss | None = None,
    **options: Any,
) -> Problem:
    """A supervised problem: minibatches in epochs without repetition, evaluated by the mean loss on both sets.

    Args:
        model: the model.
        loss: mean loss of a batch, given outputs and targets.
        sets: inputs and targets of the training and the validation set.
        batch: minibatch size; full batches if it is at least the size of the training set.
        seed: seed of the minibatch order.
        eval_size: how many examples of each set are evaluated at the end, from the first.
        norm: whether the model has batch norm.
        final_loss: the loss for evaluation, if it differs.
        options: further arguments of Problem.
    """
    (x, y), n = sets[0], len(sets[0][1])
    order = Order(n, batch, seed)

    def step(i: int) -> Tensor:
        if batch >= n:
            return loss(model(x), y)
        chosen = order(i)
        return loss(model(x[chosen]), y[chosen])

    def inputs() -> Iterator[Tensor]:
        for first in range(0, min(n, 20 * batch), batch):
            yield x[first : first + batch]

    return Problem(model, step, mean_losses(model, final_loss or loss, sets, eval_size), inputs=inputs if norm else None, **options)


class Order:
    """The indices of the minibatch of a step: shuffled epochs without repetition; the incomplete last batch is dropped."""

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.generator = n, batch, torch.Generator().manual_seed(seed)
        self.epoch = torch.empty(0, dtype=torch.int64)

    def __call__(self, i: int) -> Tensor:
        place = i % (self.n // self.batch)
        if place == 0:
            self.epoch = torch.randperm(self.n, generator=self.generator)
        return self.epoch[place * self.batch : (place + 1) * self.batch]


def mean_losses(model: nn.Module, loss: Loss, sets: TrainValid, eval_size: int = 2000) -> Callable[[], Losses]:
    """A function that evaluates the loss on the first ``eval_size`` examples of both sets."""
    return evaluation(model, lambda x, y: loss(model(x[:eval_size]), y[:eval_size]), sets)


def evaluation(model: nn.Module, loss: Callable[..., Tensor], sets: Sequence[Sequence[Tensor]]) -> Callable[[], Losses]:
    """A function that evaluates a loss on two sets, in evaluation mode and without gradients."""

    @torch.no_grad()
    def evaluate() -> Losses:
        model.eval()
        train, valid = (float(loss(*tensors)) for tensors in sets)
        model.train()
        return train, valid

    return evaluate


def seeded(make: Callable[[], T], seed: int) -> T:
    """Call ``make`` with torch's generator seeded, so that what it draws depends only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def synthetic(make: Callable[[], TrainValid]) -> Sets:
    """Decorator: generate data sets once, the same for every seed."""
    return cache(lambda _: seeded(make, 0))


def built_in(name: str) -> Sets:
    """The training and validation set of one of the lab's data sets that need no files."""

    @synthetic
    def sets() -> TrainValid:
        data = load(name)
        return (data.train_x, data.train_y), (data.valid_x, data.valid_y)

    return sets


def split_at(x: Tensor, y: Tensor, cut: int) -> TrainValid:
    """Everything before ``cut`` for training, the rest for validation."""
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])
