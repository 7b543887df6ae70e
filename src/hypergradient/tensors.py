"""Arithmetic over tensors: real views, dot products, and their way to the host.

The optimizers see every tensor through ``real``, so a complex number is two real ones and a dot product is the real inner
product. Dot products accumulate in float32 or wider, whatever the dtype of the parameters.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

Number = TypeVar("Number", float, Tensor)

#: Elements of a piece: a few such tensors of float32 fit into the caches of two cores. Measured: 65,536 and 262,144 are slower.
BLOCK = 131_072

#: Elements of a tensor below which it is packed with others, and below which no compiled kernel is called.
SMALL = 16_384


def real(x: Tensor) -> Tensor:
    """A view of ``x`` without complex numbers: ``[..., 2]`` for a complex tensor, ``x`` itself for a real one."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def make_buffer(state: dict[str, Any], key: str, like: Tensor, value: float = 0.0) -> None:
    """Fill ``state[key]`` with a tensor of one value, shaped as ``like``, where there is none."""
    if state.get(key) is None:  # torch.optim.SGD's checkpoints hold None for a buffer not yet used
        state[key] = torch.zeros_like(like, memory_format=torch.preserve_format)
        if value:
            real(state[key]).fill_(value)


def add_scaled(y: Tensor, a: float | Tensor, x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """y + a x. ``a`` is a number, or a tensor that broadcasts: one number a run, where the first axis counts runs."""
    return torch.addcmul(y, x, a, out=out) if isinstance(a, Tensor) else torch.add(y, x, alpha=a, out=out)


def add_product(y: Tensor, a: float | Tensor, x: Tensor, z: Tensor, *, out: Tensor | None = None) -> Tensor:
    """y + a x z, elementwise."""
    return torch.add(y, a * (x * z), out=out) if isinstance(a, Tensor) else torch.addcmul(y, x, z, value=a, out=out)


def add_quotient(y: Tensor, a: float | Tensor, x: Tensor, z: Tensor) -> Tensor:
    """y + a x / z, elementwise."""
    return y + a * (x / z) if isinstance(a, Tensor) else torch.addcdiv(y, x, z, value=a)


def mix(y: Tensor, a: float | Tensor, x: Tensor) -> Tensor:
    """y + a (x − y) in place of y, elementwise, with a < 1/2 or of little rounding."""
    if torch.compiler.is_compiling():  # which makes two cases of lerp, above 1/2 and below, for each element
        return y.add_((x - y) * a)
    return y.lerp_(x, a)


def clip(x: Number, low: float, high: float) -> Number:
    """``x`` between ``low`` and ``high``; elementwise for a tensor."""
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)  # in this order NaN stays


def is_zero(a: float | Tensor) -> bool:
    """Whether ``a`` is the number 0; a tensor of numbers is taken to hold others."""
    return not isinstance(a, Tensor) and a == 0


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of two real tensors of one shape, as a 0-dim tensor of float32 or wider."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    if torch.compiler.is_compiling():  # which makes one kernel of a sum and what it is of
        return (x.to(dtype) * y.to(dtype)).sum()
    return torch.dot(x.reshape(-1).to(dtype), y.reshape(-1).to(dtype))


def blocks(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors of one shape in flat pieces that stay in a processor's cache over several operations; whole where they are small.

    They are whole too where they do not lie in memory one like the other, so that pieces would not fit together.
    """
    size = next(iter(tensors.values())).numel()
    if size <= BLOCK or not all(x.is_contiguous() for x in tensors.values()):
        yield dict(tensors)
        return
    flat = {name: torch.split(x.view(-1), BLOCK) for name, x in tensors.items()}
    for i in range(math.ceil(size / BLOCK)):
        yield {name: pieces[i] for name, pieces in flat.items()}


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """A flat copy of several tensors, one after the other; a single one itself."""
    return tensors[0] if len(tensors) == 1 else _flatten_dense_tensors(tensors)


def unpack(packed: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write a flat copy back to the tensors that it was made of."""
    torch._foreach_copy_(tensors, _unflatten_dense_tensors(packed, tensors))


def finite_zero(x: Tensor) -> Tensor:
    """0 where every element of ``x`` is finite, NaN otherwise: what a dot product with zeros would say."""
    return (x * 0).sum(dtype=torch.promote_types(x.dtype, torch.float32))


def to_floats(scalars: Sequence[Tensor]) -> list[float]:
    """The values of 0-dim tensors, with one transfer for each device and dtype."""
    places = defaultdict(list)
    for i, x in enumerate(scalars):
        places[x.device, x.dtype].append(i)
    values = [0.0] * len(scalars)
    for indices in places.values():
        for i, value in zip(indices, torch.stack([scalars[i] for i in indices]).tolist(), strict=True):
            values[i] = value
    return values


def total(values: Iterable[float]) -> float:
    """The sum, rounded once, so that it does not depend on the order; NaN where it is not finite."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # finite terms beyond float64's range; inf - inf
        return math.nan
