"""Training regimes: strong and no weight decay, small and large batches, short runs, and noisy labels."""

from functools import partial

import torch
from torch import nn

from ..runs.models import Transformer, mlp
from .image import convolutions, halved, images
from .problem import ADAM_SGD, ADAMW, SGD, TrainValid, Workload, built_in, fit, split_at, synthetic
from .sequence import on_characters

PRIME = 47


@synthetic
def sums() -> TrainValid:
    """Addition modulo a prime; a fifth of the pairs is for validation."""
    x = torch.cartesian_prod(torch.arange(PRIME), torch.arange(PRIME))
    x = x[torch.randperm(len(x))]
    return split_at(x, x.sum(1) % PRIME, len(x) * 4 // 5)


def adder() -> nn.Module:
    return nn.Sequential(nn.Embedding(PRIME, 48), nn.Flatten(), nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, PRIME))


def tanh_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))


def small_conv() -> nn.Module:
    convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def corrupted(sets: TrainValid, part: float) -> TrainValid:
    """Replace a fraction ``part`` of the training labels by one of the nine others, the same for every seed."""
    (x, y), valid = sets
    generator = torch.Generator().manual_seed(0)
    wrong = (y + torch.randint(1, 10, y.shape, generator=generator)) % 10
    return (x, torch.where(torch.rand(y.shape, generator=generator) < part, wrong, y)), valid


FEW = fit(convolutions((3, 8, 16), 16, 32), partial(halved, n=500), 50)
DECAY = {
    "modular": Workload("Modular addition", 1500, fit(adder, sums, 256), ADAMW, weight_decay=1.0),
    "decay-0.3": Workload(
        "Much decay",
        800,
        fit(lambda: mlp(768, 100, 10), partial(halved, n=8000), 64),
        ADAMW,
        held_out=True,
        data="cifar10",
        weight_decay=0.3,
    ),
    "decay-0": Workload("No decay, few images", 500, FEW, ADAMW, held_out=True, data="cifar10", weight_decay=0.0),
}
BATCH = {
    "batch-2000": Workload("MNIST, batches of 2,000", 150, fit(lambda: mlp(784, 64, 10), images, 2000), ADAMW, data="mnist"),
    "batch-8": Workload("MNIST, batches of 8", 1500, fit(convolutions((1, 8, 16), 14, 32), halved, 8), ADAM_SGD, data="mnist"),
    "batch-1": Workload("Digits, one at a time", 2500, fit(tanh_network, built_in("digits"), 1), ADAM_SGD, held_out=True),
    "batch-1000": Workload("CIFAR-10, batches of 1,000", 150, fit(lambda: mlp(768, 128, 10), halved, 1000), held_out=True, data="cifar10"),
}
SHORT = {
    "short-60": Workload("MNIST, 60 steps", 60, fit(lambda: mlp(784, 400, 10), images, 128), ADAM_SGD, data="mnist"),
    "short-150": Workload(
        "CIFAR-10, 150 steps", 150, fit(convolutions((3, 16, 32), 16, 64), halved, 64), ADAMW, held_out=True, data="cifar10"
    ),
    "short-100": Workload("Characters, 100 steps", 100, on_characters(lambda n: Transformer((32,), n), 32, 16), ADAMW, held_out=True),
}
LABELS = {
    "wrong-labels": Workload(
        "30 % wrong labels", 800, fit(lambda: mlp(784, 100, 10), lambda x: corrupted(images(x, 4000), 0.3), 64), data="mnist"
    ),
    "wrong-labels-conv": Workload(
        "20 % wrong labels, conv.", 500, fit(small_conv, lambda x: corrupted(halved(x, 4000), 0.2), 64), SGD, held_out=True, data="mnist"
    ),
}
