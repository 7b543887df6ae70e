"""Any optimizer, with its learning rate adapted: the direction is read from a step that the optimizer takes at learning rate 1."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor

from .checks import Bounds
from .directions import Columns, Direction, Numbers, decayed
from .optimizer import HypergradientOptimizer
from .rules import Rule
from .scopes import Group, ScopeName
from .tensors import blocks, copy_all, real

#: Why the step of these is not θ − α d with a d that does not depend on α.
NOT_LINEAR = {
    "ASGD": "its step size decays by a formula with lr inside, and lr also enters the decay of the parameters",
    "Rprop": "lr is only the first of step sizes that it adapts itself, one an element",
    "Adafactor": "its step size is the smaller of lr and a function of the time",
    "LBFGS": "it evaluates the loss several times a step, and searches along its direction",
}

#: torch's optimizers that add λθ to the gradient, so that it is part of what they minimise.
COUPLED = ("SGD", "Adam", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax")

#: What the loop keeps of a tensor, in the state that it shares with the base.
OURS = {"direction", "lr", "applied", "trace", "iterate", "hypergrad_lr"}

#: What it keeps in a param group, where a base must not have an option of the name.
OURS_IN_GROUPS = {"memory", "adapted", "last", "lr_bounds", "lr_left", "lr_ratio", "step_adapts"}


@final
class BaseStep(Direction):
    """The direction that another optimizer steps along, d = θ_before − θ_after of its step at learning rate 1.

    Where its step is θ − α d with a d that does not depend on α that is exact at any learning rate, which the difference over α of a
    step at learning rate α is not: in float32 it is off by 18 % at α = 1e-6.
    """

    remembers = ()
    buffers = ("direction",)
    stored = True

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base
        self.coupled = type(base).__module__.startswith("torch.optim") and type(base).__name__ in COUPLED

    def check(self, group: Mapping[str, Any]) -> None:
        """The base has checked its options when it was made."""

    def objective(self, group: Mapping[str, Any]) -> Numbers:
        coupled = self.coupled and not group.get("decoupled_weight_decay", False)
        return {"maximize": group.get("maximize", False), "penalty": group.get("weight_decay", 0.0) if coupled else 0.0}

    def numbers(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Numbers:
        return {}

    def last_numbers(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Numbers:
        return {}

    def gradient(self, g: Tensor, p: Tensor, numbers: Numbers) -> Tensor:
        return decayed(g, p, numbers)

    def previous(self, p: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        return state["direction"]

    def begin(self, moving: Mapping[Tensor, Group]) -> None:
        """The base's step at learning rate 1; each tensor's parameters before it lie in its "direction" until ``advance``."""
        if not moving:
            return
        state = self.base.state
        before = {p: state[p]["direction"] if "direction" in state.get(p, {}) else torch.empty_like(p) for p in moving}
        copy_all(before.values(), before)
        new, without = [p for p in moving if "applied" not in state.get(p, {})], [p for p in moving if p not in state]
        try:
            unit_step(self.base, moving)
            check_state(self.base, [state[p] for p in new])
        except BaseException:
            for p, value in before.items():
                p.copy_(value)
                if "applied" in state.get(p, {}):  # its direction is gone
                    state[p]["applied"] = False
            for p in without:
                state.pop(p, None)
            raise
        for p, value in before.items():
            state[p]["direction"] = value

    def prepare(self, p: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """``begin`` has done it."""

    def step(self, tensors: Columns, state: Mapping[str, Any], group: Mapping[str, Any], alpha: float) -> bool:
        for column in zip(tensors["p"], tensors["direction"], strict=True):
            for piece in blocks(dict(zip(("p", "direction"), column, strict=True))):
                before = piece["direction"]
                d = before - piece["p"]
                torch.add(before, d, alpha=-alpha, out=piece["p"])
                before.copy_(d)
        return True

    def advance(self, g: Tensor, p: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        before = state["direction"]
        d = before - p
        p.copy_(before)
        return before.copy_(d)

    def first(self, moving: Mapping[Tensor, Group]) -> Iterator[tuple[Tensor, Tensor]]:
        """By a copy of the base and of its parameters, which is thrown away."""
        base = twin(self.base)
        copies = {
            p: q
            for group, own in zip(self.base.param_groups, base.param_groups, strict=True)
            for p, q in zip(group["params"], own["params"], strict=True)
        }
        for p, q in copies.items():
            q.grad = None if p.grad is None else p.grad.clone()
        unit_step(base, {copies[p]: group for p, group in moving.items()})
        for p in moving:
            yield p, real(p - copies[p])


def unit_step(base: torch.optim.Optimizer, moving: Mapping[Tensor, Any]) -> None:
    """A step of ``base`` at learning rate 1, of the tensors in ``moving`` alone."""
    lrs = [group["lr"] for group in base.param_groups]
    still = {p: p.grad for group in base.param_groups for p in group["params"] if p.grad is not None and p not in moving}
    try:
        for group in base.param_groups:
            group["lr"] = torch.ones_like(group["lr"]) if isinstance(group["lr"], Tensor) else 1.0
        for p in still:
            p.grad = None
        base.step()
    finally:
        for group, lr in zip(base.param_groups, lrs, strict=True):
            group["lr"] = lr
        for p, grad in still.items():
            p.grad = grad


def twin(base: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A copy with parameters, state and options of its own, and without hooks; other attributes, which ``deepcopy`` loses, are shared."""
    found = copy.deepcopy(base)
    kept = {name: value for name, value in vars(base).items() if name != "step" and "_hooks" not in name}  # schedulers wrap step()
    vars(found).update(kept | {"param_groups": found.param_groups, "state": found.state})
    return found


@final
class Hypergradient(HypergradientOptimizer):
    """Any optimizer with its learning rate adapted: torch.optim's, or of another package.

        h_t = g_t · ∇αu_{t-1},    α_t = α_{t-1} − β h_t,    θ_t = θ_{t-1} − α_t d_t,    ∇αu_t = −d_t

    under ``hypergrad_lr``; without it there is neither β nor learning rate to choose (see ``TuningFree``). d_t is read from a step that the
    base takes at learning rate 1. That asks for a base whose step is linear in its learning rate, as that of SGD, Adam, AdamW, NAdam,
    RAdam, RMSprop, Adagrad, Adadelta, Adamax, Muon, Lion and most others is. Around SGD, Adam and AdamW it is SGDHD, AdamHD and AdamWHD,
    but for rounding; those cost less, and are the ones to take.

    It is an Optimizer that shares ``param_groups`` and ``state`` with the base: schedulers, hooks, GradScaler and param groups are given to
    it, not to the base. The gradient in h is that of the loss; for torch's optimizers with coupled weight decay λθ is part of it.

    Args:
        base: the optimizer, with its learning rate to start from. It takes its steps through this one from now on.
        hypergrad_lr: β >= 0 of the paper; short for ``rule=Additive(hypergrad_lr)``.
        rule: how the learning rate follows the hypergradient: any. Default ``TuningFree()``.
        horizon: how many past directions the hypergradient looks over, >= 1; 1 is the paper, more take one buffer. Default 1, under
            ``TuningFree`` a fifth of the run so far.
        scope: ``"group"``, ``"global"``, ``"tensor"`` or ``"element"`` (see ``SGDHD``). Default ``"group"``.
        lr_bounds: lowest and highest learning rate, None for none. Default ``(None, None)``: it may fall below 0.

    State:
        one buffer of the parameters' size beside the base's own; one more under ``TuningFree`` or a horizon above 1. In float16 and
        bfloat16 d is rounded as the parameters are.

    Raises:
        ValueError: the base's step is not linear in lr (ASGD, Rprop, Adafactor, LBFGS); it adapts its learning rate already, or keeps state
            under the names that this uses; an option is out of its range.
        TypeError: ``base`` is no optimizer; at ``step()``, a gradient is sparse.

    Examples:
        >>> import torch
        >>> from hypergradient import Hypergradient
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = Hypergradient(torch.optim.NAdam([w], lr=1e-3), hypergrad_lr=1e-5)
        >>> for _ in range(10):
        ...     opt.zero_grad()
        ...     (w**2).sum().backward()
        ...     opt.step()
        >>> opt.param_groups[0]["lr"] > 1e-3
        True

    References:
        Baydin et al., ICLR 2018, section 3: the technique is general, https://openreview.net/forum?id=BkrsAzWAb
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        hypergrad_lr: float | None = None,
        rule: Rule | None = None,
        horizon: float | None = None,
        scope: ScopeName = "group",
        lr_bounds: Bounds = (None, None),
    ) -> None:
        check_base(base)
        self.base = base
        self._direction = BaseStep(base)
        groups = base.param_groups
        before = [dict(group) for group in groups]
        try:
            super().__init__(
                groups,
                dict(base.defaults),
                hypergrad_lr=hypergrad_lr,
                default_hypergrad_lr=1e-6,
                rule=rule,
                horizon=horizon,
                scope=scope,
                lr_bounds=lr_bounds,
            )
        except BaseException:
            for group, options in zip(groups, before, strict=True):
                group.clear()
                group.update(options)
            raise
        self._share(groups)

    def _share(self, groups: list[Group]) -> None:
        """One list of param groups and one state for both."""
        self.param_groups = self.base.param_groups = groups
        self.state = self.base.state
        if getattr(self.base, "maximize", False):  # where pytorch_optimizer keeps it
            for options in (self.defaults, *groups):
                options.setdefault("maximize", True)

    @property
    def direction(self) -> Direction:
        return self._direction

    def __getstate__(self) -> Group:
        return {**super().__getstate__(), "base": self.base, "_direction": self._direction}

    def __setstate__(self, state: Group) -> None:
        """Go on from the state of such an optimizer, or of the base's own; the base reads it as it reads its own."""
        super().__setstate__(state)
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._share(self.param_groups)
        for own in self.state.values():
            if "applied" in own and "direction" not in own:  # SGDHD and its like recompute it from what theirs are
                own["applied"] = False


def check_base(base: Any) -> None:
    """Raise TypeError or ValueError where ``base`` cannot be wrapped."""
    if not isinstance(base, torch.optim.Optimizer):
        raise TypeError(f"base must be an optimizer such as torch.optim.Adam(params), got {base!r}")
    name = type(base).__name__
    if isinstance(base, HypergradientOptimizer) or any("hypergrad_lr" in group for group in base.param_groups):
        raise ValueError(f"{name} adapts its learning rate already: give Hypergradient an optimizer that does not")
    if name in NOT_LINEAR:
        raise ValueError(f"{name} cannot be wrapped, since its step is not linear in lr: {NOT_LINEAR[name]}")
    if any("lr" not in group for group in base.param_groups):
        raise ValueError(f"{name} cannot be wrapped: its param groups have no lr")
    taken = sorted(OURS_IN_GROUPS & {key for group in base.param_groups for key in group})
    if taken:
        raise ValueError(f"{name} cannot be wrapped, since it has options {', '.join(map(repr, taken))} as Hypergradient has")
    check_state(base, base.state.values())


def check_state(base: torch.optim.Optimizer, states: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError where the base's state of a tensor has a key that is used here."""
    taken = sorted(OURS & {key for state in states for key in state})
    if taken:
        raise ValueError(
            f"{type(base).__name__} cannot be wrapped, since it keeps {', '.join(map(repr, taken))} in its state as Hypergradient does"
        )
