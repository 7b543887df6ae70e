"""What a workload is: a model, what it is trained on, and how it is judged; whichever optimizer trains it."""

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

#: Bases, where they are others than Adam alone.
ADAMW, SGD, ADAM_SGD, ADAMW_SGD = ("adamw",), ("sgdn",), ("adam", "sgdn"), ("adamw", "sgdn")

#: What is trained on, and what validates; of the data of a workload, where it has some.
Halves = tuple[Split, Split]
Sets = Callable[[Data | None], Halves]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Problem:
    """One run's work, made from a seed: weights and batches are the same for every optimizer.

    Args:
        model: whose parameters are trained; those that do not require gradients at first may be thawed by ``before``.
        loss: the loss of the minibatch of a step, counted from 0, to be minimised; draws what is random from torch's global generator, or
            from its own.
        evaluate: final training and validation loss, in evaluation mode, without gradients; the same numbers each time for the same
            weights.
        before: called before each step with its number: thaws layers, for example.
        inputs: some training batches, as the model takes them, for the statistics of batch norm; None without batch norm.
    """

    model: nn.Module
    loss: Callable[[int], Tensor]
    evaluate: Callable[[], Losses]
    before: Callable[[int], None] | None = None
    inputs: Callable[[], Iterator[Tensor]] | None = None


@dataclass(frozen=True)
class Workload:
    """A kind of problem.

    Args:
        title: how tables and figures name it.
        steps: how long it trains.
        make: the problem of a seed, of the data of ``data``.
        bases: the optimizers that it is trained with: "adam", "adamw", "sgdn".
        judged: whether it is kept apart while a rule is made, and only judges it.
        data: "mnist" or "cifar10" where it needs files; None where it makes its data or a package ships them.
        weight_decay: of "adamw".
        one_group: whether "adamw" decays every parameter, in one param group; else matrices alone, in a group of their own.
    """

    title: str
    steps: int
    make: Callable[[int, Data | None], Problem]
    bases: tuple[str, ...] = ("adam",)
    judged: bool = False
    data: str | None = None
    weight_decay: float = 0.01
    one_group: bool = False


def fit(make: Callable[[], nn.Module], sets: Sets, batch: int, loss: Loss = cross_entropy, **options: Any) -> Callable[..., Problem]:
    """What makes the problem of a seed and data: a model with weights of that seed, on minibatches in an order of that seed."""
    return lambda seed, data: supervised(seeded(make, seed), loss, sets(data), batch, seed, **options)


def supervised(
    model: nn.Module,
    loss: Loss,
    sets: Halves,
    batch: int,
    seed: int,
    *,
    seen: int = 2000,
    norm: bool = False,
    judge: Loss | None = None,
    **options: Any,
) -> Problem:
    """Minibatches in epochs without repetition, and the mean loss over (the first ``seen`` of) both sets.

    Args:
        model: takes inputs.
        loss: mean over a batch, of outputs and targets.
        sets: inputs and targets for training and for validation.
        batch: size of minibatches; all of the training set at once where it is as large.
        seed: of their order.
        seen: of how many training and validation cases losses are taken in the end.
        norm: whether the model has batch norm.
        judge: the loss in the end, where it is another.
        options: of Problem.
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

    return Problem(model, step, mean_losses(model, judge or loss, sets, seen), inputs=inputs if norm else None, **options)


class Order:
    """The indices of the minibatch of a step: epochs in random order, each without repetition, whose remainders are left out."""

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.generator = n, batch, torch.Generator().manual_seed(seed)
        self.epoch = torch.empty(0, dtype=torch.int64)

    def __call__(self, i: int) -> Tensor:
        place = i % (self.n // self.batch)
        if place == 0:
            self.epoch = torch.randperm(self.n, generator=self.generator)
        return self.epoch[place * self.batch : (place + 1) * self.batch]


def mean_losses(model: nn.Module, loss: Loss, sets: Halves, seen: int = 2000) -> Callable[[], Losses]:
    """The losses of (the first ``seen`` of) two sets in evaluation mode."""
    return evaluation(model, lambda x, y: loss(model(x[:seen]), y[:seen]), sets)


def evaluation(model: nn.Module, loss: Callable[..., Tensor], sets: Sequence[Sequence[Tensor]]) -> Callable[[], Losses]:
    """What a loss is of two sets, without gradients and with the model in evaluation mode."""

    @torch.no_grad()
    def evaluate() -> Losses:
        model.eval()
        train, valid = (float(loss(*tensors)) for tensors in sets)
        model.train()
        return train, valid

    return evaluate


def seeded(make: Callable[[], T], seed: int) -> T:
    """A module whose initial weights, or whatever is drawn, depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def drawn(make: Callable[[], Halves]) -> Sets:
    """Sets that need no file, made once, of the same numbers for every seed."""
    return cache(lambda _: seeded(make, 0))


def shipped(name: str) -> Sets:
    """The sets of data that need no file, by their name in the lab."""

    @drawn
    def sets() -> Halves:
        data = load(name)
        return (data.train_x, data.train_y), (data.valid_x, data.valid_y)

    return sets


def parted(x: Tensor, y: Tensor, cut: int) -> Halves:
    """All before ``cut`` for training, the rest for validation."""
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])
