"""Labels: a part of those for training is wrong, those for validation are right."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..runs.data import Data
from ..runs.models import mlp
from .image import halved
from .problem import Problem, Workload, seeded, supervised


def wrong_labels(seed: int, data: Data | None) -> Problem:
    """3 of 10 labels are wrong, and there are several epochs to learn them by heart."""
    assert data is not None
    train = data.train_x[:4000], spoilt(data.train_y[:4000], 0.3)
    return supervised(seeded(lambda: mlp(784, 100, 10), seed), cross_entropy, train, (data.valid_x, data.valid_y), 64, seed)


def wrong_labels_conv(seed: int, data: Data | None) -> Problem:
    """1 of 5 labels of images of 14x14 is wrong, for a convolutional network."""
    (x, y), valid = halved(data, 4000)
    return supervised(seeded(small_conv, seed), cross_entropy, (x, spoilt(y, 0.2)), valid, 64, seed)


def small_conv() -> nn.Module:
    convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def spoilt(y: Tensor, part: float) -> Tensor:
    """Labels, of which ``part`` are replaced by one of the nine others, the same ones for every seed."""
    generator = torch.Generator().manual_seed(0)
    wrong = (y + torch.randint(1, 10, y.shape, generator=generator)) % 10
    return torch.where(torch.rand(y.shape, generator=generator) < part, wrong, y)


WORKLOADS = {
    "wrong-labels": Workload("30 % wrong labels", "labels", 800, wrong_labels, data="mnist"),
    "wrong-labels-conv": Workload("20 % wrong labels, conv.", "labels", 500, wrong_labels_conv, ("sgdn",), judged=True, data="mnist"),
}
