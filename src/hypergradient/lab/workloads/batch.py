"""Batch sizes: one, few, and a large part of the training set."""

from torch import nn
from torch.nn.functional import cross_entropy

from ..runs.data import Data, load
from ..runs.models import mlp
from .image import convolutions, halved, images
from .problem import Problem, Workload, seeded, supervised


def batch_2000(seed: int, data: Data | None) -> Problem:
    """MNIST by 784-64-64-10, ReLU."""
    return supervised(seeded(lambda: mlp(784, 64, 10), seed), cross_entropy, *images(data), 2000, seed)


def batch_8(seed: int, data: Data | None) -> Problem:
    """MNIST, halved to 14x14, by convolutions of 8 and 16 channels and a hidden layer of 32."""
    return supervised(seeded(lambda: convolutions((1, 8, 16), 14, 32), seed), cross_entropy, *halved(data), 8, seed)


def batch_1(seed: int, _: Data | None) -> Problem:
    """The digits by 64-32-32-10, tanh."""
    data = load("digits")

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))

    return supervised(seeded(make, seed), cross_entropy, (data.train_x, data.train_y), (data.valid_x, data.valid_y), 1, seed)


def batch_1000(seed: int, data: Data | None) -> Problem:
    """CIFAR-10, halved to 16x16, by 768-128-128-10, ReLU."""
    return supervised(seeded(lambda: mlp(768, 128, 10), seed), cross_entropy, *halved(data), 1000, seed)


WORKLOADS = {
    "batch-2000": Workload("MNIST, batches of 2,000", "batch", 150, batch_2000, ("adamw",), data="mnist"),
    "batch-8": Workload("MNIST, batches of 8", "batch", 1500, batch_8, ("adam", "sgdn"), data="mnist"),
    "batch-1": Workload("Digits, one at a time", "batch", 2500, batch_1, ("adam", "sgdn"), judged=True),
    "batch-1000": Workload("CIFAR-10, batches of 1,000", "batch", 150, batch_1000, judged=True, data="cifar10"),
}
