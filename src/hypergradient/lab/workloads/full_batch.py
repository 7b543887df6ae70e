"""Full-batch problems, with noiseless gradients."""

import math
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from ..runs.data import Data
from ..runs.models import linear, mlp
from .image import images
from .problem import ADAM_SGD, SGD, Losses, Problem, TrainValid, Workload, built_in, fit, seeded, supervised
from .tabular import breast_cancer


def pinn(seed: int, _: Data | None) -> Problem:
    """A physics-informed network for u'' = f on [0, 1] with u = 0 at both ends."""
    model = seeded(lambda: tanh_network(24), seed)
    x, ends, fine = torch.linspace(0, 1, 48)[:, None], torch.tensor([[0.0], [1.0]]), torch.linspace(0, 1, 501)[:, None]
    second = -(math.pi**2) * ((math.pi * x).sin() + 4 * (4 * math.pi * x).sin())

    def residual() -> Tensor:
        place = x.clone().requires_grad_()
        slope = torch.autograd.grad(model(place).sum(), place, create_graph=True)[0]
        curve = torch.autograd.grad(slope.sum(), place, create_graph=True)[0]
        loss: Tensor = (curve - second).square().mean() + 100 * model(ends).square().mean()
        return loss

    def evaluate() -> Losses:
        with torch.enable_grad():
            train = float(residual().detach())
        with torch.no_grad():
            return train, float(mse_loss(model(fine), (math.pi * fine).sin() + (4 * math.pi * fine).sin() / 4))

    return Problem(model, lambda i: residual(), evaluate)


def cancer(seed: int, _: Data | None) -> Problem:
    """Logistic regression on the breast cancer data with an L2 penalty, included in both losses."""
    layer = seeded(lambda: nn.Linear(30, 2), seed)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(out, y) + 1e-3 * sum(p.square().sum() for p in layer.parameters())

    return supervised(layer, loss, standardised_cancer(), 1000, seed)


def half_square(out: Tensor, y: Tensor) -> Tensor:
    return mse_loss(out, y) / 2


def tanh_network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


def sine(_: Data | None) -> TrainValid:
    """Three periods of a sine at 128 points; the validation points lie between them."""
    train, valid = (torch.linspace(-end, end, n)[:, None] for end, n in ((1, 128), (0.99, 301)))
    return (train, (3 * math.pi * train).sin()), (valid, (3 * math.pi * valid).sin())


@cache
def standardised_cancer() -> TrainValid:
    (x, y), (valid_x, valid_y) = breast_cancer(None)
    mean, std = x.mean(0), x.std(0)
    return ((x - mean) / std, y), ((valid_x - mean) / std, valid_y)


#: The quadratic is the lab's data set, with 100 dimensions and condition number 1e4; "images-1000" uses 1,000 of MNIST's images.
WORKLOADS = {
    "quadratic": Workload("Quadratic", 300, fit(lambda: linear((100,), 1), built_in("quadratic"), 100, half_square), ADAM_SGD),
    "pinn": Workload("Differential equation", 1000, pinn),
    "sine": Workload("Sine", 1500, fit(lambda: tanh_network(64), sine, 128, mse_loss), held_out=True),
    "images-1000": Workload(
        "1,000 images at once", 300, fit(lambda: mlp(784, 64, 10), partial(images, n=1000), 1000), SGD, held_out=True, data="mnist"
    ),
    "cancer": Workload("Logistic regression", 300, cancer, ADAM_SGD, held_out=True),
}
