"""Runs elementwise work on lists of tensors, in batches that suit the device.

Work is a function of tensors by name and coefficients by name; it returns scalars, and may write to the tensors. On an accelerator it gets
whole lists, in chunks if a list is long; on a CPU one tensor after the other, in pieces that fit the cache, with small tensors packed
into one. With ``fused=True`` large tensors go through a compiled kernel (fused.py). The work is the same function each time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn import Parameter

from .fused import LARGEST, SMALL, Kernels
from .tensors import Tensors, bump_version, copy_tensors, int_dtype, is_dense, make_buffer

TensorLists = Mapping[str, list[Tensor]]
"""Tensors by name: equally many of each, in the same order."""

Coefficients = dict[str, Any]
"""Coefficients by name: floats, 0-dim tensors or vectors with an entry per tensor; and flags that are True or False."""

Work = Callable[..., list[Any]]

#: Elements of a piece: a few float32 tensors of that size fit into the caches of two cores. Measured: half and twice as many are slower.
BLOCK = 262_144

#: Elements of a piece if only dot products are taken: few calls, and short enough sums in float32.
DOT_BLOCK = 1 << 22

#: Elements from which on a tensor is not packed for work with many temporaries, which then stay in the cache.
TINY = 2048

#: Bytes of temporaries that a step may hold on an accelerator.
MAX_TEMPORARY_BYTES = 256 << 20

#: Tensors that work never writes to: gradients.
READ_ONLY = ("g",)

#: A buffer that no compiled kernel may have: the compiler drops a conversion to 16 bits and back, and so the rounding error.
ROUNDING = "rest"


def blocks(tensors: Mapping[str, Tensor], size: int = BLOCK) -> Iterator[dict[str, Tensor]]:
    """Split tensors of one shape into flat pieces that stay in the processor's cache over several operations; small ones stay whole.

    Non-contiguous tensors stay whole, too, since their pieces would not match.
    """
    length = next(iter(tensors.values())).numel()
    if length <= size or not all(x.is_contiguous() for x in tensors.values()):
        yield dict(tensors)
        return
    flat = {name: torch.split(x.view(-1), size) for name, x in tensors.items()}
    for i in range(math.ceil(length / size)):
        yield {name: pieces[i] for name, pieces in flat.items()}


def plan_packs(sizes: Sequence[int], small: int = SMALL) -> list[list[int]]:
    """Which tensors are processed together, in order: large ones alone, small ones up to ``BLOCK`` elements."""
    packs: list[list[int]] = []
    filled = BLOCK + 1
    for i, size in enumerate(sizes):
        if size >= small:
            packs.append([i])
            continue
        filled += size
        if filled > BLOCK:
            packed: list[int] = []
            packs.append(packed)
            filled = size
        packed.append(i)
    return packs


@final
class Copies(Mapping[str, Any]):
    """Tensors of each name as copies, made when they are read and written back if they were written to.

    Args:
        columns: the tensors.
        packed: True copies small tensors into one flat tensor; False copies those of float16 or bfloat16 to float32, which tensor
            coefficients need: in bfloat16 0.999 is 1.
    """

    def __init__(self, columns: TensorLists, packed: bool) -> None:
        self.columns: TensorLists = columns
        self.packed: bool = packed
        self.made: dict[str, tuple[Any, int]] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.made:
            column: Any = self.columns[name]
            flat = flat_base(column) if self.packed else None
            if flat is not None:  # a view: nothing to write back
                return flat
            if self.packed:
                copy = _flatten_dense_tensors(column)  # type: ignore[no-untyped-call]
            else:
                copy = Tensors(torch.empty_like(x, dtype=torch.float32) for x in column).copy_(column)
            self.made[name] = copy, self._version(copy)
        return self.made[name][0]

    def _version(self, copy: Any) -> Any:
        return copy._version if self.packed else copy[0]._version

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def write_back(self) -> None:
        """Write to the tensors what has been written to their copies."""
        for name, (copy, version) in self.made.items():
            if self._version(copy) != version:
                column = self.columns[name]
                copy_tensors(column, unflatten(copy, column) if self.packed else copy)


def unflatten(copy: Tensor, column: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a flat copy, in the shapes of a column. torch 2.6's own function loses the shape of an empty tensor."""
    parts = _unflatten_dense_tensors(copy, column)  # type: ignore[no-untyped-call]
    return [part if part.dim() == x.dim() else part.view_as(x) for part, x in zip(parts, column, strict=True)]


def flat_base(column: Sequence[Tensor]) -> Tensor | None:
    """The flat tensor whose consecutive parts the small tensors are, as ``make_buffers`` made them; None if they are not."""
    flat, start = column[0]._base, 0
    for x in column:
        if flat is None or x._base is not flat or x.storage_offset() != start or not x.is_contiguous():
            return None
        start += x.numel()
    return flat if flat is not None and flat.dim() == 1 and flat.numel() == start else None


def make_buffers(
    states: Sequence[dict[str, Any]], name: str, like: Sequence[Tensor], value: Any = 0.0, dtype: torch.dtype | None = None
) -> None:
    """Make a buffer in the state of each tensor; on a CPU those of small tensors are parts of one, as a step packs them."""
    for part in plan_packs([p.numel() for p in like]) if like[0].device.type == "cpu" else ():
        some = [like[i] for i in part]
        if len(part) > 1 and all(type(p) in (Tensor, Parameter) and p.is_contiguous() and not p.is_complex() for p in some):
            flat = torch.empty(sum(p.numel() for p in some), dtype=dtype or some[0].dtype).fill_(value)
            for i, x in zip(part, torch.split(flat, [p.numel() for p in some]), strict=True):
                states[i][name] = x.view(like[i].shape)
    for p, own in zip(like, states, strict=True):
        make_buffer(own, name, p, value, dtype)


@final
class Runner:
    """Runs work on tensors.

    Args:
        fused: whether to compile it. If that fails, a warning says so once, and the work runs without.
    """

    def __init__(self, fused: bool) -> None:
        self.kernels: Kernels = Kernels(fused)

    @property
    def fused(self) -> bool:
        """Whether large tensors use compiled kernels."""
        return self.kernels.fused

    def __reduce__(self) -> tuple[Any, ...]:
        return Runner, (self.fused,)  # a copy compiles its own kernels

    def __call__(
        self,
        work: Work,
        tensors: TensorLists,
        coef: Coefficients,
        *fixed: Any,
        writes: bool = False,
        cheap: bool = False,
        packed: bool = False,
        temporaries: int = 4,
    ) -> list[tuple[list[int], list[Any]]]:
        """The results by part: the indices of its tensors, and for each kind of result one scalar per tensor, or one for all.

        Args:
            work: the function.
            tensors: by name; equally many of each, with the same shapes.
            coef: by name.
            fixed: further arguments of the work.
            writes: whether it writes to the tensors.
            cheap: whether it only takes dot products of existing tensors: no kernel is faster, and there are no temporaries to keep small.
            packed: whether it takes no lists, but tensors packed into one, with one coefficient for all.
            temporaries: how many temporaries of its tensors' size it holds at once.
        """
        found: list[tuple[list[int], list[Any]]] = []
        sizes = [x.numel() for x in tensors["p"]]
        is_narrow = tensors["p"][0].dtype.itemsize < 4 and any(isinstance(x, Tensor) for x in coef.values())
        pieces = tensors["p"][0].device.type == "cpu" and not is_narrow
        others: list[int] = []
        together = plan_packs(sizes, TINY if packed else SMALL) if pieces else [[i] for i in range(len(sizes))]
        if writes and pieces:  # in reverse order of the dot products, whose last tensors are still cached
            together.reverse()
        for part in together:
            if len(part) > 1:
                pack = Copies({name: [column[i] for i in part] for name, column in tensors.items()}, packed=True)
                found.append((part, [[x] for x in work(pack, coef, *fixed)]))
                if writes:
                    pack.write_back()
                continue
            item = {name: column[part[0]] for name, column in tensors.items()}
            scalars = None if cheap or packed or not self.fused else self._run_kernel(work, item, tensor_coef(coef, part[0]), fixed, writes)
            if scalars is not None:
                found.append((part, [[x] for x in scalars]))
            elif pieces:
                found += [(part, [[x] for x in work(piece, coef, *fixed)]) for piece in blocks(item, DOT_BLOCK if cheap else BLOCK)]
            elif sizes[part[0]]:
                others += part
        for rows, lists in chunks(tensors, others, MAX_TEMPORARY_BYTES // temporaries) if others else ():
            if packed:
                pack = Copies(lists, packed=True)
                found.append((rows, [[x] for x in work(pack, list_coef(coef, rows, lists["p"]), *fixed)]))
                pack.write_back()
                continue
            found.append((rows, self._list(work, lists, list_coef(coef, rows, lists["p"]), fixed, writes)))
        return found

    def _run_kernel(self, work: Work, tensors: Mapping[str, Tensor], coef: Coefficients, fixed: Any, writes: bool) -> list[Tensor] | None:
        """The results of one kernel; None if there is none for such tensors, or it cannot be compiled."""
        if ROUNDING in tensors or not SMALL <= tensors["p"].numel() <= LARGEST or not is_dense(list(tensors.values())):
            return None
        scalars: list[Tensor] | None = self.kernels(work, tensors, coef, fixed)
        if writes and scalars is not None:
            bump_version(*(x for name, x in tensors.items() if name not in READ_ONLY))
        return scalars

    def _list(self, work: Work, lists: dict[str, Tensors], coef: Coefficients, fixed: Any, writes: bool) -> list[Any]:
        """The results for a whole list, one per tensor."""
        if all(x.dtype in (torch.float32, torch.float64) for x in lists.values()):
            return work(lists, coef, *fixed)
        copies = Copies(lists, packed=False)
        scalars = work(copies, coef, *fixed)
        if writes:
            copies.write_back()
        return scalars


def chunks(tensors: TensorLists, rows: Sequence[int], most: int) -> Iterator[tuple[list[int], dict[str, Tensors]]]:
    """Lists of flat tensors of up to ``most`` bytes each, with the tensors' indices; a larger tensor is split."""
    length = max(SMALL, most // max(4, tensors["p"][0].element_size()))
    found: dict[str, Tensors] = {name: Tensors() for name in tensors}
    indices, filled = list[int](), 0
    for i in rows:
        for piece in blocks({name: column[i] for name, column in tensors.items()}, length):
            size = piece["p"].numel()
            if indices and filled + size > length:
                yield indices, found
                found, indices, filled = {name: Tensors() for name in tensors}, [], 0
            for name, x in piece.items():
                found[name].append(x)
            indices.append(i)
            filled += size
    yield indices, found


def tensor_coef(coef: Coefficients, i: int) -> Coefficients:
    """The coefficients of one tensor of a list."""
    return {name: x[i] if isinstance(x, Tensor) and x.dim() and x.numel() else x for name, x in coef.items()}


def list_coef(coef: Coefficients, rows: Sequence[int], like: Tensors) -> Coefficients:
    """The coefficients of a list's tensors, in its dtype, which torch's list operations need: two kernel launches for all."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    found = dict(coef)
    for vectors in (False, True):
        names = [name for name, x in coef.items() if isinstance(x, Tensor) and bool(x.dim()) == vectors]
        if not names:
            continue
        stacked = torch.stack([coef[name] for name in names]).to(like[0].device, dtype)
        for name, x in zip(names, stacked.unbind(), strict=True):
            found[name] = [x[i] for i in rows] if vectors else x
        if "taken" in names:  # factor of the gradients' bits, see tensors.zero_if_skipped
            taken = stacked[names.index("taken")].to(int_dtype(like.dtype if like.dtype.itemsize > 2 else torch.float32))
            found["taken_bits"] = [taken[i] for i in rows] if vectors else taken
    return found
