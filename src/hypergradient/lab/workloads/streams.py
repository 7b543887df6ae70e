"""Streams: what a batch tells about the task depends on when it comes."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from ..runs.data import Data
from ..runs.models import mlp
from .problem import Problem, Workload, mean_losses, seeded, supervised

STEPS = {"blocks": 800, "switch": 800, "new-labels": 800, "drift": 1500}


def blocks(seed: int, data: Data | None) -> Problem:
    """Five batches of two classes, then five of two others, until all ten were seen; then in another order."""
    assert data is not None
    model, generator = seeded(lambda: mlp(784, 64, 10), seed), torch.Generator().manual_seed(seed)
    x, y, batches = data.train_x[:8000], data.train_y[:8000], list[Tensor]()
    while len(batches) < STEPS["blocks"]:
        for pair in torch.randperm(10, generator=generator).view(5, 2):
            of_pair = torch.isin(y, pair).nonzero()[:, 0]
            batches += list(of_pair[torch.randint(len(of_pair), (5, 64), generator=generator)])
    evaluate = mean_losses(model, cross_entropy, (x, y), (data.valid_x, data.valid_y))
    return Problem(model, lambda i: cross_entropy(model(x[batches[i]]), y[batches[i]]), evaluate)


def switch(seed: int, data: Data | None) -> Problem:
    """At half time the pixels are permuted; the permuted count in the end."""
    assert data is not None
    model = seeded(lambda: mlp(784, 64, 10), seed)
    pixels = torch.randperm(784, generator=torch.Generator().manual_seed(seed))
    train, valid = (data.train_x[:8000].flatten(1), data.train_y[:8000]), (data.valid_x[:2000].flatten(1), data.valid_y[:2000])
    later = [(x[:, pixels], y) for x, y in (train, valid)]
    first = supervised(model, cross_entropy, train, valid, 64, seed)
    return in_turn(first, supervised(model, cross_entropy, later[0], later[1], 64, seed), STEPS["switch"] // 2)


def new_labels(seed: int, data: Data | None) -> Problem:
    """After three fifths of the run every class gets the label of another; the new ones count in the end."""
    assert data is not None
    model = seeded(lambda: mlp(784, 64, 10), seed)
    labels = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    x, y, valid_x, valid_y = data.train_x[:8000], data.train_y[:8000], data.valid_x[:2000], data.valid_y[:2000]
    first = supervised(model, cross_entropy, (x, y), (valid_x, valid_y), 64, seed)
    second = supervised(model, cross_entropy, (x, labels[y]), (valid_x, labels[valid_y]), 64, seed)
    return in_turn(first, second, STEPS["new-labels"] * 3 // 5)


def drift(seed: int, _: Data | None) -> Problem:
    """Linear regression whose true weights walk at random; where they are in the end counts."""
    steps, generator = STEPS["drift"], torch.Generator().manual_seed(seed)
    model = seeded(lambda: nn.Linear(50, 1), seed)
    path = 0.5 * torch.randn(50, generator=generator) + (0.01 * torch.randn(steps, 50, generator=generator)).cumsum(0)

    def cases(n: int, i: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 50, generator=generator)
        return x, (x @ path[i] + torch.randn(n, generator=generator))[:, None]

    train, valid = cases(2000, -1), cases(2000, -1)

    def loss(i: int) -> Tensor:
        x, y = cases(16, i)
        return mse_loss(model(x), y)

    return Problem(model, loss, mean_losses(model, mse_loss, train, valid))


def in_turn(first: Problem, second: Problem, change: int) -> Problem:
    """The batches of one problem up to a step, then those of another, which is judged."""
    return replace(second, loss=lambda i: first.loss(i) if i < change else second.loss(i - change))


WORKLOADS = {
    "blocks": Workload("Classes in blocks", "streams", STEPS["blocks"], blocks, ("adam", "sgdn"), data="mnist"),
    "switch": Workload("Task that changes", "streams", STEPS["switch"], switch, judged=True, data="mnist"),
    "new-labels": Workload("Labels that change", "streams", STEPS["new-labels"], new_labels, data="mnist"),
    "drift": Workload("Weights that drift", "streams", STEPS["drift"], drift, judged=True),
}
