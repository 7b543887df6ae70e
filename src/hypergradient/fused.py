"""Elementwise work on the buffers of tensors: in pieces that stay in the cache, or as one kernel that reads each of them once.

The kernel is compiled by torch.compile from the function that runs in pieces otherwise, so there is one source for both, and for every
device. It is compiled once for each structure of the work (which buffers, which rules, which dtypes), not for sizes, nor for numbers. It is
then called as Inductor made it: torch.compile's own way to it, which checks that nothing has changed, takes five times as long as the work
on a small tensor. What it would check is in the kernel's key here, and sizes are declared to be any from ``SMALL`` on.
"""

import types
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from .directions import Columns, Numbers
from .tensors import BLOCK, DOTS, SMALL, Pack, blocks, changed, dense, is_zero, parts

Work = Callable[..., list[Tensor]]
"""A function of tensors by name, numbers by name, and what is fixed; it gives scalars, and may write to the tensors."""

Kernel = Callable[[Mapping[str, Tensor], Tensor], list[Tensor]]
"""Work that is compiled: of dense tensors by name, and of a vector of numbers."""

#: Numbers at which the work itself is another one when they are 0.
STRUCTURAL = ("momentum", "penalty", "weight_decay")

#: What work never writes to: gradients, and the learning rates of elements.
READ_ONLY = ("g", "lr")

#: Elements that a kernel is compiled with, so that it uses all cores, and that it takes at most, so that 32 bits count them.
TYPICAL, LARGEST = 1 << 20, (1 << 31) - 1

#: Whether Inductor is to compile its headers by themselves first. That pays from the fourth kernel on, and an optimizer has one or two.
HEADERS = False


@final
class Runner:
    """Runs work on a tensor, or on several small ones together.

    Args:
        fused: whether to compile it. Where that fails, a warning says so once, and the work is done in pieces.
    """

    def __init__(self, fused: bool) -> None:
        self.fused = fused
        self._kernels: dict[Any, Kernel] = {}
        self._last: tuple[Any, Tensor] = (None, torch.empty(0))

    def __reduce__(self) -> tuple[Any, ...]:
        return Runner, (self.fused,)  # a copy compiles its own

    def __call__(
        self, work: Work, tensors: Columns, numbers: Numbers, *fixed: Any, writes: bool = False, light: bool = False
    ) -> list[list[Tensor]]:
        """The scalars of each piece.

        Args:
            work: what is to be done.
            tensors: by name; of each name as many, alike in shape from name to name.
            numbers: by name.
            fixed: what is part of the work.
            writes: whether it writes to the tensors.
            light: whether it is dot products of tensors that there are: no kernel is faster, and no temporary needs small pieces.
        """
        found: list[list[Tensor]] = []
        switches, values = ({}, {}) if light or not self.fused else split(numbers, tensors)
        for part in parts([x.numel() for x in tensors["p"]]):
            if len(part) > 1:
                pack = Pack({name: [column[i] for i in part] for name, column in tensors.items()})
                found.append(work(pack, numbers, *fixed))
                if writes:
                    pack.write_back()
                continue
            whole = {name: column[part[0]] for name, column in tensors.items()}
            scalars = None if light or not self.fused else self._run(work, whole, switches, values, fixed, writes)
            size = DOTS if light else BLOCK
            found += [work(piece, numbers, *fixed) for piece in blocks(whole, size)] if scalars is None else [scalars]
        return found

    def _run(
        self, work: Work, tensors: Mapping[str, Tensor], switches: Numbers, values: Numbers, fixed: tuple[Any, ...], writes: bool
    ) -> list[Tensor] | None:
        """The scalars of one kernel; None where there is none for such tensors, or it cannot be compiled."""
        first = tensors["p"]
        if not SMALL <= first.numel() <= LARGEST or not dense(list(tensors.values())):
            return None
        dtypes = tuple(x.dtype for x in tensors.values())
        key = work, tuple(tensors), dtypes, first.device, tuple(values), tuple(switches.items()), fixed
        vector = self._vector(tuple(values.values()), torch.float64 if torch.float64 in dtypes else torch.float32, first.device)
        if key not in self._kernels:
            try:
                self._kernels[key] = compiled(work, tensors, tuple(values), vector, switches, fixed)
            except Exception as error:
                self.fused = False
                lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
                reason = (lines or [type(error).__name__])[0][:200]
                warnings.warn(f"fused=True needs a compiler that torch.compile can use, and goes on without: {reason}", stacklevel=9)
                return None
        scalars = self._kernels[key](tensors, vector)
        if writes:
            changed(*(x for name, x in tensors.items() if name not in READ_ONLY))
        return scalars

    def _vector(self, values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The numbers on the device; tensors of one param group share them."""
        if any(isinstance(x, Tensor) for x in values):
            return torch.stack([x.to(dtype) if isinstance(x, Tensor) else torch.full((), x, dtype=dtype, device=device) for x in values])
        if self._last[0] != (values, dtype, device):
            self._last = (values, dtype, device), torch.tensor(values, dtype=dtype, device=device)
        return self._last[1]


def split(numbers: Numbers, tensors: Container[str]) -> tuple[Numbers, Numbers]:
    """The numbers that the work itself depends on, and those that are handed to the kernel."""
    # A learning rate an element is among the tensors.
    plain = {name: x for name, x in numbers.items() if not isinstance(x, Tensor) or (x.dim() == 0 and name not in tensors)}
    switches = {name: x for name, x in plain.items() if isinstance(x, bool) or (name in STRUCTURAL and is_zero(x))}
    return switches, {name: x for name, x in plain.items() if name not in switches}


def compiled(
    work: Work, tensors: Mapping[str, Tensor], numbers: tuple[str, ...], vector: Tensor, switches: Numbers, fixed: tuple[Any, ...]
) -> Kernel:
    """``work`` as a kernel of such tensors, and of a vector of numbers in the order of their names."""
    names = list(tensors)

    def kernel(flat: list[Tensor], vector: Tensor) -> tuple[Tensor, ...]:
        values = {**dict(zip(numbers, vector.unbind(), strict=True)), **switches}
        return tuple(work(dict(zip(names, flat, strict=True)), values, *fixed))

    artifact: Callable[..., Sequence[Tensor]] | None = None
    order: list[str | None] = []  # of its inputs: names of the tensors that it uses, "" for the vector, None for the size

    def backend(graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        name = "cpp_cache_precompile_headers"
        known_option = hasattr(torch._inductor.config, name)  # torch 2.6 does not do it
        made = torch._inductor.compile(graph, examples, options={name: HEADERS} if known_option else {})

        def first(*inputs: Any) -> Any:
            nonlocal artifact
            artifact = made
            known = {id(x): name for name, x in zip([*names, ""], [*dummies, zeros], strict=True)}
            if any(id(x) not in known and not isinstance(x, int) for x in inputs):
                raise RuntimeError("torch.compile has made an input of what is neither a tensor of the work nor its size")
            order[:] = [known.get(id(x)) for x in inputs]
            return made(*inputs)

        return first

    dummies = [torch.zeros(TYPICAL, dtype=x.dtype, device=x.device) for x in tensors.values()]
    for x in dummies:
        torch._dynamo.mark_dynamic(x, 0, min=SMALL, max=LARGEST)
    zeros = torch.zeros_like(vector)
    torch._dynamo.mark_static(zeros)
    # torch.compile counts what it compiles by code object, and gives up at eight.
    own = types.FunctionType(kernel.__code__.replace(), kernel.__globals__, work.__name__, None, kernel.__closure__)
    torch.compile(own, dynamic=True, fullgraph=True, backend=backend)(dummies, zeros)
    if artifact is None:
        raise RuntimeError("torch.compile did not compile: it is switched off")
    made = artifact

    def call(tensors: Mapping[str, Tensor], vector: Tensor) -> list[Tensor]:
        size = tensors["p"].numel()
        return list(made(*[size if name is None else flattened(tensors[name]) if name else vector for name in order]))

    return call


def flattened(x: Tensor) -> Tensor:
    """A dense tensor as a flat one over the same memory."""
    return x.view(-1) if x.is_contiguous() else x.as_strided((x.numel(),), (1,))
