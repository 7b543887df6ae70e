"""Elementwise work on the buffers of one tensor: in pieces that stay in the cache, or as one kernel that reads each of them once.

The kernel is compiled by torch.compile from the function that runs in pieces otherwise, so there is one source for both, and for every
device. It is compiled once for each structure of the work (which buffers, which rules), not for sizes, nor for numbers.
"""

import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from .directions import Numbers
from .tensors import blocks

Work = Callable[..., list[Tensor]]
"""A function of tensors by name, numbers by name, and what is fixed; it gives scalars, and may write to the tensors."""

Kernel = Callable[[list[Tensor], Tensor], Tensor | None]
"""Work that is compiled: of flat tensors, and of a vector of numbers."""

#: Elements of a tensor below which the pieces are faster: a kernel takes 0.1 ms to call.
SMALL = 16_384

#: Numbers at which the work itself is another one when they are 0.
STRUCTURAL = ("momentum", "penalty", "weight_decay")


@final
class Runner:
    """Runs work on tensors of one shape.

    Args:
        fused: whether to compile it. Where that fails, a warning says so once, and the work is done in pieces.
    """

    def __init__(self, fused: bool) -> None:
        self.fused = fused
        self._kernels: dict[Any, Kernel] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Runner, (self.fused,)  # a copy compiles its own

    def __call__(self, work: Work, tensors: Mapping[str, Tensor], numbers: Numbers, *fixed: Any) -> list[list[Tensor]]:
        """The scalars of each piece."""
        flat = flattened(tensors) if self.fused else None
        scalars = None if flat is None else self._run(work, tuple(tensors), flat, numbers, fixed)
        if scalars is None:
            return [work(piece, numbers, *fixed) for piece in blocks(tensors)]
        torch.autograd.graph.increment_version(list(tensors.values()))  # the flat ones have counters of their own
        return [scalars]

    def _run(self, work: Work, names: tuple[str, ...], flat: list[Tensor], numbers: Numbers, fixed: tuple[Any, ...]) -> list[Tensor] | None:
        """The scalars of one kernel; None where it cannot be compiled."""
        plain = {name: x for name, x in numbers.items() if not isinstance(x, Tensor)}  # a learning rate an element is among the tensors
        switches = {name: x for name, x in plain.items() if isinstance(x, bool) or (x == 0 and name in STRUCTURAL)}
        values = {name: float(x) for name, x in plain.items() if name not in switches}
        key = work, names, tuple(values), tuple(switches.items()), fixed
        new = key not in self._kernels
        if new:
            self._kernels[key] = compiled(work, names, tuple(values), switches, fixed)
        wide = torch.float64 if any(x.dtype == torch.float64 for x in flat) else torch.float32
        try:
            scalars = self._kernels[key](flat, torch.tensor(list(values.values()), dtype=wide, device=flat[0].device))
        except Exception as error:
            if not new:
                raise
            self.fused = False
            lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
            reason = (lines or [type(error).__name__])[0][:200]
            warnings.warn(f"fused=True needs a compiler that torch.compile can use, and goes on without: {reason}", stacklevel=9)
            return None
        return [] if scalars is None else list(scalars.unbind())


def compiled(work: Work, tensors: tuple[str, ...], numbers: tuple[str, ...], switches: Numbers, fixed: tuple[Any, ...]) -> Kernel:
    """``work`` as a kernel of flat tensors and a vector of numbers, in the order of their names."""

    def kernel(flat: list[Tensor], vector: Tensor) -> Tensor | None:
        values = {**dict(zip(numbers, vector.unbind(), strict=True)), **switches}
        scalars = work(dict(zip(tensors, flat, strict=True)), values, *fixed)
        return torch.stack(scalars) if scalars else None

    # torch.compile counts what it compiles by code object, and gives up at eight.
    own = types.FunctionType(kernel.__code__.replace(), kernel.__globals__, work.__name__, None, kernel.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


def flattened(tensors: Mapping[str, Tensor]) -> list[Tensor] | None:
    """Tensors of one shape as flat ones over the same memory; None where they do not lie in it one like the other, or are small.

    They are not views, since torch.compile would compile anew for the shapes of what they are views of.
    """
    first = next(iter(tensors.values()))
    size = first.numel()
    if size < max(2, SMALL) or any(x.stride() != first.stride() for x in tensors.values()):
        return None
    if not first.is_contiguous():
        length = 1
        for stride, extent in sorted(zip(first.stride(), first.shape, strict=True)):
            if extent != 1 and stride != length:
                return None
            length *= extent
    return [x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), (size,), (1,)) for x in tensors.values()]
