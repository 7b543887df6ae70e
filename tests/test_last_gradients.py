"""Plain SGD stores the gradient of a step as its direction if zero_grad() leaves it alone, and notices when it is changed."""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cases import Problem, flat
from hypergradient import SGDHD, Additive, last_gradients


@pytest.fixture(autouse=True)
def small_gradients_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_gradients, "SMALL", 0)


def start(**options: Any) -> tuple[Problem, SGDHD]:
    problem = Problem()
    return problem, SGDHD(problem.parameters(), **{"lr": 0.02, "hypergrad_lr": 0.02, **options})


def step(problem: Problem, opt: SGDHD, t: int, set_to_none: bool = True) -> None:
    opt.zero_grad(set_to_none=set_to_none)
    problem.loss(t).backward()
    opt.step()


def kept(problem: Problem, opt: SGDHD) -> list[bool]:
    return [opt.state[p]["direction"] is p.grad for p in problem.parameters()]


def test_equals_copying_and_copies_nothing() -> None:
    (one, opt), (other, copying) = start(), start()
    for t in range(10):
        step(one, opt, t)
        step(other, copying, t, set_to_none=False)
        assert kept(one, opt) == [t > 0] * 6  # the first step cannot know yet
        assert kept(other, copying) == [False] * 6
    assert torch.equal(flat(one.parameters()), flat(other.parameters()))
    assert opt.hypergradients == copying.hypergradients


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1},
        {"maximize": True},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"hypergrad_lr": None, "adapt": {"lr": Additive(1e-3), "weight_decay": Additive(0.1)}, "weight_decay": 0.1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:weight_decay is adapted")
def test_what_is_not_the_direction_is_not_kept(options: dict) -> None:
    problem, opt = start(**options)
    for t in range(4):
        step(problem, opt, t)
        assert not any(x is p.grad for p in problem.parameters() for x in opt.state[p].values())


def test_gradients_in_one_buffer_are_copied() -> None:
    """As torch.distributed and FSDP have them: setting to None leaves the memory to the next gradient."""
    problem, opt = start()
    buffer = torch.zeros(sum(p.numel() for p in problem.parameters()), dtype=torch.float64)
    for t in range(4):
        found = torch.autograd.grad(problem.loss(t), problem.parameters())
        pieces = buffer.split([g.numel() for g in found])
        for p, g, piece in zip(problem.parameters(), found, pieces, strict=True):
            p.grad = piece.view_as(g).copy_(g)
        opt.step()
        assert kept(problem, opt) == [False] * 6


def scaled(p: nn.Parameter) -> None:
    assert p.grad is not None
    p.grad.mul_(2)


def accumulated(p: nn.Parameter) -> None:
    assert p.grad is not None
    p.grad.add_(1.0)


@pytest.mark.parametrize("change", [scaled, accumulated, lambda p: p.grad.zero_()], ids=["scaled", "accumulated", "zeroed"])
def test_a_change_is_noticed_once(change: Callable[[nn.Parameter], None]) -> None:
    """The tensor does not count in the next hypergradient, and is copied from then on."""
    problem, opt = start()
    for t in range(4):
        step(problem, opt, t)
    changed, *others = problem.parameters()
    directions = [p.grad.clone() for p in others]
    change(changed)
    with pytest.warns(UserWarning, match="gradients of 1 parameters were changed after a step") as caught:
        step(problem, opt, 4)
    assert [w.filename for w in caught] == [__file__]
    h = -sum((p.grad * d).sum().item() for p, d in zip(others, directions, strict=True))
    assert opt.hypergradients == pytest.approx([h], rel=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(5, 8):
            directions = [p.grad.clone() for p in problem.parameters()]
            change(changed)
            step(problem, opt, t)
            h = -sum((p.grad * d).sum().item() for p, d in zip(problem.parameters(), directions, strict=True))
            assert opt.hypergradients == pytest.approx([h], rel=1e-12)
            assert kept(problem, opt) == [False, *[True] * 5]


def test_options_that_change_do_not_write_to_what_was_kept() -> None:
    problem, opt = start()
    for t in range(3):
        step(problem, opt, t)
    gradients = [p.grad for p in problem.parameters()]
    before = copy.deepcopy(gradients)
    opt.param_groups[0]["weight_decay"] = 0.1
    step(problem, opt, 3)
    assert all(map(torch.equal, gradients, before))


def test_checkpoints_hold_plain_tensors() -> None:
    problem, opt = start()
    for t in range(3):
        step(problem, opt, t)
    assert all(kept(problem, opt))
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)["state"]
    for own, p in zip(state.values(), problem.parameters(), strict=True):
        assert torch.equal(own["direction"], p.grad)
        assert not vars(own["direction"])
