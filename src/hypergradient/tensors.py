"""Arithmetic over tensors: real views, lists of tensors that are worked on as one, dot products.

The optimizers see every tensor through ``real``, so a complex number is two real ones and a dot product is the real inner
product. Dot products accumulate in float32 or wider, whatever the dtype of the parameters.

Equations are written in the methods of a tensor and in the functions here, and hold for one tensor and for ``Tensors``, a list of them
that go through every operation together. A coefficient is a number; a 0-dim tensor, where only the device knows it; or, for a list,
one of those for each of its tensors.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from .ranks import local


@final
class Tensors(list[Tensor]):
    """Real tensors that go through an operation together: each method is one call of ``torch._foreach_*``, which is one launch or a few."""

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
        torch._foreach_add_(self, [a] * len(self) if isinstance(a, Tensor) and a.is_meta else a)  # meta would ask for its value
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
    """The norms of a list's tensors, which are yet to be squared: all that a step takes of them together."""


Some = Tensor | Tensors
"""One tensor, or a list of them."""


def real(x: Tensor) -> Tensor:
    """A view of ``x`` without complex numbers: ``[..., 2]`` for a complex tensor, ``x`` itself for a real one."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def wide(device: torch.device) -> torch.dtype:
    """The widest dtype of numbers that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def make_buffer(state: dict[str, Any], key: str, like: Tensor, value: Any = 0.0, dtype: torch.dtype | None = None) -> None:
    """Fill ``state[key]`` with a tensor of one value, shaped as ``like``, where there is none."""
    if state.get(key) is None:  # torch.optim.SGD's checkpoints hold None for a buffer not yet used
        state[key] = torch.zeros_like(like, memory_format=torch.preserve_format, dtype=dtype)
        if isinstance(value, Tensor) or value:
            there = local(real(state[key]))
            there.copy_(value) if isinstance(value, Tensor) else there.fill_(value)


def add_scaled(y: Any, a: Any, x: Any, *, out: Any = None) -> Any:
    """y + a x, as a new tensor or in ``out``, which may be y. ``a`` may be a tensor that broadcasts: one number a run, or an element."""
    if isinstance(y, Tensors):
        if isinstance(a, float) and (out is None or out is y):
            if out is None:
                return Tensors(torch._foreach_add(y, x, alpha=a))
            torch._foreach_add_(y, x, alpha=a)
            return y
        step = x.mul(a)
        return y.add_(step) if out is y else step.add_(y) if out is None else out.copy_(step.add_(y))
    if out is not None and torch.compiler.is_compiling():  # torch 2.6 would compile for this size alone
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


def mix(y: Any, a: Any, x: Any) -> Any:
    """y + a (x − y) in place of y, elementwise, with a < 1/2 or of little rounding."""
    if torch.compiler.is_compiling():  # which makes two cases of lerp, above 1/2 and below, for each element
        return y.add_((x - y) * a)
    return y.lerp_(x, a)


def replace(y: Any, x: Any, numbers: dict[str, Any]) -> Any:
    """x in place of y; where the device alone knows whether a step "goes", and it does not, y stays, to the bit. Then x may not be y."""
    return add_scaled(y.mul_(numbers["stays"]), numbers["goes"], x, out=y) if "goes" in numbers else y.copy_(x)


def only(x: Any, goes: Any) -> Any:
    """x, or 0 where it does not go; also where x is not finite, which no product with 0 would remove.

    Args:
        x: a tensor or a list.
        goes: 1 or 0: a tensor, of the integers that have as many bits as x for a list; or a list of them.
    """
    if isinstance(x, Tensors):  # 0 times any bits is 0
        bits = integers(x.dtype)
        return Tensors(y.view(x.dtype) for y in torch._foreach_mul([y.view(bits) for y in x], goes))
    return torch.where(goes > 0, x, 0.0)


def integers(dtype: torch.dtype) -> torch.dtype:
    """Those with as many bits."""
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def is_zero(a: Any) -> bool:
    """Whether ``a`` is the number 0; a tensor of numbers is taken to hold others."""
    return not isinstance(a, Tensor) and a == 0


def dot(x: Any, y: Any) -> Any:
    """Inner product of two real tensors of one shape, as a 0-dim tensor of float32 or wider; of lists, tensor by tensor.

    Of a list with itself it gives ``Norms``.
    """
    if isinstance(x, Tensors):
        if x is y:
            return Norms(torch._foreach_norm(x))
        return signed_sums(x.mul(y))
    if x.dtype != y.dtype or x.dtype not in (torch.float32, torch.float64):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = x.to(dtype), y.to(dtype)
    if torch.compiler.is_compiling():  # which makes one kernel of a sum and what it is of
        return (x * y).sum()
    return torch.dot(x, y) if x.dim() == y.dim() == 1 else torch.dot(x.reshape(-1), y.reshape(-1))


def dots(pairs: Sequence[tuple[Tensors, Tensors]]) -> list[Any]:
    """The inner products of pairs of lists, one of each once, and all together, which makes a few launches of them."""
    found: dict[tuple[int, int], Any] = {}
    count = len(pairs[0][0])
    for same in (True, False):
        own = {(id(x), id(y)): (x, y) for x, y in pairs if (x is y) == same}
        flat: Sequence[Tensor]
        if same:
            flat = torch._foreach_norm([z for x, _ in own.values() for z in x]) if own else ()
        else:
            flat = signed_sums(Tensors(z for x, y in own.values() for z in x.mul(y)))
        kind = Norms if same else Tensors
        found |= {key: kind(flat[i * count : (i + 1) * count]) for i, key in enumerate(own)}
    return [found[id(x), id(y)] for x, y in pairs]


def signed_sums(q: Tensors) -> Tensors:
    """Σ q of each tensor, which is lost. No torch._foreach_* sums what has a sign, so Σ q = Σ |q| − 2 Σ |min(q, 0)|."""
    whole = torch._foreach_norm(q, 1)
    torch._foreach_clamp_max_(q, 0)
    return Tensors(torch._foreach_add(whole, torch._foreach_norm(q, 1), alpha=-2))  # rounds as any sum of as many terms may


def sums_of(tensors: Sequence[Tensor]) -> Tensor:
    """Σ x of each tensor, in float32 or wider; on an accelerator a few launches for all that are small."""
    small = [x for x in tensors if x.device.type != "cpu" and x.numel() < 1 << 20]
    wide = Tensors(x.float() if x.dtype.itemsize < 4 else x for x in small)
    sums = iter(signed_sums(wide.mul(1.0)) if small else ())
    left = {id(x) for x in small}
    return torch.stack([next(sums) if id(x) in left else x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in tensors])


def finite_zero(x: Any) -> Any:
    """0 where every element of ``x`` is finite, NaN otherwise: what a dot product with zeros would say."""
    if isinstance(x, Tensors):
        return Tensors(torch._foreach_norm(x, math.inf)).mul_(0.0)
    wider = torch.promote_types(x.dtype, torch.float32)
    # "> 0": torch.compile of torch 2.6 would take the size itself for a constant.
    return sum(end.to(wider) * 0 for end in torch.aminmax(x)) if x.numel() > 0 else x.sum(dtype=wider)


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


def changed(*tensors: Tensor) -> None:
    """Count a change of tensors that a kernel has made, which does not count it, so that autograd refuses to go back through it."""
    torch.autograd.graph.increment_version(tensors)


def copy_all(to: Iterable[Tensor], of: Iterable[Tensor]) -> None:
    """Copy tensors, one to one, with one call."""
    torch._foreach_copy_(list(to), list(of))
