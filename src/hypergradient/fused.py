"""Elementwise work as one compiled kernel that reads and writes each tensor once.

torch.compile makes the kernel from the same function that otherwise runs on pieces, so there is one source for both and for every device.
It is compiled once per structure of the work (which buffers, rules and dtypes), not per size or coefficient. It is then called as Inductor
made it: torch.compile's own call, with its guards, takes five times as long as the work on a small tensor. The kernel's key here has what
the guards would check, and sizes are declared dynamic from ``SMALL`` on.
"""

import types
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from .tensors import is_zero

Kernel = Callable[[Mapping[str, Tensor], Tensor], list[Tensor]]
"""Compiled work on dense tensors by name, and a vector of coefficients."""

#: Tensors with fewer elements do not use a compiled kernel.
SMALL = 16_384

#: Elements of the example tensor, large enough that the kernel uses all cores; and the most it takes, so that 32-bit indices suffice.
TYPICAL, LARGEST = 1 << 20, (1 << 31) - 1

#: Coefficients whose being 0 changes the structure of the work.
STRUCTURAL = ("momentum", "penalty", "weight_decay")

#: Whether Inductor precompiles its headers. That pays off from the fourth kernel on, and an optimizer has one or two.
HEADERS = False


@final
class Kernels:
    """The kernels of an optimizer.

    Args:
        fused: whether to compile kernels. If one fails to compile, a warning says so once, and none are used from then on.
    """

    def __init__(self, fused: bool) -> None:
        self.fused: bool = fused
        self.made: dict[Any, Kernel] = {}
        self._last: tuple[Any, Tensor] = (None, torch.empty(0))

    def __call__(self, work: Callable[..., Any], tensors: Mapping[str, Tensor], coef: Mapping[str, Any], fixed: Any) -> Any:
        """The results of the work on dense tensors; None if it cannot be compiled."""
        switches, values = split_coef(coef, tensors)
        first, dtypes = tensors["p"], tuple(x.dtype for x in tensors.values())
        key = work, tuple(tensors), dtypes, first.device, tuple(values), tuple(switches.items()), fixed
        vector = self._vector(tuple(values.values()), torch.float64 if torch.float64 in dtypes else torch.float32, first.device)
        if key not in self.made:
            try:
                self.made[key] = compile_kernel(work, tensors, tuple(values), vector, switches, fixed)
            except Exception as error:
                self.fused = False
                lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
                reason = (lines or [type(error).__name__])[0][:200]
                warnings.warn(f"fused=True needs a compiler that torch.compile can use; continuing without it: {reason}", stacklevel=9)
                return None
        return self.made[key](tensors, vector)

    def _vector(self, values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The coefficients as a vector on the device, shared by the tensors of a param group."""
        if any(isinstance(x, Tensor) for x in values):
            return torch.stack([x.to(dtype) if isinstance(x, Tensor) else torch.full((), x, dtype=dtype, device=device) for x in values])
        if self._last[0] != (values, dtype, device):
            self._last = (values, dtype, device), torch.tensor(values, dtype=dtype, device=device)
        return self._last[1]


def split_coef(coef: Mapping[str, Any], tensors: Container[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Coefficients that change the structure of the work, and those that are passed to the kernel as values."""
    # Elementwise learning rates are among the tensors.
    plain = {name: x for name, x in coef.items() if not isinstance(x, Tensor) or (x.dim() == 0 and name not in tensors)}
    switches = {name: x for name, x in plain.items() if isinstance(x, bool) or (name in STRUCTURAL and is_zero(x))}
    return switches, {name: x for name, x in plain.items() if name not in switches}


def compile_kernel(
    work: Callable[..., Any],
    tensors: Mapping[str, Tensor],
    coef_names: tuple[str, ...],
    vector: Tensor,
    switches: dict[str, Any],
    fixed: tuple[Any, ...],
) -> Kernel:
    """``work`` as a kernel of such tensors and of a vector of coefficients, ordered as in ``coef_names``."""
    names = list(tensors)

    def kernel(flat: list[Tensor], vector: Tensor) -> tuple[Tensor, ...]:
        values = {**dict(zip(coef_names, vector.unbind(), strict=True)), **switches}
        return tuple(work(dict(zip(names, flat, strict=True)), values, *fixed))

    dummies = [torch.zeros(TYPICAL, dtype=x.dtype, device=x.device) for x in tensors.values()]
    for x in dummies:
        torch._dynamo.mark_dynamic(x, 0, min=SMALL, max=LARGEST)
    zeros = torch.zeros_like(vector)
    torch._dynamo.mark_static(zeros)
    # torch.compile counts compilations per code object, and gives up after eight: copy the code object.
    own = types.FunctionType(kernel.__code__.replace(), kernel.__globals__, work.__name__, None, kernel.__closure__)
    catch = CapturingBackend({id(x): name for name, x in zip([*names, ""], [*dummies, zeros], strict=True)})
    torch.compile(own, dynamic=True, fullgraph=True, backend=catch)(dummies, zeros)
    if catch.made is None:
        raise RuntimeError("torch.compile is disabled, so nothing was compiled")
    made, order = catch.made, catch.order

    def call(tensors: Mapping[str, Tensor], vector: Tensor) -> list[Tensor]:
        size = tensors["p"].numel()
        return list(made(*[size if name is None else flattened(tensors[name]) if name else vector for name in order]))

    return call


@final
class CapturingBackend:
    """A torch.compile backend that stores what Inductor made, and the order of its inputs.

    Args:
        inputs: the tensors of the compiling call by id: their names, "" for the vector.
    """

    def __init__(self, inputs: Mapping[int, str]) -> None:
        self.inputs = inputs
        self.made: Callable[..., Sequence[Tensor]] | None = None
        self.order: list[str | None] = []  # None stands for the size

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        name = "cpp_cache_precompile_headers"
        known_option = hasattr(torch._inductor.config, name)  # torch 2.6 has no such option
        made: Any = torch._inductor.compile(graph, examples, options={name: HEADERS} if known_option else {})

        def first(*inputs: Any) -> Any:
            if any(id(x) not in self.inputs and not isinstance(x, int) for x in inputs):
                raise RuntimeError("torch.compile has added an input that is neither a tensor of the work nor its size")
            self.made, self.order = made, [self.inputs.get(id(x)) for x in inputs]
            return made(*inputs)

        return first


def flattened(x: Tensor) -> Tensor:
    """A dense tensor as a flat view of the same memory."""
    return x.view(-1) if x.is_contiguous() else x.as_strided((x.numel(),), (1,))
