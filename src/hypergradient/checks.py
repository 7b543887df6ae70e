"""Checks of option values: each error names the value and what is allowed."""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

Bounds = tuple[float | None, float | None]


def check_number(name: str, value: Any, *, low: float = 0.0) -> None:
    """Raise ValueError unless ``value`` is a finite number >= ``low``."""
    if isinstance(value, bool) or not (isinstance(value, Real) and math.isfinite(value) and float(value) >= low):
        allowed = "a finite number" if low == -math.inf else f"a finite number >= {low:g}"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_above(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a finite number above 0."""
    check_number(name, value)
    if value == 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")


def check_pair(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a pair of numbers in [0, 1)."""
    pair = isinstance(value, tuple | list) and len(value) == 2
    if not pair or not all(isinstance(x, Real) and 0 <= float(x) < 1 for x in value):
        raise ValueError(f"{name} must be two numbers in [0, 1), got {value!r}")


def check_bounds(bounds: Any, name: str = "lr_bounds") -> Bounds:
    """``bounds`` as a tuple; ValueError unless it is a pair (low, high) with low <= high, None for no bound."""
    if isinstance(bounds, tuple | list) and len(bounds) == 2 and all(bound is None or isinstance(bound, Real) for bound in bounds):
        low, high = bounds_as_floats(tuple(bounds))
        if low <= high:
            return bounds[0], bounds[1]
    raise ValueError(f"{name} must be (low, high) with low <= high, None for no bound, got {bounds!r}")


def bounds_as_floats(bounds: Bounds) -> tuple[float, float]:
    """The bounds as floats, infinite for None."""
    low, high = bounds
    return -math.inf if low is None else low, math.inf if high is None else high


def check_lr(lr: Any, bounds: Bounds) -> None:
    """Raise ValueError unless ``lr`` is a finite number >= 0 inside the bounds, or a tensor holding one."""
    low, high = bounds_as_floats(bounds)
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or not lr.is_floating_point():
            raise ValueError(f"a tensor lr must hold one floating-point number, got shape {tuple(lr.shape)} of {lr.dtype}")
        low, high = torch.tensor([low, high], dtype=lr.dtype).tolist()  # rounded to the dtype of lr
    if isinstance(lr, bool) or not (isinstance(lr, Real | Tensor) and (lr_is_meta(lr) or 0 <= float(lr) < math.inf)):
        raise ValueError(f"lr must be a finite number >= 0, got {lr!r}")
    if not (lr_is_meta(lr) or low <= float(lr) <= high):
        raise ValueError(f"lr must lie inside lr_bounds={bounds!r}, got {lr!r}")


def lr_is_meta(lr: Any) -> bool:
    """Whether ``lr`` is a meta tensor, which has no value to check."""
    return isinstance(lr, Tensor) and lr.is_meta


def check_flag(name: str, value: Any, *, none: bool = False) -> None:
    """Raise ValueError unless ``value`` is True or False, or None where that is allowed."""
    if not (isinstance(value, bool) or (none and value is None)):
        raise ValueError(f"{name} must be True{', False or None' if none else ' or False'}, got {value!r}")
