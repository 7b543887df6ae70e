"""Realistic training loops: schedules, clipping, closures, hooks, AMP, checkpoints, odd tensors and gradients that fail."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import lr_scheduler

from cases import CASES, Case, Problem, flat, pairs, turns
from hypergradient import SGDHD, AdamHD, AdamWHD, Additive, Multiplicative, TuningFree

SCOPES = ["group", "global", "tensor"]
RULES = [pytest.param(Additive(1e-4), id="additive"), pytest.param(Multiplicative(0.02), id="multiplicative")]
RUNS = [
    pytest.param({"rule": Multiplicative(0.02), "scope": "group"}, id="multiplicative-group"),
    pytest.param({"rule": Additive(1e-4), "scope": "global"}, id="additive-global"),
    pytest.param({"rule": Additive(1e-4), "scope": "tensor"}, id="additive-tensor"),
]
TUNING = [pytest.param({"rule": TuningFree(), "scope": scope}, id=f"tuning-{scope}") for scope in ("group", "global", "tensor")]
ALL_RUNS = [*RUNS, pytest.param({"rule": Additive(1e-5), "horizon": 20, "scope": "group"}, id="horizon-group"), *TUNING]
OURS = [
    pytest.param(SGDHD, {}, id="sgd"),
    pytest.param(SGDHD, {"momentum": 0.9}, id="momentum"),
    pytest.param(SGDHD, {"momentum": 0.9, "nesterov": True}, id="nesterov"),
    pytest.param(SGDHD, {"weight_decay": 0.1}, id="sgd-decay"),
    pytest.param(AdamHD, {}, id="adam"),
    pytest.param(AdamHD, {"weight_decay": 0.1}, id="adam-decay"),
    pytest.param(AdamWHD, {"weight_decay": 0.1}, id="adamw"),
]


FORMS = [pytest.param(False, id="nested"), pytest.param(True, id="flat")]
COPIES = [pytest.param(copy.deepcopy, id="deepcopy"), pytest.param(lambda run: pickle.loads(pickle.dumps(run)), id="pickle")]


def lrs(opt: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in opt.param_groups]


def same(one: Problem, opt: Any, other: Problem, twin: Any) -> bool:
    """Whether two runs stand at the same point, bitwise."""
    return torch.equal(flat(one.parameters()), flat(other.parameters())) and (lrs(opt), opt.hypergradients, opt.skipped) == (
        lrs(twin),
        twin.hypergradients,
        twin.skipped,
    )


def grads(problem: Problem) -> list[torch.Tensor]:
    return [p.grad for p in problem.parameters() if p.grad is not None]


def apply(params: list, opt: torch.optim.Optimizer, *gradients: list) -> None:
    """A step for each list of gradients, one a parameter."""
    for row in gradients:
        for p, g in zip(params, row, strict=True):
            p.grad = None if g is None else torch.as_tensor(g, dtype=p.dtype).expand(p.shape).clone()
        opt.step()


# What may happen between two steps: each is given the optimizer and a problem, and returns what to do at step t, after backward.


def no_change(opt, problem):
    return lambda t: None


def one_cycle(opt, problem):
    scheduler = lr_scheduler.OneCycleLR(opt, max_lr=0.02, total_steps=40, base_momentum=0.5, max_momentum=0.9)
    return lambda t: scheduler.step() if t > 0 else None


def cycling(name, *values):
    def change(opt, problem):
        return lambda t: [group.update({name: values[(t + i) % len(values)]}) for i, group in enumerate(opt.param_groups)]

    return change


def nesterov_on_and_off(opt, problem):
    return lambda t: opt.param_groups[0].update(momentum=0.9 * (t % 4 > 0), nesterov=t % 3 == 0)


def clipping(opt, problem):
    return lambda t: nn.utils.clip_grad_norm_(problem.parameters(), 0.1 + 0.05 * (t % 3))


def missing_gradients(opt, problem):
    def change(t):
        for i, p in enumerate(problem.parameters()):
            if (t + i) % 4 == 0 or 5 <= t + i // 3 < 8:
                p.grad = None

    return change


COMMON = {
    "nothing": no_change,
    "OneCycleLR": one_cycle,
    "lr": cycling("lr", 0.01, 0.003, 0.02),
    "weight_decay": cycling("weight_decay", 0.1, 0.0, 0.3),
    "maximize": cycling("maximize", False, True, True),
    "clip_grad_norm_": clipping,
    "missing gradients": missing_gradients,
}
OF_SGD = {"momentum": cycling("momentum", 0.9, 0.0, 0.5), "dampening": cycling("dampening", 0.5, 0.0), "nesterov": nesterov_on_and_off}
OF_ADAM = {"betas": cycling("betas", (0.9, 0.999), (0.5, 0.9), (0.0, 0.99)), "eps": cycling("eps", 1e-8, 1e-2)}


@pytest.mark.parametrize(
    ("ours", "options", "change"),
    [
        pytest.param(*row.values, change, id=f"{row.id}-{name}")
        for rows, changes in [(OURS, COMMON), (OURS[:4], OF_SGD), (OURS[4:], OF_ADAM)]
        for row in rows
        for name, change in changes.items()
    ],
)
def test_hypergradient_is_of_the_step_that_was_made(ours, options: dict, change) -> None:
    """h = −g · (θ_before − θ_after) / α, group by group, whatever happens between the two steps; α is what a scheduler multiplies."""
    problem = Problem()
    opt = ours(problem.groups(), lr=0.01, hypergrad_lr=1e-6, **options)
    between = change(opt, problem)
    steps = [torch.zeros(0)] * 2
    for t in range(12):
        opt.zero_grad()
        problem.loss(t).backward()
        between(t)
        groups = [(group["params"], group) for group in opt.param_groups]
        gs = [torch.cat([objective_gradient(p, ours is not AdamWHD, group).reshape(-1) for p in ps]) for ps, group in groups]
        before = [flat(ps).clone() for ps, _ in groups]
        opt.step()
        if t > 0:
            assert opt.hypergradients == pytest.approx([-(g @ d).item() for g, d in zip(gs, steps, strict=True)], rel=1e-7, abs=1e-10)
        steps = [(theta - flat(ps)) / adapted_lr(group) for theta, (ps, group) in zip(before, groups, strict=True)]


def adapted_lr(group: dict) -> float:
    return float(group.get("adapted_lr", group["lr"]))


def objective_gradient(p: nn.Parameter, coupled: bool, group: dict) -> torch.Tensor:
    if p.grad is None:
        return torch.zeros_like(p)
    g = -p.grad if group["maximize"] else p.grad.clone()
    return g + group["weight_decay"] * p.detach() if coupled else g


@pytest.mark.parametrize(("ours", "options"), OURS)
def test_global_hypergradient_is_of_the_step_that_was_made(ours, options: dict) -> None:
    problem, (first, second) = Problem(), Problem().groups()
    first, second = problem.groups()
    opt = ours([{**first, "lr": 0.02}, {**second, "lr": 0.01}], hypergrad_lr=1e-6, scope="global", **options)
    before = flat(problem.parameters()).clone()
    problem.train(opt, 1)
    unit = (before - flat(problem.parameters())) / 0.02
    opt.param_groups[0]["lr"], opt.param_groups[1]["lr"] = 0.005, 0.02
    theta = [p.detach().clone() for p in problem.parameters()]
    problem.train(opt, 1, start=1)
    for p, x in zip(problem.parameters(), theta, strict=True):
        p.data = x
    gs = [objective_gradient(p, ours is not AdamWHD, opt.param_groups[0]) for p in problem.parameters()]
    assert opt.hypergradients == pytest.approx([-(flat(gs) @ unit).item()], rel=1e-9)


def constant(opt):
    return lambda loss: None


def step_lr(opt):
    scheduler = lr_scheduler.StepLR(opt, 4, gamma=0.5)
    return lambda loss: scheduler.step()


def warmup(opt):
    scheduler = lr_scheduler.LambdaLR(opt, lambda t: min(1.0, t / 5))
    return lambda loss: scheduler.step()


def plateau(opt):
    scheduler = lr_scheduler.ReduceLROnPlateau(opt, patience=0, factor=0.5)
    return lambda loss: scheduler.step(loss)


def sequential(opt):
    if isinstance(opt.param_groups[0]["lr"], torch.Tensor) and not hasattr(lr_scheduler, "_update_param_group_val"):
        pytest.skip("SequentialLR of this torch makes lr and initial_lr one tensor")
    parts = [lr_scheduler.LinearLR(opt, 0.1, total_iters=4), lr_scheduler.ExponentialLR(opt, 0.9)]
    scheduler = lr_scheduler.SequentialLR(opt, parts, milestones=[5])
    return lambda loss: scheduler.step()


SCHEDULES = [pytest.param(f, id=f.__name__) for f in (constant, step_lr, warmup, plateau, sequential)]
LRS = [pytest.param(0.02, id="float"), pytest.param(torch.tensor(0.02, dtype=torch.float64), id="tensor")]


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")  # of torch 2.6's SequentialLR itself
@pytest.mark.parametrize(("schedule", "ours", "options", "scope", "lr"), pairs(SCHEDULES, [OURS[0], OURS[4]], SCOPES, LRS))
def test_a_schedule_multiplies_what_is_adapted(schedule, ours, options: dict, scope: str, lr) -> None:
    problem = Problem()
    opt = ours(problem.parameters(), lr=copy.deepcopy(lr), hypergrad_lr=1e-3, scope=scope, **options)
    scheduled = schedule(opt)
    (group,) = opt.param_groups
    adapted, moved = 0.02, []
    for t in range(20):
        factor = float(group["lr"]) / 0.02 if "initial_lr" in group else 1.0
        if factor == 1 and "initial_lr" not in group:
            adapted = float(group["lr"])  # what a scheduler without a base has written
        before = flat(problem.parameters()).clone()
        (loss,) = problem.train(opt, 1, start=t)
        expected = adapted - 1e-3 * math.fsum(opt.hypergradients) / len(opt.hypergradients)
        assert adapted_lr(group) == pytest.approx(expected, rel=1e-9, abs=1e-15)
        assert float(group["alpha"]) == pytest.approx(factor * expected, rel=1e-9, abs=1e-15)
        assert torch.equal(before, flat(problem.parameters())) == (factor == 0)
        moved.append(expected != pytest.approx(adapted, rel=1e-9))
        adapted = expected
        scheduled(loss)
    assert sum(moved) > 15


FAILURES = [pytest.param(bad, first, id=f"{bad}-{first}") for bad, first in [(math.inf, 0), (math.nan, 0), (-math.inf, 3), (math.nan, 3)]]


@pytest.mark.parametrize(("ours", "options", "run", "bad", "first"), pairs(OURS, RUNS, FAILURES))
def test_step_without_finite_gradient_leaves_no_trace(ours, options: dict, run: dict, bad: float, first: int) -> None:
    one, other = Problem(), Problem()
    opt = ours(one.groups(), lr=0.01, **run, **options)
    twin = ours(other.groups(), lr=0.01, **run, **options)
    one.train(opt, first)
    before = copy.deepcopy((opt.state_dict(), opt.hypergradients))
    opt.zero_grad()
    one.loss(4).backward()
    grads(one)[-1][1] = bad
    with pytest.warns(UserWarning, match=f"{ours.__name__} skipped a step") as caught:
        opt.step()
    assert [w.filename for w in caught] == [__file__]
    opt.step()  # warns no more
    torch.testing.assert_close((opt.state_dict(), opt.hypergradients), before, rtol=0, atol=0)
    assert opt.skipped == 2
    one.train(opt, 4, start=first)
    other.train(twin, first + 4)
    twin.skipped = 2
    assert same(one, opt, other, twin)


@pytest.mark.parametrize(
    ("ours", "options", "dtype", "gradients"),
    [
        pytest.param(SGDHD, {"hypergrad_lr": 1e-6}, torch.float64, [[1e200, 1.0], [1e200, 1.0]], id="product of one tensor"),
        pytest.param(SGDHD, {"hypergrad_lr": 1e-6}, torch.float32, [[1e30, 1.0], [1e30, 1.0]], id="product in float32"),
        pytest.param(SGDHD, {"hypergrad_lr": 1e-6}, torch.float64, [[1e154, 1e154], [1e154, 1e154]], id="sum over tensors"),
        pytest.param(SGDHD, {"momentum": 0.9, "hypergrad_lr": 1e-6}, torch.float64, [[1e200, 1.0], [1e200, 1.0]], id="momentum"),
        pytest.param(AdamHD, {"hypergrad_lr": 1e-8}, torch.float64, [[1.0, 1.0], [1e308, 1e308]], id="adam"),
        pytest.param(AdamWHD, {"hypergrad_lr": 1e-8}, torch.float64, [[1.0, 1.0], [1e308, 1e308]], id="adamw"),
        pytest.param(SGDHD, {"hypergrad_lr": 1e300}, torch.float64, [[1e5, 1.0], [1e5, 1.0]], id="learning rate"),
    ],
)
def test_step_with_overflowing_hypergradient_leaves_no_trace(ours, options: dict, dtype: torch.dtype, gradients: list) -> None:
    params = [nn.Parameter(torch.ones(2, dtype=dtype)) for _ in range(2)]
    opt = ours(params, lr=1e-3, **options)
    apply(params, opt, gradients[0])
    before = copy.deepcopy((params, opt.state_dict(), opt.hypergradients))
    with pytest.warns(UserWarning, match="skipped a step"):
        apply(params, opt, gradients[1])
    torch.testing.assert_close((params, opt.state_dict(), opt.hypergradients), before, rtol=0, atol=0)
    assert opt.skipped == 1


def test_skipped_steps_are_counted_where_warnings_are_errors() -> None:
    w = nn.Parameter(torch.ones(2))
    opt = SGDHD([w])
    with pytest.raises(UserWarning, match="skipped a step"):  # as pytest is configured here
        apply([w], opt, [math.nan])
    assert opt.skipped == 1


@pytest.mark.parametrize("case", CASES)
def test_grad_scaler_skips_without_trace(case: Case) -> None:
    one, other = Problem(), Problem()
    opt = case.ours(one.parameters(), lr=case.lr, hypergrad_lr=case.beta, **case.options)
    twin = case.ours(other.parameters(), lr=case.lr, hypergrad_lr=case.beta, **case.options)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    for t, overflow in [(0, 1.0), (1, 1.0), (9, math.inf), (2, 1.0), (3, 1.0)]:
        opt.zero_grad()
        scaler.scale(one.loss(t) * overflow).backward()
        scaler.step(opt)
        scaler.update()
    other.train(twin, 4)
    assert scaler.get_scale() == 2.0**9
    assert same(one, opt, other, twin)


@pytest.mark.parametrize(("ours", "options", "run", "copied"), pairs(OURS, ALL_RUNS, COPIES))
def test_copy_goes_on_as_the_original(ours, options: dict, run: dict, copied) -> None:
    problem = Problem()
    opt = ours(problem.groups(), lr=0.01, **run, **options)
    problem.train(opt, 5)
    opt.skipped = 3
    other, twin = copied((problem, opt))
    assert same(problem, opt, other, twin)
    assert (twin.setup.rule, twin.setup.scope) == (opt.setup.rule, opt.setup.scope)
    assert opt.defaults.items() <= twin.defaults.items()
    problem.train(opt, 5, start=5)
    assert not torch.equal(flat(problem.parameters()), flat(other.parameters()))
    other.train(twin, 5, start=5)
    assert same(problem, opt, other, twin)


@pytest.mark.parametrize(("case", "scope"), turns(CASES, SCOPES, 2))
def test_warm_start_from_torch(case: Case, scope: str) -> None:
    """A checkpoint of torch's class is taken up: the first step after it keeps its learning rate, the next one adapts it."""
    ours, theirs = Problem(), Problem()
    base = case.base(theirs.groups(), lr=case.lr, **case.options)
    theirs.train(base, 10)
    opt = case.ours(ours.groups(), lr=1.0, hypergrad_lr=case.beta, scope=scope, lr_bounds=(0, 1))
    ours.model.load_state_dict(theirs.model.state_dict())
    opt.load_state_dict(copy.deepcopy(base.state_dict()))
    for group in opt.param_groups:
        assert (group["hypergrad_lr"], group["lr_bounds"]) == (case.beta, (0, 1))
    ours.train(opt, 1, start=10)
    theirs.train(base, 1, start=10)
    torch.testing.assert_close(flat(ours.parameters()), flat(theirs.parameters()), rtol=0, atol=1e-12)
    assert lrs(opt) == pytest.approx(lrs(base), rel=1e-12)
    ours.train(opt, 1, start=11)
    assert lrs(opt) != pytest.approx(lrs(base), rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_torch_goes_on_from_our_checkpoint(case: Case) -> None:
    ours, theirs = Problem(), Problem()
    opt = case.ours(ours.groups(), lr=case.lr, hypergrad_lr=0, **case.options)
    ours.train(opt, 10)
    base = case.base(theirs.groups(), lr=1.0)
    theirs.model.load_state_dict(ours.model.state_dict())
    base.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert theirs.train(base, 10, start=10) == pytest.approx(ours.train(opt, 10, start=10), rel=1e-12)


def test_warm_start_from_a_buffer_of_none() -> None:
    """Older checkpoints of torch.optim.SGD hold None for a buffer not yet used."""
    ours, theirs = Problem(), Problem()
    opt = SGDHD(ours.parameters(), 0.02, 0.9, 0.5, hypergrad_lr=0)
    checkpoint = opt.state_dict()
    checkpoint["state"] = {i: {"momentum_buffer": None} for i in range(6)}
    opt.load_state_dict(checkpoint)
    expected = theirs.train(torch.optim.SGD(theirs.parameters(), 0.02, 0.9, 0.5), 5)
    assert ours.train(opt, 5) == pytest.approx(expected, rel=1e-12)


def test_lr_tensor_shared_in_a_checkpoint_of_torch_is_not_shared_here() -> None:
    problem = Problem()
    opt = SGDHD(problem.groups(), lr=torch.tensor(0.1), hypergrad_lr=1e-2)
    opt.load_state_dict(torch.optim.SGD(problem.groups(), lr=torch.tensor(0.1)).state_dict())
    assert opt.param_groups[0]["lr"] is not opt.param_groups[1]["lr"]


@pytest.mark.parametrize(("ours", "options", "run", "flatten"), pairs(OURS, ALL_RUNS, FORMS))
def test_distributed_checkpoint(ours, options: dict, run: dict, flatten: bool) -> None:
    problem, other = Problem(), Problem()
    opt, twin = ours(problem.groups(), lr=0.01, **run, **options), ours(other.groups(), lr=0.01, **run, **options)
    flags = StateDictOptions(flatten_optimizer_state_dict=flatten)
    problem.train(opt, 5)
    saved = copy.deepcopy(get_optimizer_state_dict(problem.model, opt, options=flags))
    set_optimizer_state_dict(other.model, twin, saved, options=flags)
    assert torch.equal(flat(other.parameters()), flat(Problem().parameters()))
    other.model.load_state_dict(problem.model.state_dict())
    problem.train(opt, 5, start=5)
    other.train(twin, 5, start=5)
    assert same(problem, opt, other, twin)


@pytest.mark.parametrize(("ours", "options", "run", "bounds"), pairs(OURS, ALL_RUNS, [(None, None), (0, 1), (1e-3, 1)]))
def test_distributed_checkpoint_before_the_first_step(ours, options: dict, run: dict, bounds: tuple) -> None:
    """Torch primes the state by a step with zero gradients and lr = 0."""
    problem = Problem()
    opt = ours(problem.groups(), lr=0.01, lr_bounds=bounds, **run, **{"weight_decay": 0.1, **options})
    get_optimizer_state_dict(problem.model, opt)
    assert torch.equal(flat(problem.parameters()), flat(Problem().parameters()))
    assert all(x.isfinite().all() for state in opt.state.values() for x in state.values() if isinstance(x, torch.Tensor))
    assert lrs(opt) == [0.01, 0.01]
    problem.train(opt, 3)
    assert (opt.skipped, set(map(math.isfinite, opt.hypergradients))) == (0, {True})


@pytest.mark.parametrize(("case", "scope"), turns(CASES, SCOPES))
def test_named_parameters(case: Case, scope: str) -> None:
    one, other = Problem(), Problem()
    opt = case.ours(one.parameters(), lr=case.lr, hypergrad_lr=case.beta, scope=scope, **case.options)
    named = case.ours(other.model.named_parameters(), lr=case.lr, hypergrad_lr=case.beta, scope=scope, **case.options)
    assert one.train(opt, 5) == other.train(named, 5)
    assert same(one, opt, other, named)
    assert named.state_dict()["param_groups"][0]["param_names"] == [name for name, _ in other.model.named_parameters()]


@pytest.mark.parametrize("ours", [SGDHD, AdamHD, AdamWHD])
def test_hooks_run_once_around_the_step(ours) -> None:
    problem = Problem()
    opt = ours(problem.parameters(), lr=0.01)
    seen: list[tuple[str, bool]] = []
    before = flat(problem.parameters()).clone()
    opt.register_step_pre_hook(lambda *_: seen.append(("pre", torch.equal(before, flat(problem.parameters())))))
    opt.register_step_post_hook(lambda *_: seen.append(("post", torch.equal(before, flat(problem.parameters())))))
    problem.train(opt, 1)
    assert seen == [("pre", True), ("post", False)]


@pytest.mark.parametrize(("ours", "options", "run"), turns(OURS, ALL_RUNS, 3))
def test_closure_is_called_once_with_gradients(ours, options: dict, run: dict) -> None:
    one, other = Problem(), Problem()
    opt = ours(one.parameters(), lr=0.01, **run, **options)
    twin = ours(other.parameters(), lr=0.01, **run, **options)
    losses: list[torch.Tensor] = []

    def closure() -> torch.Tensor:
        opt.zero_grad()
        losses.append(one.loss(len(losses)))
        losses[-1].backward()
        return losses[-1]

    with torch.no_grad():
        returned = [opt.step(closure) for _ in range(5)]
    assert [id(x) for x in returned] == [id(x) for x in losses]
    assert [x.item() for x in losses] == other.train(twin, 5)
    assert same(one, opt, other, twin)


def test_step_without_closure_returns_none() -> None:
    w = nn.Parameter(torch.ones(2))
    assert SGDHD([w]).step() is None


@pytest.mark.parametrize(("ours", "options", "run"), turns(OURS, ALL_RUNS, 3))
def test_maximize_is_minimizing_the_negative(ours, options: dict, run: dict) -> None:
    one, other = Problem(), Problem()
    up = ours(one.parameters(), lr=0.01, maximize=True, **run, **options)
    down = ours(other.parameters(), lr=0.01, **run, **options)
    for t in range(10):
        one.train(up, 1, start=t)
        down.zero_grad()
        (-other.loss(t)).backward()
        down.step()
    assert same(one, up, other, down)


def zeroed_in_place(problem: Problem, opt: torch.optim.Optimizer, t: int) -> None:
    opt.zero_grad(set_to_none=False)
    problem.loss(t).backward()


def accumulated(problem: Problem, opt: torch.optim.Optimizer, t: int) -> None:
    opt.zero_grad()
    for half in (slice(None, 5), slice(5, None)):
        (nn.functional.cross_entropy(problem.model(problem.x[t, half]), problem.y[t, half]) / 2).backward()


def gradients_overwritten(problem: Problem, opt: torch.optim.Optimizer, t: int) -> None:
    for p in problem.parameters():
        _ = p.grad is None or p.grad.fill_(math.nan)
    opt.zero_grad()
    problem.loss(t).backward()


@pytest.mark.parametrize(
    ("case", "backward"),
    [
        pytest.param(*case.values, backward, id=f"{backward.__name__}-{case.id}")
        for backward in (zeroed_in_place, accumulated, gradients_overwritten)
        for case in CASES
    ],
)
def test_other_ways_to_the_same_gradient(case: Case, backward) -> None:
    one, other = Problem(), Problem()
    opt = case.ours(one.parameters(), lr=case.lr, hypergrad_lr=case.beta, **case.options)
    twin = case.ours(other.parameters(), lr=case.lr, hypergrad_lr=case.beta, **case.options)
    for t in range(10):
        backward(one, opt, t)
        opt.step()
    other.train(twin, 10)
    torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-12)
    assert lrs(opt) == pytest.approx(lrs(twin), rel=1e-9)
    assert opt.hypergradients == pytest.approx(twin.hypergradients, rel=1e-9)


@pytest.mark.parametrize(("ours", "options", "run"), turns(OURS, ALL_RUNS, 3))
def test_gradients_are_only_read(ours, options: dict, run: dict) -> None:
    problem = Problem()
    opt = ours(problem.parameters(), lr=0.01, **run, **options)
    for t in range(3):
        opt.zero_grad()
        problem.loss(t).backward()
        before = grads(problem)
        copies = [g.clone() for g in before]
        opt.step()
        assert all(g is p.grad for g, p in zip(before, problem.parameters(), strict=True))
        assert all(map(torch.equal, before, copies))


@pytest.mark.parametrize(("ours", "options", "run"), turns(OURS, ALL_RUNS, 3))
def test_order_of_parameters_and_groups_does_not_matter(ours, options: dict, run: dict) -> None:
    one, other = Problem(), Problem()
    opt = ours([{**group, "lr": 0.01} for group in one.groups()], **run, **options)
    groups = [{"params": list(reversed(group["params"])), "lr": 0.01} for group in reversed(other.groups())]
    twin = ours(groups, **run, **options)
    for t in range(10):
        one.train(opt, 1, start=t)
        other.train(twin, 1, start=t)
        assert opt.hypergradients == pytest.approx(twin.hypergradients[::-1], rel=1e-9, abs=1e-15)
    torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-12)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAYOUTS = [
    pytest.param(lambda x: x.to(memory_format=torch.channels_last), id="channels_last"),
    pytest.param(lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0), id="permuted"),
    pytest.param(lambda x: torch.stack([x, x], dim=-1)[..., 1], id="every second element"),
]


@pytest.mark.parametrize(("ours", "options", "rule", "layout"), pairs(OURS, RULES, LAYOUTS))
def test_layout_does_not_matter_and_is_kept(ours, options: dict, rule, layout) -> None:
    plain = nn.Parameter(values(4, 3, 2, 5))
    other = nn.Parameter(layout(values(4, 3, 2, 5)))
    strides = other.stride()
    opt, twin = ours([plain], lr=0.01, rule=rule, **options), ours([other], lr=0.01, rule=rule, **options)
    for t in range(6):
        g = values(4, 3, 2, 5, seed=t) + 1
        plain.grad, other.grad = g, layout(g) if t % 2 else g.clone()
        opt.step()
        twin.step()
        torch.testing.assert_close(plain, other, rtol=1e-12, atol=1e-12, check_stride=False)
        assert opt.hypergradients == pytest.approx(twin.hypergradients, rel=1e-12)
    assert other.stride() == strides
    assert {x.stride() for x in twin.state[other].values() if isinstance(x, torch.Tensor)} <= {torch.empty_like(other).stride()}


@pytest.mark.parametrize(("ours", "options", "run"), turns(OURS, ALL_RUNS, 3))
def test_complex_parameters_are_pairs_of_real_ones(ours, options: dict, run: dict) -> None:
    def start(build) -> tuple:
        params = [nn.Parameter(build(values(3, 2, seed=1))), nn.Parameter(values(3, seed=2))]
        return params, ours(params, lr=0.01, **run, **options)

    (z, a), opt = start(torch.view_as_complex)
    (xy, b), twin = start(lambda x: x)
    for t in range(8):
        for w, real, optimizer in [(z, a, opt), (torch.view_as_complex(xy), b, twin)]:
            optimizer.zero_grad()
            c = torch.view_as_complex(values(3, 2, seed=10 + t))
            ((w.conj() * c + real).abs() ** 2 + (w * w).real).sum().backward()
            optimizer.step()
        torch.testing.assert_close((torch.view_as_real(z), a), (xy, b), rtol=0, atol=1e-12, check_stride=False)
        assert opt.hypergradients == pytest.approx(twin.hypergradients, rel=1e-10)
    assert lrs(opt) != [0.01]


def test_lazily_conjugated_gradient_is_read_as_its_value() -> None:
    lazy, plain = (nn.Parameter(torch.ones(2, dtype=torch.complex128)) for _ in range(2))
    opt, twin = SGDHD([lazy], lr=0.1, hypergrad_lr=1e-3), SGDHD([plain], lr=0.1, hypergrad_lr=1e-3)
    for g in (1 + 2j, 3 - 1j):
        lazy.grad = torch.full((2,), g).to(lazy.dtype).conj()
        plain.grad = lazy.grad.resolve_conj()
        opt.step()
        twin.step()
    assert lazy.tolist() == plain.tolist()
    assert opt.hypergradients == twin.hypergradients


def test_conjugated_parameter_is_refused() -> None:
    w, conjugate = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.complex64).conj())
    with pytest.raises(ValueError, match=r"lazy conjugate.*resolve_conj\(\)"):
        SGDHD([conjugate])
    opt = SGDHD([w])
    with pytest.raises(ValueError, match=r"lazy conjugate.*resolve_conj\(\)"):
        opt.add_param_group({"params": [conjugate]})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(("ours", "options", "rule", "scope"), pairs(OURS, RULES, ["group", "global"]))
def test_scalar_and_empty_parameters(ours, options: dict, rule, scope: str) -> None:
    """A 0-dim parameter is one of shape [1]; one without elements changes nothing."""
    scalar, vector, empty = (nn.Parameter(x) for x in (torch.tensor(2.0), torch.tensor([2.0]), torch.zeros(0, 3)))
    opt = ours([empty, scalar], lr=0.01, rule=rule, scope=scope, **options)
    twin = ours([vector], lr=0.01, rule=rule, scope=scope, **options)
    for g in (1.0, 0.5, -0.25, 2.0):
        apply([empty, scalar], opt, [g, g])
        apply([vector], twin, [g])
        assert (scalar.item(), lrs(opt), opt.hypergradients) == (vector.item(), lrs(twin), twin.hypergradients)
    assert scalar.item() != 2.0


@pytest.mark.parametrize(("ours", "options", "run"), turns(OURS, ALL_RUNS, 3))
def test_step_without_any_gradient_changes_nothing(ours, options: dict, run: dict) -> None:
    problem = Problem()
    opt = ours(problem.groups(), lr=0.25, **run, **options)
    opt.step()
    assert set(opt.hypergradients) == {0.0}
    assert lrs(opt) == [0.25, 0.25]
    assert torch.equal(flat(problem.parameters()), flat(Problem().parameters()))


HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 4097], ids=["one element", "4097"])
def test_hypergradient_accumulates_in_float32_or_wider(dtype: torch.dtype, size: int) -> None:
    """300² overflows float16; 4097 × 90000 needs 13 bits of mantissa."""
    w = nn.Parameter(torch.zeros(size, dtype=dtype))
    opt = SGDHD([w], lr=1e-3, hypergrad_lr=1e-12)
    apply([w], opt, [300.0], [300.0])
    assert opt.hypergradients == pytest.approx([-size * 90000.0], rel=1e-6)
    assert opt.skipped == 0


@pytest.mark.parametrize(
    ("ours", "options", "dtype"),
    [
        pytest.param(*row.values, dtype, id=f"{row.id}-{dtype}")
        # In float16 g² underflows at these gradients, in torch's Adam as well.
        for dtype, rows in [(torch.float16, OURS[:4]), (torch.bfloat16, OURS), (torch.float32, OURS)]
        for row in rows
    ],
)
@pytest.mark.parametrize("rule", RULES)
def test_narrow_parameters_follow_the_wide_ones(ours, options: dict, dtype: torch.dtype, rule) -> None:
    narrow, wide = Problem(dtype), Problem(dtype)
    wide.model.double()
    wide.x = wide.x.double()
    opt = ours(narrow.parameters(), lr=0.01, rule=rule, **options)
    twin = ours(wide.parameters(), lr=0.01, rule=rule, **options)
    narrow.train(opt, 5)
    wide.train(twin, 5)
    eps = torch.finfo(dtype).eps
    assert opt.hypergradients == pytest.approx(twin.hypergradients, rel=50 * eps, abs=eps)
    torch.testing.assert_close(flat(narrow.parameters()).double(), flat(wide.parameters()), rtol=4 * eps, atol=4 * eps)
    assert {p.dtype for p in narrow.parameters()} == {dtype}


@pytest.mark.parametrize(("dtype", "ours", "options", "rule"), pairs(HALF, OURS, RULES))
def test_elements_without_gradient_stay_finite(dtype: torch.dtype, ours, options: dict, rule) -> None:
    """ε = 1e-8 is 0 in float16."""
    w = nn.Parameter(torch.ones(3, dtype=dtype))
    opt = ours([w], lr=0.01, rule=rule, **{**options, "weight_decay": 0.0})
    g = torch.tensor([0.0, 1.0, -1.0])
    apply([w], opt, [g], [g], [g])
    assert w[0] == 1
    assert w.isfinite().all()
    assert opt.skipped == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize(("ours", "options", "run"), turns(OURS, ALL_RUNS, 3))
def test_parameters_on_two_devices(ours, options: dict, run: dict) -> None:
    here, there = ([nn.Parameter(values(3, seed=i).to(device)) for i, device in enumerate(pair)] for pair in (["cpu"] * 2, ["cpu", "cuda"]))
    one, other = ([{"params": [p]} for p in params] for params in (here, there))
    opt, twin = ours(one, lr=0.01, **run, **options), ours(other, lr=0.01, **run, **options)
    for t in range(5):
        for p, q in zip(here, there, strict=True):
            p.grad = values(3, seed=10 + t)
            q.grad = p.grad.to(q.device)
        opt.step()
        twin.step()
    assert twin.hypergradients == pytest.approx(opt.hypergradients, rel=1e-9)
    assert [p.tolist() for p in there] == [pytest.approx(p.tolist(), rel=1e-9) for p in here]
