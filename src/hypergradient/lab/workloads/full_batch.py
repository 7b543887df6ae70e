"""Full batches: the gradient of a step has no noise."""

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from ..runs.data import Data, Split, load
from ..runs.models import linear, mlp
from .problem import Losses, Problem, Workload, seeded, supervised
from .tabular import breast_cancer


def quadratic(seed: int, _: Data | None) -> Problem:
    """The lab's quadratic function of 100 dimensions, of condition 1e4."""
    data = load("quadratic")
    model = seeded(lambda: linear((100,), 1), seed)
    both = data.train_x, data.train_y
    return supervised(model, lambda out, y: mse_loss(out, y) / 2, both, both, 100, seed)


def pinn(seed: int, _: Data | None) -> Problem:
    """A physics-informed network: u'' is given on [0, 1] and u is 0 at its ends."""
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


def sine(seed: int, _: Data | None) -> Problem:
    """Three periods of a sine, at 128 places; validation lies between them."""
    train, valid = torch.linspace(-1, 1, 128)[:, None], torch.linspace(-0.99, 0.99, 301)[:, None]
    model = seeded(lambda: tanh_network(64), seed)
    return supervised(model, mse_loss, (train, (3 * math.pi * train).sin()), (valid, (3 * math.pi * valid).sin()), 128, seed)


def images_1000(seed: int, data: Data | None) -> Problem:
    """All of 1,000 images of MNIST at once."""
    assert data is not None
    model = seeded(lambda: mlp(784, 64, 10), seed)
    return supervised(model, cross_entropy, (data.train_x[:1000], data.train_y[:1000]), (data.valid_x, data.valid_y), 1000, seed)


def cancer(seed: int, _: Data | None) -> Problem:
    """Logistic regression of breast cancer with an L2 penalty, which both losses count."""
    layer = seeded(lambda: nn.Linear(30, 2), seed)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(out, y) + 1e-3 * sum(p.square().sum() for p in layer.parameters())

    return supervised(layer, loss, *standardised_cancer(), 1000, seed)


def tanh_network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


@cache
def standardised_cancer() -> tuple[Split, Split]:
    train, valid = breast_cancer()
    mean, std = train[0].mean(0), train[0].std(0)
    return ((train[0] - mean) / std, train[1]), ((valid[0] - mean) / std, valid[1])


WORKLOADS = {
    "quadratic": Workload("Quadratic", "full batch", 300, quadratic, ("adam", "sgdn")),
    "pinn": Workload("Differential equation", "full batch", 1000, pinn),
    "sine": Workload("Sine", "full batch", 1500, sine, judged=True),
    "images-1000": Workload("1,000 images at once", "full batch", 300, images_1000, ("sgdn",), judged=True, data="mnist"),
    "cancer": Workload("Logistic regression", "full batch", 300, cancer, ("adam", "sgdn"), judged=True),
}
