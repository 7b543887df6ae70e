"""Hypergradients of every hyperparameter, and towers of any order: against autograd through the unrolled update in float64."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cases import Problem, flat
from hypergradient import SGDHD, Adapted, Additive, AdamHD, AdamWHD, Multiplicative

BOTH = (Additive(1e-3), Additive(1e-3))


class Row(NamedTuple):
    """An optimizer with its options, and hyperparameters to adapt with their rules."""

    ours: Any
    options: dict[str, Any]
    adapt: dict[str, Any]


NESTEROV = {"momentum": 0.9, "nesterov": True}
ROWS = [
    pytest.param(Row(ours, options, adapt), id=f"{ours.__name__}-{options}-{'-'.join(adapt)}")
    for ours, options, adapt in [
        (SGDHD, {}, {"lr": Additive(1e-2)}),
        (SGDHD, {"momentum": 0.9}, {"lr": Additive(1e-3), "momentum": Additive(0.5)}),
        (SGDHD, NESTEROV, {"lr": Additive(1e-3), "momentum": Additive(0.5)}),
        (SGDHD, {"weight_decay": 0.05}, {"weight_decay": Additive(0.5)}),
        (SGDHD, {"weight_decay": 0.05, "momentum": 0.8}, {"momentum": Additive(0.5), "weight_decay": Additive(0.5)}),
        (SGDHD, {"weight_decay": 0.05, **NESTEROV}, {"lr": Additive(1e-3), "momentum": Additive(0.5), "weight_decay": Additive(0.5)}),
        (SGDHD, {"weight_decay": 0.05, **NESTEROV}, {"momentum": Multiplicative(0.1), "weight_decay": Multiplicative(0.1)}),
        (AdamHD, {}, {"lr": Additive(1e-5), "betas": BOTH, "eps": Additive(1.0)}),
        (AdamHD, {"eps": 1e-3}, {"betas": (Additive(1e-1), None), "eps": Additive(10.0)}),
        (AdamHD, {"weight_decay": 0.05}, {"lr": Additive(1e-5), "weight_decay": Additive(0.5), "betas": (None, Additive(1e-1))}),
        (AdamHD, {"weight_decay": 0.05}, {"weight_decay": Multiplicative(0.1), "betas": (Multiplicative(0.1), Multiplicative(0.1))}),
        (AdamWHD, {"weight_decay": 0.1}, {"lr": Additive(1e-5), "weight_decay": Additive(0.5), "betas": BOTH, "eps": Additive(1.0)}),
        (AdamWHD, {"weight_decay": 0.1}, {"weight_decay": Multiplicative(0.1), "eps": Multiplicative(0.1)}),
    ]
]


# The updates as torch's optimizers make them, from a state to the parameters after one step; nothing of ours.


def sgd(theta, gradient, state, *, lr, momentum=0.0, nesterov=False, weight_decay=0.0, **_):
    g = gradient + weight_decay * theta
    if not state:
        state["v"] = torch.zeros_like(theta)
    v = momentum * state["v"] + g
    return theta - lr * (g + momentum * v if nesterov else v), {"v": v}


def adam(theta, gradient, state, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, decoupled=False, **_):
    t = state.get("t", 0) + 1
    g = gradient if decoupled else gradient + weight_decay * theta
    m = beta1 * state.get("m", torch.zeros_like(theta)) + (1 - beta1) * g
    s = beta2 * state.get("s", torch.zeros_like(theta)) + (1 - beta2) * g * g
    d = m / (1 - beta1**t) / (torch.sqrt(s / (1 - beta2**t)) + eps)
    return theta - lr * d - (lr * weight_decay * theta if decoupled else 0), {"t": t, "m": m, "s": s}
