"""Every hyperparameter but the learning rate: where it is stored, its bounds, and the coordinate in which a rule adapts it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, final

from torch import Tensor

from . import float_ops
from .checks import Bounds, bounds_as_floats, check_bounds
from .derivatives import LAST_STEPS
from .direction import Direction
from .rules import Learner, Level, Memory, RuleUpdate, check_level, clip


@final
@dataclass(frozen=True)
class Hyperparameter:
    """Where a hyperparameter is stored in a param group, and how a rule adapts it.

    An additive rule adapts log φ, or log φ/(1−φ) for φ in (0, 1); a multiplicative rule adapts φ itself, or the odds φ/(1−φ). With
    ``log=False`` a rule adapts φ as it is, which may then reach 0.

    Args:
        option: the key in the param group.
        index: its place in the pair stored there; None if the option is the hyperparameter itself.
        unit: whether φ lies in (0, 1), rather than above 0.
        bounds: default bounds.
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

    def is_interior(self, value: float, of_value: bool = False) -> bool:
        """Whether a rule can move away from ``value``, in the coordinate or, with ``of_value``, by adapting φ itself."""
        return (value > 0 or (of_value and value == 0)) and value < (1 if self.unit else math.inf)


def coordinate_bounds(rule: Level, unit: bool, bounds: tuple[float, float]) -> list[float]:
    """The bounds of a hyperparameter's coordinate."""
    if rule.adapts_value:
        return list(bounds)
    odds = [bound / (1 - unit * bound) for bound in bounds]
    return odds if rule.is_multiplicative else list(map(math.log, odds))


@cache
def without_log(rule: Level) -> Level:
    """The rule for a coordinate that is a logarithm already."""
    return replace(rule, log=None) if isinstance(rule, Learner) and rule.adapts_log else rule


def update_hyperparameter(rule: Level, memory: Memory, x: Mapping[str, Any], xp: Any = float_ops) -> RuleUpdate:
    """φ_t inside its bounds; φ_{t-1} if the rule leaves it, or if it was set to a value outside the coordinate's range.

    Elementwise, as rules are. The coordinate is the odds φ/(1 − φ) if u is 1, φ itself if u is 0, or the logarithm of these.

    Args:
        rule: adapts the hyperparameter.
        memory: the rule's memory.
        x: "value" φ_{t-1}; "beta"; "h", "g_norm" and "d_norm" of φ; "unit" u; "low" and "high", the bounds of φ, and "lowest" and
            "highest", those of the coordinate.
        xp: torch, or ``float_ops`` for floats.
    """
    value, unit, low, high = x["value"], x["unit"], x["low"], x["high"]
    if rule.adapts_value:
        found = rule.update(memory, value, x["beta"], x["h"], x["g_norm"], x["d_norm"], xp)
        bounded = clip(found.alpha, low, high, xp) + (found.alpha - found.alpha)
        return replace(found, alpha=xp.where(found.alpha == value, value, bounded))
    rest = 1 - unit * value
    fixed = xp.logical_not((value > 0) & (rest > 0))
    odds, slope = xp.div(value, rest), value * rest  # ∂φ/∂log
    at, slope = (odds, xp.div(slope, odds)) if rule.is_multiplicative else (xp.log(odds), slope)
    found = without_log(rule).update(memory, at, x["beta"], x["h"] * slope, x["g_norm"], x["d_norm"] * abs(slope), xp)
    y = clip(found.alpha, x["lowest"], x["highest"], xp)
    y = y if rule.is_multiplicative else xp.exp(y)
    updated = clip(y / (1 + unit * y), low, high, xp) + (found.alpha - found.alpha)  # NaN if the rule gave NaN or infinity
    return replace(
        found,
        alpha=xp.where(fixed | (found.alpha == at), value, updated),
        memory={name: xp.where(fixed, memory[name], new) for name, new in found.memory.items()},
        beta=None if found.beta is None else xp.where(fixed, x["beta"], found.beta),
    )


HYPERPARAMETERS = {
    "momentum": Hyperparameter("momentum", None, True, (1e-3, 0.9999)),
    "beta1": Hyperparameter("betas", 0, True, (1e-3, 0.9999)),
    "beta2": Hyperparameter("betas", 1, True, (1e-3, 0.999999)),
    "eps": Hyperparameter("eps", None, False, (1e-16, 1.0)),
    "weight_decay": Hyperparameter("weight_decay", None, False, (1e-8, 1.0)),
}


def split_betas(what: str, options: Mapping[str, Any], direction: Direction, optimizer: str) -> dict[str, Any]:
    """``adapt`` or ``bounds`` as given, with "betas" split into "beta1" and "beta2", and without entries of None.

    Raises:
        ValueError: a name that the optimizer does not have.
        TypeError: it is not a mapping, or betas are not a pair.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f'{what} must be a dict such as {{"lr": ..., "betas": (..., ...)}}, got {options!r}')
    has = LAST_STEPS[type(direction)].hyperparameters if type(direction) in LAST_STEPS else ()
    parts: dict[str, Any] = {}
    for name, value in options.items():
        if name not in (("lr", *has) if what == "adapt" else has):
            allowed = ", ".join(("lr", *has) if what == "adapt" else has) or "none"
            raise ValueError(f"{optimizer} has no {name!r} to adapt; {what} takes: {allowed}")
        if name == "betas":
            if not isinstance(value, tuple | list) or len(value) != 2:
                raise TypeError(f"{what} takes a pair for betas, None for one that is not adapted, got {value!r}")
            parts |= {"beta1": value[0], "beta2": value[1]}
        else:
            parts[name] = value
    return {name: value for name, value in parts.items() if value is not None}


def check_adapt(rules: Mapping[str, Level], bounds: Mapping[str, Bounds], direction: Direction) -> dict[str, tuple[float, float]]:
    """The bounds of each hyperparameter in ``rules``.

    Raises:
        TypeError: a rule that adapts learning rates only.
        ValueError: bounds that are invalid, have no rule, or lie outside the range of the hyperparameter.
    """
    without_rule = [name for name in bounds if name not in rules]
    if without_rule:
        raise ValueError(
            f"bounds are for what adapt names, got bounds for {', '.join(map(repr, without_rule))}: give a rule for it, or leave it out"
        )
    found = {}
    for name, rule in rules.items():
        check_level(f"adapt[{name!r}]", rule)
        hyperparameter = HYPERPARAMETERS[name]
        low, high = bounds_as_floats(check_bounds(bounds[name], f"bounds[{name!r}]")) if name in bounds else hyperparameter.bounds
        low, high = (low if low > -math.inf else hyperparameter.bounds[0]), (high if high < math.inf else hyperparameter.bounds[1])
        zero_ok = rule.adapts_value and name in LAST_STEPS[type(direction)].defined_at_zero
        if not (hyperparameter.is_interior(low, zero_ok) and hyperparameter.is_interior(high)):
            where = f"{'[' if zero_ok else '('}0, {'1' if hyperparameter.unit else 'inf'})"
            raise ValueError(f"bounds[{name!r}] must lie in {where}, got {bounds[name]!r}")
        found[name] = low, high
    return found


def check_values(names: Mapping[str, tuple[float, float]], group: Mapping[str, Any]) -> None:
    """Raise ValueError if an adapted hyperparameter starts outside its bounds, such as at 0, which no coordinate can leave."""
    for name, (low, high) in names.items():
        value = float(HYPERPARAMETERS[name].read(group))
        if not low <= value <= high:
            raise ValueError(
                f"{name} must lie in [{low:g}, {high:g}] to be adapted, got {value!r}: start it inside, or give bounds={{{name!r}: ...}}"
            )
    if names and group.get("dampening"):
        raise ValueError(f"{', '.join(names)} can be adapted with dampening=0 only, got dampening={group['dampening']!r}")


def needs_last_gradient(direction: Direction, names: Sequence[str], group: Mapping[str, Any]) -> bool:
    """Whether the hypergradients of ``names`` need the gradient of the last step."""
    return bool(names) and LAST_STEPS[type(direction)].needs_gradient(names, group, direction)


def known_derivatives(direction: Direction, names: Sequence[str], state: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    """Those of ``names`` whose derivative is known from the last step, and not 0."""
    if needs_last_gradient(direction, names, last) and "gradient" not in state:  # a checkpoint of a run that did not store it
        return []
    values = {name: HYPERPARAMETERS[name].read(last) for name in names}
    zero_ok = LAST_STEPS[type(direction)].defined_at_zero if names else ()
    names = [name for name in names if isinstance(values[name], Tensor) or HYPERPARAMETERS[name].is_interior(values[name], name in zero_ok)]
    if isinstance(state.get("step"), int) and state["step"] == 1:  # bias correction cancels the betas in Adam's first step, up to rounding
        names = [name for name in names if name not in ("beta1", "beta2")]
    return names
