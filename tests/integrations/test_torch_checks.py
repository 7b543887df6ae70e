"""torch's own checks of an optimizer (its test_optim.py, which is not installed with it), rewritten over our OptimizerInfo rows.

Those that do not hold are in NOT_HELD, and in docs/optimizers.md with their reason.
"""

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch_rows import DOCS, ERRORS, NOT_HELD, OPTIONS, Fit, Row, gradients, moved, over, plain


@over([True, False], [None, *range(7), None], names="contiguous scheduled")
def test_goes_in_the_right_direction(row: Row, contiguous: bool, scheduled: Any) -> None:
    fit = Fit(contiguous=contiguous)
    opt, inputs = row.make(fit.params), row.info.scheduler_inputs
    schedulers = [] if scheduled is None else [make(opt) for make in inputs[scheduled % len(inputs)]]
    start = fit.loss()
    assert moved(row, fit.train(opt, 20, schedulers), start)


@over([None, *range(7)], [{"lr": 0.01}, {"weight_decay": 0.0}, {"lr": 0.01, "weight_decay": 0.0}], names="scheduled options")
def test_param_groups_go_in_the_right_direction(row: Row, scheduled: Any, options: dict) -> None:
    fit = Fit()
    weight, bias = fit.params
    opt, inputs = row.make([{"params": [weight]}, {"params": [bias], **options}]), row.info.scheduler_inputs
    schedulers = [] if scheduled is None else [make(opt) for make in inputs[scheduled % len(inputs)]]
    start = fit.loss()
    assert moved(row, fit.train(opt, 20, schedulers), start)


@over()
def test_param_groups_lr(row: Row) -> None:
    """A group whose lr is next to nothing does not move."""
    fit, still = Fit(), nn.Parameter(torch.ones(2, 1))
    opt = row.make([{"params": fit.params, "lr": row.options.get("lr", 1e-3)}, {"params": [still]}], lr=1e-28)
    start = fit.loss()
    for _ in range(20):
        fit.closure(opt)
        still.grad = torch.ones(2, 1)
        opt.step()
    assert moved(row, fit.loss(), start)
    assert torch.equal(still, torch.ones(2, 1))


@over([0, 1, 2], names="dims")
def test_tensor_lr(row: Row, dims: int) -> None:
    one, other = Fit(torch.float64), Fit(torch.float64)
    lr = torch.tensor(1e-3, dtype=torch.float64).reshape([1] * dims)
    opt, twin = row.make(one.params, lr=1e-3), row.make(other.params, lr=lr)
    for _ in range(5):
        one.train(opt, 1)
        other.train(twin, 1)
        torch.testing.assert_close(one.params, other.params, rtol=1e-9, atol=1e-12)
    assert twin.param_groups[0]["lr"].shape == lr.shape


def as_complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x) if x.dim() == 3 else x


def is_complex(row: Row) -> bool:
    return bool(row.info.supports_complex)


@over(where=is_complex)
def test_complex_equals_real_views(row: Row) -> None:
    torch.manual_seed(0)
    real = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in [(10, 5, 2), (10, 1, 2), (10, 5)]]
    both = [nn.Parameter(as_complex(p.detach().clone())) for p in real]
    opt, twin = row.make(real), row.make(both)
    for t in range(4):
        gradients(real, t, both, as_complex)
        opt.step()
        twin.step()
    parts = [torch.view_as_real(p) if p.is_complex() else p for p in both]
    torch.testing.assert_close(parts, [p.detach() for p in real], rtol=1e-9, atol=1e-12)


@over(where=is_complex)
def test_complex_equals_two_parts(row: Row) -> None:
    a = nn.Parameter(torch.tensor([0.5 + 1j, -1.5 + 0.25j], dtype=torch.complex128))
    parts = [nn.Parameter(x.detach().clone()) for x in (a.real, a.imag)]
    opt, twin = row.make([a]), row.make(parts)
    for _ in range(4):
        for own, z in ((opt, a), (twin, torch.complex(*parts))):
            own.zero_grad()
            ((1 - z[0]) ** 2 + 3 * (z[1] - z[0] ** 2) ** 2).abs().backward()
            own.step()
    torch.testing.assert_close([a.real.detach(), a.imag.detach()], [p.detach() for p in parts], rtol=1e-9, atol=1e-12)


WIDE = pytest.param([torch.float64] * 4, 1e-9, id="wide")
MIXED = pytest.param([torch.float64, torch.float32, torch.bfloat16, torch.float16], 1e-3, id="mixed")
DTYPES = [WIDE, MIXED, WIDE]


@over([{"fused": True}, {"capturable": True}], DTYPES, names="impl dtypes tol")
def test_impls_match(row: Row, impl: dict, dtypes: list, tol: float) -> None:
    """One is frozen for a while, one has no element, one is of integers."""
    torch.manual_seed(0)
    one = [nn.Parameter(torch.rand(2, 3).to(dtype)) for dtype in dtypes] + [nn.Parameter(torch.empty(0, 3))]
    other = copy.deepcopy(one)
    still = torch.arange(6).reshape(2, 3)
    none: dict[str, Any] = {"fused": None, "capturable": None}
    opt, twin = row.make([*one, still], **none), row.make([*other, still], **{**none, **impl})
    for t in range(7):
        gradients(one, t, other)
        for p in (one[1], other[1]) if 3 <= t < 5 else ():
            p.grad = None
        opt.step()
        twin.step()
        for p, q in zip(one, other, strict=True):
            eps = max(tol, 5 * torch.finfo(p.dtype).eps)
            torch.testing.assert_close(p.detach(), q.detach(), rtol=eps, atol=eps)
    assert not torch.equal(one[0], torch.rand(2, 3).double())


@over()
def test_step_is_noop_without_gradients(row: Row) -> None:
    params = [torch.ones(2, 3), nn.Parameter(torch.ones(2, 1))]
    opt = row.make(params)
    assert opt.step(lambda: 7.0) == 7.0
    assert all(bool((p == 1).all()) for p in params)


@over()
def test_step_is_noop_for_zero_gradients(row: Row) -> None:
    p = nn.Parameter(torch.ones(5, 1))
    opt = row.make([p], weight_decay=0.0)
    for _ in range(3):
        p.grad = torch.zeros(5, 1)
        opt.step()
    assert bool((p == 1).all())


@over()
def test_is_printed(row: Row) -> None:
    opt = row.make(Fit().params)
    shown = repr(opt)
    assert shown.startswith(f"{type(opt).__name__} (")
    assert all(f"{name}: {value}\n" in shown for name, value in opt.param_groups[0].items() if name != "params")


@over()
def test_step_hooks(row: Row) -> None:
    fit, data = Fit(), list[str]()
    opt, other = row.make(fit.params), torch.optim.SGD(fit.params)

    def hook(name: str) -> Any:
        return lambda *_: data.append(name)

    handles = [register_optimizer_step_pre_hook(hook("first")), register_optimizer_step_post_hook(hook("last"))]
    handles += [x for own in (opt, other) for x in (own.register_step_pre_hook(hook("pre")), own.register_step_post_hook(hook("post")))]
    try:
        for k, own in enumerate((opt, other, opt)):
            fit.train(own, 1)
            assert data == ["first", "pre", "post", "last"] * (k + 1)
    finally:
        for handle in handles:
            handle.remove()
    fit.train(opt, 1)
    assert len(data) == 12


@over(where=lambda row: "Muon" not in row.info.name)  # which has no maximize
def test_maximize_is_minimising_the_negative(row: Row) -> None:
    one, other = Fit(), Fit()
    opt, twin = row.make(one.params, maximize=True), row.make(other.params, maximize=False)
    for t in range(5):
        gradients(one.params, t, other.params, torch.neg)
        opt.step()
        twin.step()
    assert plain(one.params) == plain(other.params)
    assert plain([p.detach() for p in one.params]) != plain([p.detach() for p in Fit().params])


@over()
def test_closure_is_called_once_with_gradients(row: Row) -> None:
    one, other = Fit(), Fit()
    opt, twin, calls = row.make(one.params), row.make(other.params), list[bool]()

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return one.closure(opt)

    for t in range(3):
        with torch.no_grad():
            loss = opt.step(closure)
        assert loss == other.closure(twin)
        twin.step()
        assert calls == [True] * (t + 1)
    assert plain(one.params) == plain(other.params)


@over()
def test_steps_on_meta(row: Row) -> None:
    with torch.device("meta"):
        params = [nn.Parameter(torch.empty(3, 2)), nn.Parameter(torch.empty(3, 1))]
    opt = row.make(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.empty_like(p)
        opt.step()
    assert all(x.is_meta for own in opt.state.values() for x in own.values() if isinstance(x, Tensor) and x.dim())


@over()
def test_scaled_gradients(row: Row) -> None:
    """GradScaler's steps are those without, and one that has found an inf moves nothing."""
    one, other = Fit(), Fit()
    opt, twin, scaler = row.make(one.params), row.make(other.params), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(4):
        gradients(one.params, t, other.params, lambda g: g * 2.0**10)
        opt.step()
        scaler.scale(torch.ones(()))
        scaler.step(twin)
        scaler.update()
    assert plain(one.params) == plain(other.params)
    other.params[0].grad = torch.full((10, 5), torch.inf)
    scaler.step(twin)
    assert plain(one.params) == plain(other.params)


@over([torch.float64, torch.float16], names="dtype")
def test_default_dtype_does_not_matter(row: Row, dtype: torch.dtype) -> None:
    one, other = Fit(), Fit()
    one.train(row.make(one.params), 5)
    try:
        torch.set_default_dtype(dtype)
        other.train(row.make(other.params), 5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert plain(one.params) == plain(other.params)


@over()
def test_is_freed_without_the_collector(row: Row) -> None:
    fit = Fit()
    opt = row.make(fit.params)
    fit.train(opt, 2, [row.info.scheduler_inputs[0][0](opt)])
    left = weakref.ref(opt)
    del opt
    assert left() is None


@over(where=lambda row: len(row.options) <= 1)
def test_sparse_gradients(row: Row) -> None:
    p = nn.Parameter(torch.ones(3, 2))
    opt = row.make([p])
    p.grad = torch.ones(3, 2).to_sparse()
    opt.step()


@pytest.mark.parametrize("row", OPTIONS)
def test_options(row: Row) -> None:
    row.make(Fit().params)


@pytest.mark.parametrize(("info", "wrong", "words"), ERRORS)
def test_errors(info: Any, wrong: Any, words: dict[str, str]) -> None:
    params = wrong.optimizer_error_input.params
    refused = pytest.warns if issubclass(wrong.error_type, Warning) else pytest.raises
    with refused(wrong.error_type, match=words.get(wrong.error_regex, wrong.error_regex)):
        opt = info.optim_cls(Fit().params if params is None else params, **wrong.optimizer_error_input.kwargs)
        opt.param_groups[0]["params"][0].grad = torch.ones_like(opt.param_groups[0]["params"][0])
        opt.step()


def test_docs_name_what_does_not_hold() -> None:
    section = DOCS.read_text().split("## Differences from torch.optim")[1]
    assert NOT_HELD
    for _, _, _, reason in NOT_HELD:
        assert reason in section
