"""Schedulers: their lr is a factor on the adapted learning rate, for every class, rule and scope."""

import copy
import re
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from cases import Problem, flat, pairs
from hypergradient import SGDHD, AdamHD, AdamWHD, Additive, Decay, Multiplicative, TuningFree
from hypergradient.rules import Rule, RuleUpdate

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step", "ignore:weight_decay is adapted")


RULES = [Additive(1e-4), Multiplicative(0.02), TuningFree(), Decay(TuningFree(), total_steps=30)]


OF_0 = [
    *pairs(RULES, ["group", "global", "tensor"], [False, True]),
    *pairs([Additive(1e-4), Multiplicative(0.02)], ["element"], [False, True]),
]


@pytest.mark.parametrize(("rule", "scope", "capturable"), OF_0)
def test_a_factor_of_0_moves_nothing_and_teaches_nothing(rule: Any, scope: str, capturable: bool) -> None:
    problem = Problem()
    opt = AdamHD(problem.groups(), lr=0.01, rule=rule, scope=scope, capturable=capturable)
    scheduler = schedulers.LambdaLR(opt, lambda t: float(t < 10 or t >= 15))
    for t in range(20):
        before, adapted = flat(problem.parameters()).clone(), [float(group["adapted_lr"]) for group in opt.param_groups] if t else []
        problem.train(opt, 1, start=t)
        still = 10 <= t < 15
        assert torch.equal(flat(problem.parameters()), before) == still
        assert [float(group["alpha"]) == 0 for group in opt.param_groups] == [still] * 2
        if 11 <= t < 16:
            assert [float(group["adapted_lr"]) for group in opt.param_groups] == adapted
        scheduler.step()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("scope", ["group", "global", "tensor"])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("zero", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
def test_lr_of_0_keeps_a_group_where_it_is(scope: Any, capturable: bool, at: int, zero: Any) -> None:
    problem = Problem()
    groups = problem.groups()
    second, first = groups[at], groups[1 - at]
    second["lr"] = copy.deepcopy(zero)
    opt = AdamHD(groups, scope=scope, capturable=capturable)
    before = [flat(group["params"]).clone() for group in (first, second)]
    problem.train(opt, 30)
    assert not torch.equal(flat(first["params"]), before[0])
    assert torch.equal(flat(second["params"]), before[1])


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("written", ["float", "in place"])
def test_a_frozen_group_thaws_where_lr_is_written(capturable: bool, written: str) -> None:
    problem = Problem()
    zero: Any = torch.tensor(0.0) if written == "in place" else 0.0
    opt = AdamHD([{**group, "lr": copy.deepcopy(zero)} for group in problem.groups()], capturable=capturable)
    problem.train(opt, 5)
    before = flat(problem.parameters()).clone()
    group = opt.param_groups[0]
    if written == "in place":
        group["lr"].fill_(1e-3)
    else:
        group["lr"] = 1e-3
    problem.train(opt, 5)
    first, second = (list(own["params"]) for own in opt.param_groups)
    assert not torch.equal(flat(first), before[: flat(first).numel()])
    assert torch.equal(flat(second), before[flat(first).numel() :])


def test_summary_where_a_scheduler_has_just_come() -> None:
    problem = Problem()
    opt = AdamHD(problem.parameters())
    schedulers.LambdaLR(opt, lambda t: 0.5)
    assert opt.summary() == []
    opt = AdamHD(problem.parameters(), lr=0.01, hypergrad_lr=1e-5)
    problem.train(opt, 3)
    (before,) = opt.summary()
    schedulers.LambdaLR(opt, lambda t: 0.5)
    assert opt.summary() == [before]


@pytest.mark.parametrize("scope", ["group", "global", "tensor"])
@pytest.mark.parametrize("lr", [None, 0.01])
def test_a_group_that_is_added_later_trains(scope: Any, lr: float | None) -> None:
    problem = Problem()
    first, second = problem.groups()
    opt = AdamHD([first], lr=lr, scope=scope)
    problem.train(opt, 20)
    opt.add_param_group(second)
    before = flat(second["params"]).clone()
    problem.train(opt, 5)
    assert not torch.equal(flat(second["params"]), before)
    assert opt.param_groups[1]["lr"] > 0


WRITERS = [pytest.param(0.0, "lr=0.0 was written over", id="0"), pytest.param(0.02, "lr=0.02 was written over .*, again", id="the same")]


@pytest.mark.parametrize(("value", "message"), WRITERS)
def test_who_writes_over_what_is_adapted_is_told_once(value: float, message: str) -> None:
    problem = Problem()
    opt = AdamHD(problem.groups())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for t in range(8):
            problem.train(opt, 1, start=t)
            for group in opt.param_groups:
                group["lr"] = value
    (told,) = [str(warning.message) for warning in said]
    assert re.search(message, told)


def test_lr_reads_1_until_the_rule_has_found_one() -> None:
    problem = Problem()
    opt = SGDHD(problem.groups())
    assert [(group["lr"], group["alpha"]) for group in opt.param_groups] == [(1.0, 0.0)] * 2
    problem.train(opt, 1)
    assert [group["lr"] == group["alpha"] != 1 for group in opt.param_groups] == [True] * 2


def test_resumed_with_its_scheduler_equals_never_stopped() -> None:
    def make(problem: Problem) -> tuple[Any, Any]:
        opt = AdamWHD(problem.groups())
        return opt, schedulers.LambdaLR(opt, lambda t: min(1.0, t / 5) * (1 - t / 40))

    one, other = Problem(), Problem()
    (opt, scheduler), (twin, second) = make(one), make(other)

    def train(problem: Problem, opt: Any, scheduler: Any, start: int) -> None:
        for t in range(start, start + 10):
            problem.train(opt, 1, start=t)
            scheduler.step()

    train(one, opt, scheduler, 0)
    other.model.load_state_dict(one.model.state_dict())
    twin.load_state_dict(copy.deepcopy(opt.state_dict()))
    second.load_state_dict(scheduler.state_dict())
    train(one, opt, scheduler, 10)
    train(other, twin, second, 10)
    assert torch.equal(flat(one.parameters()), flat(other.parameters()))


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("rule", [Additive(1e-3), Multiplicative(0.05)], ids=["additive", "multiplicative"])
def test_elements_under_a_schedule_are_tensors_of_one_number(rule: Any, capturable: bool) -> None:
    """Decay and the derivatives by other hyperparameters see what elements have moved by."""
    generator = torch.Generator().manual_seed(0)
    whole = nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))
    parts = [nn.Parameter(x.clone()) for x in whole.detach()]
    adapt = {"lr": rule, "betas": (Multiplicative(0.1), None), "weight_decay": Multiplicative(0.1)}
    make: Any = partial(AdamWHD, lr=0.05, weight_decay=0.3, adapt=adapt, capturable=capturable)
    one, other = make([whole], scope="element"), make(parts, scope="tensor")
    both = [schedulers.LambdaLR(opt, lambda t: 0.2 + t % 4) for opt in (one, other)]
    for _ in range(12):
        whole.grad = torch.randn(5, generator=generator, dtype=torch.float64)
        for p, g in zip(parts, whole.grad, strict=True):
            p.grad = g.clone()
        for opt, scheduler in zip((one, other), both, strict=True):
            opt.step()
            scheduler.step()
    torch.testing.assert_close(whole.detach(), torch.stack([p.detach() for p in parts]), rtol=1e-10, atol=1e-12)
    lrs = torch.tensor([float(other.state[p]["lr"]) for p in parts], dtype=torch.float64)
    torch.testing.assert_close(one.state[whole]["lr"], lrs, rtol=1e-10, atol=0)
    assert lrs.std() > 1e-4


@pytest.mark.parametrize("lr", [None, 1e-3])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_warm_up_is_what_the_rule_makes_itself(lr: float | None, capturable: bool) -> None:
    """While the factor rises the run is that without it; then a fall is one, and so is what comes back after it."""
    one, other = Problem(), Problem()
    opt = AdamHD(one.parameters(), lr=lr, capturable=capturable)
    twin = AdamHD(other.parameters(), lr=lr and lr / 40, capturable=capturable)
    factors = [*(i / 40 for i in range(1, 41)), 0.5, 0.5, 1.0]
    scheduler = schedulers.LambdaLR(opt, lambda t: factors[min(t, len(factors) - 1)])
    found = []
    for t in range(len(factors)):
        one.train(opt, 1, start=t)
        found.append(float(opt.param_groups[0]["alpha"]))
        scheduler.step()
        if t < 40:
            other.train(twin, 1, start=t)
            assert found[-1] == pytest.approx(float(twin.param_groups[0]["alpha"]), rel=1e-6), t
            torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-9)
    assert found[-3] < 0.7 * found[-4]
    assert found[-1] > 1.5 * found[-2]


def test_a_warm_up_from_0_starts_where_the_rule_does() -> None:
    """The step of 0 moves nothing; the next is as long as a first one."""
    one, other = Problem(), Problem()
    opt, twin = AdamHD(one.parameters()), AdamHD(other.parameters())
    scheduler = schedulers.LambdaLR(opt, lambda t: min(t / 100, 1.0))
    one.train(opt, 1)
    scheduler.step()
    one.train(opt, 1, start=1)
    other.train(twin, 1)
    assert float(opt.param_groups[0]["alpha"]) == pytest.approx(float(twin.param_groups[0]["alpha"]), rel=0.5)


@pytest.mark.parametrize("scope", ["group", "tensor"])
def test_a_checkpoint_without_a_peak_goes_on_from_its_last_factor(scope: Any) -> None:
    """As those of when it was not kept: else what is adapted would be divided by a decay's factor."""
    problem, other = Problem(), Problem()
    opt, twin = AdamHD(problem.parameters(), scope=scope), AdamHD(other.parameters(), scope=scope)
    scheduler = schedulers.LambdaLR(opt, lambda t: 1.0 if t < 20 else 0.1)
    for t in range(25):
        problem.train(opt, 1, start=t)
        scheduler.step()
    saved = copy.deepcopy(opt.state_dict())
    for holder in (*saved["state"].values(), *(group["memory"] for group in saved["param_groups"])):
        holder.pop("memory_peak", None)
        holder.pop("peak", None)
    other.model.load_state_dict(problem.model.state_dict())
    twin.load_state_dict(saved)
    problem.train(opt, 1, start=25)
    other.train(twin, 1, start=25)
    for one, two in zip(opt.summary(), twin.summary(), strict=True):
        assert float(one["lr"]) == pytest.approx(float(two["lr"]), rel=1e-12)


def test_a_rule_of_ones_own_that_averages_goes_with_a_schedule() -> None:
    """It need not know of the schedule's peak."""

    class Constant(Rule):
        averages = reads_norms = True

        def update(self, memory: Any, alpha: Any, beta: Any, h: Any, g_norm: Any, d_norm: Any, xp: Any = None) -> RuleUpdate:
            return RuleUpdate(alpha, {"steps": memory["steps"] + 1}, window=10.0)

        def initial_memory(self) -> Any:
            return {"steps": 0.0}

    problem = Problem()
    opt = AdamHD(problem.parameters(), lr=0.01, rule=Constant(0.0))
    scheduler = schedulers.LambdaLR(opt, lambda t: 0.5**t)
    found = []
    for t in range(3):
        problem.train(opt, 1, start=t)
        found.append(float(opt.param_groups[0]["alpha"]))
        scheduler.step()
    assert found[1:] == pytest.approx([found[0] / 2, found[0] / 4])
