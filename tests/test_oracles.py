"""The four oracles: the paper's text, torch at β = 0, autograd through the update, and an uninterrupted run."""

import copy
from itertools import islice

import numpy as np
import pytest
import torch

import reference
from cases import CASES, Case, Problem, flat, pairs, resumed
from hypergradient import SGDHD, AdamWHD, Additive, Multiplicative

SCOPES = ["group", "global", "tensor"]
RULES = [
    pytest.param(lambda case: Additive(case.beta), lambda case: reference.additive(case.beta), id="additive"),
    pytest.param(lambda case: Multiplicative(0.02), lambda case: reference.multiplicative(0.02), id="multiplicative"),
]


def parts_of(scope: str, groups: list[dict]) -> np.ndarray:
    """The reference's masks: one part a group, one in all weighted by the groups' ratios, or one a tensor."""
    sizes = [[p.numel() for p in group["params"]] for group in groups]
    if scope == "global":
        largest = max(group["lr"] for group in groups)
        return np.concatenate([np.full(sum(n), g["lr"] / largest) for n, g in zip(sizes, groups, strict=True)])[None]
    lengths = [sum(n) for n in sizes] if scope == "group" else [n for group in sizes for n in group]
    return np.repeat(np.eye(len(lengths)), lengths, axis=1)


@pytest.mark.parametrize(("case", "ours", "theirs", "scope"), pairs(CASES, RULES, SCOPES))
def test_agrees_with_the_paper(case: Case, ours, theirs, scope: str) -> None:
    problem = Problem()
    groups = problem.groups()
    groups[0]["lr"], groups[1]["lr"] = case.lr, case.lr / 2
    opt = case.ours(groups, rule=ours(case), scope=scope, **case.options)

    twin = Problem()

    def gradient(theta: np.ndarray, t: int) -> np.ndarray:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), twin.parameters())
        return flat(list(torch.autograd.grad(twin.loss(t - 1), twin.parameters()))).numpy()

    parts = parts_of(scope, opt.param_groups)
    alpha0 = {"group": [case.lr, case.lr / 2], "global": [case.lr], "tensor": [case.lr] * 3 + [case.lr / 2] * 3}[scope]
    paper = case.paper(flat(twin.parameters()).numpy(), gradient, np.array(alpha0), parts, theirs(case), **case.paper_options)
    for t, (theta, alpha_t, h) in enumerate(islice(paper, 200)):
        alpha = alpha_t
        problem.train(opt, 1, start=t)
        assert opt.hypergradients == pytest.approx(h, rel=1e-8, abs=1e-10), t
        np.testing.assert_allclose(flat(problem.parameters()).numpy(), theta, rtol=0, atol=1e-10)
    lrs = [group["lr"] for group in opt.param_groups]
    if scope == "tensor":
        alpha = alpha.reshape(2, 3).mean(axis=1)
    assert lrs == pytest.approx([alpha[0], alpha[0] / 2] if scope == "global" else list(alpha), rel=1e-9)
    assert abs(lrs[0] / case.lr - 1) > 0.05, "the learning rate hardly moved: the test shows nothing"


@pytest.mark.parametrize(("case", "maximize", "scope"), pairs(CASES, [False, True], SCOPES))
def test_equals_torch_without_hypergradient(case: Case, maximize: bool, scope: str) -> None:
    ours, theirs = Problem(), Problem()
    options = case.options | {"maximize": maximize}
    ours.train(case.ours(ours.groups(), lr=case.lr, hypergrad_lr=0, scope=scope, **options), 50)
    theirs.train(case.base(theirs.groups(), lr=case.lr, **options), 50)
    torch.testing.assert_close(flat(ours.parameters()), flat(theirs.parameters()), rtol=0, atol=1e-12)


def test_dampening_equals_torch() -> None:
    ours, theirs = Problem(), Problem()
    ours.train(SGDHD(ours.parameters(), 0.02, 0.9, 0.3, hypergrad_lr=0), 50)
    theirs.train(torch.optim.SGD(theirs.parameters(), 0.02, 0.9, 0.3), 50)
    torch.testing.assert_close(flat(ours.parameters()), flat(theirs.parameters()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
def test_hypergradient_is_autograd_through_the_update(case: Case, maximize: bool) -> None:
    problem = Problem()
    opt = case.ours(problem.parameters(), lr=case.lr, hypergrad_lr=case.beta, maximize=maximize, **case.options)
    coupled = 0.0 if case.ours is AdamWHD else case.options.get("weight_decay", 0.0)

    def objective(alpha: torch.Tensor, before: dict, unit: dict, t: int) -> torch.Tensor:
        """What step t minimises, at the parameters that the step before it would have reached with learning rate alpha."""
        moved = {name: before[name] - alpha * unit[name] for name in before}
        loss = torch.nn.functional.cross_entropy(torch.func.functional_call(problem.model, moved, problem.x[t]), problem.y[t])
        return (-loss if maximize else loss) + coupled / 2 * sum((p**2).sum() for p in moved.values())

    for t in range(10):
        before = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
        problem.train(opt, 1, start=t)
        lr = opt.param_groups[0]["lr"]
        unit = {name: (before[name] - p.detach()) / lr for name, p in problem.model.named_parameters()}
        expected = torch.func.grad(objective)(torch.tensor(lr, dtype=torch.float64), before, unit, t + 1)
        preview = copy.deepcopy((problem, opt))
        preview[0].train(preview[1], 1, start=t + 1)
        assert preview[1].hypergradients == pytest.approx([expected.item()], rel=1e-9)


@pytest.mark.parametrize(("case", "scope", "dtype"), pairs(CASES, SCOPES, [torch.float64, torch.bfloat16]))
def test_resumed_equals_never_stopped(case: Case, scope: str, dtype: torch.dtype) -> None:
    def start() -> tuple:
        problem = Problem(dtype)
        return problem, case.ours(problem.groups(), lr=case.lr, hypergrad_lr=case.beta, scope=scope, **case.options)

    whole, opt, second, opt_second = resumed(start)
    assert torch.equal(flat(second.parameters()), flat(whole.parameters()))
    assert [g["lr"] for g in opt_second.param_groups] == [g["lr"] for g in opt.param_groups]
    assert opt_second.hypergradients == opt.hypergradients
