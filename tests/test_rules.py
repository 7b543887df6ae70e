"""Properties of the rules, and of the arithmetic over tensors and learning rates, on random inputs."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypergradient import AdamHD, Additive, Multiplicative
from hypergradient.learning_rates import Scope, as_stored
from hypergradient.scalars import HostScalars, exact_sum, to_floats
from hypergradient.tensors import Tensors, dot, finite_zero, int_dtype, real, zero_if_skipped

settings.register_profile("seeded", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("seeded")

ALPHA = st.floats(1e-8, 10)
BETA = st.floats(0, 0.99)
H = st.floats(-1e6, 1e6)
NORM = st.floats(1e-3, 1e3)
COSINE = st.floats(-1, 1)
RULES = [pytest.param(Additive, id="additive"), pytest.param(Multiplicative, id="multiplicative")]


@pytest.mark.parametrize("rule", RULES)
@given(alpha=st.floats(-10, 10), h=H, norm=NORM)
def test_beta_0_and_h_0_keep_the_learning_rate(rule, alpha: float, h: float, norm: float) -> None:
    assert rule(0.0)(alpha, 0.0, h, norm, norm) == alpha
    assert rule(0.5)(alpha, 0.5, 0.0, norm, norm) == alpha


@pytest.mark.parametrize("rule", RULES)
@given(alpha=ALPHA, beta=st.floats(1e-3, 0.99), g=NORM, d=NORM, cosine=st.floats(1e-3, 1))
def test_learning_rate_moves_against_the_hypergradient(rule, alpha: float, beta: float, g: float, d: float, cosine: float) -> None:
    assert rule(beta)(alpha, beta, cosine * g * d, g, d) < alpha < rule(beta)(alpha, beta, -cosine * g * d, g, d)


@pytest.mark.parametrize("rule", RULES)
@given(alpha=ALPHA, h=H, norm=NORM)
def test_beta_of_the_call_is_the_one_that_counts(rule, alpha: float, h: float, norm: float) -> None:
    assert rule(0.5)(alpha, 0.01, h, norm, norm) == rule(0.01)(alpha, 0.01, h, norm, norm)


@given(alpha=ALPHA, beta=BETA, h=H)
def test_additive_is_its_equation(alpha: float, beta: float, h: float) -> None:
    assert Additive(beta)(alpha, beta, h, 0.0, 0.0) == alpha - beta * h


@given(alpha=ALPHA, beta=BETA, cosine=COSINE, g=NORM, d=NORM)
def test_multiplicative_is_its_equation(alpha: float, beta: float, cosine: float, g: float, d: float) -> None:
    assert Multiplicative(beta)(alpha, beta, cosine * g * d, g, d) == pytest.approx(alpha * (1 - beta * cosine), rel=1e-9)


@given(alpha=ALPHA, beta=BETA, cosine=COSINE, scale=st.floats(1e-20, 1e20))
def test_multiplicative_does_not_see_the_scale(alpha: float, beta: float, cosine: float, scale: float) -> None:
    rule = Multiplicative(beta)
    assert rule(alpha, beta, cosine * scale, scale, 1.0) == pytest.approx(rule(alpha, beta, cosine, 1.0, 1.0), rel=1e-9)


@given(alpha=ALPHA, beta=BETA, norm=st.sampled_from([(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (math.inf, 0.0), (math.inf, 1.0)]))
def test_multiplicative_without_a_cosine_keeps(alpha: float, beta: float, norm: tuple) -> None:
    assert Multiplicative(beta)(alpha, beta, 0.0, *norm) == alpha


@pytest.mark.parametrize("norms", [(math.inf, 0.0), (0.0, math.inf)], ids=str)
def test_multiplicative_keeps_where_norms_overflow(norms: tuple) -> None:
    """g · g may overflow float32 where g is finite, at the first step too."""
    assert [Multiplicative(0.5)(0.1, 0.5, h, *norms) for h in (0.0, -0.0)] == [0.1, 0.1]


def test_multiplicative_moves_by_1_plus_minus_beta_at_most() -> None:
    w = torch.nn.Parameter(torch.ones(1))
    opt = AdamHD([w], lr=0.1, rule=Multiplicative(0.5))
    for g in (1.0, 4.57e-23):
        w.grad = torch.tensor([g])
        opt.step()
    assert opt.param_groups[0]["lr"] <= 0.1 * 1.5 * (1 + 1e-12)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LARGE = st.lists(st.tuples(st.floats(-6e4, 6e4), st.floats(-6e4, 6e4)), max_size=20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(pairs=LARGE)
def test_dot_is_that_of_float32_or_wider(dtype: torch.dtype, pairs: list) -> None:
    x, y = (torch.tensor(column, dtype=dtype) for column in (zip(*pairs, strict=True) if pairs else ([], [])))
    exact = sum((Fraction(a) * Fraction(b) for a, b in zip(x.tolist(), y.tolist(), strict=True)), Fraction(0))
    size = sum(abs(a * b) for a, b in zip(x.tolist(), y.tolist(), strict=True))
    assert dot(x, y).dtype == torch.promote_types(dtype, torch.float32)
    assert dot(x, y).item() == pytest.approx(float(exact), abs=20 * size * torch.finfo(dot(x, y).dtype).eps)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_dot_is_the_real_inner_product_in_any_layout(shape: tuple, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, dtype=dtype, generator=generator) for _ in range(2))
    expected = (x.conj() * y).sum().real.item()
    strided = torch.stack([y, y], dim=-1)[..., 0]
    transposed = y.mT.contiguous().mT if y.ndim > 1 else y
    assert [dot(real(x), real(z)).item() for z in (y, strided, transposed)] == pytest.approx([expected] * 3, rel=1e-12)


def test_real_is_a_view() -> None:
    z, x = torch.zeros(2, dtype=torch.complex64), torch.zeros(2)
    real(z)[1, 1] = 1
    assert z.tolist() == [0, 1j]
    assert real(x) is x


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64], ids=str)
@given(values=st.lists(st.floats(-6e4, 6e4), max_size=6), bad=st.sampled_from([None, math.inf, -math.inf, math.nan]), at=st.integers(0, 6))
def test_finite_zero_is_0_where_all_is_finite(dtype: torch.dtype, values: list, bad: float | None, at: int) -> None:
    drawn = values if bad is None else [*values[:at], bad, *values[at:]]
    zero = finite_zero(real(torch.tensor(drawn, dtype=dtype))).item()
    assert (zero == 0) == (bad is None)
    assert math.isnan(zero) == (bad is not None)


@given(values=st.lists(st.tuples(st.integers(-100, 100), st.sampled_from([torch.float32, torch.float64])), max_size=8))
def test_to_floats_keeps_the_order_across_dtypes(values: list) -> None:
    assert to_floats([torch.tensor(float(x), dtype=dtype) for x, dtype in values]) == [float(x) for x, _ in values]


@given(values=st.lists(st.floats(-1e300, 1e300), max_size=8), data=st.data())
def test_total_is_the_exact_sum_rounded_once_in_any_order(values: list, data: st.DataObject) -> None:
    exact = float(sum(map(Fraction, values), Fraction(0)))
    assert exact_sum(values) == exact_sum(data.draw(st.permutations(values))) == exact


@pytest.mark.parametrize("values", [[math.inf], [math.nan, 1.0], [math.inf, -math.inf], [1.7e308, 1.7e308]], ids=str)
def test_total_of_what_is_not_finite_is_not_finite(values: list) -> None:
    assert not math.isfinite(exact_sum(values))


LRS = st.lists(st.floats(0, 10), min_size=1, max_size=5)


def groups_of(lrs: list[float]) -> list[dict[str, Any]]:
    return [{"lr": lr, "lr_ratio": 1.0, "params": [], "hypergrad_lr": 0.1, "lr_bounds": (None, None)} for lr in lrs]


@given(lrs=LRS, sign=st.sampled_from([1.0, -1.0]))
def test_ratios_give_the_learning_rates_back(lrs: list, sign: float) -> None:
    ratios = Scope("global", HostScalars(), {}).read(groups_of([sign * lr for lr in lrs]), {}).ratios
    assert ratios is not None
    assert max(ratios) == 1
    assert any(lrs) <= ([r * max(lrs) for r in ratios] == pytest.approx(lrs, rel=1e-12, abs=1e-300))


@given(lrs=LRS.filter(any), alpha=st.floats(1e-3, 10))
def test_ratios_outlive_a_learning_rate_of_0(lrs: list, alpha: float) -> None:
    groups, scope = groups_of(lrs), Scope("global", HostScalars(), {})
    ratios = scope.read(groups, {}).ratios
    assert ratios is not None
    for value in (0.0, 0.0, alpha):
        scope.scalars.write(scope.assignments(groups, {}, scope.read(groups, {}), {"alpha": [value]}))
    assert [group["lr"] for group in groups] == pytest.approx([alpha * r for r in ratios], rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(alpha=st.floats(-10, 10))
def test_a_tensor_lr_reads_as_stored(dtype: torch.dtype, alpha: float) -> None:
    lr = torch.tensor(1.0, dtype=dtype)
    group = {"lr": lr}
    HostScalars().write([(group, "lr", alpha)])
    assert group["lr"] is lr
    assert lr.item() == as_stored(group["lr"], alpha) == pytest.approx(alpha, rel=torch.finfo(dtype).eps, abs=1e-7)


@given(alphas=st.lists(st.floats(1e-6, 10), min_size=1, max_size=5), factor=st.floats(0.01, 100))
def test_tensor_scope_scales_by_what_was_written(alphas: list, factor: float) -> None:
    params = [torch.zeros(1) for _ in alphas]
    state = {p: {"lr": alpha} for p, alpha in zip(params, alphas, strict=True)}
    group: dict[str, Any] = {"params": params, "lr": 0.0, "hypergrad_lr": 0.1, "lr_bounds": (None, None)}
    scope = Scope("tensor", HostScalars(), {})
    scope.scalars.write(scope.mean_assignments([group], state, beta=False))
    assert scope.read([group], state).columns["alpha"] == alphas
    group["lr"] *= factor
    assert scope.read([group], state).columns["alpha"] == pytest.approx([a * factor for a in alphas], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(lists=st.lists(LARGE.filter(len), min_size=1, max_size=4))
def test_lists_are_multiplied_tensor_by_tensor(dtype: torch.dtype, lists: list) -> None:
    pairs = [tuple(torch.tensor(column, dtype=dtype) for column in zip(*rows, strict=True)) for rows in lists]
    xs, ys = (Tensors(column) for column in zip(*pairs, strict=True))
    for (x, y), product, square, zero in zip(pairs, dot(xs, ys), dot(xs, xs), finite_zero(xs), strict=True):
        eps, size = 20 * torch.finfo(dtype).eps, float((x * y).abs().sum())
        assert product.item() == pytest.approx(float((x * y).sum()), abs=eps * size)
        assert square.item() ** 2 == pytest.approx(float((x * x).sum()), rel=eps)  # norms, to be squared together
        assert zero.item() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [1.0, math.nan, math.inf, -math.inf])
def test_what_is_not_taken_is_0_whatever_it_was(dtype: torch.dtype, bad: float) -> None:
    x, y = torch.tensor([bad, -2.0, 0.5], dtype=dtype), torch.tensor([[3.0, bad]], dtype=dtype)
    for ok in (0.0, 1.0):
        kept = zero_if_skipped(Tensors([x, y]), torch.tensor(ok, dtype=int_dtype(dtype)))
        torch.testing.assert_close(kept, [z if ok else torch.zeros_like(z) for z in (x, y)], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(zero_if_skipped(x, torch.tensor(ok)), x if ok else torch.zeros_like(x), rtol=0, atol=0, equal_nan=True)
