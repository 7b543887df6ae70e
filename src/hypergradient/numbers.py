"""Arithmetic on numbers that are Python floats, or 0-dim float64 tensors where they are to stay on the device (``capturable=True``).

Rules and scopes are written with these functions, so that there is one text of each for the host and for the device. Nothing here asks a
tensor for its value. Comparisons of such numbers give a bool, or a tensor of one, and both take ``&`` and ``|``.
"""

import math
from collections.abc import Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor

Number = float | Tensor
Truth = bool | Tensor


def number(x: Any, on_device: bool) -> Any:
    """An option or an entry of a state as a number: a float, or float64 on its own device."""
    return x.reshape(()).to(wide(x.device)) if on_device and isinstance(x, Tensor) else float(x)


def wide(device: torch.device) -> torch.dtype:
    """The widest dtype of numbers that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def where(condition: Truth, yes: Any, no: Any) -> Any:
    """``yes`` or ``no``."""
    if not isinstance(condition, Tensor):
        return yes if condition else no
    dtype = wide(condition.device)
    yes, no = (x if isinstance(x, Tensor) else torch.full((), x, dtype=dtype, device=condition.device) for x in (yes, no))
    return torch.where(condition, yes, no)


def every(conditions: Iterable[Truth]) -> Any:
    """Whether all hold."""
    conditions = list(conditions)
    tensors = [x for x in conditions if isinstance(x, Tensor)]
    if not tensors:
        return all(conditions)
    held = torch.stack(tensors).all()
    return held if all(x for x in conditions if not isinstance(x, Tensor)) else torch.zeros_like(held)


def no(condition: Truth) -> Any:
    """Whether it does not hold."""
    return ~condition if isinstance(condition, Tensor) else not condition


def finite(x: Number) -> Any:
    return torch.isfinite(x) if isinstance(x, Tensor) else math.isfinite(x)


def sqrt(x: Number) -> Any:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def exp(x: Number) -> Any:
    return x.exp() if isinstance(x, Tensor) else math.exp(x)


def larger(x: Number, y: Number) -> Any:
    """The larger of both; where one is NaN, the first on the host, as ``max`` has it, NaN on the device."""
    return _pair(torch.maximum, x, y) if isinstance(x, Tensor) or isinstance(y, Tensor) else max(x, y)


def smaller(x: Number, y: Number) -> Any:
    """The smaller of both, with NaN as in ``larger``."""
    return _pair(torch.minimum, x, y) if isinstance(x, Tensor) or isinstance(y, Tensor) else min(x, y)


def _pair(function: Any, x: Number, y: Number) -> Tensor:
    like = x if isinstance(x, Tensor) else y
    assert isinstance(like, Tensor)
    found: Tensor = function(*(z if isinstance(z, Tensor) else torch.full_like(like, z) for z in (x, y)))
    return found


def clip(x: Any, low: Number, high: Number) -> Any:
    """``x`` between ``low`` and ``high``, elementwise for a tensor of any shape; NaN stays."""
    if isinstance(x, Tensor) and not isinstance(low, Tensor) and not isinstance(high, Tensor):
        return x.clamp(low, high)
    return smaller(larger(x, low), high)


def total(values: Iterable[Number]) -> Any:
    """The sum; of floats rounded once, so that it does not depend on the order, and NaN where it is not finite."""
    values = list(values)
    if any(isinstance(x, Tensor) for x in values):
        like = next(x for x in values if isinstance(x, Tensor))
        return torch.stack([x if isinstance(x, Tensor) else torch.full_like(like, x) for x in values]).sum()
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # finite terms beyond float64's range; inf - inf
        return math.nan


def put(holder: MutableMapping[str, Any], name: str, value: Any) -> None:
    """``holder[name] = value``; a tensor in the place of another is copied into it, since a CUDA graph knows tensors by their place."""
    if not isinstance(value, Tensor):
        holder[name] = value
    elif isinstance(holder.get(name), Tensor):
        holder[name].copy_(value.reshape(holder[name].shape))
    else:
        holder[name] = value.clone()
