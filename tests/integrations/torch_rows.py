"""Our OptimizerInfo rows, and the problems for torch's own checks of an optimizer; test_torch_checks.py has the checks."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cases import joined, turns
from hypergradient import SGDHD, AdamHD, AdamWHD, Hypergradient, Multiplicative

with pytest.MonkeyPatch.context() as patch:
    patch.setattr(torch.backends, "disable_global_flags", lambda: None)  # which it would for all tests of this process
    from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db

TORCH = {info.name: info for info in optim_db}
OWN = {"hypergrad_lr", "rule", "scope", "horizon", "fused", "capturable"}
LACKING = {"foreach", "differentiable", "amsgrad"}
DOCS = Path(__file__).parents[2] / "docs" / "optimizers.md"


class Row(NamedTuple):
    """A class, and options of it."""

    info: Any
    options: dict[str, Any]

    def make(self, params: Any, **more: Any) -> Any:
        return self.info.optim_cls(params, **copy.deepcopy({**self.options, **more}))  # a tensor lr is updated in place

    def rises(self) -> bool:
        return self.options.get("maximize", False)


def wrapped(base: Any) -> Callable[..., Hypergradient]:
    def make(params: Any, **options: Any) -> Hypergradient:
        own = {name: options.pop(name) for name in OWN & options.keys()}
        return Hypergradient(base(params, **options), **own)

    make.__name__ = f"Hypergradient-{base.__name__}"
    return make


def as_torch(optim_cls: Any, name: str, ours: bool) -> Any:
    """A class that is tested with what torch tests its own with, but for options that ours have not."""
    like = TORCH[name]

    def kept(inputs: Callable, of: Callable[[Any], dict]) -> Callable:
        return lambda device, dtype=None: [x for x in inputs(device, dtype) if not (ours and LACKING & of(x).keys())]

    return OptimizerInfo(
        optim_cls,
        optim_inputs_func=kept(like.optim_inputs_func, lambda x: x.kwargs),
        optim_error_inputs_func=kept(like.optim_error_inputs_func, lambda x: x.optimizer_error_input.kwargs),
        scheduler_inputs=like.scheduler_inputs,
        supported_impls=("fused",),
        not_og_supported_flags=("maximize", "capturable", "foreach", "differentiable", "lr_bounds", "hypergrad_lr", "step_adapts"),
        has_capturable_arg=True,
        supports_complex=like.supports_complex,
        supports_fused_on=("cpu",),
    )


BASES = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Muon")
OURS = [as_torch(SGDHD, "SGD", True), as_torch(AdamHD, "Adam", True), as_torch(AdamWHD, "AdamW", True)]
WRAPPED = [as_torch(wrapped(TORCH[name].optim_cls), name, False) for name in BASES if name in TORCH]

WAYS = [
    pytest.param({}, id="tuning-free"),
    pytest.param({"hypergrad_lr": 1e-6}, id="additive"),
    pytest.param({"rule": Multiplicative(0.02), "scope": "tensor"}, id="tensor"),
    pytest.param({"rule": Multiplicative(0.02), "scope": "element"}, id="element"),
    pytest.param({"hypergrad_lr": 1e-6, "scope": "global", "horizon": 3}, id="global"),
]
IMPLS = [pytest.param({}, id="plain"), pytest.param({"fused": True}, id="fused"), pytest.param({"capturable": True}, id="capturable")]
MODES = [joined(WAYS[i % 5], IMPLS[i % 3]) for i in range(15)]


def cells(info: Any, at_most: int | None = None) -> list[Any]:
    inputs = info.optim_inputs_func("cpu")[:at_most]
    return [pytest.param(info, x.kwargs, id=f"{info.name}-{x.desc.replace(' ', '_')}") for x in inputs]


def rows() -> list[Any]:
    """Ours twice each, the wrapper around three configurations of each base."""
    table = turns([x for info in OURS for x in cells(info)], MODES, times=2) + turns([x for info in WRAPPED for x in cells(info, 3)], MODES)
    return [pytest.param(Row(x.values[0], {k: v for own in x.values[1:] for k, v in own.items()}), id=x.id) for x in table]


ROWS = rows()


def lr_moves(row: Row) -> bool:
    return "rule" not in row.options and row.options.get("scope") != "global" and "Adadelta" not in row.info.name  # whose d is tiny


#: (check, of which rows, what it raises, the reason as the docs give it).
NOT_HELD: list[tuple[str, Callable[[Row], bool], Any, str]] = [
    ("sparse_gradients", lambda row: True, TypeError, "Sparse gradients raise `TypeError`"),
    ("options", lambda row: True, TypeError, "`foreach`, `differentiable` and `amsgrad` are not options"),
    ("param_groups_lr", lr_moves, AssertionError, "A param group whose `lr` is next to nothing moves"),
    (
        "complex_equals_two_parts",
        lambda row: row.options.get("scope") == "tensor",
        AssertionError,
        "a complex tensor has one learning rate",
    ),
]


def checked(name: str, row: Row) -> list[Any]:
    """How a check of a row is marked: where it does not hold it must fail as NOT_HELD says."""
    return [pytest.mark.xfail(raises=error, reason=reason) for check, of, error, reason in NOT_HELD if check == name and of(row)]


def over(*tables: Any, names: str = "", where: Callable[[Row], bool] = lambda row: True) -> Any:
    """A check over the rows, beside other tables' which take turns."""

    def decorate(check: Any) -> Any:
        found = [x for x in ROWS if where(x.values[0])]
        for table in tables:
            found = turns(found, table)
        found = [pytest.param(*x.values, id=x.id, marks=checked(check.__name__[5:], x.values[0])) for x in found]
        return pytest.mark.parametrize(",".join(["row", *names.split()]), found)(check)

    return decorate


class Fit:
    """torch's problem: a weight and a bias, both of two dimensions since Muon takes no other."""

    def __init__(self, dtype: torch.dtype = torch.float32, contiguous: bool = True, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            x = torch.randn(*shape, 2, generator=generator).to(dtype)[..., 0]
            return x.contiguous() if contiguous else x

        self.params = [nn.Parameter(draw(10, 5)), nn.Parameter(draw(10, 1))]
        assert self.params[0].is_contiguous() == contiguous
        self.x = draw(5, 1)

    def loss(self) -> Tensor:
        weight, bias = self.params
        return (weight @ self.x + bias).square().sum()

    def closure(self, opt: Any) -> Tensor:
        opt.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def train(self, opt: Any, steps: int, schedulers: Iterable[Any] = ()) -> Tensor:
        for _ in range(steps):
            loss = self.closure(opt)
            opt.step()
            for scheduler in schedulers:
                scheduler.step(*[loss] * isinstance(scheduler, ReduceLROnPlateau))
        return self.loss().detach()

    def named(self, named: bool) -> list[Any]:
        return list(zip(("weight", "bias"), self.params, strict=True)) if named else self.params


def plain(x: Any) -> Any:
    """What can be compared with ==, to the bit, and without the names of parameters."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items() if key != "param_names"}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    return (x.dtype, x.device.type, x.tolist()) if isinstance(x, Tensor) else x


def moved(row: Row, loss: Tensor, start: Tensor) -> bool:
    return bool(loss > start) if row.rises() else bool(loss < start)


def gradients(params: list[Tensor], t: int, twins: Iterable[Tensor] | None = None, view: Callable[[Any], Any] = lambda x: x) -> None:
    """Those of step t, which are also the twins' through ``view``; the second step finds none for the first parameter."""
    generator = torch.Generator().manual_seed(t)
    for k, (p, q) in enumerate(zip(params, params if twins is None else twins, strict=True)):
        p.grad = None if t == 1 and k == 0 else (torch.rand(p.shape, generator=generator) - 0.3).to(p.dtype)
        q.grad = p.grad if p.grad is None or q is p else view(p.grad.clone())


OPTIONS = [
    pytest.param(Row(info, {option: True}), id=f"{info.name}-{option}", marks=checked("options", Row(info, {})))
    for info in OURS
    for option in sorted(LACKING)
]

#: What torch says, and what is said here.
WORDS = {
    "Tensor lr must be 1-element": "a tensor lr must hold one floating-point number, got shape",
    "Invalid beta parameter at index 0: 1.0": r"betas must be two numbers in \[0, 1\), got \(1.0",
    "betas must be either both floats or both Tensors": "betas must be two numbers .* got .*tensor",
    "Invalid weight_decay value: -1": "weight_decay must be a finite number >= 0, got -1",
    "Invalid momentum value: -0.5": "momentum must be a finite number >= 0, got -0.5",
}
ERRORS = [
    pytest.param(info, wrong, words, id=f"{info.name}-{wrong.optimizer_error_input.desc}")
    for info, words in [(info, WORDS) for info in OURS] + [(info, {}) for info in WRAPPED]
    for wrong in info.optim_error_inputs_func("cpu", torch.float32)
]
