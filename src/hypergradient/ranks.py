"""Parameters that lie on several ranks: what a rank holds of each, and over whom its share of a sum is added up.

A DTensor says so itself: each dimension of its mesh along which it is not replicated is one to sum over. Of plain tensors that are shards,
as FSDP1 and ZeroRedundancyOptimizer have them, ``process_group`` says it. Nothing else of the library knows of ranks, but that it works on
what is local.
"""

from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor

Spec = tuple[Any, ...]
"""The process groups that a sum over a tensor's elements is to be taken over, one after the other."""


@final
class Ranks:
    """How the parameters of an optimizer are spread.

    Args:
        group: whom plain tensors are spread over; None where each rank has the whole of them.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.specs: list[Spec] = [()]
        self.device = torch.device("cpu")
        self._known: dict[Tensor, Spec] = {}

    def __deepcopy__(self, memo: Any) -> "Ranks":
        return Ranks(self.group)  # a process group cannot be copied; the parameters are looked at anew

    def inspect(self, params: Iterable[Tensor]) -> None:
        """See how parameters lie, which all ranks see in one order.

        Raises:
            ValueError: shards of FSDP1 without a process group, which each rank would move by a learning rate of its own.
        """
        specs: dict[Spec, None] = {}
        for p in params:
            lies: Any = p
            if hasattr(p, "placements"):
                self._known[p] = tuple(lies.device_mesh.get_group(i) for i, x in enumerate(lies.placements) if not x.is_replicate())
            elif self.group is not None:
                self._known[p] = (self.group,)
            elif getattr(p, "_fsdp_flattened", False):
                raise ValueError(
                    "these parameters are shards of FSDP1, whose sums each rank would take for itself: give process_group=..., that of the "
                    "ranks that they lie on, such as torch.distributed.group.WORLD; or use FSDP2 (fully_shard), which needs nothing"
                )
            specs[self.spec_of(p) or ()] = None
            self.device = p.device
        self.specs = list(specs) or [(self.group,) if self.group is not None else ()]

    def spec_of(self, p: Tensor) -> Spec | None:
        """Over whom sums of a parameter are taken; None where it is a plain tensor that a rank has the whole of."""
        return self._known.get(p) if self._known else None

    @property
    def is_sharded(self) -> bool:
        """Whether any sum is taken over ranks."""
        return any(self.specs)

    def is_replicated(self) -> bool:
        """Whether there are other ranks, and parameters of which each has the whole."""
        distributed = torch.distributed
        return () in self.specs and distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1

    def all_reduce(self, sums: Tensor, spec: Spec) -> Tensor:
        """Sums over ranks: one collective for each process group."""
        for group in spec:
            torch.distributed.all_reduce(sums, group=group)
        return sums

    def sum_rows(self, rows: Tensor, params: Sequence[Tensor]) -> Tensor:
        """The sum of a row a parameter, over all ranks."""
        found = torch.zeros_like(rows[:0].sum(0))
        for spec in self.specs:
            own = [i for i, p in enumerate(params) if (self.spec_of(p) or ()) == spec]
            found += self.all_reduce(rows[own].sum(0), spec)
        return found

    def all_agree(self, ok: Any) -> Any:
        """Whether all ranks find that a step can be made."""
        bad = torch.as_tensor(ok, device=self.device).logical_not().double()
        for spec in self.specs:
            bad = self.all_reduce(bad, spec)
        return bad == 0


def local(x: Any) -> Any:
    """What this rank holds of a tensor."""
    return x.to_local() if hasattr(x, "to_local") else x


def placed_like(grad: Any, p: Any) -> Any:
    """What this rank holds of a gradient, placed as its parameter is: that of a replicated one may be a sum yet to be taken."""
    if hasattr(grad, "placements") and grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    return local(grad)
