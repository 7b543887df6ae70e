"""Tensors that move for the first time late in a run, or again after a long pause."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from cases import TUNING_FREE, Problem, flat
from hypergradient import SGDHD, AdamHD, Multiplicative, thawed


def train(problem: Problem, opt: Any, start: int, end: int, without: bool) -> None:
    """Some steps, of the upper layers alone or of all."""
    for t in range(start, end):
        opt.zero_grad()
        problem.loss(t).backward()
        for p in problem.parameters()[:4] if without else ():
            p.grad = None
        opt.step()


@pytest.mark.parametrize("make", TUNING_FREE)
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_thawed_tensor_steps_carefully(make: Any, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(-4.5) of the step that it took before: that of an α that others have raised."""
    steps = []
    for grace, long in ((thawed.GRACE_STEPS, thawed.MAX_IDLE_STEPS), (math.inf, math.inf)):
        monkeypatch.setattr(thawed, "GRACE_STEPS", grace)
        monkeypatch.setattr(thawed, "MAX_IDLE_STEPS", long)
        problem = Problem()
        opt = make(problem.parameters())
        train(problem, opt, 0, 20, without=not again)
        train(problem, opt, 20, 80, without=True)
        before = flat(problem.parameters()[:4])
        for p in problem.parameters()[:4] if again else ():
            opt.state[p]["trace"].zero_()  # so that no momentum is left
        train(problem, opt, 80, 81, without=False)
        steps.append(float((flat(problem.parameters()[:4]) - before).norm()))
    tensor = opt.setup.scope == "tensor" and not again  # each has a safe start of its own
    assert steps[0] == pytest.approx(steps[1] * (1 if tensor else math.exp(-4.5)), rel=0.3)


def test_it_climbs_to_the_learning_rate_and_averages_its_own_steps() -> None:
    """Two tensors of one gradient, the second from step 100 on: θ moves by exp(0.15 (k − 31)) of what the first does."""
    generator = torch.Generator().manual_seed(0)
    w, v = (nn.Parameter(torch.ones(8, dtype=torch.float64)) for _ in range(2))
    opt = SGDHD([w, v])
    average, ratios = v.detach().clone(), []
    for t in range(200):
        w.grad = 0.1 * w.detach() + torch.randn(8, generator=generator, dtype=torch.float64)
        v.grad = w.grad.clone() if t >= 100 else None
        before = torch.stack([w, v]).detach()
        opt.step()
        if t >= 100:
            steps = torch.stack([w, v]).detach() - before
            ratios.append(float(steps[1].norm() / steps[0].norm()))
            average += (v.detach() - average) / max(10, len(ratios) / 5)
    assert ratios == pytest.approx([min(1.0, math.exp(0.15 * (k - 31))) for k in range(1, 101)], rel=1e-9)
    with opt.averaged():
        torch.testing.assert_close(v.detach(), average, rtol=1e-12, atol=1e-12)
    assert (opt.state[v]["late"], "late" in opt.state[w]) == (100, False)


@pytest.mark.parametrize("make", TUNING_FREE)
def test_short_breaks_and_new_groups_are_nothing_of_the_kind(make: Any) -> None:
    problem, other = Problem(), nn.Linear(3, 2).double()
    opt = make(problem.parameters())
    train(problem, opt, 0, 30, without=False)
    train(problem, opt, 30, 75, without=True)
    train(problem, opt, 75, 80, without=False)
    if opt.setup.scope != "global":  # whose learning rate a group takes that comes later
        opt.add_param_group({"params": other.parameters()})
        other(torch.ones(3).double()).sum().backward()
        opt.step()
    assert not any({"late", "still"} & own.keys() for own in opt.state.values())


@pytest.mark.parametrize(
    "options", [{"capturable": True}, {"lr": 1e-3, "rule": Multiplicative(0.02)}], ids=["capturable", "multiplicative"]
)
def test_devices_and_other_rules_know_no_such_tensors(options: dict) -> None:
    problem = Problem()
    opt = AdamHD(problem.parameters(), **options)
    train(problem, opt, 0, 80, without=True)
    train(problem, opt, 80, 82, without=False)
    assert not any({"late", "still"} & own.keys() for own in opt.state.values())


@pytest.mark.parametrize("make", TUNING_FREE)
def test_resumed_while_it_climbs(make: Any) -> None:
    problem, other = Problem(), Problem()
    opt, twin = make(problem.parameters()), make(other.parameters())
    train(problem, opt, 0, 15, without=False)
    train(problem, opt, 15, 75, without=True)
    train(problem, opt, 75, 85, without=False)
    other.model.load_state_dict(problem.model.state_dict())
    twin.load_state_dict(copy.deepcopy(opt.state_dict()))
    for own, its in ((problem, opt), (other, twin)):
        train(own, its, 85, 100, without=False)
    assert torch.equal(flat(problem.parameters()), flat(other.parameters()))
    assert {twin.state[p].get("late") for p in other.parameters()} == {25, None}
