"""Fine-tuning of weights pretrained on another task, some of them frozen."""

from copy import deepcopy
from functools import cache, lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization

from ..runs.data import Data, Split
from ..runs.models import Transformer
from .image import images
from .problem import ADAMW, Problem, TrainValid, Workload, built_in, seeded, supervised
from .sequence import next_character

THAW = 200
LENGTH = 32


def digits(n: int, fixed: int, thaw: bool, seed: int, data: Data | None) -> Problem:
    """MNIST's digits 5 to 9, for a network pretrained on the other digits, with a new last layer.

    Args:
        n: number of training images.
        fixed: index of the first layer that is not frozen.
        thaw: whether the frozen layers are trained too from step THAW on.
        seed: seed of weights and minibatches.
        data: MNIST.
    """
    model = deepcopy(pretrained(seed, data))
    model[-1] = seeded(lambda: nn.Linear(64, 5), seed + 1000)
    model[:fixed].requires_grad_(False)
    (x, y), valid = (some_digits(half, 5) for half in images(data, 3 * n))

    def before(i: int) -> None:
        if thaw and i == THAW:
            model.requires_grad_(True)

    return supervised(model, cross_entropy, ((x[:n], y[:n]), valid), 32, seed, before=before)


def some_digits(half: Split, first: int) -> Split:
    """The images of five digits, starting at ``first``."""
    x, y = half
    chosen = (y >= first) & (y < first + 5)
    return x[chosen], y[chosen] - first


@lru_cache(16)
def pretrained(seed: int, data: Data | None) -> nn.Sequential:
    sizes = ((784, 128), (128, 128), (128, 64), (64, 5))
    first, second, third, head = seeded(lambda: nn.ModuleList([nn.Linear(*size) for size in sizes]), seed).children()
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), head)
    train = some_digits(images(data, 6000)[0], 0)
    pretrain(supervised(model, cross_entropy, (train, train), 64, seed), 300)
    return model


def lora(seed: int, _: Data | None) -> Problem:
    """Low-rank adapters on all linear layers of a transformer pretrained on English, trained on reversed text."""
    model = deepcopy(pretrained_transformer(seed)).requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in list(model.modules()):
            if isinstance(module, nn.MultiheadAttention):
                register_parametrization(module, "in_proj_weight", LowRank(module.in_proj_weight))
            if isinstance(module, nn.Linear):
                register_parametrization(module, "weight", LowRank(module.weight))
    (x, y), valid = text()
    half = len(x) // 2
    train, valid = ((y.flip(1), x.flip(1)) for x, y in ((x[half:], y[half:]), valid))
    return supervised(model, next_character, (train, valid), 8, seed, eval_size=200)


@lru_cache(16)
def pretrained_transformer(seed: int) -> nn.Module:
    (x, y), valid = text()
    half = len(x) // 2
    model = seeded(lambda: Transformer((LENGTH,), int(x.max()) + 1), seed)
    pretrain(supervised(model, next_character, ((x[:half], y[:half]), valid), 8, seed), 300)
    return model


def pretrain(problem: Problem, steps: int) -> None:
    optimizer = torch.optim.Adam(problem.model.parameters(), 2e-3)
    for i in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(problem.loss(i))
        optimizer.step()
    optimizer.zero_grad()


@cache
def text() -> TrainValid:
    train, valid = ((x.reshape(-1, LENGTH), y.reshape(-1, LENGTH)) for x, y in built_in("text")(None))
    return train, valid


class LowRank(nn.Module):
    """Adds a matrix of rank 4, initially zero, to a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(4, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], 4))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


WORKLOADS = {
    "frozen": Workload("Frozen layers", 500, partial(digits, 300, 5, False), ADAMW, held_out=True, data="mnist"),
    "thawed": Workload("Layers thawed in mid-run", 500, partial(digits, 1000, -1, True), ADAMW, data="mnist", one_group=True),
    "lora": Workload("Low-rank adapters", 150, lora, ADAMW),
    "few-images": Workload("Few images", 400, partial(digits, 600, 0, False), ADAMW, data="mnist"),
}
