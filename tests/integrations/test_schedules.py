"""Every scheduler of torch with every class and kind of rule: what a schedule costs, or gains."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import lr_scheduler as schedulers

from cases import pairs
from hypergradient import SGDHD, AdamHD, AdamWHD, Hypergradient, Multiplicative

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

STEPS = 200


@cache
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Linear regression with noise, in which a run of a constant learning rate ends: training and validation data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 20, generator=generator)
    y = x @ torch.randn(20, generator=generator) / 20**0.5 + torch.randn(2000, generator=generator)
    return x[:1000], y[:1000], x[1000:], y[1000:]


@cache
def final(make: Callable[..., Any], schedule: Callable[..., Any] | None) -> float:
    """The validation loss after a run."""
    torch.manual_seed(0)
    x, y, held_out, targets = data()
    model = nn.Linear(20, 1)
    opt = make(model.parameters())
    scheduler = None if schedule is None else schedule(opt)
    for t in range(STEPS):
        batch = torch.randint(len(x), (16,), generator=torch.Generator().manual_seed(t))
        opt.zero_grad()
        mse_loss(model(x[batch]).squeeze(), y[batch]).backward()
        opt.step()
        if scheduler is not None:
            scheduler.step()
    opt.eval()
    with torch.no_grad():
        return float(mse_loss(model(held_out).squeeze(), targets))


def alone(make: Callable[..., Any]) -> float:
    return final(make, None)


OPTIMIZERS = [
    pytest.param(make, id=name)
    for name, make in {
        "AdamHD": AdamHD,
        "SGDHD": lambda params: SGDHD(params, momentum=0.9, nesterov=True),
        "AdamWHD-tensor": lambda params: AdamWHD(params, scope="tensor"),
        "AdamWHD-global": lambda params: AdamWHD([{"params": [p]} for p in params], scope="global"),
        "AdamHD-capturable": lambda params: AdamHD(params, capturable=True),
        "Hypergradient": lambda params: Hypergradient(torch.optim.NAdam(params, lr=1e-3)),
        "AdamHD-given": lambda params: AdamHD(params, lr=1e-3),
        "AdamHD-multiplicative": lambda params: AdamHD(params, lr=0.03, rule=Multiplicative(0.02)),
        "SGDHD-additive": lambda params: SGDHD(params, lr=0.05, hypergrad_lr=1e-4),
        "SGDHD-element": lambda params: SGDHD(params, lr=0.05, rule=Multiplicative(0.005), scope="element"),
    }.items()
]

CONSTANT = {
    "LambdaLR": lambda opt: schedulers.LambdaLR(opt, lambda t: 1.0),
    "ConstantLR": lambda opt: schedulers.ConstantLR(opt, factor=1.0),
    "MultiplicativeLR": lambda opt: schedulers.MultiplicativeLR(opt, lambda t: 1.0),
    "StepLR": lambda opt: schedulers.StepLR(opt, 10_000),
    "MultiStepLR": lambda opt: schedulers.MultiStepLR(opt, [10_000]),
    "ExponentialLR": lambda opt: schedulers.ExponentialLR(opt, 1.0),
    "CyclicLR": lambda opt: schedulers.CyclicLR(opt, 0.01, 0.01, cycle_momentum=False),
    "ChainedScheduler": lambda opt: schedulers.ChainedScheduler([schedulers.ConstantLR(opt, 1.0), schedulers.ExponentialLR(opt, 1.0)]),
}


def by(factor: Callable[[float], float]) -> Callable[[Any], Any]:
    """A warm-up over a twentieth of the run, and then a factor of the part of it that is over."""
    return lambda opt: schedulers.LambdaLR(opt, lambda t: min(1.0, t / (STEPS / 20)) * factor(t / STEPS))


MOVING = {
    "warm-up": by(lambda s: 1.0),
    "warm-up-linear": by(lambda s: 1 - s),
    "warm-up-cosine": by(lambda s: (1 + math.cos(math.pi * s)) / 2),
    "LinearLR": lambda opt: schedulers.LinearLR(opt, total_iters=30),
    "ConstantLR": lambda opt: schedulers.ConstantLR(opt, total_iters=30),
    "CosineAnnealingLR": lambda opt: schedulers.CosineAnnealingLR(opt, STEPS),
    "CosineAnnealingWarmRestarts": lambda opt: schedulers.CosineAnnealingWarmRestarts(opt, STEPS // 3),
    "PolynomialLR": lambda opt: schedulers.PolynomialLR(opt, STEPS),
    "SequentialLR": lambda opt: schedulers.SequentialLR(
        opt, [schedulers.LinearLR(opt, 0.1, total_iters=20), schedulers.CosineAnnealingLR(opt, STEPS - 20)], [20]
    ),
}
FREE, GIVEN = OPTIMIZERS[:5], OPTIMIZERS[5:]
ONE_CYCLE = {"OneCycleLR": lambda opt: schedulers.OneCycleLR(opt, 0.1, total_steps=STEPS + 1, cycle_momentum=False)}


def rows(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(make, id=name) for name, make in table.items()]


@pytest.mark.parametrize(("make", "schedule"), pairs(OPTIMIZERS, rows(CONSTANT)))
def test_a_constant_schedule_changes_nothing(make: Any, schedule: Any) -> None:
    given = make in [row.values[0] for row in GIVEN]  # CyclicLR says what lr is then
    if given and schedule is CONSTANT["CyclicLR"]:
        start = make([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"]
        assert final(make, lambda opt: schedulers.CyclicLR(opt, start, start, cycle_momentum=False)) == pytest.approx(alone(make), rel=1e-3)
    else:
        assert final(make, schedule) == pytest.approx(alone(make), rel=1e-3)


SCHEDULED = [*pairs(OPTIMIZERS, rows(MOVING)), *pairs(FREE, rows(ONE_CYCLE))]


@pytest.mark.parametrize(("make", "schedule"), SCHEDULED)
def test_a_schedule_costs_little(make: Any, schedule: Any) -> None:
    assert final(make, schedule) < 1.06 * alone(make)


def test_schedules_that_decay_mostly_gain() -> None:
    """Where there is no average; with one they gain from some 500 steps on here."""
    decays = [schedule for name, schedule in MOVING.items() if name not in ("warm-up", "LinearLR", "ConstantLR")]
    gains = [final(row.values[0], schedule) < alone(row.values[0]) for row in OPTIMIZERS[7:] for schedule in decays]
    assert sum(gains) > 0.9 * len(gains)
