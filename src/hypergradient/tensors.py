"""Arithmetic over tensors: real views, lists of tensors that are processed as one, dot products.

The optimizers see every tensor through ``real``, so a complex number is two real ones and a dot product is the real inner product. Dot
products accumulate in float32 or wider, whatever the dtype of the parameters.

Equations are written with tensor methods and the functions here, and hold for one tensor and for ``Tensors``, a list that goes through
every operation together. A coefficient is a float; a 0-dim tensor, if only the device knows it; or, for a list, one of those per tensor.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from .ranks import local


@final
class Tensors(list[Tensor]):
    """Real tensors that go through an operation together: each method is one call of ``torch._foreach_*``, one or a few kernel launches."""

    @property
    def dtype(self) -> torch.dtype:
        return self[0].dtype

    def __neg__(self) -> "Tensors":
        return Tensors(torch._foreach_neg(self))

    def sqrt(self) -> "Tensors":
        return Tensors(torch._foreach_sqrt(self))

    def mul(self, a: Any) -> "Tensors":
        return Tensors(torch._foreach_mul(self, a))

    def sub(self, a: Any) -> "Tensors":
        return Tensors(torch._foreach_sub(self, a))

    def div(self, a: Any) -> "Tensors":
        return Tensors(torch._foreach_div(self, a))

    def mul_(self, a: Any) -> "Tensors":
        torch._foreach_mul_(self, a)
        return self

    def add_(self, a: Any) -> "Tensors":
        torch._foreach_add_(self, [a] * len(self) if isinstance(a, Tensor) and a.is_meta else a)  # meta has no value to read
        return self

    def sub_(self, a: Any) -> "Tensors":
        torch._foreach_sub_(self, a)
        return self

    def div_(self, a: Any) -> "Tensors":
        torch._foreach_div_(self, a)
        return self

    def copy_(self, a: Sequence[Tensor]) -> "Tensors":
        torch._foreach_copy_(self, list(a))
        return self

    def clamp_min_(self, a: float) -> "Tensors":
        torch._foreach_clamp_min_(self, a)
        return self

    def to(self, dtype: torch.dtype) -> "Tensors":
        return self if dtype == self.dtype else Tensors(torch.empty_like(x, dtype=dtype) for x in self).copy_(self)


@final
class Norms(list[Tensor]):
    """The norms of a list's tensors, to be squared later, all of a step together."""


TensorOrList = Tensor | Tensors
"""One tensor, or a list of them."""


def real(x: Tensor) -> Tensor:
    """A real view of ``x``: ``[..., 2]`` for a complex tensor, ``x`` itself for a real one."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def widest_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point dtype that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def make_buffer(state: dict[str, Any], key: str, like: Tensor, value: Any = 0.0, dtype: torch.dtype | None = None) -> None:
    """Fill ``state[key]`` with a constant tensor shaped like ``like``, if there is none."""
    if state.get(key) is None:  # torch.optim.SGD's checkpoints have None for an unused buffer
        state[key] = torch.zeros_like(like, memory_format=torch.preserve_format, dtype=dtype)
        if isinstance(value, Tensor) or value:
            there = local(real(state[key]))
            there.copy_(value) if isinstance(value, Tensor) else there.fill_(value)


def add_scaled(y: Any, a: Any, x: Any, *, out: Any = None) -> Any:
    """y + a x, as a new tensor or in ``out``, which may be y. A tensor ``a`` broadcasts: one coefficient per run, or per element."""
    if isinstance(y, Tensors):
        if isinstance(a, float) and (out is None or out is y):
            if out is None:
                return Tensors(torch._foreach_add(y, x, alpha=a))
            torch._foreach_add_(y, x, alpha=a)
            return y
        step = x.mul(a)
        return y.add_(step) if out is y else step.add_(y) if out is None else out.copy_(step.add_(y))
    if out is not None and torch.compiler.is_compiling():  # torch 2.6 would specialize on the size
        return out.copy_(add_scaled(y, a, x))
    return torch.addcmul(y, x, a, out=out) if isinstance(a, Tensor) else torch.add(y, x, alpha=a, out=out)


def add_product(y: Any, a: Any, x: Any, z: Any, *, out: Any = None) -> Any:
    """y + a x z, elementwise, likewise."""
    if isinstance(y, Tensors):
        if isinstance(a, float) and out is y:
            torch._foreach_addcmul_(y, x, z, value=a)
            return y
        product = x.mul(z).mul_(a)
        return y.add_(product) if out is y else product.add_(y)
    if out is not None and torch.compiler.is_compiling():
        return out.copy_(add_product(y, a, x, z))
    return torch.add(y, a * (x * z), out=out) if isinstance(a, Tensor) else torch.addcmul(y, x, z, value=a, out=out)


def add_quotient(y: Any, a: Any, x: Any, z: Any) -> Any:
    """y + a x / z, elementwise."""
    if isinstance(y, Tensors):
        return x.div(z).mul_(a).add_(y)
    return y + a * (x / z) if isinstance(a, Tensor) else torch.addcdiv(y, x, z, value=a)


def lerp(y: Any, a: Any, x: Any) -> Any:
    """y + a (x − y), in place of y; for a < 1/2, or where rounding does not matter."""
    if torch.compiler.is_compiling():  # compiled, torch's lerp branches at 1/2 for each element
        return y.add_((x - y) * a)
    return y.lerp_(x, a)


def assign_if_taken(y: Any, x: Any, coef: dict[str, Any]) -> Any:
    """Assign x to y, elementwise; if only the device knows that the step is skipped, y keeps its value, to the bit. Then x may not be y."""
    return add_scaled(y.mul_(coef["skipped"]), coef["taken"], x, out=y) if "taken" in coef else y.copy_(x)


def zero_if_skipped(x: Any, taken: Any) -> Any:
    """x, or 0 if the step is skipped, even where x is not finite, which no product with 0.0 would remove.

    Args:
        x: a tensor or a list.
        taken: 1 or 0: a tensor, for a list of the integer dtype with as many bits as x; or a list of them.
    """
    if isinstance(x, Tensors):  # as integers, 0 times any bits is 0
        bits = int_dtype(x.dtype)
        return Tensors(y.view(x.dtype) for y in torch._foreach_mul([y.view(bits) for y in x], taken))
    return torch.where(taken > 0, x, 0.0)


def int_dtype(dtype: torch.dtype) -> torch.dtype:
    """The integer dtype with as many bits."""
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def is_zero(a: Any) -> bool:
    """Whether ``a`` is the number 0; a tensor is assumed not to be."""
    return not isinstance(a, Tensor) and a == 0


def dot(x: Any, y: Any) -> Any:
    """Inner product of two real tensors of one shape, as a 0-dim tensor of float32 or wider; of lists, tensor by tensor.

    The product of a list with itself is given as ``Norms``.
    """
    if isinstance(x, Tensors):
        if x is y:
            return Norms(torch._foreach_norm(x))
        return list_sums(x.mul(y))
    if x.dtype != y.dtype or x.dtype not in (torch.float32, torch.float64):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = x.to(dtype), y.to(dtype)
    if torch.compiler.is_compiling():  # which fuses product and sum
        return (x * y).sum()
    return torch.dot(x, y) if x.dim() == y.dim() == 1 else torch.dot(x.reshape(-1), y.reshape(-1))


def list_dots(pairs: Sequence[tuple[Tensors, Tensors]]) -> list[Any]:
    """The inner products of pairs of lists, each computed once and all together, in a few kernel launches."""
    found: dict[tuple[int, int], Any] = {}
    count = len(pairs[0][0])
    for same in (True, False):
        own = {(id(x), id(y)): (x, y) for x, y in pairs if (x is y) == same}
        flat: Sequence[Tensor]
        if same:
            flat = torch._foreach_norm([z for x, _ in own.values() for z in x]) if own else ()
        else:
            flat = list_sums(Tensors(z for x, y in own.values() for z in x.mul(y)))
        kind = Norms if same else Tensors
        found |= {key: kind(flat[i * count : (i + 1) * count]) for i, key in enumerate(own)}
    return [found[id(x), id(y)] for x, y in pairs]


def list_sums(q: Tensors) -> Tensors:
    """Σ q of each tensor, overwriting q. No torch._foreach_* sums signed values, so Σ q = Σ |q| − 2 Σ |min(q, 0)|."""
    whole = torch._foreach_norm(q, 1)
    torch._foreach_clamp_max_(q, 0)
    return Tensors(torch._foreach_add(whole, torch._foreach_norm(q, 1), alpha=-2))  # with the rounding of any sum of as many terms


def tensor_sums(tensors: Sequence[Tensor]) -> Tensor:
    """Σ x of each tensor, in float32 or wider; on an accelerator a few kernel launches for all small ones."""
    small = [x for x in tensors if x.device.type != "cpu" and x.numel() < 1 << 20]
    widened = Tensors(x.float() if x.dtype.itemsize < 4 else x for x in small)
    sums = iter(list_sums(widened.mul(1.0)) if small else ())
    left = {id(x) for x in small}
    return torch.stack([next(sums) if id(x) in left else x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in tensors])


def finite_zero(x: Any) -> Any:
    """0 if every element of ``x`` is finite, else NaN: the dot product with zeros."""
    if isinstance(x, Tensors):
        return Tensors(torch._foreach_norm(x, math.inf)).mul_(0.0)
    wider = torch.promote_types(x.dtype, torch.float32)
    # "> 0": torch.compile of torch 2.6 would specialize on the size itself.
    return sum(extreme.to(wider) * 0 for extreme in torch.aminmax(x)) if x.numel() > 0 else x.sum(dtype=wider)


def is_dense(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors of one shape have the same memory layout, without gaps."""
    first = tensors[0]
    if any(x.stride() != first.stride() for x in tensors):
        return False
    length = 1
    for stride, extent in () if first.is_contiguous() else sorted(zip(first.stride(), first.shape, strict=True)):
        if extent != 1 and stride != length:
            return False
        length *= extent
    return True


def bump_version(*tensors: Tensor) -> None:
    """Increment the versions of tensors that a kernel has written without doing so, so that autograd refuses to use them."""
    torch.autograd.graph.increment_version(tensors)


def copy_tensors(to: Iterable[Tensor], of: Iterable[Tensor]) -> None:
    """Copy tensors, one to one, with one call."""
    torch._foreach_copy_(list(to), list(of))
