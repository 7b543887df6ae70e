"""Tables: regression and classification of vectors, some unscaled, heavy-tailed or counted."""

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, mse_loss, poisson_nll_loss

from ..runs.models import linear, mlp
from .problem import ADAM_SGD, Halves, Workload, drawn, fit, parted, shipped


@drawn
def nonlinear() -> Halves:
    """A nonlinear function of 20 features, with noise."""
    x = torch.randn(6000, 20)
    y = (2 * x[:, 0]).sin() + x[:, 1] * x[:, 2] + x[:, 3].abs() + (x[:, 4:] @ torch.randn(16) / 4).tanh()
    y = ((y - y.mean()) / y.std() + 0.3 * torch.randn(6000))[:, None]
    return parted(x, y, 4000)


@drawn
def heavy() -> Halves:
    """Inputs and noise of Student's t distribution with 2 degrees of freedom."""
    t = torch.randn(6000, 21) / torch.empty(6000, 21).exponential_(1).sqrt()
    y = (t[:, :20] @ torch.randn(20) + t[:, 20])[:, None]
    return parted(t[:, :20], y, 4000)


@drawn
def counts() -> Halves:
    """Counts whose logarithmic rate is a nonlinear function of 10 features."""
    x = torch.randn(6000, 10)
    rate = (1 + x[:, 0].sin() + (x[:, 1] * x[:, 2]).tanh() + 0.5 * x[:, 3].tanh()).exp()
    return parted(x, torch.poisson(rate)[:, None], 4000)


@drawn
def breast_cancer() -> Halves:
    """The 569 tumours that scikit-learn ships, three tenths of them for validation; features of scales from 1e-3 to 1e3, as measured."""
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
    """Of counts, negative and in full: with Stirling's term it is positive."""
    return poisson_nll_loss(rate, y, full=True)


#: With heavy tails losses are squared in training, and Huber's in the end; the regression is the lab's, from normal weights.
WORKLOADS = {
    "tabular": Workload("Table, network", 1000, fit(lambda: mlp(20, 64, 1), nonlinear, 64, mse_loss), ADAM_SGD),
    "raw": Workload("Unscaled features", 800, fit(lambda: mlp(30, 64, 2), breast_cancer, 32), judged=True),
    "heavy-tails": Workload("Heavy tails", 1000, fit(two_layers, heavy, 64, mse_loss, judge=huber_loss)),
    "poisson": Workload("Counts", 1000, fit(lambda: mlp(10, 64, 1), counts, 64, log_likelihood), judged=True),
    "regression": Workload("Linear regression", 1500, fit(lambda: linear((50,), 1), shipped("regression"), 16, mse_loss), ADAM_SGD),
}
