"""Rules around a rule: the learning rate that is applied, and the one that is adapted."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from cases import Problem, flat
from hypergradient import SGDHD, AdamHD, Additive, Decay, Multiplicative, Transition, TuningFree


def lrs(opt: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in opt.param_groups]


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_transition_is_its_equation(lr: Any) -> None:
    """γ_t = δ(t) α_t + (1 − δ(t)) α_∞, with α_t = α_{t-1} − β h_t."""
    problem = Problem()
    opt = SGDHD(problem.parameters(), lr=lr, rule=Transition(Additive(1e-2), alpha_inf=0.02, delta=lambda t: t**-1.5))
    alpha = 0.1
    for t in range(1, 40):
        problem.train(opt, 1, start=t)
        alpha -= 1e-2 * opt.hypergradients[0]
        delta = t**-1.5
        assert lrs(opt) == pytest.approx([delta * alpha + (1 - delta) * 0.02], rel=1e-6)
        assert opt.summary()[0]["adapted lr"] == pytest.approx(alpha, rel=1e-6)
    assert abs(alpha / 0.1 - 1) > 0.05, "the learning rate hardly moved: the test shows nothing"


def test_transition_converges_where_the_rule_alone_does_not() -> None:
    """The paper's Theorem 5.1 on a quadratic with L = 1, from a learning rate above 2/L."""
    k = torch.logspace(0, -2, 10, dtype=torch.float64)

    def final(rule: Any) -> float:
        w = nn.Parameter(torch.ones(10, dtype=torch.float64))
        opt = SGDHD([w], lr=2.5, rule=rule)
        for _ in range(4_000):
            w.grad = (k * w).detach()
            opt.step()
        return float((k * w.detach()).norm())

    assert final(Transition(Additive(0.0), alpha_inf=0.9)) < 1e-10
    assert final(Transition(Additive(1e-4), alpha_inf=0.9)) < 1e-10
    with pytest.warns(UserWarning, match="skipped a step"):  # it has grown beyond the numbers
        assert final(Additive(0.0)) > 1e100


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_decay_is_its_equation(share: float) -> None:
    problem = Problem()
    opt = AdamHD(problem.groups(), rule=Decay(Additive(0.0), total_steps=20, share=share), scope="tensor")
    found = []
    for t in range(22):
        problem.train(opt, 1, start=t)
        found.append(lrs(opt)[0])
    assert found == pytest.approx([1e-3 * max(0, min(1, (20 - t) / (share * 20))) for t in range(22)], abs=1e-15)
    before = flat(problem.parameters()).clone()
    problem.train(opt, 1)
    assert torch.equal(flat(problem.parameters()), before)


def test_decay_leaves_what_the_rule_does_alone() -> None:
    """Before it begins to fall, the run is that of the rule."""
    one, other = Problem(), Problem()
    opt, twin = AdamHD(one.parameters(), rule=Decay(TuningFree(), total_steps=100)), AdamHD(other.parameters())
    one.train(opt, 81)
    other.train(twin, 81)
    assert torch.equal(flat(one.parameters()), flat(other.parameters()))
    assert lrs(opt) == lrs(twin)
    one.train(opt, 10)
    assert 0 < lrs(opt)[0] < 0.6 * opt.summary()[0]["adapted lr"]


NESTED = [
    pytest.param(Transition(Multiplicative(0.05), alpha_inf=0.02), id="transition"),
    pytest.param(Decay(TuningFree(), total_steps=30), id="decay"),
    pytest.param(Decay(Transition(Additive(1e-3), alpha_inf=0.02), total_steps=30), id="nested"),
]


@pytest.mark.parametrize("rule", NESTED)
@pytest.mark.parametrize("scope", ["group", "global", "tensor"])
def test_resumed_equals_never_stopped(rule: Any, scope: Any) -> None:
    whole, first, second = Problem(), Problem(), Problem()
    opts = [SGDHD(problem.groups(), lr=0.05, rule=rule, scope=scope) for problem in (whole, first, second)]
    whole.train(opts[0], 25)
    first.train(opts[1], 14)
    second.model.load_state_dict(first.model.state_dict())
    opts[2].load_state_dict(copy.deepcopy(opts[1].state_dict()))
    second.train(opts[2], 11, start=14)
    assert torch.equal(flat(second.parameters()), flat(whole.parameters()))
    assert opts[2].summary() == opts[0].summary()


def test_goes_on_from_what_was_written() -> None:
    problem = Problem()
    opt = SGDHD(problem.parameters(), lr=0.05, rule=Transition(Additive(1e-3), alpha_inf=0.02))
    problem.train(opt, 5)
    opt.param_groups[0]["lr"] = 0.7
    problem.train(opt, 1, start=5)
    assert opt.summary()[0]["adapted lr"] == pytest.approx(0.7 - 1e-3 * opt.hypergradients[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        pytest.param(
            lambda: Transition(Additive(1.0), alpha_inf=-1), ValueError, "alpha_inf must be a finite number >= 0, got -1", id="neg"
        ),
        pytest.param(lambda: Transition(Additive(1.0), alpha_inf=0), ValueError, "alpha_inf must be above 0", id="zero"),
        pytest.param(lambda: Transition(Additive(1.0), alpha_inf=1, delta=lambda t: 0.5), ValueError, r"delta\(1\) must be 1", id="delta"),
        pytest.param(lambda: Transition(0.1, alpha_inf=1), TypeError, r"rule must be a Rule .*, got 0\.1", id="no rule"),
        pytest.param(
            lambda: Decay(Additive(1.0), total_steps=0), ValueError, "total_steps must be a finite number >= 1, got 0", id="steps"
        ),
        pytest.param(lambda: Decay(Additive(1.0), total_steps=math.inf), ValueError, "total_steps must be .*, got inf", id="inf"),
        pytest.param(lambda: Decay(Additive(1.0), total_steps=9, share=0), ValueError, "share must lie above 0", id="share"),
        pytest.param(
            lambda: SGDHD([nn.Parameter(torch.ones(1))], lr=0, rule=Transition(Multiplicative(0.1), alpha_inf=1)),
            ValueError,
            "never leave lr=0",
            id="lr 0",
        ),
    ],
)
def test_refuses(make: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
