"""Tables: regression and classification of vectors, some unscaled, heavy-tailed or counted."""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, huber_loss, mse_loss, poisson_nll_loss

from ..runs.data import Data, Split, load
from ..runs.models import linear, mlp
from .problem import Problem, Workload, mean_losses, seeded, supervised


def tabular(seed: int, _: Data | None) -> Problem:
    """A nonlinear function of 20 features, with noise."""
    return supervised(seeded(lambda: mlp(20, 64, 1), seed), mse_loss, *nonlinear(), 64, seed)


def raw(seed: int, _: Data | None) -> Problem:
    """Breast cancer by features of scales from 1e-3 to 1e3, as they were measured."""
    return supervised(seeded(lambda: mlp(30, 64, 2), seed), cross_entropy, *breast_cancer(), 32, seed)


def heavy_tails(seed: int, _: Data | None) -> Problem:
    """Inputs and noise of Student's t distribution with 2 degrees of freedom: squared losses in training, Huber's in the end."""
    model = seeded(lambda: nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1)), seed)
    train, valid = heavy()
    return replace(supervised(model, mse_loss, train, valid, 64, seed), evaluate=mean_losses(model, huber_loss, train, valid))


def poisson(seed: int, _: Data | None) -> Problem:
    """Counts whose logarithmic rate is a nonlinear function of 10 features."""
    return supervised(seeded(lambda: mlp(10, 64, 1), seed), log_likelihood, *counts(), 64, seed)


def regression(seed: int, _: Data | None) -> Problem:
    """The lab's noisy linear regression, from normal weights, in small batches."""
    data = load("regression")
    model = seeded(lambda: linear((50,), 1), seed)
    return supervised(model, mse_loss, (data.train_x, data.train_y), (data.valid_x, data.valid_y), 16, seed)


def log_likelihood(rate: Tensor, y: Tensor) -> Tensor:
    """Of counts, negative and in full: with Stirling's term it is positive."""
    return poisson_nll_loss(rate, y, full=True)


@cache
def nonlinear() -> tuple[Split, Split]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 20, generator=generator)
    y = (2 * x[:, 0]).sin() + x[:, 1] * x[:, 2] + x[:, 3].abs() + (x[:, 4:] @ torch.randn(16, generator=generator) / 4).tanh()
    y = ((y - y.mean()) / y.std() + 0.3 * torch.randn(6000, generator=generator))[:, None]
    return (x[:4000], y[:4000]), (x[4000:], y[4000:])


@cache
def heavy() -> tuple[Split, Split]:
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(6000, 21, generator=generator) / torch.empty(6000, 21).exponential_(1, generator=generator).sqrt()
    y = (t[:, :20] @ torch.randn(20, generator=generator) + t[:, 20])[:, None]
    return (t[:4000, :20], y[:4000]), (t[4000:, :20], y[4000:])


@cache
def counts() -> tuple[Split, Split]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 10, generator=generator)
    rate = (1 + x[:, 0].sin() + (x[:, 1] * x[:, 2]).tanh() + 0.5 * x[:, 3].tanh()).exp()
    y = torch.poisson(rate, generator=generator)[:, None]
    return (x[:4000], y[:4000]), (x[4000:], y[4000:])


@cache
def breast_cancer() -> tuple[Split, Split]:
    """The 569 tumours that scikit-learn ships, three tenths of them for validation."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    features, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(features, labels, test_size=0.3, random_state=0, stratify=labels)
    train_x, valid_x = (torch.tensor(x, dtype=torch.float32) for x in parts[:2])
    train_y, valid_y = (torch.tensor(y, dtype=torch.int64) for y in parts[2:])
    return (train_x, train_y), (valid_x, valid_y)


WORKLOADS = {
    "tabular": Workload("Table, network", "tabular", 1000, tabular, ("adam", "sgdn")),
    "raw": Workload("Unscaled features", "tabular", 800, raw, judged=True),
    "heavy-tails": Workload("Heavy tails", "tabular", 1000, heavy_tails),
    "poisson": Workload("Counts", "tabular", 1000, poisson, judged=True),
    "regression": Workload("Linear regression", "tabular", 1500, regression, ("adam", "sgdn")),
}
