"""Scalar arithmetic of rules, on the host or on a device, over columns: one entry per learning rate or other hyperparameter.

On the host a column is a list of floats, and a rule is called entry by entry, or on vectors if there are many: a rule of seventy operations
takes 14 µs in floats, and 250 µs in vectors, almost independent of their length. On a device a column is a float64 vector that stays there,
and a scalar in a param group or state is a 0-dim tensor that is updated in place.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from . import float_ops
from .tensors import widest_dtype

#: With more entries than this, the host too calls a rule once, on vectors.
VECTORIZED_SIZE = 24

Elementwise = Callable[[Any, Mapping[str, Any]], dict[str, Any]]
"""An elementwise function of ``xp`` (see rules.py) and of columns by name; it gives columns by name."""


@final
class HostScalars:
    """Columns as lists of floats."""

    on_device = False

    #: The names of a step's dot products: g · x; g · g and x · x for rules that read norms; θ · θ for rules that average.
    SUM_NAMES = ("gx", "gg", "xx", "pp")

    def columns(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]:
        return [list(map(float, row)) for row in rows]

    def vector(self, values: Sequence[Any]) -> list[float]:
        return [float(x) for x in values]

    def cast(self, x: Any) -> Any:
        """An option as the host stores it."""
        if isinstance(x, tuple | list):
            return tuple(map(self.cast, x))
        return x.item() if isinstance(x, Tensor) and not x.dim() else x

    def apply(self, function: Elementwise, columns: Mapping[str, list[float]], size: int) -> dict[str, list[Any]]:
        """The columns that a function gives for each entry."""
        if size > VECTORIZED_SIZE:
            vectors = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
            found = function(torch, vectors)
            return {name: x.tolist() if isinstance(x, Tensor) else [x] * size for name, x in found.items()}
        if size == 1:
            return {name: [x] for name, x in function(float_ops, {name: column[0] for name, column in columns.items()}).items()}
        rows = [function(float_ops, {name: column[k] for name, column in columns.items()}) for k in range(size)]
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

    def write(self, assignments: Iterable[tuple[MutableMapping[str, Any], str, Any]]) -> None:
        """Write scalars to where they belong; in place if a tensor is stored there, as a learning rate may be."""
        for holder, name, value in assignments:
            if isinstance(holder.get(name), Tensor):
                holder[name].fill_(value)
            else:
                holder[name] = value


@final
class DeviceScalars:
    """Columns as vectors on a device.

    Args:
        device: the device.
    """

    on_device = True

    #: The same; norms here are square roots.
    SUM_NAMES = ("gx", "g_norm", "d_norm", "size")

    def __init__(self, device: torch.device) -> None:
        self.device: torch.device = device
        self.dtype: torch.dtype = widest_dtype(device)
        self._constants: dict[Any, Tensor] = {}

    def constant(self, value: Any, dtype: torch.dtype | None = None) -> Tensor:
        """A number, or a tuple of them, as a constant tensor, made once."""
        key = value, dtype
        if key not in self._constants:
            if len(self._constants) > 1000:
                self._constants.clear()
            self._constants[key] = torch.tensor(value, dtype=dtype or self.dtype, device=self.device)
        return self._constants[key]

    def columns(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """Columns of one length, stacked together: vectors, or plain floats if a column is constant and all its entries are equal."""
        varies = [any(isinstance(x, Tensor) for x in row) for row in rows]
        entries = [self.scalar(x) for row, varying in zip(rows, varies, strict=True) if varying for x in row]
        flat = entries[0].reshape(1) if len(entries) == 1 else torch.stack(entries) if entries else None
        vectors = iter(() if flat is None else flat.view(-1, len(rows[0])).unbind())
        return [next(vectors) if varying else self._constant_column(row) for row, varying in zip(rows, varies, strict=True)]

    def vector(self, values: Sequence[Any]) -> Tensor:
        """A column that is always a vector."""
        (found,) = self.columns([values])
        return found if isinstance(found, Tensor) else self.constant((found,) * len(values))

    def scalar(self, x: Any) -> Tensor:
        """A number as a 0-dim tensor."""
        return x.detach().reshape(()).to(self.device, self.dtype) if isinstance(x, Tensor) else self.constant(float(x))

    def cast(self, x: Any) -> Tensor:
        """A scalar of a param group or state as the device stores it."""
        return x.to(self.device) if isinstance(x, Tensor) else torch.full((), float(x), dtype=self.dtype, device=self.device)

    def _constant_column(self, row: Sequence[float]) -> Any:
        values = tuple(map(float, row))
        return values[0] if values and len(set(values)) == 1 else self.constant(values)

    def apply(self, function: Elementwise, columns: Mapping[str, Any], size: int) -> dict[str, Any]:
        """The columns that a function gives, called once."""
        return function(torch, columns)

    def write(self, assignments: Iterable[tuple[MutableMapping[str, Any], str, Any]]) -> None:
        """Write 0-dim tensors to where they belong, in place and with one call, since a CUDA graph needs fixed addresses."""
        targets, values = [], []
        for holder, name, value in assignments:
            old = holder.get(name)
            if isinstance(old, Tensor) and old.numel() == 1:
                if old is not value:
                    targets.append(old)
                    values.append(value.reshape(old.shape) if isinstance(value, Tensor) else self.constant(float(value)).reshape(old.shape))
            else:
                holder[name] = value.clone() if isinstance(value, Tensor) else value
        if targets:
            torch._foreach_copy_(targets, values)


Scalars = HostScalars | DeviceScalars


def exact_sum(values: Iterable[float]) -> float:
    """The sum of floats, rounded once, so it does not depend on the order; NaN if it is not finite."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # finite terms beyond float64's range; inf - inf
        return math.nan


def to_floats(scalars: Sequence[Tensor]) -> list[float]:
    """The values of 0-dim tensors, with one transfer per device and dtype."""
    if len(scalars) < 12 and all(x.device.type == "cpu" for x in scalars):
        return [x.item() for x in scalars]
    indices_of = defaultdict(list)
    for i, x in enumerate(scalars):
        indices_of[x.device, x.dtype].append(i)
    values = [0.0] * len(scalars)
    for indices in indices_of.values():
        for i, value in zip(indices, torch.stack([scalars[i] for i in indices]).tolist(), strict=True):
            values[i] = value
    return values
