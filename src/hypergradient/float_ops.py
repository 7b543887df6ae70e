"""The torch functions that rules use, for Python floats, so that a rule is written once for host and device.

A rule is called with ``xp``, which is this module or torch. Where torch would not raise, these functions do not either.
"""

import math

inf: float = math.inf


def where(condition: bool, yes: float, no: float) -> float:
    return yes if condition else no


def masked_fill(x: float, mask: bool, value: float) -> float:
    return value if mask else x


def logical_not(x: float) -> bool:
    return not x


def logical_or(x: float, y: float) -> bool:
    return bool(x or y)


def clamp(x: float, min: float = -inf, max: float = inf) -> float:  # noqa: A002 - as torch has it
    """``x`` clamped to both bounds; NaN stays NaN."""
    x = min if x < min else x
    return max if x > max else x


def maximum(x: float, y: float) -> float:
    return y if y > x else x


def minimum(x: float, y: float) -> float:
    return y if y < x else x


def lerp(x: float, y: float, weight: float) -> float:
    return (1 - weight) * x + weight * y


def div(x: float, y: float) -> float:
    return x / y if y else math.nan


def exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return inf


def log(x: float) -> float:
    return math.log(x) if x > 0 else math.nan


def sqrt(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def sign(x: float) -> float:
    return (x > 0) - (x < 0) if x == x else x
