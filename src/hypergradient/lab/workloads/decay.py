"""Weight decay: much of it, and none."""

from functools import cache

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ..runs.data import Data, Split
from ..runs.models import mlp
from .image import convolutions, halved
from .problem import Problem, Workload, seeded, supervised

PRIME = 47


def modular(seed: int, _: Data | None) -> Problem:
    """Addition modulo a prime, of which a fifth of the pairs is left for validation."""
    model = seeded(lambda: nn.Sequential(nn.Embedding(PRIME, 48), nn.Flatten(), nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, PRIME)), seed)
    return supervised(model, cross_entropy, *sums(), 256, seed)


def much_decay(seed: int, data: Data | None) -> Problem:
    """CIFAR-10 at 16x16, a network."""
    return supervised(seeded(lambda: mlp(768, 100, 10), seed), cross_entropy, *halved(data, 8000), 64, seed)


def no_decay(seed: int, data: Data | None) -> Problem:
    """Many epochs of 500 images of CIFAR-10 at 16x16, a convolutional network."""
    return supervised(seeded(lambda: convolutions((3, 8, 16), 16, 32), seed), cross_entropy, *halved(data, 500), 50, seed)


@cache
def sums() -> tuple[Split, Split]:
    x = torch.cartesian_prod(torch.arange(PRIME), torch.arange(PRIME))
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    y, cut = x.sum(1) % PRIME, len(x) * 4 // 5
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


WORKLOADS = {
    "modular": Workload("Modular addition", "decay", 1500, modular, ("adamw",), weight_decay=1.0),
    "decay-0.3": Workload("Much decay", "decay", 800, much_decay, ("adamw",), judged=True, data="cifar10", weight_decay=0.3),
    "decay-0": Workload("No decay, few images", "decay", 500, no_decay, ("adamw",), judged=True, data="cifar10", weight_decay=0.0),
}
