"""Learning rates: the value of ``group["lr"]``, which tensors share one, and the options that param groups have separately."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from cases import CASES, Case, Problem, flat, pairs, turns
from hypergradient import SGDHD, AdamHD, AdamWHD, Additive, Multiplicative

SCOPES = ["group", "global", "tensor"]
OPTIMIZERS = [
    pytest.param(SGDHD, id="sgd"),
    pytest.param(lambda params, **options: SGDHD(params, momentum=0.9, nesterov=True, **options), id="nesterov"),
    pytest.param(AdamHD, id="adam"),
    pytest.param(AdamWHD, id="adamw"),
]
LRS = [pytest.param(float, id="float"), pytest.param(lambda lr: torch.tensor(lr, dtype=torch.float64), id="tensor")]


def lrs(opt: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in opt.param_groups]


def tensor_lrs(opt: torch.optim.Optimizer) -> list[float]:
    """What each tensor has moved by: its own, or its param group's."""
    return [opt.state[p].get("lr", group["last"].get("lr")) for group in opt.param_groups for p in group["params"]]


@pytest.mark.parametrize(("case", "scope", "kind"), pairs(CASES, SCOPES, LRS))
def test_first_step_leaves_the_learning_rate(case: Case, scope: str, kind) -> None:
    problem = Problem()
    groups = problem.groups()
    groups[1]["lr"] = kind(0.003)
    opt = case.ours(groups, lr=kind(0.01), hypergrad_lr=1e3, scope=scope, **case.options)
    assert opt.hypergradients == []
    problem.train(opt, 1)
    assert lrs(opt) == pytest.approx([0.01, 0.003], rel=1e-12)
    assert all(h == 0.0 for h in opt.hypergradients)


@pytest.mark.parametrize(("scope", "kind", "rule"), pairs(SCOPES, LRS, [Additive(1e-3), Multiplicative(0.02)]))
def test_lr_read_is_the_one_used_and_lr_found_is_adapted(scope: Any, kind, rule) -> None:
    """θ moves by −lr g, with lr as it reads after the step; what is written to lr before the step is what the rule starts from."""
    problem = Problem()
    opt = SGDHD(problem.parameters(), lr=kind(0.05), rule=rule, scope=scope)
    (group,) = opt.param_groups
    for t, found in enumerate([0.05, 0.04, 0.07, 0.06]):
        group["lr"] = kind(found)
        before, _ = flat(problem.parameters()).clone(), problem.train(opt, 1, start=t)
        g = flat([p.grad for p in problem.parameters() if p.grad is not None])
        alpha = torch.cat(
            [torch.full((p.numel(),), lr, dtype=torch.float64) for p, lr in zip(problem.parameters(), tensor_lrs(opt), strict=True)]
        )
        torch.testing.assert_close(flat(problem.parameters()), before - alpha * g, rtol=0, atol=1e-15)
        assert sum(tensor_lrs(opt)) / 6 == pytest.approx(lrs(opt)[0], rel=1e-12)
        assert (lrs(opt)[0] == pytest.approx(found, rel=1e-12)) == (t == 0)
        assert lrs(opt)[0] == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float_lr_stays_a_float(optimizer, scope: str) -> None:
    problem = Problem()
    opt = optimizer(problem.groups(), lr=0.01, hypergrad_lr=1e-4, scope=scope)
    problem.train(opt, 3)
    assert [type(group["lr"]) for group in opt.param_groups] == [float, float]


@pytest.mark.parametrize(("optimizer", "shape", "scope"), pairs(OPTIMIZERS, [(), (1,)], SCOPES))
def test_tensor_lr_is_updated_in_place(optimizer, shape: tuple, scope: str) -> None:
    """The tensor's own dtype and shape stay, and two groups that were given one tensor do not share it."""
    problem, twin = Problem(), Problem()
    lr = torch.full(shape, 0.01, dtype=torch.float64)
    opt = optimizer(problem.groups(), lr=lr, hypergrad_lr=1e-4, scope=scope)
    objects = [group["lr"] for group in opt.param_groups]
    problem.train(opt, 8)
    expected = optimizer(twin.groups(), lr=0.01, hypergrad_lr=1e-4, scope=scope)
    twin.train(expected, 8)
    assert [id(group["lr"]) for group in opt.param_groups] == [id(x) for x in objects]
    assert objects[0] is lr
    assert objects[1] is not lr
    assert [(x.shape, x.dtype) for x in objects] == [(shape, torch.float64)] * 2
    assert lrs(opt) == lrs(expected) != [0.01, 0.01]


def test_two_groups_given_the_same_lr_tensor_do_not_share_it() -> None:
    problem, lr = Problem(), torch.tensor(0.01)
    opt = SGDHD([{**group, "lr": lr} for group in problem.groups()], hypergrad_lr=1e-2)
    problem.train(opt, 3)
    assert len(set(lrs(opt))) == 2


@pytest.mark.parametrize(
    "kind",
    [
        LRS[0],
        pytest.param(torch.tensor, id="tensor"),
    ],
)
def test_group_added_later_starts_from_the_lr_of_the_constructor(kind) -> None:
    problem = Problem()
    first, second = problem.groups()
    opt = SGDHD([first], lr=kind(0.01), hypergrad_lr=1e-2)
    problem.train(opt, 5)
    opt.add_param_group(second)
    assert lrs(opt)[0] != pytest.approx(0.01, rel=1e-4)
    assert lrs(opt)[1] == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", [Additive(1e-4), Multiplicative(0.02)], ids=repr)
def test_group_and_global_coincide_on_one_group(case: Case, rule) -> None:
    by_group, by_all = Problem(), Problem()
    one = case.ours(by_group.parameters(), lr=case.lr, rule=rule, scope="group", **case.options)
    other = case.ours(by_all.parameters(), lr=case.lr, rule=rule, scope="global", **case.options)
    assert by_group.train(one, 20) == by_all.train(other, 20)
    assert (lrs(one), one.hypergradients) == (lrs(other), other.hypergradients)
    assert lrs(one) != [case.lr]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", [Additive(1e-4), Multiplicative(0.02)], ids=repr)
def test_tensor_scope_is_a_group_for_each_tensor(case: Case, rule) -> None:
    one, other = Problem(), Problem()
    opt = case.ours(one.groups(), lr=case.lr, rule=rule, scope="tensor", **case.options)
    singles = case.ours([{"params": [p]} for p in other.parameters()], lr=case.lr, rule=rule, scope="group", **case.options)
    assert one.train(opt, 20) == other.train(singles, 20)
    assert opt.hypergradients == singles.hypergradients
    assert tensor_lrs(opt) == lrs(singles)
    assert lrs(opt) == [pytest.approx(math.fsum(lrs(singles)[i : i + 3]) / 3, rel=1e-12) for i in (0, 3)]
    assert len(set(lrs(singles))) == 6


@pytest.mark.parametrize("kind", LRS)
def test_tensor_scope_writing_lr_rescales_all(kind) -> None:
    problem = Problem()
    opt = SGDHD(problem.parameters(), lr=kind(0.01), hypergrad_lr=1e-3, scope="tensor")
    problem.train(opt, 10)
    before, mean = tensor_lrs(opt), lrs(opt)[0]
    opt.param_groups[0].update(hypergrad_lr=0.0, lr=kind(3 * mean))
    problem.train(opt, 1, start=10)
    assert tensor_lrs(opt) == pytest.approx([3 * lr for lr in before], rel=1e-12)
    assert lrs(opt)[0] == pytest.approx(3 * mean, rel=1e-12)
    assert len(set(before)) == 6


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_tensor_scope_with_float32_lr_keeps_what_the_tensor_cannot_hold(optimizer) -> None:
    """The rounding of ``group["lr"]`` is not taken for a write by the user."""
    one, other = Problem(), Problem()
    opt = optimizer(one.parameters(), lr=torch.tensor(0.125), hypergrad_lr=1e-6, scope="tensor")
    expected = optimizer(other.parameters(), lr=0.125, hypergrad_lr=1e-6, scope="tensor")
    assert one.train(opt, 10) == other.train(expected, 10)
    assert lrs(opt) == pytest.approx(lrs(expected), rel=1e-6)


def test_tensor_scope_mean_of_equal_learning_rates_is_exact() -> None:
    problem = Problem()
    opt = SGDHD([{"params": problem.parameters()[i : i + 3]} for i in (0, 3)], lr=0.003, hypergrad_lr=0, scope="tensor")
    problem.train(opt, 3)
    assert lrs(opt) == [0.003, 0.003]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_tensor_scope_tensor_without_gradient_starts_with_the_group(optimizer) -> None:
    problem = Problem()
    *used, late = problem.parameters()
    opt = optimizer(problem.parameters(), lr=0.01, hypergrad_lr=1e-4, scope="tensor")
    late.requires_grad_(False)
    problem.train(opt, 5)
    assert "lr" not in opt.state.get(late, {})
    mean = math.fsum(opt.state[p]["lr"] for p in used) / 5
    assert lrs(opt)[0] == pytest.approx(mean, rel=1e-12)
    late.requires_grad_(True)
    problem.train(opt, 1, start=5)
    assert opt.state[late]["lr"] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("rule", [Additive(1e-3), Multiplicative(0.02)], ids=repr)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_global_scope_keeps_ratios(optimizer, rule) -> None:
    problem = Problem()
    first, second = problem.groups()
    opt = optimizer([{**first, "lr": 0.01}, {**second, "lr": 0.04}], rule=rule, scope="global")
    problem.train(opt, 20)
    assert lrs(opt)[1] / lrs(opt)[0] == pytest.approx(4, rel=1e-12)
    assert len(opt.hypergradients) == 1
    assert lrs(opt)[1] != pytest.approx(0.04, rel=1e-3)


@pytest.mark.parametrize("kind", LRS)
def test_global_scope_keeps_ratios_through_a_warmup_from_0(kind) -> None:
    problem = Problem()
    first, second = problem.groups()
    opt = SGDHD([{**first, "lr": kind(0.01)}, {**second, "lr": kind(0.04)}], hypergrad_lr=1e-3, scope="global")
    scheduler = LambdaLR(opt, lambda t: min(t, 3) / 3)
    before = flat(problem.parameters()).clone()
    problem.train(opt, 1)
    assert torch.equal(flat(problem.parameters()), before)
    for t in (1, 2, 3):
        scheduler.step()
        problem.train(opt, 1, start=t)
        used = [float(group["alpha"]) for group in opt.param_groups]
        assert used[1] == pytest.approx(4 * used[0], rel=1e-6)
        assert used[0] > 0


@pytest.mark.parametrize("kind", LRS)
def test_global_scope_keeps_ratios_through_a_bound_at_0(kind) -> None:
    w, v = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    groups = [{"params": [w], "lr": kind(0.01)}, {"params": [v], "lr": kind(0.04)}]
    opt = SGDHD(groups, hypergrad_lr=0.02, scope="global", lr_bounds=(0, 1))
    seen = []
    for sign in (1, -1, -1, 1, -1, -1):
        w.grad, v.grad = torch.full((2,), float(sign)), torch.full((3,), float(sign))
        opt.step()
        seen.append(lrs(opt))
    assert seen[1] == seen[3] == seen[4] == [0.0, 0.0]
    assert seen[2] == pytest.approx([0.07 / 4, 0.07], rel=1e-6)
    assert seen[5] == pytest.approx([0.07 / 4, 0.07], rel=1e-6)


def two_vectors(scope: Any, **options: Any) -> tuple[list[nn.Parameter], Any]:
    params = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    return params, SGDHD([{"params": [p], "lr": lr} for p, lr in zip(params, (0.01, 0.04), strict=True)], scope=scope, **options)


def test_global_scope_cosine_is_that_of_the_step() -> None:
    """A gradient along the step that was made, which has the ratios in it, has the cosine 1."""
    params, opt = two_vectors("global", rule=Multiplicative(0.5))
    for row in [(1.0, 1.0), (0.25, 1.0)]:
        for p, g in zip(params, row, strict=True):
            p.grad = torch.full_like(p, g)
        opt.step()
    assert lrs(opt) == pytest.approx([0.015, 0.06], rel=1e-12)


def test_global_scope_goes_on_from_a_checkpoint_of_group_scope() -> None:
    params, opt = two_vectors("group", hypergrad_lr=0)
    others, twin = two_vectors("global", hypergrad_lr=1e-3)
    for p in (*params, *others):
        p.grad = torch.ones_like(p)
    opt.step()
    twin.load_state_dict(opt.state_dict())
    twin.step()
    assert twin.hypergradients == pytest.approx([-(2 * 0.25 + 2)], rel=1e-12)


@pytest.mark.parametrize("lr", [0.5, 5.0])
def test_global_scope_group_added_later_does_not_change_the_step_that_was_made(lr: float) -> None:
    params, opt = two_vectors("global", hypergrad_lr=0)
    late = nn.Parameter(torch.ones(2, dtype=torch.float64))
    for p in (*params, late):
        p.grad = torch.ones_like(p)
    opt.step()
    opt.add_param_group({"params": [late], "lr": lr})
    opt.step()
    assert opt.hypergradients == pytest.approx([-(2 * 0.25 + 2)], rel=1e-12)


@pytest.mark.parametrize("option", [{"hypergrad_lr": 1e-5}, {"lr_bounds": (0, 1)}], ids=["hypergrad_lr", "lr_bounds"])
def test_global_scope_has_one_adaptation(option: dict) -> None:
    problem = Problem()
    first, second = problem.groups()
    with pytest.raises(ValueError, match="global.*" + next(iter(option))):
        problem.train(SGDHD([first, {**second, **option}], lr=0.1, scope="global"), 1)


OWN: dict[type, list[dict[str, Any]]] = {
    SGDHD: [
        {"lr": 0.02, "hypergrad_lr": 1e-3, "weight_decay": 0.1},
        {"lr": 0.01, "momentum": 0.9, "nesterov": True},
        {"lr": torch.tensor(0.05, dtype=torch.float64), "momentum": 0.8, "dampening": 0.1, "lr_bounds": (0.05, 0.0502)},
    ],
    AdamHD: [
        {"lr": 0.02, "hypergrad_lr": 1e-3, "weight_decay": 0.1},
        {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-4},
        {"lr": torch.tensor(0.05, dtype=torch.float64), "maximize": True, "lr_bounds": (0.05, 0.0502)},
    ],
}
OWN[AdamWHD] = OWN[AdamHD]


@pytest.mark.parametrize(
    ("ours", "scope", "rule", "late"),
    pairs([SGDHD, AdamHD, AdamWHD], ["group", "tensor"], [Additive(1e-3), Multiplicative(0.02)], [0, 4]),
)
def test_groups_with_own_options_are_optimizers_of_their_own(ours, scope: str, rule, late: int) -> None:
    together, apart = Problem(), Problem()
    own = [{**options} for options in OWN[ours]]
    parts = [[problem.parameters()[i : i + 2] for i in (0, 2, 4)] for problem in (together, apart)]
    opt = ours([{"params": parts[0][0], **own[0]}], rule=rule, scope=scope)
    own[0].setdefault("hypergrad_lr", rule.beta)
    singles = [ours([{"params": parts[1][0], **own[0]}], rule=rule, scope=scope)]
    for t in range(12):
        for i in (1, 2):
            if t == late * i:
                lr = own[i]["lr"]
                opt.add_param_group({"params": parts[0][i], **own[i], "lr": lr.clone() if isinstance(lr, torch.Tensor) else lr})
                singles.append(ours([{"params": parts[1][i], **own[i]}], rule=rule, scope=scope))
        together.train(opt, 1, start=t)
        apart.model.zero_grad()
        apart.loss(t).backward()
        for single in singles:
            single.step()
    assert torch.equal(flat(together.parameters()), flat(apart.parameters()))
    assert opt.hypergradients == [h for single in singles for h in single.hypergradients]
    assert lrs(opt) == [lr for single in singles for lr in lrs(single)]


BUFFERS = [
    pytest.param(SGDHD, {}, 1, id="sgd"),
    pytest.param(SGDHD, {"weight_decay": 0.1}, 1, id="sgd-decay"),
    pytest.param(SGDHD, {"momentum": 0.9}, 1, id="momentum"),
    pytest.param(SGDHD, {"momentum": 0.9, "nesterov": True}, 2, id="nesterov"),
    pytest.param(AdamHD, {}, 2, id="adam"),
    pytest.param(AdamWHD, {}, 2, id="adamw"),
]


@pytest.mark.parametrize(("ours", "options", "buffers", "rule", "scope"), pairs(BUFFERS, [Additive(1e-4), Multiplicative(0.01)], SCOPES))
def test_state_is_no_more_than_promised(ours, options: dict, buffers: int, rule, scope: str) -> None:
    problem = Problem()
    opt = ours(problem.groups(), rule=rule, scope=scope, **options)
    problem.train(opt, 3)
    held = [x for state in opt.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    assert sum(x.numel() for x in held) == buffers * flat(problem.parameters()).numel()


@pytest.mark.parametrize(("case", "scope"), turns(CASES, SCOPES))
def test_additive_climbs_from_0(case: Case, scope: str) -> None:
    problem = Problem()
    opt = case.ours(problem.groups(), lr=0, hypergrad_lr=case.beta, scope=scope, **case.options)
    before = flat(problem.parameters()).clone()
    problem.train(opt, 1)
    assert torch.equal(flat(problem.parameters()), before)
    losses = [problem.train(opt, 1)[0] for _ in range(30)]  # one batch, so that h is negative
    assert min(lrs(opt)) > 0
    assert losses[-1] < losses[0]


LOW, HIGH = 0.1171875, 0.1484375  # exact in every dtype


@pytest.mark.parametrize(("scope", "rule", "kind"), pairs(SCOPES, [Additive(1.0), Multiplicative(0.9)], LRS))
def test_bounds_hold(scope: Any, rule, kind) -> None:
    problem = Problem()
    opt = SGDHD(problem.groups(), lr=kind(0.125), rule=rule, scope=scope, lr_bounds=(LOW, HIGH))
    seen = []
    for t in range(25):
        problem.train(opt, 1, start=t)
        seen += tensor_lrs(opt)
    assert min(seen) == LOW
    assert max(seen) == HIGH


@pytest.mark.parametrize(
    ("bounds", "sign", "lr"),
    [
        pytest.param((None, 0.25), 1, 0.25, id="high"),
        pytest.param((None, 0.25), -1, -0.075, id="no low"),
        pytest.param((0.0625, None), -1, 0.0625, id="low"),
        pytest.param((0.0625, None), 1, 0.325, id="no high"),
    ],
)
def test_bound_on_one_side(bounds: tuple, sign: int, lr: float) -> None:
    w = nn.Parameter(torch.ones(2))
    opt = SGDHD([w], lr=0.125, hypergrad_lr=0.1, lr_bounds=bounds)
    for scale in (1, sign):
        w.grad = torch.full((2,), float(scale))
        opt.step()
    assert lrs(opt) == pytest.approx([lr], rel=1e-6)


def test_global_bounds_hold_for_every_group() -> None:
    problem = Problem()
    first, second = problem.groups()
    groups = [{**first, "lr": 0.14}, {**second, "lr": 0.12}]
    opt = SGDHD(groups, hypergrad_lr=1.0, scope="global", lr_bounds=(LOW, HIGH))
    seen = [lr for t in range(25) if problem.train(opt, 1, start=t) for lr in lrs(opt)]
    assert min(seen) == pytest.approx(LOW, rel=1e-12)
    assert max(seen) == HIGH


@pytest.mark.parametrize("scope", SCOPES)
def test_additive_without_bounds_may_fall_below_0(scope: Any) -> None:
    w = nn.Parameter(torch.ones(2))
    opt = SGDHD([w], lr=0.1, hypergrad_lr=0.1, scope=scope)
    for sign in (1.0, -1.0):
        w.grad = torch.full((2,), sign)
        opt.step()
    assert lrs(opt) == pytest.approx([-0.1])
    assert w.tolist() == pytest.approx([0.8, 0.8])  # 1 − 0.1·1 − (−0.1)·(−1)


@pytest.mark.parametrize("scope", SCOPES)
def test_nan_learning_rate_is_not_taken_for_a_bound(scope: Any) -> None:
    w = nn.Parameter(torch.ones(2))
    opt = SGDHD([w], lr=0.1, hypergrad_lr=0.1, scope=scope, lr_bounds=(0.01, 1))
    w.grad = torch.ones(2)
    opt.step()
    opt.param_groups[0]["lr"] = math.nan
    with pytest.warns(UserWarning, match="skipped a step"):
        opt.step()
    assert w.tolist() == pytest.approx([0.9, 0.9])
