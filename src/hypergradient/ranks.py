"""Sharded parameters: the local part on each rank, and the process groups over which a sum is reduced.

A DTensor has this information: sums are taken over each mesh dimension along which it is not replicated. For plain tensors that are shards,
as under FSDP1 and ZeroRedundancyOptimizer, ``process_group`` says it. Apart from ``local``, no other module deals with ranks.
"""

from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor

Spec = tuple[Any, ...]
"""The process groups over which a tensor's sum is reduced, one after the other."""


@final
class Ranks:
    """How the parameters of an optimizer are sharded.

    Args:
        group: the process group of plain tensors that are shards; None if each rank has them whole.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.specs: list[Spec] = [()]
        self.device: torch.device = torch.device("cpu")
        self._known: dict[Tensor, Spec] = {}

    def __deepcopy__(self, memo: Any) -> "Ranks":
        return Ranks(self.group)  # a process group cannot be copied; the parameters are inspected again

    def inspect(self, params: Iterable[Tensor]) -> None:
        """Find out how parameters are sharded; all ranks see them in the same order.

        Raises:
            ValueError: FSDP1 shards without a process group, for which each rank would compute its own learning rate.
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
                    "these parameters are shards of FSDP1, and each rank would adapt to its own alone: give process_group=..., the "
                    "ranks that hold the shards, such as torch.distributed.group.WORLD; or use FSDP2 (fully_shard), which needs no option"
                )
            specs[self.spec_of(p) or ()] = None
            self.device = p.device
        self.specs = list(specs) or [(self.group,) if self.group is not None else ()]

    def spec_of(self, p: Tensor) -> Spec | None:
        """The process groups to sum a parameter over; None for a plain tensor that each rank has whole."""
        return self._known.get(p) if self._known else None

    @property
    def is_sharded(self) -> bool:
        """Whether any sum is taken over ranks."""
        return any(self.specs)

    def is_replicated(self) -> bool:
        """Whether there are other ranks, and parameters that each of them has whole."""
        distributed = torch.distributed
        return () in self.specs and distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1

    def all_reduce(self, sums: Tensor, spec: Spec) -> Tensor:
        """Sums over ranks: one collective per process group."""
        for group in spec:
            torch.distributed.all_reduce(sums, group=group)
        return sums

    def sum_rows(self, rows: Tensor, params: Sequence[Tensor]) -> Tensor:
        """The sum over all parameters on all ranks, from one row per parameter."""
        found = torch.zeros_like(rows[:0].sum(0))
        for spec in self.specs:
            own = [i for i, p in enumerate(params) if (self.spec_of(p) or ()) == spec]
            found += self.all_reduce(rows[own].sum(0), spec)
        return found

    def all_agree(self, ok: Any) -> Any:
        """Whether all ranks find that the step can be taken."""
        bad = torch.as_tensor(ok, device=self.device).logical_not().double()
        for spec in self.specs:
            bad = self.all_reduce(bad, spec)
        return bad == 0


def local(x: Any) -> Any:
    """The local part of a tensor."""
    return x.to_local() if hasattr(x, "to_local") else x


def placed_like(grad: Any, p: Any) -> Any:
    """The local part of a gradient, placed like its parameter: the gradient of a replicated parameter may be a sum yet to be reduced."""
    if hasattr(grad, "placements") and grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    return local(grad)
