"""Fine-tuning: from weights that were trained on something else, some of them frozen."""

from copy import deepcopy
from functools import cache, lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization

from ..runs.data import Data, Split, load
from ..runs.models import Transformer
from .problem import Problem, Workload, seeded, supervised

THAW = 200
LENGTH = 32


def frozen(seed: int, data: Data | None) -> Problem:
    """300 images; the last hidden layer and a new head are trained."""
    model = new_head(seed, data)
    model[:5].requires_grad_(False)
    return digits(model, 300, seed, data)


def thawed(seed: int, data: Data | None) -> Problem:
    """A new head at first, and the whole network from step THAW on, on 1,000 images."""
    model = new_head(seed, data)
    model[:-1].requires_grad_(False)
    problem = digits(model, 1000, seed, data)

    def before(i: int) -> None:
        if i == THAW:
            model.requires_grad_(True)

    problem.before = before
    return problem


def lora(seed: int, _: Data | None) -> Problem:
    """Low-rank adapters on all linear layers of a transformer that knows English, which is to write it backwards."""
    model = deepcopy(pretrained_transformer(seed)).requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in list(model.modules()):
            if isinstance(module, nn.MultiheadAttention):
                register_parametrization(module, "in_proj_weight", LowRank(module.in_proj_weight))
            if isinstance(module, nn.Linear):
                register_parametrization(module, "weight", LowRank(module.weight))
    (x, y), (valid_x, valid_y) = text()
    half = len(x) // 2
    backwards = [(y.flip(1), x.flip(1)) for x, y in ((x[half:], y[half:]), (valid_x, valid_y))]
    return supervised(model, next_character, backwards[0], backwards[1], 8, seed, seen=200)


def few_images(seed: int, data: Data | None) -> Problem:
    """The whole network on 600 images."""
    return digits(new_head(seed, data), 600, seed, data)


def digits(model: nn.Module, n: int, seed: int, data: Data | None) -> Problem:
    """The digits from 5 to 9 of MNIST, ``n`` of them for training."""
    assert data is not None
    x, y = some_digits(data.train_x[: 3 * n], data.train_y[: 3 * n], 5)
    valid = some_digits(data.valid_x[:4000], data.valid_y[:4000], 5)
    return supervised(model, cross_entropy, (x[:n], y[:n]), valid, 32, seed)


def some_digits(x: Tensor, y: Tensor, first: int) -> Split:
    """Five digits from ``first`` on."""
    chosen = (y >= first) & (y < first + 5)
    return x[chosen], y[chosen] - first


def new_head(seed: int, data: Data | None) -> nn.Sequential:
    """A network that knows the digits from 0 to 4, but for its last layer, which is new."""
    model = deepcopy(pretrained(seed, data))
    model[-1] = seeded(lambda: nn.Linear(64, 5), seed + 1000)
    return model


@lru_cache(16)
def pretrained(seed: int, data: Data | None) -> nn.Sequential:
    assert data is not None
    sizes = ((784, 128), (128, 128), (128, 64))
    layers = seeded(lambda: nn.ModuleList([nn.Linear(*size) for size in (*sizes, (64, 5))]), seed)
    first, second, third, head = layers.children()
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), head)
    train = some_digits(data.train_x[:6000], data.train_y[:6000], 0)
    pretrain(supervised(model, cross_entropy, train, train, 64, seed), 300)
    return model


@lru_cache(16)
def pretrained_transformer(seed: int) -> nn.Module:
    (x, y), valid = text()
    half = len(x) // 2
    model = seeded(lambda: Transformer((LENGTH,), int(x.max()) + 1), seed)
    pretrain(supervised(model, next_character, (x[:half], y[:half]), valid, 8, seed), 300)
    return model


def pretrain(problem: Problem, steps: int) -> None:
    optimizer = torch.optim.Adam(problem.model.parameters(), 2e-3)
    for i in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(problem.loss(i))
        optimizer.step()
    optimizer.zero_grad()


@cache
def text() -> tuple[Split, Split]:
    data = load("text")
    train_x, train_y, valid_x, valid_y = (z.reshape(-1, LENGTH) for z in (data.train_x, data.train_y, data.valid_x, data.valid_y))
    return (train_x, train_y), (valid_x, valid_y)


def next_character(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), y.flatten())


class LowRank(nn.Module):
    """Adds a matrix of rank 4, zero at first, to a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(4, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], 4))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


WORKLOADS = {
    "frozen": Workload("Frozen layers", "fine-tuning", 500, frozen, ("adamw",), judged=True, data="mnist"),
    "thawed": Workload("Layers thawed in mid-run", "fine-tuning", 500, thawed, ("adamw",), data="mnist", one_group=True),
    "lora": Workload("Low-rank adapters", "fine-tuning", 150, lora, ("adamw",)),
    "few-images": Workload("Few images", "fine-tuning", 400, few_images, ("adamw",), data="mnist"),
}
