"""What a workload is: a model, what it is trained on, and how it is judged; whichever optimizer trains it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..runs.data import Data

Losses = tuple[float, float]


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
        family: which of FAMILIES it belongs to.
        steps: how long it trains.
        make: the problem of a seed, of the data of ``data``.
        bases: the optimizers that it is trained with: "adam", "adamw", "sgdn".
        judged: whether it is kept apart while a rule is made, and only judges it.
        data: "mnist" or "cifar10" where it needs files; None where it makes its data or a package ships them.
        weight_decay: of "adamw".
        one_group: whether "adamw" decays every parameter, in one param group; else matrices alone, in a group of their own.
    """

    title: str
    family: str
    steps: int
    make: Callable[[int, Data | None], Problem]
    bases: tuple[str, ...] = ("adam",)
    judged: bool = False
    data: str | None = None
    weight_decay: float = 0.01
    one_group: bool = False


def supervised(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    batch: int,
    seed: int,
    *,
    seen: int = 2000,
    norm: bool = False,
    **options: Any,
) -> Problem:
    """Minibatches in epochs without repetition, and the mean loss over (the first ``seen`` of) both sets.

    Args:
        model: takes inputs.
        loss: mean over a batch, of outputs and targets.
        train: inputs and targets.
        valid: inputs and targets.
        batch: size of minibatches; all of the training set at once where it is as large.
        seed: of their order.
        seen: of how many training and validation cases losses are taken in the end.
        norm: whether the model has batch norm.
        options: of Problem.
    """
    (x, y), n = train, len(train[1])
    order = Order(n, batch, seed)

    def step(i: int) -> Tensor:
        if batch >= n:
            return loss(model(x), y)
        chosen = order(i)
        return loss(model(x[chosen]), y[chosen])

    def inputs() -> Iterator[Tensor]:
        for first in range(0, min(n, 20 * batch), batch):
            yield x[first : first + batch]

    return Problem(model, step, mean_losses(model, loss, train, valid, seen), inputs=inputs if norm else None, **options)


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


def mean_losses(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    seen: int = 2000,
) -> Callable[[], Losses]:
    """The losses of (the first ``seen`` of) two sets in evaluation mode."""

    return evaluation(model, lambda x, y: loss(model(x[:seen]), y[:seen]), train, valid)


def evaluation(model: nn.Module, loss: Callable[..., Tensor], train: Sequence[Tensor], valid: Sequence[Tensor]) -> Callable[[], Losses]:
    """What a loss is of two sets, without gradients and with the model in evaluation mode."""

    @torch.no_grad()
    def evaluate() -> Losses:
        model.eval()
        found = [float(loss(*tensors)) for tensors in (train, valid)]
        model.train()
        return found[0], found[1]

    return evaluate


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module with initial weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
