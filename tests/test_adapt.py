"""Hyperparameters other than the learning rate: the adapt dict, adapt(), towers and scope="element", in realistic training loops."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import lr_scheduler

from cases import Problem, flat, pairs
from hypergradient import SGDHD, AdamHD, AdamWHD, Adapted, Additive, Multiplicative
from hypergradient.hyperparameters import HYPERPARAMETERS, coordinate_bounds, update_hyperparameter

pytestmark = pytest.mark.filterwarnings("ignore:weight_decay is adapted on the training loss")  # on purpose

A, M = Additive(0.05), Multiplicative(0.05)
HIGHER = Additive(Adapted(0.05, Multiplicative(Adapted(0.05, Additive(0.01)))))
NESTEROV = {"momentum": 0.9, "nesterov": True}
ADAPTED = {
    "momentum": (SGDHD, {"momentum": 0.9}, {"lr": Multiplicative(0.02), "momentum": A}),
    "nesterov": (SGDHD, {"weight_decay": 0.1, **NESTEROV}, {"momentum": M, "weight_decay": A}),
    "adam": (AdamHD, {"weight_decay": 0.1, "eps": 1e-3}, {"betas": (A, M), "eps": A, "weight_decay": M}),
    "adamw": (AdamWHD, {"weight_decay": 0.1, "eps": 1e-3}, {"lr": Multiplicative(0.02), "betas": (None, A), "weight_decay": A}),
    "tower": (SGDHD, {"momentum": 0.9}, {"lr": Additive(Adapted(1e-4, Multiplicative(0.05))), "momentum": HIGHER}),
    "lr alone": (AdamHD, {}, {"lr": HIGHER}),
}
SCOPES = ["group", "global", "tensor", "element"]


def build(ours: Any, options: dict, adapt: dict, problem: Problem, **more: Any) -> Any:
    return ours(problem.groups(), **{"lr": 0.01, **options, **more}, adapt=adapt)


def table(*names: str, **more: list) -> Any:
    """Ways to adapt under every scope, each two beside each other option; only a constant β moves element by element."""

    def is_of_scopes(ours: Any, options: dict, adapt: dict, scope: str, *more: Any) -> bool:
        return scope == "element" and adapt in (ADAPTED["tower"][2], ADAPTED["lr alone"][2])

    ways = [pytest.param(*ADAPTED[name], id=name) for name in names or ADAPTED]
    scopes = more.pop("scope", SCOPES)
    return pytest.mark.parametrize(("ours", "options", "adapt", "scope", *more), pairs(ways, scopes, *more.values(), unless=is_of_scopes))


TABLE = table()


def hyperparameters(opt: Any) -> list[dict[str, Any]]:
    """All that adapts in each param group, and what is kept for it."""
    names = ("lr", "momentum", "weight_decay", "betas", "eps", "hypergrad_lr", "adapted", "memory")
    return [{name: copy.deepcopy(group[name]) for name in names if name in group} for group in opt.param_groups]


def same(one: Problem, opt: Any, other: Problem, twin: Any) -> None:
    """Two runs stand at the same point, bit for bit."""
    assert torch.equal(flat(one.parameters()), flat(other.parameters()))
    assert hyperparameters(opt) == hyperparameters(twin)
    assert (opt.hypergradients, opt.other_hypergradients, opt.skipped) == (twin.hypergradients, twin.other_hypergradients, twin.skipped)
    torch.testing.assert_close(opt.state_dict()["state"], twin.state_dict()["state"], rtol=0, atol=0)


def through_a_file(checkpoint: Any) -> Any:
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def backward(problem: Problem, opt: Any, t: int) -> None:
    opt.zero_grad()
    problem.loss(t).backward()


# Each way that a loop may adapt: on the training loss, on another loss, or on it now and then.


def on_training(opt: Any, problem: Problem, t: int) -> None:
    problem.train(opt, 1, start=t)


def on_another(opt: Any, problem: Problem, t: int) -> None:
    opt.adapt(problem.loss(t + 7))
    problem.train(opt, 1, start=t)


def now_and_then(opt: Any, problem: Problem, t: int) -> None:
    problem.train(opt, 1, start=t)
    if t % 3 == 2:
        opt.adapt(problem.loss(t + 7))


WAYS = [pytest.param(f, id=f.__name__) for f in (on_training, on_another, now_and_then)]


@table(way=WAYS)
def test_resumed_equals_never_stopped(ours, options: dict, adapt: dict, scope: str, way) -> None:
    one, other = Problem(), Problem()
    opt = build(ours, options, adapt, one, scope=scope)
    for t in range(6):
        way(opt, one, t)
    saved = through_a_file({"model": one.model.state_dict(), "opt": opt.state_dict()})
    twin = build(ours, options, adapt, other, scope=scope, lr=0.5)
    other.model.load_state_dict(saved["model"])
    twin.load_state_dict(saved["opt"])
    for t in range(6, 12):
        way(opt, one, t)
        way(twin, other, t)
    same(one, opt, other, twin)
    assert all(opt.param_groups[0][name] != opt.defaults[name] for name in adapt)


@table(first=[0, 4])
def test_saved_between_adapt_and_step(ours, options: dict, adapt: dict, scope: str, first: int) -> None:
    one, other = Problem(), Problem()
    opt, twin = (build(ours, options, adapt, problem, scope=scope) for problem in (one, other))
    for t in range(first):
        on_another(opt, one, t)
    opt.adapt(one.loss(9))
    saved = through_a_file({"model": one.model.state_dict(), "opt": opt.state_dict()})
    other.model.load_state_dict(saved["model"])
    twin.load_state_dict(saved["opt"])
    for problem, optimizer in [(one, opt), (other, twin)]:
        problem.train(optimizer, 1, start=first)
        for t in range(first + 1, first + 4):
            on_another(optimizer, problem, t)
    same(one, opt, other, twin)


@TABLE
def test_copy_goes_on_as_the_original(ours, options: dict, adapt: dict, scope: str) -> None:
    problem = Problem()
    opt = build(ours, options, adapt, problem, scope=scope)
    for t in range(4):
        now_and_then(opt, problem, t)
    other, twin = copy.deepcopy((problem, opt))
    for t in range(4, 8):
        now_and_then(opt, problem, t)
    assert not torch.equal(flat(problem.parameters()), flat(other.parameters()))
    for t in range(4, 8):
        now_and_then(twin, other, t)
    same(problem, opt, other, twin)


@table(flatten=[pytest.param(False, id="nested"), pytest.param(True, id="flat")])
def test_distributed_checkpoint(ours, options: dict, adapt: dict, scope: str, flatten: bool) -> None:
    one, other = Problem(), Problem()
    opt, twin = (build(ours, options, adapt, problem, scope=scope) for problem in (one, other))
    one.train(opt, 4)
    flags = StateDictOptions(flatten_optimizer_state_dict=flatten)
    saved = copy.deepcopy(get_optimizer_state_dict(one.model, opt, options=flags))
    set_optimizer_state_dict(other.model, twin, saved, options=flags)
    other.model.load_state_dict(one.model.state_dict())
    one.train(opt, 4, start=4)
    other.train(twin, 4, start=4)
    assert torch.equal(flat(one.parameters()), flat(other.parameters()))
    assert hyperparameters(opt) == hyperparameters(twin)


@TABLE
def test_checkpoint_without_adapt_goes_on_with_it_and_the_reverse(ours, options: dict, adapt: dict, scope: str) -> None:
    """The first step leaves alone what was not kept, the next ones move it; back without adapt it stays."""
    one, other, third = Problem(), Problem(), Problem()
    plain = ours(one.groups(), lr=0.01, hypergrad_lr=0.0, scope=scope, **options)
    one.train(plain, 4)
    opt = build(ours, options, adapt, other, scope=scope)
    other.model.load_state_dict(one.model.state_dict())
    opt.load_state_dict(through_a_file(plain.state_dict()))
    other.train(opt, 3, start=4)
    names = {"beta1": "betas", "beta2": "betas"}
    assert all(opt.param_groups[0][names.get(name, name)] != plain.param_groups[0][names.get(name, name)] for name in opt.setup.other_rules)
    back = ours(third.groups(), lr=0.01, hypergrad_lr=0.0, scope=scope, **options)
    third.model.load_state_dict(other.model.state_dict())
    back.load_state_dict(through_a_file(opt.state_dict()))
    third.train(back, 3, start=7)
    for name in opt.setup.other_rules:
        assert back.param_groups[0][names.get(name, name)] == opt.param_groups[0][names.get(name, name)]
    assert back.skipped == opt.skipped == 0


MOVING = [
    pytest.param(SGDHD, {"momentum": 0.9}, {}, id="sgd"),
    pytest.param(AdamWHD, {"weight_decay": 0.1}, {}, id="adamw"),
    pytest.param(SGDHD, {"momentum": 0.9}, {"momentum": A}, id="momentum"),
]


@pytest.mark.parametrize(("before", "after", "ours", "options", "adapt"), pairs(SCOPES, SCOPES, MOVING))
def test_checkpoint_of_another_scope_goes_on(before: Any, after: Any, ours, options: dict, adapt: dict) -> None:
    """Every tensor starts from the learning rate that its group had."""
    one, other = Problem(), Problem()
    opt = build(ours, options, {"lr": M, **adapt}, one, scope=before)
    one.train(opt, 4)
    twin = build(ours, options, {"lr": M, **adapt}, other, scope=after)
    other.model.load_state_dict(one.model.state_dict())
    twin.load_state_dict(through_a_file(opt.state_dict()))
    other.train(twin, 1, start=4)
    for group, theirs in zip(opt.param_groups, twin.param_groups, strict=True):
        assert theirs["lr"] == pytest.approx(group["lr"], rel=0.06)
    other.train(twin, 3, start=5)
    assert (twin.skipped, all(map(math.isfinite, twin.hypergradients))) == (0, True)


@table(way=WAYS)
def test_groups_with_gradients_that_come_and_go(ours, options: dict, adapt: dict, scope: str, way) -> None:
    """Groups move by themselves; one without gradients stays as it is, but for a learning rate that all share."""
    problem = Problem()
    more = [{k: v for k, v in {"momentum": 0.5, "weight_decay": 0.3}.items() if options.get(k)}, {}]
    groups = [{**group, **extra} for group, extra in zip(problem.groups(), more, strict=True)]
    opt = ours(groups, **{"lr": 0.01, **options}, scope=scope, adapt=adapt)
    before = hyperparameters(opt)
    for t in range(8):
        for i, p in enumerate(opt.param_groups[1]["params"]):
            p.requires_grad_(t >= 4 + i)
        way(opt, problem, t)
        if t == 4:  # the second group has one tensor that has moved once
            untouched = hyperparameters(opt)[1]
            assert {k: v for k, v in untouched.items() if k in adapt and not (k == "lr" and scope == "global")} == {
                k: v for k, v in before[1].items() if k in adapt and not (k == "lr" and scope == "global")
            }
    after = hyperparameters(opt)
    for name in adapt:
        assert after[0][name] != before[0][name]
        assert after[1][name] != before[1][name]
        assert after[0][name] != after[1][name] or (name, scope) == ("lr", "global")
    assert opt.skipped == 0


def cycle(opt: Any) -> Any:
    return lr_scheduler.OneCycleLR(opt, max_lr=0.02, total_steps=30, base_momentum=0.5, max_momentum=0.9)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam", "adamw"])
def test_schedulers_and_rules_take_turns(scope: str, name: str) -> None:
    """OneCycleLR writes lr and momentum or β1; the step goes on from what it finds there."""
    ours, options, adapt = ADAPTED[name]
    problem = Problem()
    opt = build(ours, options, adapt, problem, scope=scope)
    scheduler = cycle(opt)
    moved = 0
    for t in range(12):
        found = hyperparameters(opt)
        problem.train(opt, 1, start=t)
        for group, old in zip(hyperparameters(opt), found, strict=True):
            for key in {"momentum", "betas", "lr"} & group.keys() & adapt.keys():
                moved += group[key] != old[key]
                assert group[key] == pytest.approx(old[key], rel=0.2)
        scheduler.step()
    assert moved > 10
    assert opt.skipped == 0


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_momentum_set_to_zero_stays_until_it_is_set_again(name: str) -> None:
    ours, options, adapt = ADAPTED[name]
    problem = Problem()
    opt = ours(problem.parameters(), **{"lr": 0.01, **options, "nesterov": False}, adapt=adapt)
    problem.train(opt, 3)
    opt.param_groups[0]["momentum"] = 0.0
    problem.train(opt, 3, start=3)
    assert opt.param_groups[0]["momentum"] == 0.0
    opt.param_groups[0]["momentum"] = 0.8
    problem.train(opt, 3, start=6)
    assert opt.param_groups[0]["momentum"] not in (0.0, 0.8)


@TABLE
def test_gradients_say_the_same_as_the_loss(ours, options: dict, adapt: dict, scope: str) -> None:
    """And p.grad is neither read nor written, whatever lies there."""
    one, other = Problem(), Problem()
    opt, twin = (build(ours, options, adapt, problem, scope=scope) for problem in (one, other))
    for t in range(6):
        one.train(opt, 1, start=t)
        other.train(twin, 1, start=t)
        for i, (p, q) in enumerate(zip(one.parameters(), other.parameters(), strict=True)):
            p.grad, q.grad = (None if i % 2 else torch.full_like(p, math.nan)), torch.ones_like(q)
        kept = [p.grad for p in [*one.parameters(), *other.parameters()]]
        values = [None if g is None else g.clone() for g in kept]
        opt.adapt(one.loss(t + 7))
        twin.adapt(torch.autograd.grad(other.loss(t + 7), other.parameters()))
        now = [p.grad for p in [*one.parameters(), *other.parameters()]]
        assert all(g is k for g, k in zip(now, kept, strict=True))
        torch.testing.assert_close(now, values, rtol=0, atol=0, equal_nan=True)
        same(one, opt, other, twin)


def test_loss_of_some_parameters() -> None:
    one, other = Problem(), Problem()
    opt, twin = (SGDHD(problem.parameters(), 0.1, hypergrad_lr=1e-2) for problem in (one, other))
    for problem, optimizer in [(one, opt), (other, twin)]:
        problem.train(optimizer, 1)
    opt.adapt((one.parameters()[0] ** 2).sum())
    twin.adapt([2 * other.parameters()[0].detach(), *[None] * 5])
    assert opt.param_groups[0]["lr"] == twin.param_groups[0]["lr"] != 0.1


def test_frozen_parameters_are_left_out_of_the_loss() -> None:
    problem = Problem()
    opt = SGDHD(problem.parameters(), 0.1, hypergrad_lr=1e-2)
    problem.parameters()[1].requires_grad_(False)
    for t in range(2):
        problem.train(opt, 1, start=t)
        opt.adapt(problem.loss(t + 7))
    assert opt.param_groups[0]["lr"] != 0.1


@TABLE
def test_step_leaves_them_alone_after_the_first_adapt(ours, options: dict, adapt: dict, scope: str) -> None:
    problem = Problem()
    opt = build(ours, options, adapt, problem, scope=scope)
    problem.train(opt, 3)
    opt.adapt(problem.loss(9))
    theta, there, elements = flat(problem.parameters()), hyperparameters(opt), [copy.copy(s.get("lr")) for s in opt.state.values()]
    h = opt.hypergradients, opt.other_hypergradients
    problem.train(opt, 3, start=3)
    assert (hyperparameters(opt), (opt.hypergradients, opt.other_hypergradients)) == (there, h)
    assert not torch.equal(flat(problem.parameters()), theta)
    for group in opt.param_groups:
        group["step_adapts"] = True
    problem.train(opt, 1, start=6)
    assert hyperparameters(opt) != there
    assert len(elements) == len(problem.parameters())


@TABLE
def test_adapt_moves_no_parameter_and_before_the_first_step_nothing(ours, options: dict, adapt: dict, scope: str) -> None:
    problem = Problem()
    opt = build(ours, options, adapt, problem, scope=scope)
    there, theta = hyperparameters(opt), flat(problem.parameters())
    opt.adapt(problem.loss(9))
    names = {*adapt, "lr", "hypergrad_lr"}
    assert [{k: g[k] for k in names} for g in hyperparameters(opt)] == [{k: g[k] for k in names} for g in there]
    problem.train(opt, 2)
    theta = flat(problem.parameters())
    opt.adapt(problem.loss(9))
    assert torch.equal(flat(problem.parameters()), theta)
    assert hyperparameters(opt) != there


@table(bad=[math.nan, math.inf])
def test_quantity_that_is_not_finite_moves_nothing(ours, options: dict, adapt: dict, scope: str, bad: float) -> None:
    problem, other = Problem(), Problem()
    opt, twin = (build(ours, options, adapt, p, scope=scope) for p in (problem, other))
    for t in range(3):
        on_another(opt, problem, t)
        on_another(twin, other, t)
    with pytest.warns(UserWarning, match=f"{ours.__name__} skipped a step") as caught:
        opt.adapt(problem.loss(9) * bad)
    assert [w.filename for w in caught] == [__file__]
    opt.adapt([torch.full_like(p, bad) for p in problem.parameters()])  # warns no more
    assert opt.skipped == 2
    twin.skipped = 2
    same(problem, opt, other, twin)
    for t in range(3, 6):
        on_another(opt, problem, t)
        on_another(twin, other, t)
    same(problem, opt, other, twin)


@pytest.mark.parametrize("maximize", [False, True])
def test_quantity_has_the_sign_of_the_loss(maximize: bool) -> None:
    one, other = Problem(), Problem()
    opt, twin = SGDHD(one.parameters(), 0.1, hypergrad_lr=1e-2, maximize=maximize), SGDHD(other.parameters(), 0.1, hypergrad_lr=1e-2)
    for t in range(4):
        for problem, optimizer, sign in [(one, opt, -1 if maximize else 1), (other, twin, 1)]:
            optimizer.zero_grad()
            (sign * problem.loss(t)).backward()
            optimizer.step()
            optimizer.adapt(sign * problem.loss(t + 7))
    same(one, opt, other, twin)


# scope="element"

ELEMENT = [
    pytest.param(ours, options, id=f"{ours.__name__}-{'-'.join(options)}")
    for ours, options in [
        (SGDHD, {}),
        (SGDHD, {"momentum": 0.9}),
        (SGDHD, {"weight_decay": 0.1, **NESTEROV}),
        (AdamHD, {"weight_decay": 0.1}),
        (AdamWHD, {"weight_decay": 0.1}),
    ]
]
OF_ELEMENTS = pytest.mark.parametrize(("ours", "options"), ELEMENT)


ADAPTING = [pytest.param(1, False, id="training"), pytest.param(4, False, id="horizon"), pytest.param(1, True, id="another loss")]


@pytest.mark.parametrize(
    ("ours", "options", "rule", "horizon", "held_out", "bounds"),
    pairs(ELEMENT, [Additive(1e-7), Multiplicative(0.05)], ADAPTING, [(None, None), (0.0095, 0.0102)]),
)
def test_element_is_a_tensor_of_one_number(ours, options: dict, rule, horizon: int, held_out: bool, bounds: tuple) -> None:
    """As many optimizers as numbers: the same problem, of parameters split into tensors of one element each."""
    generator = torch.Generator().manual_seed(0)
    start, c = torch.randn(3, 2, generator=generator, dtype=torch.float64), torch.randn(12, 3, 2, generator=generator, dtype=torch.float64)
    whole = nn.Parameter(start.clone())
    parts = [nn.Parameter(x.clone()) for x in start.reshape(-1)]
    run = {"lr": 0.01, "rule": rule, "horizon": horizon, "lr_bounds": bounds, **options}
    opt, twin = ours([whole], scope="element", **run), ours(parts, scope="tensor", **run)
    for t in range(12):
        for w, optimizer in [(whole, opt), (torch.stack(list(parts)).reshape(3, 2), twin)]:
            optimizer.zero_grad()
            if held_out:
                optimizer.adapt(((w - c[t - 1]) ** 4).sum())
            (((w - c[t]) ** 4).sum() + (w.sum() - t) ** 2).backward()
            optimizer.step()
    torch.testing.assert_close(whole.detach().reshape(-1), torch.stack(list(parts)).detach(), rtol=1e-12, atol=1e-12)
    lrs = [twin.state[p]["lr"] for p in parts]
    assert opt.state[whole]["lr"].reshape(-1).tolist() == pytest.approx(lrs, rel=1e-12)
    assert opt.param_groups[0]["lr"] == pytest.approx(sum(lrs) / 6, rel=1e-12)
    assert max(lrs) > min(lrs)
    low, high = bounds
    assert low is None or min(lrs) >= low
    assert high is None or max(lrs) <= high


@OF_ELEMENTS
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_writing_the_mean_scales_every_element(ours, options: dict, tensor: bool) -> None:
    problem = Problem()
    lr: Any = torch.tensor(0.01, dtype=torch.float64) if tensor else 0.01
    opt = ours(problem.groups(), lr=lr, rule=Multiplicative(0.05), scope="element", **options)
    problem.train(opt, 5)
    for group in opt.param_groups:
        group["hypergrad_lr"] = 0.0
    before = {p: state["lr"].clone() for p, state in opt.state.items()}
    first, second = opt.param_groups
    if tensor:
        first["lr"].mul_(0.5)
    else:
        first["lr"] *= 0.5
    problem.train(opt, 1, start=5)
    for group, factor in [(first, 0.5), (second, 1.0)]:
        for p in group["params"]:
            torch.testing.assert_close(opt.state[p]["lr"], factor * before[p], rtol=1e-12, atol=0)


def test_late_tensor_starts_from_the_mean() -> None:
    one, late = nn.Parameter(torch.ones(2, dtype=torch.float64)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt = SGDHD([one, late], 0.1, rule=Additive(0.01), scope="element")
    for _ in range(3):
        one.grad = torch.tensor([1.0, 2.0], dtype=torch.float64)
        opt.step()
    mean = opt.param_groups[0]["lr"]
    assert mean == pytest.approx(opt.state[one]["lr"].mean().item(), rel=1e-15) != 0.1
    one.grad, late.grad = None, torch.ones_like(late)
    opt.step()
    assert opt.state[late]["lr"].tolist() == [mean] * 3
    assert opt.param_groups[0]["lr"] == pytest.approx(mean, rel=1e-12)


DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", [Additive(1e-6), Multiplicative(0.05)], ids=["additive", "multiplicative"])
@pytest.mark.parametrize("g", [300.0, 1e-3], ids=["large", "small"])
def test_elements_of_narrow_numbers(dtype: torch.dtype, rule, g: float) -> None:
    """300² is infinite in float16, and 1e-6 is a few of its smallest steps."""
    narrow, wide = nn.Parameter(torch.zeros(2, dtype=dtype)), nn.Parameter(torch.zeros(2, dtype=torch.float64))
    rule = Additive(rule.beta * 300.0**2 / g**2 * 0.1) if isinstance(rule, Additive) else rule
    opt, twin = SGDHD([narrow], 2**-6, rule=rule, scope="element"), SGDHD([wide], 2**-6, rule=rule, scope="element")
    for _ in range(2):
        for w, optimizer in [(narrow, opt), (wide, twin)]:
            w.grad = torch.tensor([g, -g / 2], dtype=dtype).to(w.dtype)
            optimizer.step()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(opt.state[narrow]["lr"].double(), twin.state[wide]["lr"], rtol=2 * eps, atol=0)
    assert twin.state[wide]["lr"].tolist() != [2**-6] * 2
    assert opt.skipped == 0


def test_element_that_would_leave_the_numbers_leaves_no_trace() -> None:
    w = nn.Parameter(torch.ones(2))
    opt = SGDHD([w], 0.1, hypergrad_lr=1e38, scope="element")
    w.grad = torch.tensor([1.0, 0.0])
    opt.step()
    before = copy.deepcopy((w.detach(), opt.state_dict()))
    w.grad = torch.tensor([20.0, 0.0])
    with pytest.warns(UserWarning, match="skipped a step"):
        opt.step()
    torch.testing.assert_close((w.detach(), opt.state_dict()), before, rtol=0, atol=0)


# The coordinates in which rules move, and towers.

RULES = [Additive(0.0), Multiplicative(0.0), Additive(Adapted(1.0, Additive(1.0))), Multiplicative(Adapted(1.0, Multiplicative(1.0)))]
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    name=st.sampled_from(sorted(HYPERPARAMETERS)),
    rule=st.sampled_from(RULES),
    beta=st.floats(0, 1e300),
    start=st.floats(0, 1),
    steps=st.lists(st.tuples(NUMBERS, st.floats(0, 1e300), st.floats(0, 1e300)), min_size=1, max_size=4),
    ends=st.lists(st.floats(0, 1), min_size=2, max_size=2),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_values_keep_inside_their_bounds_whatever_the_hypergradient(name, rule, beta, start, steps, ends) -> None:
    """Or the move is not finite, and the step is skipped."""
    own = HYPERPARAMETERS[name]
    low, high = (own.bounds[0] + x * (own.bounds[1] - own.bounds[0]) for x in sorted(ends))
    value, memory = low + start * (high - low), rule.initial_memory()
    for h, g_norm, d_norm in steps:
        x = {"value": value, "beta": beta, "h": h, "g_norm": g_norm, "d_norm": d_norm, "unit": float(own.unit), "low": low, "high": high}
        x |= dict(zip(("lowest", "highest"), coordinate_bounds(rule, own.unit, (low, high)), strict=True))
        found = update_hyperparameter(rule, memory, x)
        if not all(map(math.isfinite, [found.alpha, *found.memory.values(), found.beta or 0.0])):
            return
        assert low <= found.alpha <= high
        assert found.alpha > 0
        assert not own.unit or found.alpha < 1
        value, memory, beta = found.alpha, found.memory, beta if found.beta is None else found.beta


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
@pytest.mark.parametrize("make", [Additive, Multiplicative])
@pytest.mark.parametrize("beta", [0.5, 1e3, 1e12])
def test_runs_keep_inside_the_bounds_they_are_given(name: str, make, beta: float) -> None:
    ours, options, _ = ADAPTED[name]
    bounds: dict[str, Any] = {"momentum": (0.8, 0.95)} if ours is SGDHD else {"betas": ((0.85, 0.92), (None, 0.9995)), "eps": (1e-4, 1e-2)}
    problem = Problem()
    adapt = {key: (make(beta), make(beta)) if key == "betas" else make(beta) for key in bounds}
    opt = ours(problem.parameters(), **{"lr": 0.01, **options}, adapt=adapt, bounds=bounds)
    seen: dict[str, list[float]] = {key: [] for key in opt.setup.bounds}
    for t in range(12):
        problem.train(opt, 1, start=t)
        for key, (low, high) in opt.setup.bounds.items():
            seen[key].append(HYPERPARAMETERS[key].read(opt.param_groups[0]))
            assert low <= seen[key][-1] <= high
    assert opt.skipped == 0
    assert all(len(set(values)) > 2 for values in seen.values()) or beta > 1


def test_beta_of_a_tower_stands_in_the_group_and_may_be_written() -> None:
    one, other = Problem(), Problem()
    rule = Additive(Adapted(1e-3, Multiplicative(0.05)))
    opt, twin = SGDHD(one.groups(), 0.05, rule=rule), SGDHD(other.groups(), 0.05, rule=rule)
    assert [group["hypergrad_lr"] for group in opt.param_groups] == [1e-3, 1e-3]
    for t in range(4):
        one.train(opt, 1, start=t)
        other.train(twin, 1, start=t)
    first, second = opt.param_groups
    assert 1e-3 != first["hypergrad_lr"] != second["hypergrad_lr"] != 1e-3
    same(one, opt, other, twin)
    lr = first["lr"]
    first["hypergrad_lr"] = 0.0
    one.train(opt, 1, start=4)
    other.train(twin, 1, start=4)
    assert (first["lr"], first["hypergrad_lr"]) == (lr, 0.0)
    assert second["lr"] == twin.param_groups[1]["lr"]


def test_tower_of_each_tensor() -> None:
    """As many towers as tensors: the same as param groups of one tensor each; the group shows their mean, and writing it scales them."""
    one, other = Problem(), Problem()
    rule = Additive(Adapted(1e-3, Multiplicative(Adapted(0.05, Additive(0.01)))))
    opt = SGDHD(one.parameters(), 0.05, rule=rule, scope="tensor")
    twin = SGDHD([{"params": [p]} for p in other.parameters()], 0.05, rule=rule)
    one.train(opt, 8)
    other.train(twin, 8)
    assert torch.equal(flat(one.parameters()), flat(other.parameters()))
    betas = [group["hypergrad_lr"] for group in twin.param_groups]
    assert [opt.state[p]["hypergrad_lr"] for p in one.parameters()] == betas
    assert opt.param_groups[0]["hypergrad_lr"] == pytest.approx(sum(betas) / 6, rel=1e-12)
    assert len(set(betas)) == 6
    opt.param_groups[0]["hypergrad_lr"] *= 2
    for group in twin.param_groups:
        group["hypergrad_lr"] *= 2
    one.train(opt, 3, start=8)
    other.train(twin, 3, start=8)
    torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-12)


OTHERS = ("momentum", "nesterov", "adam", "adamw", "tower")


@table(*OTHERS, scope=["group", "element"], dtype=[torch.float32, torch.bfloat16])
def test_narrow_parameters_follow_the_wide_ones(ours, options: dict, adapt: dict, scope: str, dtype: torch.dtype) -> None:
    narrow, wide = Problem(dtype), Problem(dtype)
    wide.model.double()
    wide.x = wide.x.double()
    opt, twin = (build(ours, options, adapt, problem, scope=scope) for problem in (narrow, wide))
    for t in range(4):
        on_another(opt, narrow, t)
        on_another(twin, wide, t)
    eps = torch.finfo(dtype).eps
    for group, theirs in zip(opt.other_hypergradients, twin.other_hypergradients, strict=True):
        assert group == pytest.approx(theirs, rel=400 * eps, abs=eps)
    torch.testing.assert_close(flat(narrow.parameters()).double(), flat(wide.parameters()), rtol=8 * eps, atol=8 * eps)
    assert {p.dtype for p in narrow.parameters()} == {dtype}
    assert opt.skipped == 0


@table(*OTHERS, scope=["group", "element"])
def test_complex_parameters_are_pairs_of_real_ones(ours, options: dict, adapt: dict, scope: str) -> None:
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z, xy = (nn.Parameter(x) for x in (torch.view_as_complex(start.clone()), start.clone()))
    opt, twin = (ours([w], **{"lr": 0.01, **options}, adapt=adapt, scope=scope) for w in (z, xy))
    for t in range(8):
        for w, optimizer in [(z, opt), (torch.view_as_complex(xy), twin)]:
            optimizer.zero_grad()
            optimizer.adapt(((w * (2 - t * 1j) - 1).abs() ** 2).sum())
            ((w * (1 + t * 1j) + 2).abs() ** 2).sum().backward()
            optimizer.step()
        torch.testing.assert_close(torch.view_as_real(z), xy, rtol=0, atol=1e-12)
    for group, theirs in zip(opt.other_hypergradients, twin.other_hypergradients, strict=True):
        assert group == pytest.approx(theirs, rel=1e-9)
    assert all(opt.param_groups[0][key] != opt.defaults[key] for key in adapt)
