"""Every hyperparameter but the learning rate: its derivative in closed form, and the coordinate in which a rule moves it.

    h = g_t · ∂θ_{t-1}/∂φ = −α g_t · ∂d_{t-1}/∂φ

The derivative is taken through the last step alone, whose state was given, as that of the learning rate is. Symbols as in directions.py,
and S = √s, c1 = 1 − β1^t, c2 = 1 − β2^t, W = c1 (S/√c2 + ε): Adam's direction is d = m/W.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, final

import torch
from torch import Tensor

from .checks import Bounds, check_bounds, ends
from .directions import SGD, Adam, Direction, Numbers, adam_denominator, adam_root, before
from .numbers import clip
from .rules import Level, Memory, Move, check_level
from .tensors import add_product, add_quotient, add_scaled, is_zero


class lazy:  # noqa: N801 - a decorator
    """A property that is computed once. functools.cached_property takes a lock in Python 3.11, which torch.compile cannot trace."""

    def __init__(self, compute: Callable[[Any], Tensor]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, instance: Any, owner: type) -> Tensor:
        if not hasattr(instance, self.name):
            setattr(instance, self.name, self.compute(instance))
        found: Tensor = getattr(instance, self.name)
        return found


class LastStep(ABC):
    """The last step of one tensor, as its buffers tell: a method for each hyperparameter gives ∂d_{t-1}/∂φ, but for its ``scale``.

    Args:
        p: θ_t, the parameter as the step left it; a real view, whole or a piece.
        state: the buffers, likewise.
        numbers: what ``numbers`` of the class has made of options and count of steps.
    """

    #: The options of a param group that have such a method, by their names in ``adapt``.
    has: tuple[str, ...]

    def __init__(self, p: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> None:
        self.p, self.state, self.n = p, state, numbers

    @staticmethod
    @abstractmethod
    def keeps(names: Sequence[str], group: Mapping[str, Any], direction: Direction) -> bool:
        """Whether the derivatives need the last gradient, which the state then has as "gradient"."""

    @staticmethod
    @abstractmethod
    def numbers(direction: Direction, state: Mapping[str, Any], last: Mapping[str, Any]) -> Numbers:
        """The coefficients of the derivatives, in Python's precision; "scale of NAME" is the factor that is left out of a tensor."""

    @property
    def alpha(self) -> float | Tensor:
        """The learning rate of the step; elementwise where each element has its own."""
        lr: float | Tensor = self.state.get("lr", self.n["lr"])
        return lr

    @property
    def g(self) -> Tensor:
        """g_{t-1}, as the step used it."""
        return self.state["gradient"]

    @property
    @abstractmethod
    def d(self) -> Tensor:
        """d_{t-1}."""

    def by(self, name: str) -> Tensor:
        """∂d_{t-1}/∂φ over its scale, times the learning rates where each element has its own."""
        x: Tensor = getattr(self, name)()
        return x * self.alpha if isinstance(self.alpha, Tensor) and self.alpha.dim() else x


@final
class LastSGD(LastStep):
    """That of stochastic gradient descent: v_t = μ v_{t-1} + g_t, and d_t = g_t, v_t or, with Nesterov momentum, g_t + μ v_t."""

    has = ("momentum", "weight_decay")

    @staticmethod
    def keeps(names: Sequence[str], group: Mapping[str, Any], direction: Direction) -> bool:
        return "momentum" in names and not group["nesterov"]

    @staticmethod
    def numbers(direction: Direction, state: Mapping[str, Any], last: Mapping[str, Any]) -> Numbers:
        mu, nesterov = last["momentum"], last["nesterov"]
        scales = {"scale of momentum": 2 + mu if nesterov else 1 / (mu or 1), "scale of weight_decay": 1 + mu if nesterov else 1.0}
        return {"momentum": mu, "nesterov": nesterov, "lr": state["lr"], "d": -1 / (2 + mu), **scales}

    @lazy
    def d(self) -> Tensor:
        return SGD().previous(self.p, self.state, self.n)

    def momentum(self) -> Tensor:
        """∂d/∂μ = v_{t-1} = (v_t − g_t)/μ; with Nesterov momentum v_t + μ v_{t-1} = 2 v_t − g_t, where g_t = d_t − μ v_t."""
        v = self.state["momentum_buffer"]
        return add_scaled(v, self.n["d"], self.d) if self.n["nesterov"] else v - self.g

    def weight_decay(self) -> Tensor:
        """∂d/∂λ = θ_{t-1}, since g = ∇f + λ θ_{t-1}; with Nesterov momentum (1 + μ) θ_{t-1}."""
        return before(self.p, self.d, self.alpha)


@final
class LastAdam(LastStep):
    """That of Adam and AdamW: d = m/W, for AdamW with λ θ_{t-1} added."""

    has = ("betas", "eps", "weight_decay")

    @staticmethod
    def keeps(names: Sequence[str], group: Mapping[str, Any], direction: Direction) -> bool:
        coupled = isinstance(direction, Adam) and not direction.decoupled
        return "beta1" in names or "beta2" in names or (coupled and "weight_decay" in names)

    @staticmethod
    def numbers(direction: Direction, state: Mapping[str, Any], last: Mapping[str, Any]) -> Numbers:
        (b1, b2), t, decoupled = last["betas"], state["step"], cast(Adam, direction).decoupled
        c1, c2 = 1 - b1**t, 1 - b2**t
        k1 = 1 + t * b1**t / c1 if b1 else 1.0  # β1 times the sum of both terms in m
        k2 = 1 + t * b2**t / c2 if b2 else 1.0
        scales = {
            "scale of beta1": k1 / (b1 or 1),
            "scale of beta2": -c1 * k2 / (b2 or 1) / (2 * c2**0.5),
            "scale of eps": -c1,
            "scale of weight_decay": 1.0 if decoupled else 1 - b1,
        }
        own = {"beta1": -1 / k1, "beta2": -1 / k2, "decay": -c1 * (1 - b2) / (c2**0.5 * (1 - b1)), "decoupled": decoupled}
        return {**direction.last_numbers(state, last), **own, **scales}

    @lazy
    def root(self) -> Tensor:
        """S; no less than 1e-19, and it is that where only gradients of 0 are divided by it."""
        root = adam_root(self.state["exp_avg_sq"])
        return root.clamp_min_(torch.finfo(root.dtype).tiny ** 0.5)

    @lazy
    def w(self) -> Tensor:
        return adam_denominator(self.root, self.n)

    @lazy
    def a(self) -> Tensor:
        """m/W."""
        return self.state["exp_avg"] / self.w

    @lazy
    def by_w(self) -> Tensor:
        """m/W² = −∂(m/W)/∂W."""
        return self.a / self.w

    @lazy
    def d(self) -> Tensor:
        decay = self.n["weight_decay"]
        return self.a if is_zero(decay) else add_scaled(self.a, decay, self.theta)

    @lazy
    def theta(self) -> Tensor:
        """θ_{t-1}."""
        return before(self.p, self.a, self.alpha, self.n["weight_decay"])

    def beta1(self) -> Tensor:
        """∂d/∂β1 = [(m − g)/β1 + m t β1^{t-1}/c1]/W, since m_{t-1} − g_t = (m_t − g_t)/β1 and ∂c1/∂β1 = −t β1^{t-1}."""
        return add_quotient(self.a, self.n["beta1"], self.g, self.w)

    def beta2(self) -> Tensor:
        """∂d/∂β2 = −m/W² ∂W/∂β2, and ∂W/∂β2 = c1/(2√c2) [(s − g²)/β2 + s t β2^{t-1}/c2]/S."""
        return add_quotient(self.root, self.n["beta2"], self.g * self.g, self.root).mul_(self.by_w)

    def eps(self) -> Tensor:
        """∂d/∂ε = −c1 m/W²."""
        return self.by_w

    def weight_decay(self) -> Tensor:
        """∂d/∂λ = θ_{t-1} for AdamW; else, since g = ∇f + λ θ_{t-1}, (1 − β1) θ_{t-1}/W − m/W² c1/√c2 (1 − β2) g θ_{t-1}/S."""
        if self.n["decoupled"]:
            return self.theta
        x = self.theta / self.w
        return add_product(x, self.n["decay"], (self.g * self.by_w).div_(self.root), self.theta, out=x)


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


def known(direction: Direction, names: Sequence[str], state: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    """Those of ``names`` whose derivative the last step tells, and that is not 0."""
    if kept_gradient(direction, names, last) and "gradient" not in state:  # a checkpoint of a run that did not keep it
        return []
    names = [name for name in names if HYPERPARAMETERS[name].inside(HYPERPARAMETERS[name].read(last))]
    if state.get("step") == 1:  # bias correction takes the betas out of Adam's first step; what is left of them is rounding
        names = [name for name in names if name not in ("beta1", "beta2")]
    return names
