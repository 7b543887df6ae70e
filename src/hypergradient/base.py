"""The step of another optimizer as a direction: d is read from a step that it takes at learning rate 1."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .direction import Direction, decayed
from .group_lr import Group
from .ranks import local
from .runner import Coefficients, TensorLists, blocks
from .tensors import copy_tensors, real

#: The global hooks of torch.optim's steps. The module is imported by name, since torch.optim deletes its attribute for it.
HOOKS = [getattr(importlib.import_module("torch.optim.optimizer"), f"_global_optimizer_{kind}_hooks", {}) for kind in ("pre", "post")]

#: Optimizers whose step is not θ − α d with d independent of α, and why.
NOT_LINEAR = {
    "ASGD": "its step size decays by a formula with lr inside, and lr also enters the decay of the parameters",
    "Rprop": "lr is only the first of step sizes that it adapts itself, one an element",
    "Adafactor": "its step size is the smaller of lr and a function of the time",
    "LBFGS": "it evaluates the loss several times a step, and searches along its direction",
}

#: torch's optimizers with coupled weight decay: they add λθ to the gradient.
COUPLED = ("SGD", "Adam", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax")

#: Keys that this library uses in a tensor's state, which it shares with the base.
RESERVED_KEYS = {"direction", "lr", "applied", "trace", "trace_momentum", "gradient", "rest", "iterate", "late", "still", "hypergrad_lr"}

#: Keys that it uses in a param group; a base may have no option of such a name.
RESERVED_GROUP_KEYS = {
    "memory",
    "adapted",
    "last",
    "lr_bounds",
    "lr_left",
    "lr_ratio",
    "step_adapts",
    "applied_lr",
    "adapted_lr",
    "lr_free",
    "lr_frozen",
    "saved",
}


@final
class BaseStep(Direction):
    """The direction of another optimizer, d = θ_before − θ_after of its step at learning rate 1.

    If its step is θ − α d with d independent of α, this is exact at any learning rate. Dividing the difference of a step at learning rate α
    by α is not: in float32 it is off by 18 % at α = 1e-6.
    """

    remembered_options: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ("direction",)
    stored: bool = True
    irreversible: bool = True

    def __init__(self, base: torch.optim.Optimizer, *, averaging: bool = False) -> None:
        self.base: torch.optim.Optimizer = base
        self.averaging: bool = averaging
        self.coupled: bool = type(base).__module__.startswith("torch.optim") and type(base).__name__ in COUPLED

    def without_momentum(self) -> Direction:
        return BaseStep(self.base, averaging=True)

    def interpolation(self, group: Mapping[str, Any]) -> Any:
        return momentum_of(group)[0] if self.averaging else 0.0

    def decay_rate(self, group: Mapping[str, Any]) -> Any:
        coupled = self.coupled and not group.get("decoupled_weight_decay", False)
        return 0.0 if coupled and type(self.base).__name__ != "SGD" else group.get("weight_decay", 0.0)

    def check(self, group: Mapping[str, Any]) -> None:
        """Nothing to do: the base checked its options when it was constructed."""

    def objective_coef(self, group: Mapping[str, Any]) -> Coefficients:
        coupled = self.coupled and not group.get("decoupled_weight_decay", False)
        return {"maximize": group.get("maximize", False), "penalty": group.get("weight_decay", 0.0) if coupled else 0.0}

    def coefficients(self, state: Mapping[str, Any], group: Mapping[str, Any], taken: Any = None) -> Coefficients:
        return {}

    def last_coef(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        return {}

    def gradient(self, g: Any, p: Any, coef: Coefficients) -> Any:
        return decayed(g, p, coef)

    def previous(self, p: Any, state: Mapping[str, Any], coef: Coefficients) -> Any:
        return state["direction"]

    def begin_step(self, moving: Mapping[Tensor, Group]) -> None:
        """Take the base's step at learning rate 1. Until ``advance``, "direction" holds each tensor's parameters from before the step."""
        if not moving:
            return
        state = self.base.state
        before = {p: state[p]["direction"] if "direction" in state.get(p, {}) else torch.empty_like(p) for p in moving}
        copy_tensors(map(local, before.values()), map(local, before))
        new, without = [p for p in moving if "applied" not in state.get(p, {})], [p for p in moving if p not in state]
        try:
            unit_step(self.base, moving, self.averaging)
            check_state(self.base, [state[p] for p in new])
        except BaseException:
            for p, value in before.items():
                p.copy_(value)
                if "applied" in state.get(p, {}):  # its direction was overwritten
                    state[p]["applied"] = False
            for p in without:
                state.pop(p, None)
            raise
        for p, value in before.items():
            state[p]["direction"] = value

    def needed_buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ()  # ``begin_step`` has made the buffer

    def fused_step(self, tensors: TensorLists, state: Mapping[str, Any], group: Mapping[str, Any], alpha: float) -> bool:
        for column in zip(tensors["p"], tensors["direction"], strict=True):
            for piece in blocks(dict(zip(("p", "direction"), column, strict=True))):
                before = piece["direction"]
                d = before - piece["p"]
                torch.add(before, d, alpha=-alpha, out=piece["p"])
                before.copy_(d)
        return True

    def advance(self, g: Any, p: Any, state: Mapping[str, Any], coef: Coefficients) -> Any:
        before = state["direction"]
        d = before.sub(p)
        p.copy_(before)
        return before.copy_(d)

    def first_directions(self, moving: Mapping[Tensor, Group], grads: Mapping[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """By a step of the base that is rolled back."""
        with rolled_back(self.base) as before:
            unit_step(self.base, moving, self.averaging)
            found = [(p, local(real(before[p])) - local(real(p))) for p in moving]
        yield from found


def momentum_of(group: Mapping[str, Any]) -> tuple[float, Group]:
    """A base's momentum (betas[0] of two, or "momentum"; 0 if there is none below 1), and the option that switches it off, by name."""
    betas = group.get("betas")
    pair = isinstance(betas, tuple | list) and len(betas) == 2
    b = betas[0] if pair else group.get("momentum")  # type: ignore[index]
    if not (isinstance(b, float) and 0 < b < 1):
        return 0.0, {}
    return b, {"betas": (0.0, betas[1])} if pair else {"momentum": 0.0}  # type: ignore[index]


def unit_step(base: torch.optim.Optimizer, moving: Mapping[Tensor, Any], averaging: bool) -> None:
    """A step of ``base`` at learning rate 1, for the tensors in ``moving`` only; without its momentum under ``averaging``."""
    before = []
    still = {p: p.grad for group in base.param_groups for p in group["params"] if p.grad is not None and p not in moving}
    try:
        for group in base.param_groups:
            own = {"lr": 1.0} | (momentum_of(group)[1] if averaging else {})
            before.append({name: group[name] for name in own})
            group.update(own)
        for p in still:
            p.grad = None
        with without_global_hooks() if any(HOOKS) else nullcontext():
            base.step()
    finally:
        for group, options in zip(base.param_groups, before, strict=True):
            group.update(options)
        for p, grad in still.items():
            p.grad = grad


@contextmanager
def without_global_hooks() -> Iterator[None]:
    """Disable hooks registered for the steps of all optimizers: the wrapper's own step has called them already."""
    before = [dict(hooks) for hooks in HOOKS]
    for hooks in HOOKS:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in zip(HOOKS, before, strict=True):
            hooks.update(own)


@contextmanager
def rolled_back(base: torch.optim.Optimizer) -> Iterator[dict[Tensor, Tensor]]:
    """Undo whatever the base does inside the block, and call none of its hooks; yields the parameters from before."""
    own, groups = dict(vars(base)), [dict(group) for group in base.param_groups]
    before = {p: p.detach().clone() for group in groups for p in group["params"]}
    states = {p: dict(state) for p, state in base.state.items() if isinstance(state, dict)}  # some optimizers store other things there
    values = [(x, x.detach().clone()) for x in tree_leaves([*states.values()]) if isinstance(x, Tensor)]
    grads = {p: p.grad for p in before}
    for p, grad in grads.items():
        p.grad = None if grad is None else grad.detach().clone()
    vars(base).update({name: type(value)() for name, value in own.items() if name.startswith("_optimizer_step_")})
    try:
        yield before
    finally:
        vars(base).update(own)
        for p, value in before.items():
            p.copy_(value)
        for group, options in zip(base.param_groups, groups, strict=True):
            group.clear()
            group.update(options)
        for p, grad in grads.items():
            p.grad = grad
        for x, value in values:
            x.copy_(value)
        for p in [p for p, state in base.state.items() if isinstance(state, dict)]:
            base.state[p].clear()
            base.state[p].update(states.get(p, {}))
            if p not in states:
                del base.state[p]


def check_state(base: torch.optim.Optimizer, states: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError if the base's state of a tensor has a key that is reserved here."""
    taken = sorted(RESERVED_KEYS & {key for state in states for key in state})
    if taken:
        raise ValueError(
            f"{type(base).__name__} cannot be wrapped, since it keeps {', '.join(map(repr, taken))} in its state, as Hypergradient does"
        )
