"""Tabular data: regression and classification of vectors, some unscaled, heavy-tailed or counts."""

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, mse_loss, poisson_nll_loss

from ..runs.models import linear, mlp
from .problem import ADAM_SGD, TrainValid, Workload, built_in, fit, split_at, synthetic


@synthetic
def nonlinear() -> TrainValid:
    """A nonlinear function of 20 features, with noise."""
    x = torch.randn(6000, 20)
    y = (2 * x[:, 0]).sin() + x[:, 1] * x[:, 2] + x[:, 3].abs() + (x[:, 4:] @ torch.randn(16) / 4).tanh()
    y = ((y - y.mean()) / y.std() + 0.3 * torch.randn(6000))[:, None]
    return split_at(x, y, 4000)


@synthetic
def heavy_tailed() -> TrainValid:
    """Linear regression with inputs and noise from Student's t distribution with 2 degrees of freedom."""
    t = torch.randn(6000, 21) / torch.empty(6000, 21).exponential_(1).sqrt()
    y = (t[:, :20] @ torch.randn(20) + t[:, 20])[:, None]
    return split_at(t[:, :20], y, 4000)


@synthetic
def counts() -> TrainValid:
    """Poisson counts whose log rate is a nonlinear function of 10 features."""
    x = torch.randn(6000, 10)
    rate = (1 + x[:, 0].sin() + (x[:, 1] * x[:, 2]).tanh() + 0.5 * x[:, 3].tanh()).exp()
    return split_at(x, torch.poisson(rate)[:, None], 4000)


@synthetic
def breast_cancer() -> TrainValid:
    """scikit-learn's breast cancer data, 569 examples, three tenths of them for validation; unscaled features, from 1e-3 to 1e3."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    features, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(features, labels, test_size=0.3, random_state=0, stratify=labels)
    train_x, valid_x = (torch.tensor(x, dtype=torch.float32) for x in parts[:2])
    train_y, valid_y = (torch.tensor(y, dtype=torch.int64) for y in parts[2:])
    return (train_x, train_y), (valid_x, valid_y)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))


def log_likelihood(rate: Tensor, y: Tensor) -> Tensor:
    """The full negative log-likelihood of counts: with Stirling's term it is positive."""
    return poisson_nll_loss(rate, y, full=True)


#: "heavy-tails" trains on squared errors and is evaluated by Huber's loss; "regression" is the lab's data set, with normal initial weights.
WORKLOADS = {
    "tabular": Workload("Table, network", 1000, fit(lambda: mlp(20, 64, 1), nonlinear, 64, mse_loss), ADAM_SGD),
    "raw": Workload("Unscaled features", 800, fit(lambda: mlp(30, 64, 2), breast_cancer, 32), held_out=True),
    "heavy-tails": Workload("Heavy tails", 1000, fit(two_layers, heavy_tailed, 64, mse_loss, final_loss=huber_loss)),
    "poisson": Workload("Counts", 1000, fit(lambda: mlp(10, 64, 1), counts, 64, log_likelihood), held_out=True),
    "regression": Workload("Linear regression", 1500, fit(lambda: linear((50,), 1), built_in("regression"), 16, mse_loss), ADAM_SGD),
}
