"""Non-stationary streams: the distribution of minibatches changes over time."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from ..runs.data import Data, Split
from ..runs.models import mlp
from .image import images
from .problem import ADAM_SGD, Problem, Workload, mean_losses, seeded, supervised

STEPS, WALK = 800, 1500


def blocks(seed: int, data: Data | None) -> Problem:
    """Minibatches of two classes at a time, five in a row, until all ten classes were seen; then in another order."""
    model, generator = seeded(lambda: mlp(784, 64, 10), seed), torch.Generator().manual_seed(seed)
    sets = (x, y), _ = images(data, 8000)
    batches = list[Tensor]()
    while len(batches) < STEPS:
        for pair in torch.randperm(10, generator=generator).view(5, 2):
            of_pair = torch.isin(y, pair).nonzero()[:, 0]
            batches += list(of_pair[torch.randint(len(of_pair), (5, 64), generator=generator)])
    return Problem(model, lambda i: cross_entropy(model(x[batches[i]]), y[batches[i]]), mean_losses(model, cross_entropy, sets))


def switch(seed: int, data: Data | None) -> Problem:
    """The pixels are permuted halfway through; evaluation is on permuted images."""
    pixels = torch.randperm(784, generator=torch.Generator().manual_seed(seed))
    return in_turn(seed, data, lambda x, y: (x[:, pixels], y), STEPS // 2)


def new_labels(seed: int, data: Data | None) -> Problem:
    """The labels are permuted after three fifths of the run; evaluation is on the new labels."""
    labels = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    return in_turn(seed, data, lambda x, y: (x, labels[y]), STEPS * 3 // 5)


def in_turn(seed: int, data: Data | None, changed: Callable[[Tensor, Tensor], Split], change: int) -> Problem:
    """Images as vectors; from step ``change`` on images and labels are transformed, and evaluation is on those."""
    model, (train, valid) = seeded(lambda: mlp(784, 64, 10), seed), ((x.flatten(1), y) for x, y in images(data, 8000))
    first = supervised(model, cross_entropy, (train, valid), 64, seed)
    second = supervised(model, cross_entropy, (changed(*train), changed(*valid)), 64, seed)
    return replace(second, loss=lambda i: first.loss(i) if i < change else second.loss(i - change))


def drift(seed: int, _: Data | None) -> Problem:
    """Linear regression whose true weights do a random walk; evaluation is on the final weights."""
    model, generator = seeded(lambda: nn.Linear(50, 1), seed), torch.Generator().manual_seed(seed)
    path = 0.5 * torch.randn(50, generator=generator) + (0.01 * torch.randn(WALK, 50, generator=generator)).cumsum(0)

    def cases(n: int, i: int) -> Split:
        x = torch.randn(n, 50, generator=generator)
        return x, (x @ path[i] + torch.randn(n, generator=generator))[:, None]

    sets = cases(2000, -1), cases(2000, -1)

    def loss(i: int) -> Tensor:
        x, y = cases(16, i)
        return mse_loss(model(x), y)

    return Problem(model, loss, mean_losses(model, mse_loss, sets))


WORKLOADS = {
    "blocks": Workload("Classes in blocks", STEPS, blocks, ADAM_SGD, data="mnist"),
    "switch": Workload("Task that changes", STEPS, switch, held_out=True, data="mnist"),
    "new-labels": Workload("Labels that change", STEPS, new_labels, data="mnist"),
    "drift": Workload("Weights that drift", WALK, drift, held_out=True),
}
