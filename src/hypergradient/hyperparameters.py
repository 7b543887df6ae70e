"""Every hyperparameter but the learning rate: its derivative in closed form, and the coordinate in which a rule moves it.

    h = g_t · ∂θ_{t-1}/∂φ = −α g_t · ∂d_{t-1}/∂φ

The derivative is taken through the last step alone, whose state was given, as that of the learning rate is. Symbols as in directions.py,
and S = √s, c1 = 1 − β1^t, c2 = 1 − β2^t, W = c1 (S/√c2 + ε): Adam's direction is d = m/W.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from .checks import Bounds, check_bounds, ends
from .directions import SGD, Adam, Direction, adam_denominator, adam_root, before
from .rules import Level, Memory, Move, check_level
from .tensors import add_product, add_quotient, add_scaled, clip, is_zero, real

State = Mapping[str, Any]
Scaled = tuple[float, Tensor]
"""A number and a tensor, whose product is meant: a dot product with it need not make it."""


class LastStep(ABC):
    """The last step of one tensor, as its state tells: a method for each hyperparameter gives ∂d_{t-1}/∂φ."""

    #: The options of a param group that have such a method, by their names in ``adapt``.
    has: tuple[str, ...]

    def __init__(self, direction: Direction, p: Tensor, state: State, last: Mapping[str, Any]) -> None:
        self.direction, self.p, self.state, self.last = direction, real(p), state, last

    @staticmethod
    @abstractmethod
    def keeps(names: Sequence[str], group: Mapping[str, Any], direction: Direction) -> bool:
        """Whether the derivatives need the last gradient, which the state then has as "gradient"."""

    @property
    def alpha(self) -> float | Tensor:
        """The learning rate of the step; elementwise where each element has its own."""
        lr = self.state["lr"]
        return real(lr) if isinstance(lr, Tensor) else lr

    @cached_property
    def g(self) -> Tensor:
        """g_{t-1}, as the step used it."""
        return real(self.state["gradient"])

    @cached_property
    @abstractmethod
    def d(self) -> Tensor:
        """d_{t-1}."""

    def by(self, name: str) -> Scaled:
        """∂d_{t-1}/∂φ, times the learning rates where each element has its own."""
        k, x = getattr(self, name)()
        return k, x * self.alpha if isinstance(self.alpha, Tensor) else x


@final
class LastSGD(LastStep):
    """That of stochastic gradient descent: v_t = μ v_{t-1} + g_t, and d_t = g_t, v_t or, with Nesterov momentum, g_t + μ v_t."""

    has = ("momentum", "weight_decay")

    @staticmethod
    def keeps(names: Sequence[str], group: Mapping[str, Any], direction: Direction) -> bool:
        return "momentum" in names and not group["nesterov"]

    @cached_property
    def d(self) -> Tensor:
        return self.direction.previous(self.p, dict(self.state), self.last)

    def momentum(self) -> Scaled:
        """∂d/∂μ = v_{t-1} = (v_t − g_t)/μ; with Nesterov momentum v_t + μ v_{t-1} = 2 v_t − g_t, where g_t = d_t − μ v_t."""
        v, mu = real(self.state["momentum_buffer"]), self.last["momentum"]
        if self.last["nesterov"]:
            return 2 + mu, add_scaled(v, -1 / (2 + mu), self.d)
        return 1 / mu, v - self.g

    def weight_decay(self) -> Scaled:
        """∂d/∂λ = θ_{t-1}, since g = ∇f + λ θ_{t-1}; with Nesterov momentum (1 + μ) θ_{t-1}."""
        return 1 + self.last["momentum"] if self.last["nesterov"] else 1.0, before(self.p, self.d, self.alpha)


@final
class LastAdam(LastStep):
    """That of Adam and AdamW: d = m/W, for AdamW with λ θ_{t-1} added."""

    has = ("betas", "eps", "weight_decay")

    @staticmethod
    def keeps(names: Sequence[str], group: Mapping[str, Any], direction: Direction) -> bool:
        coupled = isinstance(direction, Adam) and not direction.decoupled
        return "beta1" in names or "beta2" in names or (coupled and "weight_decay" in names)

    def __init__(self, direction: Direction, p: Tensor, state: State, last: Mapping[str, Any]) -> None:
        super().__init__(direction, p, state, last)
        assert isinstance(direction, Adam)
        self.decoupled = direction.decoupled
        self.t, self.epsilon = state["step"], last["eps"]
        self.b1, self.b2 = last["betas"]
        self.c1, self.c2 = 1 - self.b1**self.t, 1 - self.b2**self.t

    @cached_property
    def root(self) -> Tensor:
        """S; no less than 1e-19, and it is that where only gradients of 0 are divided by it."""
        root = adam_root(real(self.state["exp_avg_sq"]))
        return root.clamp_min_(torch.finfo(root.dtype).tiny ** 0.5)

    @cached_property
    def w(self) -> Tensor:
        return adam_denominator(self.root, self.t, (self.b1, self.b2), self.epsilon)

    @cached_property
    def a(self) -> Tensor:
        """m/W."""
        return real(self.state["exp_avg"]) / self.w

    @cached_property
    def by_w(self) -> Tensor:
        """m/W² = −∂(m/W)/∂W."""
        return self.a / self.w

    @cached_property
    def d(self) -> Tensor:
        if not self.decoupled or is_zero(self.last["weight_decay"]):
            return self.a
        return add_scaled(self.a, self.last["weight_decay"], self.theta)

    @cached_property
    def theta(self) -> Tensor:
        """θ_{t-1}."""
        return before(self.p, self.a, self.alpha, self.last["weight_decay"] if self.decoupled else 0.0)

    def beta1(self) -> Scaled:
        """∂d/∂β1 = [(m − g)/β1 + m t β1^{t-1}/c1]/W, since m_{t-1} − g_t = (m_t − g_t)/β1 and ∂c1/∂β1 = −t β1^{t-1}."""
        k = 1 / self.b1 + self.t * self.b1 ** (self.t - 1) / self.c1
        return k, add_quotient(self.a, -1 / (self.b1 * k), self.g, self.w)

    def beta2(self) -> Scaled:
        """∂d/∂β2 = −m/W² ∂W/∂β2, and ∂W/∂β2 = c1/(2√c2) [(s − g²)/β2 + s t β2^{t-1}/c2]/S."""
        k = 1 / self.b2 + self.t * self.b2 ** (self.t - 1) / self.c2
        x = add_quotient(self.root, -1 / (self.b2 * k), self.g * self.g, self.root)
        return -self.c1 * k / (2 * self.c2**0.5), x.mul_(self.by_w)

    def eps(self) -> Scaled:
        """∂d/∂ε = −c1 m/W²."""
        return -self.c1, self.by_w

    def weight_decay(self) -> Scaled:
        """∂d/∂λ = θ_{t-1} for AdamW; else, since g = ∇f + λ θ_{t-1}, (1 − β1) θ_{t-1}/W − m/W² c1/√c2 (1 − β2) g θ_{t-1}/S."""
        if self.decoupled:
            return 1.0, self.theta
        k = self.c1 * (1 - self.b2) / (self.c2**0.5 * (1 - self.b1))
        x = self.theta / self.w
        return 1 - self.b1, add_product(x, -k, (self.g * self.by_w).div_(self.root), self.theta, out=x)


LAST_STEPS: dict[type[Direction], type[LastStep]] = {SGD: LastSGD, Adam: LastAdam}


@final
@dataclass(frozen=True)
class Hyperparameter:
    """Where a hyperparameter stands in a param group, and how a rule moves it.

    An additive rule moves log φ, or log φ/(1−φ) where φ lies in (0, 1); a rule that scales moves φ itself, or the odds φ/(1−φ).

    Args:
        option: the key in the param group.
        index: its place in the pair that is found there; None where it is the option itself.
        unit: whether it lies in (0, 1), rather than above 0.
        bounds: what it is held inside unless the user says otherwise.
    """

    option: str
    index: int | None
    unit: bool
    bounds: tuple[float, float]

    def read(self, group: Mapping[str, Any]) -> float:
        value = group[self.option]
        return float(value if self.index is None else value[self.index])

    def write(self, group: dict[str, Any], value: float) -> None:
        if self.index is None:
            group[self.option] = value
        else:
            pair = list(group[self.option])
            pair[self.index] = value
            group[self.option] = tuple(pair)

    def inside(self, value: float) -> bool:
        """Whether a coordinate can leave it."""
        return 0 < value < (1 if self.unit else math.inf)

    def move(
        self, rule: Level, memory: Memory, value: float, beta: float, h: float, g_norm: float, d_norm: float, bounds: tuple[float, float]
    ) -> Move:
        """φ_t in its bounds; that is φ_{t-1} where the rule leaves it, or where it has been set to what no coordinate can leave."""
        if not self.inside(value):
            return Move(value, memory)
        slope = value * (1 - value) if self.unit else value  # ∂φ/∂log
        x = self._scale(value) if rule.scales else math.log(self._scale(value))
        slope /= x if rule.scales else 1.0
        move = rule.move(memory, x, beta, h * slope, g_norm, d_norm * abs(slope))
        if move.alpha == x or not move.finite:
            return replace(move, alpha=value if move.finite else math.nan)
        low, high = (self._scale(bound) for bound in bounds)
        x = clip(move.alpha, low, high) if rule.scales else math.exp(clip(move.alpha, math.log(low), math.log(high)))
        return replace(move, alpha=clip(x / (1 + x) if self.unit else x, *bounds))

    def _scale(self, value: float) -> float:
        return value / (1 - value) if self.unit else value


HYPERPARAMETERS = {
    "momentum": Hyperparameter("momentum", None, True, (1e-3, 0.9999)),
    "beta1": Hyperparameter("betas", 0, True, (1e-3, 0.9999)),
    "beta2": Hyperparameter("betas", 1, True, (1e-3, 0.999999)),
    "eps": Hyperparameter("eps", None, False, (1e-16, 1.0)),
    "weight_decay": Hyperparameter("weight_decay", None, False, (1e-8, 1.0)),
}


def spread(what: str, options: Mapping[str, Any], direction: Direction, optimizer: str) -> dict[str, Any]:
    """``adapt`` or ``bounds`` as given, with "betas" split into "beta1" and "beta2", and None left out.

    Raises:
        ValueError: a name that the optimizer does not have.
        TypeError: it is no mapping, or betas are no pair.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f'{what} must be a dict such as {{"lr": ..., "betas": (..., ...)}}, got {options!r}')
    has = LAST_STEPS[type(direction)].has if type(direction) in LAST_STEPS else ()
    parts: dict[str, Any] = {}
    for name, value in options.items():
        if name not in (("lr", *has) if what == "adapt" else has):
            known = ", ".join(("lr", *has) if what == "adapt" else has) or "none"
            raise ValueError(f"{optimizer} has no {name!r} to adapt; {what} takes: {known}")
        if name == "betas":
            if not isinstance(value, tuple | list) or len(value) != 2:
                raise TypeError(f"{what} takes a pair for betas, None for the one that stays, got {value!r}")
            parts |= {"beta1": value[0], "beta2": value[1]}
        else:
            parts[name] = value
    return {name: value for name, value in parts.items() if value is not None}


def check_adapt(rules: Mapping[str, Level], bounds: Mapping[str, Bounds]) -> dict[str, tuple[float, float]]:
    """The bounds of each hyperparameter in ``rules``.

    Raises:
        TypeError: a rule that moves learning rates only.
        ValueError: bounds that are none, of what has no rule, or outside the range of the hyperparameter.
    """
    idle = [name for name in bounds if name not in rules]
    if idle:
        raise ValueError(
            f"bounds are for what adapt moves, got bounds for {', '.join(map(repr, idle))}: give a rule for it, or leave it out"
        )
    found = {}
    for name, rule in rules.items():
        check_level(f"adapt[{name!r}]", rule)
        own = HYPERPARAMETERS[name]
        low, high = ends(check_bounds(bounds[name], f"bounds[{name!r}]")) if name in bounds else own.bounds
        low, high = (low if low > -math.inf else own.bounds[0]), (high if high < math.inf else own.bounds[1])
        if not (own.inside(low) and own.inside(high)):
            where = "(0, 1)" if own.unit else "(0, inf)"
            raise ValueError(f"bounds[{name!r}] must lie in {where}, got {bounds[name]!r}")
        found[name] = low, high
    return found


def check_values(names: Mapping[str, tuple[float, float]], group: Mapping[str, Any]) -> None:
    """Raise ValueError where a param group starts an adapted hyperparameter outside its bounds, such as at 0, which none can leave."""
    for name, (low, high) in names.items():
        value = HYPERPARAMETERS[name].read(group)
        if not low <= value <= high:
            raise ValueError(
                f"{name} must lie in [{low:g}, {high:g}] to be adapted, got {value!r}: start it inside, or give bounds={{{name!r}: ...}}"
            )
    if names and group.get("dampening"):
        raise ValueError(f"{', '.join(names)} can be adapted without dampening only, got dampening={group['dampening']!r}")


def kept_gradient(direction: Direction, names: Sequence[str], group: Mapping[str, Any]) -> bool:
    """Whether the hypergradients of ``names`` need the gradient of the step before."""
    return bool(names) and LAST_STEPS[type(direction)].keeps(names, group, direction)


def last_step(direction: Direction, p: Tensor, state: State, last: Mapping[str, Any]) -> LastStep:
    """What the last step, whose state and options are given, tells of its derivatives."""
    return LAST_STEPS[type(direction)](direction, p, state, last)


def known(direction: Direction, names: Sequence[str], state: State, last: Mapping[str, Any]) -> list[str]:
    """Those of ``names`` whose derivative the last step tells, and that is not 0."""
    if kept_gradient(direction, names, last) and "gradient" not in state:  # a checkpoint of a run that did not keep it
        return []
    names = [name for name in names if HYPERPARAMETERS[name].inside(HYPERPARAMETERS[name].read(last))]
    if state.get("step") == 1:  # bias correction takes the betas out of Adam's first step; what is left of them is rounding
        names = [name for name in names if name not in ("beta1", "beta2")]
    return names
