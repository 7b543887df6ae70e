"""Arithmetic over tensors: real views, dot products, and their way to the host.

The optimizers see every tensor through ``real``, so a complex number is two real ones and a dot product is the real inner
product. Dot products accumulate in float32 or wider, whatever the dtype of the parameters.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from .numbers import wide

#: Elements of a piece: a few such tensors of float32 fit into the caches of two cores. Measured: half and twice as many are slower.
BLOCK = 262_144

#: Elements of a piece where nothing but dot products is made of it: few calls, and few numbers to sum in float32.
DOTS = 1 << 22

#: Elements of a tensor below which it goes through a step packed with others, and no compiled kernel is called for it.
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
    if out is not None and torch.compiler.is_compiling():  # torch 2.6 would compile for this size alone
        return out.copy_(add_scaled(y, a, x))
    return torch.addcmul(y, x, a, out=out) if isinstance(a, Tensor) else torch.add(y, x, alpha=a, out=out)


def add_product(y: Tensor, a: float | Tensor, x: Tensor, z: Tensor, *, out: Tensor | None = None) -> Tensor:
    """y + a x z, elementwise."""
    if out is not None and torch.compiler.is_compiling():
        return out.copy_(add_product(y, a, x, z))
    return torch.add(y, a * (x * z), out=out) if isinstance(a, Tensor) else torch.addcmul(y, x, z, value=a, out=out)


def add_quotient(y: Tensor, a: float | Tensor, x: Tensor, z: Tensor) -> Tensor:
    """y + a x / z, elementwise."""
    return y + a * (x / z) if isinstance(a, Tensor) else torch.addcdiv(y, x, z, value=a)


def mix(y: Tensor, a: float | Tensor, x: Tensor) -> Tensor:
    """y + a (x − y) in place of y, elementwise, with a < 1/2 or of little rounding."""
    if torch.compiler.is_compiling():  # which makes two cases of lerp, above 1/2 and below, for each element
        return y.add_((x - y) * a)
    return y.lerp_(x, a)


def is_zero(a: float | Tensor) -> bool:
    """Whether ``a`` is the number 0; a tensor of numbers is taken to hold others."""
    return not isinstance(a, Tensor) and a == 0


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of two real tensors of one shape, as a 0-dim tensor of float32 or wider."""
    if x.dtype != y.dtype or x.dtype not in (torch.float32, torch.float64):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = x.to(dtype), y.to(dtype)
    if torch.compiler.is_compiling():  # which makes one kernel of a sum and what it is of
        return (x * y).sum()
    return torch.dot(x, y) if x.dim() == y.dim() == 1 else torch.dot(x.reshape(-1), y.reshape(-1))


def dense(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors of one shape lie in memory one like the other, and without gaps."""
    first = tensors[0]
    if any(x.stride() != first.stride() for x in tensors):
        return False
    length = 1
    for stride, extent in () if first.is_contiguous() else sorted(zip(first.stride(), first.shape, strict=True)):
        if extent != 1 and stride != length:
            return False
        length *= extent
    return True


def blocks(tensors: Mapping[str, Tensor], size: int = BLOCK) -> Iterator[dict[str, Tensor]]:
    """Tensors of one shape in flat pieces that stay in a processor's cache over several operations; whole where they are small.

    They are whole too where they do not lie in memory one like the other, so that pieces would not fit together.
    """
    length = next(iter(tensors.values())).numel()
    if length <= size or not all(x.is_contiguous() for x in tensors.values()):
        yield dict(tensors)
        return
    flat = {name: torch.split(x.view(-1), size) for name, x in tensors.items()}
    for i in range(math.ceil(length / size)):
        yield {name: pieces[i] for name, pieces in flat.items()}


def parts(sizes: Sequence[int]) -> list[list[int]]:
    """Which tensors are worked on together, in order: large ones alone, small ones up to ``BLOCK`` elements."""
    found: list[list[int]] = []
    filled = BLOCK + 1
    for i, size in enumerate(sizes):
        if size >= SMALL:
            found.append([i])
            continue
        filled += size
        if filled > BLOCK:
            packed: list[int] = []
            found.append(packed)
            filled = size
        packed.append(i)
    return found


@final
class Pack(Mapping[str, Tensor]):
    """Several small tensors of each name as one flat copy, which is made when it is asked for."""

    def __init__(self, columns: Mapping[str, Sequence[Tensor]]) -> None:
        self.columns = columns
        self.made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.made:
            self.made[name] = _flatten_dense_tensors(self.columns[name])  # type: ignore[no-untyped-call]
        return self.made[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def write_back(self) -> None:
        """Write to the tensors what has been written to their copies."""
        for name, packed in self.made.items():
            if packed._version:
                views = _unflatten_dense_tensors(packed, self.columns[name])  # type: ignore[no-untyped-call]
                copy_all(self.columns[name], views)


def changed(*tensors: Tensor) -> None:
    """Count a change of tensors that a kernel has made, which does not count it, so that autograd refuses to go back through it."""
    torch.autograd.graph.increment_version(tensors)


def copy_all(to: Iterable[Tensor], of: Iterable[Tensor]) -> None:
    """Copy tensors, one to one, with one call."""
    torch._foreach_copy_(list(to), list(of))


def finite_zero(x: Tensor) -> Tensor:
    """0 where every element of ``x`` is finite, NaN otherwise: what a dot product with zeros would say."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return sum(end.to(wide) * 0 for end in torch.aminmax(x)) if x.numel() else x.sum(dtype=wide)  # type: ignore[return-value]


def to_numbers(scalars: Sequence[Tensor], on_device: bool) -> Sequence[Any]:
    """The values of 0-dim tensors on the host, or as wide numbers on the device of the first."""
    if not on_device or not scalars:
        return to_floats(scalars)
    device = scalars[0].device
    return [x.to(device, wide(device)) for x in scalars]


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
