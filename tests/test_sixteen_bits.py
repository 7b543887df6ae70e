"""Parameters of float16 and bfloat16 under a rule that averages: the rounding error of a step is stored beside them."""

import copy
import functools
import math
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from cases import Problem, flat, resumed, turns
from hypergradient import SGDHD, AdamHD, AdamWHD, Additive, Autostep, Hypergradient, LionRule, Signal
from hypergradient.average import join, split

MAKE = [
    pytest.param(SGDHD, id="SGDHD"),
    pytest.param(partial(SGDHD, momentum=0.9, capturable=True), id="SGDHD-momentum-capturable"),
    pytest.param(partial(AdamHD, scope="tensor"), id="AdamHD-tensor"),
    pytest.param(partial(AdamWHD, capturable=True, scope="global"), id="AdamWHD-capturable"),
    pytest.param(lambda params: Hypergradient(torch.optim.Adam(params)), id="Hypergradient"),
]
HALF = [torch.bfloat16, torch.float16]


@functools.cache
def regression() -> tuple[torch.Tensor, torch.Tensor, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2_000, 50, generator=generator) / 50**0.5
    y = x @ torch.randn(50, 1, generator=generator) + 0.1 * torch.randn(2_000, 1, generator=generator)
    best = x.double() @ torch.linalg.lstsq(x.double(), y.double()).solution
    return x, y, float((best - y).square().mean())


def excess(make: Any, dtype: torch.dtype) -> float:
    """How far above the least squares the average is, rounded to bfloat16, after 3,000 steps of 16 rows."""
    x, y, best = regression()
    generator = torch.Generator().manual_seed(1)
    w = nn.Parameter(torch.zeros(50, 1, dtype=dtype))
    opt = make([w])
    for _ in range(3_000):
        rows = torch.randint(2_000, (16,), generator=generator)
        w.grad = (x[rows].T @ (x[rows] @ w.detach().float() - y[rows]) / 8).to(dtype)
        opt.step()
    with opt.averaged():
        return float((x @ w.detach().bfloat16().float() - y).square().mean()) - best


@pytest.mark.parametrize("make", [partial(SGDHD, momentum=0.9), AdamHD], ids=["SGDHD", "AdamHD"])
def test_the_average_is_that_of_float32(make: Any) -> None:
    """With z in bfloat16 and nothing kept of rounding it was 14 and 7 times as far above the least squares."""
    assert excess(make, torch.bfloat16) < 1.2 * excess(make, torch.float32)


@pytest.mark.parametrize("dtype", HALF)
def test_parts_are_joined_and_parted_to_the_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(100_000, generator=generator) * torch.exp(torch.randn(100_000, generator=generator))
    exact = torch.cat([exact, 2.0 ** torch.arange(-10, 10) * (1 - 2.0**-9), torch.tensor([0.0, 1 + 2.0**-8, 1 + 2.0**-8 - 2.0**-20])])
    theta, rest = exact.to(dtype), exact.to(dtype)
    split(exact.clone(), theta, rest, dtype)
    torch.testing.assert_close(join(theta, rest), exact, rtol=2.0**-16, atol=2.0**-24)
    before = theta.clone(), rest.clone()
    assert torch.equal(join(theta, rest).to(dtype), theta)
    split(join(theta, rest), theta, rest, dtype)
    assert torch.equal(theta, before[0])
    assert torch.equal(rest, before[1])


@pytest.mark.parametrize(("make", "dtype"), turns(MAKE, HALF))
def test_back_from_the_average_and_over_a_step_that_is_not_taken(make: Any, dtype: torch.dtype) -> None:
    problem = Problem(dtype)
    opt = make(problem.parameters())
    problem.train(opt, 30)
    names = "trace", "rest"
    before = copy.deepcopy([[p.detach(), *(opt.state[p][name] for name in names)] for p in problem.parameters()])
    for p, (theta, z, rest) in zip(problem.parameters(), before, strict=True):
        with opt.averaged():
            assert torch.equal(p, (theta.float() + rest + z).to(dtype))
    problem.loss().backward()
    problem.parameters()[0].grad.fill_(math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        opt.step()
    for p, (theta, z, rest) in zip(problem.parameters(), before, strict=True):
        assert torch.equal(p, theta)
        assert torch.equal(opt.state[p]["trace"], z)
        assert torch.equal(opt.state[p]["rest"], rest)
    opt.step()  # the second in succession goes back
    for p, (theta, z, rest) in zip(problem.parameters(), before, strict=True):
        average = theta.float() + rest + z
        if opt.setup.scope != "tensor" or p is problem.parameters()[0]:
            assert torch.equal(p, average.to(dtype))
            torch.testing.assert_close(p.float() + opt.state[p]["rest"], average, rtol=2.0**-16, atol=2.0**-24)
            assert not opt.state[p]["trace"].any()


@pytest.mark.parametrize(("make", "dtype"), turns(MAKE, HALF))
def test_resumed_to_the_bit(make: Any, dtype: torch.dtype) -> None:
    def start() -> tuple[Problem, Any]:
        problem = Problem(dtype)
        return problem, make(problem.groups())

    whole, opt, other, twin = resumed(start)
    assert torch.equal(flat(whole.parameters()), flat(other.parameters()))
    for p, q in zip(whole.parameters(), other.parameters(), strict=True):
        assert opt.state[p]["trace"].dtype == twin.state[q]["trace"].dtype == torch.float32
        assert opt.state[p]["rest"].dtype == dtype
        assert all(torch.equal(opt.state[p][name], twin.state[q][name]) for name in ("trace", "rest"))


@pytest.mark.parametrize(("make", "dtype"), turns(MAKE, HALF))
def test_checkpoints_with_a_trace_of_16_bits_go_on(make: Any, dtype: torch.dtype) -> None:
    problem, other = Problem(dtype), Problem(dtype)
    opt, twin = make(problem.parameters()), make(other.parameters())
    problem.train(opt, 20)
    saved = copy.deepcopy(opt.state_dict())
    for own in saved["state"].values():
        own["trace"] = own["trace"].to(dtype)
        del own["rest"]
    other.model.load_state_dict(problem.model.state_dict())
    twin.load_state_dict(saved)
    torch.testing.assert_close(problem.train(opt, 5, start=20), other.train(twin, 5, start=20), rtol=0.05, atol=0.05)
    assert {own["trace"].dtype for own in twin.state.values()} == {torch.float32}


@pytest.mark.parametrize(("options", "held"), [({}, 8), ({"lr": 1e-3, "hypergrad_lr": 1e-6, "horizon": 5}, 6)], ids=["tuning", "additive"])
def test_bytes_of_the_state(options: dict, held: int) -> None:
    problem = Problem(torch.bfloat16)
    opt = AdamHD(problem.parameters(), **options)
    problem.train(opt, 2)
    for p in problem.parameters():
        assert sum(x.nbytes for x in opt.state[p].values() if isinstance(x, torch.Tensor) and x.shape == p.shape) == held * p.numel()


def test_a_rest_is_not_kept_of_wider_parameters() -> None:
    """A checkpoint of bfloat16 goes on in float32."""
    problem, other = Problem(torch.bfloat16), Problem(torch.float32)
    opt, twin = SGDHD(problem.parameters()), SGDHD(other.parameters())
    problem.train(opt, 20)
    other.model.load_state_dict(problem.model.state_dict())
    twin.load_state_dict(copy.deepcopy(opt.state_dict()))
    other.train(twin, 2, start=20)
    assert not any("rest" in own for own in twin.state.values())


TRACED = [
    pytest.param(partial(SGDHD, rule=Additive(1e-6), signal=Signal(0.9999)), id="SGDHD"),
    pytest.param(partial(AdamWHD, lr=1e-3, rule=LionRule(1e-2, log=True), signal=Signal(0.9999), capturable=True), id="AdamWHD-capturable"),
    pytest.param(partial(SGDHD, lr=1e-2, rule=Autostep(), signal=Signal(1.0, curvature="squares"), scope="element"), id="Autostep"),
]


@pytest.mark.parametrize(("make", "dtype"), turns(TRACED, HALF, 2))
def test_a_discounted_trace_forgets_what_it_should(make: Any, dtype: torch.dtype) -> None:
    """1 − 1e-4 is 1 in 16 bits: in these z would only grow. It is float32, also where it goes on from a checkpoint."""

    def start() -> tuple[Problem, Any]:
        problem = Problem(dtype)
        return problem, make(problem.parameters())

    whole, opt, second, resumed_opt = resumed(start)
    assert torch.equal(flat(whole.parameters()), flat(second.parameters()))
    for p in whole.parameters():
        assert opt.state[p]["trace"].dtype == torch.float32
    for p in second.parameters():
        assert resumed_opt.state[p]["trace"].dtype == torch.float32
