"""Short runs, of 60 to 150 steps, in which there is little time to find a step size."""

from torch.nn.functional import cross_entropy

from ..runs.data import Data
from ..runs.models import Transformer, mlp
from .image import convolutions, halved, images
from .problem import Problem, Workload, seeded, supervised
from .sequence import on_characters


def short_60(seed: int, data: Data | None) -> Problem:
    """MNIST by 784-400-400-10, ReLU."""
    return supervised(seeded(lambda: mlp(784, 400, 10), seed), cross_entropy, *images(data), 128, seed)


def short_150(seed: int, data: Data | None) -> Problem:
    """CIFAR-10, halved to 16x16, by convolutions of 16 and 32 channels and a hidden layer of 64."""
    return supervised(seeded(lambda: convolutions((3, 16, 32), 16, 64), seed), cross_entropy, *halved(data), 64, seed)


def short_100(seed: int, _: Data | None) -> Problem:
    """Characters, 32 at a time, by two layers of width 64, from torch's default weights."""
    return on_characters(lambda kinds: Transformer((32,), kinds), 32, 16, seed)


WORKLOADS = {
    "short-60": Workload("MNIST, 60 steps", "short", 60, short_60, ("adam", "sgdn"), data="mnist"),
    "short-150": Workload("CIFAR-10, 150 steps", "short", 150, short_150, ("adamw",), judged=True, data="cifar10"),
    "short-100": Workload("Characters, 100 steps", "short", 100, short_100, ("adamw",), judged=True),
}
