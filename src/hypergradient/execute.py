"""Who works on the buffers of tensors, and how much at once.

Work is a function of tensors by name and numbers by name; it gives scalars, and may write to the tensors. An accelerator is given whole
lists, in parts where a list is long; a CPU one tensor after the other, in pieces that stay in its cache, small tensors packed into one; and
with ``fused=True`` large tensors go through one compiled kernel (fused.py). The work is the same function each time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn import Parameter

from .fused import LARGEST, SMALL, Kernels
from .tensors import Tensors, changed, copy_all, dense, integers, make_buffer

Columns = Mapping[str, list[Tensor]]
"""Tensors by name: of each name as many, in one order."""

Numbers = dict[str, Any]
"""Coefficients by name: numbers, 0-dim tensors or vectors with an entry for each tensor; and switches that are True or False."""

Work = Callable[..., list[Any]]

#: Elements of a piece: a few such tensors of float32 fit into the caches of two cores. Measured: half and twice as many are slower.
BLOCK = 262_144

#: Elements of a piece where nothing but dot products is made of it: few calls, and few numbers to sum in float32.
DOTS = 1 << 22

#: Elements from which on a tensor goes alone through work that makes many temporaries, which stay in the cache then.
TINY = 2048

#: Bytes of all that a step may hold for a time on an accelerator.
TEMPORARY = 256 << 20

#: What work never writes to: gradients.
READ_ONLY = ("g",)

#: What a compiler leaves nothing of: it takes a conversion to 16 bits and back for none.
ROUNDING = "rest"


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


def parts(sizes: Sequence[int], small: int = SMALL) -> list[list[int]]:
    """Which tensors are worked on together, in order: large ones alone, small ones up to ``BLOCK`` elements."""
    found: list[list[int]] = []
    filled = BLOCK + 1
    for i, size in enumerate(sizes):
        if size >= small:
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
class Copies(Mapping[str, Any]):
    """Tensors of each name as copies that are made when they are asked for, and written back where they were written to.

    Args:
        columns: the tensors.
        packed: whether small ones are copied into one flat tensor; otherwise those of float16 or bfloat16 into float32, as coefficients
            that are tensors need it: in bfloat16 0.999 is 1.
    """

    def __init__(self, columns: Columns, packed: bool) -> None:
        self.columns, self.packed = columns, packed
        self.made: dict[str, tuple[Any, int]] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.made:
            column: Any = self.columns[name]
            flat = whole(column) if self.packed else None
            if flat is not None:  # there is nothing to be written back
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
                copy_all(column, unflattened(copy, column) if self.packed else copy)


def unflattened(copy: Tensor, column: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a flat copy, in the shapes of a column. torch 2.6's own function loses the shape of a tensor without elements."""
    parts = _unflatten_dense_tensors(copy, column)  # type: ignore[no-untyped-call]
    return [part if part.dim() == x.dim() else part.view_as(x) for part, x in zip(parts, column, strict=True)]


def whole(column: Sequence[Tensor]) -> Tensor | None:
    """The flat tensor that small tensors are the parts of, in their order, as ``make_buffers`` has made them; None where they are not."""
    flat, start = column[0]._base, 0
    for x in column:
        if flat is None or x._base is not flat or x.storage_offset() != start or not x.is_contiguous():
            return None
        start += x.numel()
    return flat if flat is not None and flat.dim() == 1 and flat.numel() == start else None


def make_buffers(
    states: Sequence[dict[str, Any]], name: str, like: Sequence[Tensor], value: Any = 0.0, dtype: torch.dtype | None = None
) -> None:
    """A buffer in the state of each tensor; those of small tensors are parts of one, as they go through a step on a CPU."""
    for part in parts([p.numel() for p in like]) if like[0].device.type == "cpu" else ():
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
        fused: whether to compile it. Where that fails, a warning says so once, and the work is done without.
    """

    def __init__(self, fused: bool) -> None:
        self.kernels = Kernels(fused)

    @property
    def fused(self) -> bool:
        """Whether large tensors go through compiled kernels."""
        return self.kernels.fused

    def __reduce__(self) -> tuple[Any, ...]:
        return Runner, (self.fused,)  # a copy compiles its own

    def __call__(
        self,
        work: Work,
        tensors: Columns,
        numbers: Numbers,
        *fixed: Any,
        writes: bool = False,
        light: bool = False,
        flat: bool = False,
        live: int = 4,
    ) -> list[tuple[list[int], list[Any]]]:
        """For each part the numbers of its tensors, and the scalars of the work: of each kind one a tensor, or one of all of them.

        Args:
            work: what is to be done.
            tensors: by name; of each name as many, alike in shape from name to name.
            numbers: by name.
            fixed: what is part of the work.
            writes: whether it writes to the tensors.
            light: whether it is dot products of tensors that there are: no kernel is faster, and no temporary needs small pieces.
            flat: whether it takes no lists, and is given tensors one after the other in one; it has one number for all then.
            live: how many temporaries of the size of its tensors it holds at once.
        """
        found: list[tuple[list[int], list[Any]]] = []
        sizes = [x.numel() for x in tensors["p"]]
        narrow = tensors["p"][0].dtype.itemsize < 4 and any(isinstance(x, Tensor) for x in numbers.values())
        pieces = tensors["p"][0].device.type == "cpu" and not narrow
        rest: list[int] = []
        together = parts(sizes, TINY if flat else SMALL) if pieces else [[i] for i in range(len(sizes))]
        if writes and pieces:  # in the other order than for the dot products: what these read last is in the cache yet
            together.reverse()
        for part in together:
            if len(part) > 1:
                pack = Copies({name: [column[i] for i in part] for name, column in tensors.items()}, packed=True)
                found.append((part, [[x] for x in work(pack, numbers, *fixed)]))
                if writes:
                    pack.write_back()
                continue
            whole = {name: column[part[0]] for name, column in tensors.items()}
            scalars = None if light or flat or not self.fused else self._compiled(work, whole, of_tensor(numbers, part[0]), fixed, writes)
            if scalars is not None:
                found.append((part, [[x] for x in scalars]))
            elif pieces:
                found += [(part, [[x] for x in work(piece, numbers, *fixed)]) for piece in blocks(whole, DOTS if light else BLOCK)]
            elif sizes[part[0]]:
                rest += part
        for rows, lists in portions(tensors, rest, TEMPORARY // live) if rest else ():
            if flat:
                pack = Copies(lists, packed=True)
                found.append((rows, [[x] for x in work(pack, of_list(numbers, rows, lists["p"]), *fixed)]))
                pack.write_back()
                continue
            found.append((rows, self._list(work, lists, of_list(numbers, rows, lists["p"]), fixed, writes)))
        return found

    def _compiled(self, work: Work, tensors: Mapping[str, Tensor], numbers: Numbers, fixed: Any, writes: bool) -> list[Tensor] | None:
        """The scalars of one kernel; None where there is none for such tensors, or it cannot be compiled."""
        if ROUNDING in tensors or not SMALL <= tensors["p"].numel() <= LARGEST or not dense(list(tensors.values())):
            return None
        scalars: list[Tensor] | None = self.kernels(work, tensors, numbers, fixed)
        if writes and scalars is not None:
            changed(*(x for name, x in tensors.items() if name not in READ_ONLY))
        return scalars

    def _list(self, work: Work, lists: dict[str, Tensors], numbers: Numbers, fixed: Any, writes: bool) -> list[Any]:
        """The scalars of a whole list, one a tensor."""
        if all(x.dtype in (torch.float32, torch.float64) for x in lists.values()):
            return work(lists, numbers, *fixed)
        copies = Copies(lists, packed=False)
        scalars = work(copies, numbers, *fixed)
        if writes:
            copies.write_back()
        return scalars


def portions(tensors: Columns, rows: Sequence[int], most: int) -> Iterator[tuple[list[int], dict[str, Tensors]]]:
    """Lists of flat tensors that take up to ``most`` bytes each, with the numbers of the tensors; a larger tensor goes in pieces."""
    length = max(SMALL, most // max(4, tensors["p"][0].element_size()))
    found: dict[str, Tensors] = {name: Tensors() for name in tensors}
    numbers, filled = list[int](), 0
    for i in rows:
        for piece in blocks({name: column[i] for name, column in tensors.items()}, length):
            size = piece["p"].numel()
            if numbers and filled + size > length:
                yield numbers, found
                found, numbers, filled = {name: Tensors() for name in tensors}, [], 0
            for name, x in piece.items():
                found[name].append(x)
            numbers.append(i)
            filled += size
    yield numbers, found


def of_tensor(numbers: Numbers, i: int) -> Numbers:
    """The numbers of one tensor of a list."""
    return {name: x[i] if isinstance(x, Tensor) and x.dim() and x.numel() else x for name, x in numbers.items()}


def of_list(numbers: Numbers, rows: Sequence[int], like: Tensors) -> Numbers:
    """The numbers of a list's tensors, in its dtype, in which alone the device takes them for a whole list: two launches for all."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    found = dict(numbers)
    for vectors in (False, True):
        names = [name for name, x in numbers.items() if isinstance(x, Tensor) and bool(x.dim()) == vectors]
        if not names:
            continue
        stacked = torch.stack([numbers[name] for name in names]).to(like[0].device, dtype)
        for name, x in zip(names, stacked.unbind(), strict=True):
            found[name] = [x[i] for i in rows] if vectors else x
        if "goes" in names:  # what gradients are multiplied by, bit by bit
            taken = stacked[names.index("goes")].to(integers(like.dtype if like.dtype.itemsize > 2 else torch.float32))
            found["taken"] = [taken[i] for i in rows] if vectors else taken
    return found
