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

from . import host
from .checks import Bounds, check_bounds, ends
from .directions import SGD, Adam, Direction, adam_root, pair_of, what_decay_leaves
from .execute import Numbers
from .rules import Level, Memory, Move, check_level
from .tensors import Some, add_product, add_quotient, add_scaled, is_zero


class lazy:  # noqa: N801 - a decorator
    """A property that is computed once. functools.cached_property takes a lock in Python 3.11, which torch.compile cannot trace."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, instance: Any, owner: type) -> Any:
        if not hasattr(instance, self.name):
            setattr(instance, self.name, self.compute(instance))
        return getattr(instance, self.name)


class LastStep(ABC):
    """The last step of one tensor, as its buffers tell: a method for each hyperparameter gives ∂d_{t-1}/∂φ, but for its ``scale``.

    Args:
        p: θ_t, the parameter as the step left it; a real view, whole or a piece, or a list of them.
        state: the buffers, likewise.
        numbers: what ``numbers`` of the class has made of options and count of steps.
    """

    #: The options of a param group that have such a method, by their names in ``adapt``.
    has: tuple[str, ...]

    def __init__(self, p: Some, state: Mapping[str, Any], numbers: Numbers) -> None:
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
    def alpha(self) -> Any:
        """The learning rate of the step; elementwise where each element has its own."""
        return self.state["lr"] if "lr" in self.state else self.n["lr"]

    @property
    def g(self) -> Any:
        """g_{t-1}, as the step used it."""
        return self.state["gradient"]

    @property
    @abstractmethod
    def d(self) -> Any:
        """d_{t-1}."""

    def by(self, name: str) -> Any:
        """∂d_{t-1}/∂φ over its scale, times the learning rates where each element has its own."""
        x = getattr(self, name)()
        return x.mul(self.state["lr"]) if "lr" in self.state else x


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
        scales = {
            "scale of momentum": 2 + mu if nesterov else 1 / (1.0 if is_zero(mu) else mu),
            "scale of weight_decay": 1 + mu if nesterov else 1.0,
        }
        return {"momentum": mu, "nesterov": nesterov, "lr": state["lr"], "d": -1 / (2 + mu), **scales}

    @lazy
    def d(self) -> Any:
        return SGD().previous(self.p, self.state, self.n)

    def momentum(self) -> Any:
        """∂d/∂μ = v_{t-1} = (v_t − g_t)/μ; with Nesterov momentum v_t + μ v_{t-1} = 2 v_t − g_t, where g_t = d_t − μ v_t."""
        v = self.state["momentum_buffer"]
        return add_scaled(v, self.n["d"], self.d) if self.n["nesterov"] else v.sub(self.g)

    def weight_decay(self) -> Any:
        """∂d/∂λ = θ_{t-1}, since g = ∇f + λ θ_{t-1}; with Nesterov momentum (1 + μ) θ_{t-1}."""
        return add_scaled(self.p, self.alpha, self.d)


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
        betas, t, decoupled = last["betas"], state["step"], cast(Adam, direction).decoupled
        moved: Any = 1.0
        divisors, ends, inverse = [1.0 if is_zero(beta) else beta for beta in betas], list[Any](), list[Any]()
        if isinstance(t, Tensor):  # bias correction takes the betas out of Adam's first step; what is left of them is rounding
            moved, t = (t > 1).to(t.dtype), t.clamp(min=1)
            both = pair_of(betas, t)
            power = both**t
            c = 1 - power
            k = 1 + t * power / c  # β times the sum of both terms in m, or in s
            (c1, c2), (k1, k2) = c, k
            ends, inverse = list(moved * k / both), list(-1 / k)
        else:
            c1, c2 = (1 - beta**t for beta in betas)
            k1, k2 = (1 + t * beta**t / c if beta else 1.0 for beta, c in zip(betas, (c1, c2), strict=True))
            ends, inverse = [k / divisor for k, divisor in zip((k1, k2), divisors, strict=True)], [-1 / k1, -1 / k2]
        root = c2**0.5
        scales = {
            "scale of beta1": ends[0],
            "scale of beta2": -c1 * k2 / divisors[1] / (2 * root) if isinstance(k2, float) else ends[1] * c1 / (-2 * root),
            "scale of eps": -c1,
            "scale of weight_decay": 1.0 if decoupled else 1 - betas[0],
        }
        own = {"beta1": inverse[0], "beta2": inverse[1], "decoupled": decoupled, "root": c1 / root, "eps": c1 * last["eps"]}
        if not decoupled:
            own["decay"] = -c1 * (1 - betas[1]) / (root * (1 - betas[0]))
        decay = last["weight_decay"] if decoupled else 0.0
        left = {} if is_zero(decay) else {"left": what_decay_leaves(state["lr"], decay)}
        return {"weight_decay": decay, "lr": state["lr"], **left, **own, **scales}

    @lazy
    def root(self) -> Any:
        """S; no less than 1e-19, and it is that where only gradients of 0 are divided by it."""
        root = adam_root(self.state["exp_avg_sq"])
        return root.clamp_min_(torch.finfo(root.dtype).tiny ** 0.5)

    @lazy
    def w(self) -> Any:
        return self.root.mul(self.n["root"]).add_(self.n["eps"])

    @lazy
    def a(self) -> Any:
        """m/W."""
        return self.state["exp_avg"].div(self.w)

    @lazy
    def by_w(self) -> Any:
        """m/W² = −∂(m/W)/∂W."""
        return self.a.div(self.w)

    @lazy
    def d(self) -> Any:
        decay = self.n["weight_decay"]
        return self.a if is_zero(decay) else add_scaled(self.a, decay, self.theta)

    @lazy
    def theta(self) -> Any:
        """θ_{t-1} = (θ_t + α m/W) / (1 − αλ)."""
        theta, decay = add_scaled(self.p, self.alpha, self.a), self.n["weight_decay"]
        return theta if is_zero(decay) else theta.div_(what_decay_leaves(self.alpha, decay) if "lr" in self.state else self.n["left"])

    def beta1(self) -> Any:
        """∂d/∂β1 = [(m − g)/β1 + m t β1^{t-1}/c1]/W, since m_{t-1} − g_t = (m_t − g_t)/β1 and ∂c1/∂β1 = −t β1^{t-1}."""
        return add_quotient(self.a, self.n["beta1"], self.g, self.w)

    def beta2(self) -> Any:
        """∂d/∂β2 = −m/W² ∂W/∂β2, and ∂W/∂β2 = c1/(2√c2) [(s − g²)/β2 + s t β2^{t-1}/c2]/S."""
        return add_quotient(self.root, self.n["beta2"], self.g.mul(self.g), self.root).mul_(self.by_w)

    def eps(self) -> Any:
        """∂d/∂ε = −c1 m/W²."""
        return self.by_w

    def weight_decay(self) -> Any:
        """∂d/∂λ = θ_{t-1} for AdamW; else, since g = ∇f + λ θ_{t-1}, (1 − β1) θ_{t-1}/W − m/W² c1/√c2 (1 − β2) g θ_{t-1}/S."""
        if self.n["decoupled"]:
            return self.theta
        x = self.theta.div(self.w)
        return add_product(x, self.n["decay"], self.g.mul(self.by_w).div_(self.root), self.theta, out=x)


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

    def read(self, group: Mapping[str, Any]) -> Any:
        return group[self.option] if self.index is None else group[self.option][self.index]

    def write(self, group: dict[str, Any], value: Any) -> None:
        if self.index is None:
            group[self.option] = value
        else:
            pair = list(group[self.option])
            pair[self.index] = value
            group[self.option] = tuple(pair)

    def inside(self, value: float) -> bool:
        """Whether a coordinate can leave it."""
        return 0 < value < (1 if self.unit else math.inf)


def ends_of(rule: Level, unit: bool, bounds: tuple[float, float]) -> list[float]:
    """The bounds of a hyperparameter's coordinate."""
    odds = [bound / (1 - unit * bound) for bound in bounds]
    return odds if rule.scales else list(map(math.log, odds))


def move(rule: Level, memory: Memory, x: Mapping[str, Any], xp: Any = host) -> Move:
    """φ_t in its bounds; that is φ_{t-1} where the rule leaves it, or where it has been set to what no coordinate can leave.

    Elementwise, as rules are. The coordinate is the odds of φ/u where u is 1, and φ itself where it is 0, or the logarithm of these.

    Args:
        rule: what moves it.
        memory: what that keeps.
        x: "value" φ_{t-1}; "beta"; "h", "g_norm" and "d_norm" of φ; "unit" u; "low" and "high", the bounds of φ, and "lowest" and
            "highest", those of the coordinate.
        xp: the functions of such numbers.
    """
    value, unit, low, high = x["value"], x["unit"], x["low"], x["high"]
    rest = 1 - unit * value
    stays = xp.logical_not((value > 0) & (rest > 0))
    odds, slope = xp.div(value, rest), value * rest  # ∂φ/∂log
    at, slope = (odds, xp.div(slope, odds)) if rule.scales else (xp.log(odds), slope)
    found = rule.move(memory, at, x["beta"], x["h"] * slope, x["g_norm"], x["d_norm"] * abs(slope), xp)
    y = xp.clamp(found.alpha, x["lowest"], x["highest"])
    y = y if rule.scales else xp.exp(y)
    moved = xp.clamp(y / (1 + unit * y), low, high) + (found.alpha - found.alpha)  # NaN where the rule has left the numbers
    return replace(
        found,
        alpha=xp.where(stays | (found.alpha == at), value, moved),
        memory={name: xp.where(stays, memory[name], new) for name, new in found.memory.items()},
        beta=None if found.beta is None else xp.where(stays, x["beta"], found.beta),
    )


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
        value = float(HYPERPARAMETERS[name].read(group))
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
    values = {name: HYPERPARAMETERS[name].read(last) for name in names}
    names = [name for name in names if isinstance(values[name], Tensor) or HYPERPARAMETERS[name].inside(values[name])]
    if (
        isinstance(state.get("step"), int) and state["step"] == 1
    ):  # bias correction takes the betas out of Adam's first step; what is left of them is rounding
        names = [name for name in names if name not in ("beta1", "beta2")]
    return names
