"""Parameters that others write between two steps: a clamp, a projection, a mask, rows that are put back, weights that are loaded.

The way z to the average of a tensor (average.py) is one from where the step has left it. Where somebody has moved it by δ since,

    z ← z − clamp(δ between 0 and z)

elementwise. Toward and into its average the way gets shorter, so the average stays where it is; past that, and away from it, the average
moves along. So what is clamped has an average inside of the clamp, what is put back has none of the steps in it, and what is loaded from
far away takes its average along.

δ takes a copy of the tensor, which is kept of those alone that have been written before. That a tensor has is seen by its version, which
counts operations in place, also where they change nothing; and on the host by its sum, bit by bit, since ``p.data`` counts nothing: after
the first three steps, and every thirtieth. The first time there is no copy yet: z ← 0, so the average starts from where the tensor is,
unless a run has just begun, or gone on from a checkpoint: then it is one step's edit, and the next is known.

Not seen are, before the first that is: edits through ``p.data`` on an accelerator, whose sums the host would have to wait for; those beside
a compiled step, but for the sums; and whatever a replayed CUDA graph has not captured. All this is no part of a checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Parameter

from .average import is_average, restart_average, restore_iterate, swap_in_average
from .learning_rates import State
from .ranks import local
from .tensors import int_dtype, real

#: After how many steps sums are taken, and after so many at first, so that an edit is known to be one step's.
CHECK_EVERY, FIRST_CHECKS = 30, 3


@final
class ExternalEdits:
    """Where the last step has left the parameters."""

    def __init__(self) -> None:
        self.steps = 0
        self.versions: list[Any] = []
        self.sums: list[int] = []
        self.copies: dict[Tensor, Tensor] = {}

    def adjust(self, params: Sequence[Tensor], state: State) -> None:
        """The ways to the averages, in ``state``, as they are from where the parameters are now."""
        for p, copy in self.copies.items():
            if "trace" in state.get(p, ()):
                shorten_displacement(local(real(p)), copy, state[p])
        written = differing(params, self.versions, versions)
        if self.sums:
            written += differing(params, self.sums, checksums)
        for p in written:
            if p not in self.copies and "trace" in state.get(p, ()):
                self.copies[p] = local(real(p)).clone()
                if self.steps > FIRST_CHECKS:
                    restart_average(state[p])

    def record(self, params: Sequence[Tensor], sums: bool) -> None:
        """Remember where the parameters are, with their sums where this is a step for it."""
        self.steps += 1
        for p, copy in self.copies.items():
            copy.copy_(local(real(p)))
        self.versions = versions(params)
        self.sums = checksums(params) if sums and (self.steps <= FIRST_CHECKS or self.steps % CHECK_EVERY == 0) else []


def record_parameters(opt: Any) -> None:
    """Remember where the parameters of an optimizer are, to see what others make of them."""
    opt.edits.record(opt.params, sums=not opt.setup.scalars.on_device)


def switch_to_average(opt: Any) -> None:
    """The average instead of the iterate, if it is not there."""
    if not is_average(opt.state):
        opt.edits.adjust(opt.params, opt.state)
        swap_in_average(opt.state)


def switch_to_iterate(opt: Any) -> int:
    """The iterate again; how many parameters somebody has written meanwhile."""
    if not is_average(opt.state):
        return 0
    written = restore_iterate(opt.state)
    record_parameters(opt)
    return written


def shorten_displacement(theta: Tensor, copy: Tensor, p_state: Mapping[str, Any]) -> None:
    """z of a tensor that was at ``place``; a rest that rounding has left goes where it was moved."""
    z = local(real(p_state["trace"]))
    delta = theta.to(z.dtype) - copy
    z.sub_(torch.clamp(delta, min=z.clamp(max=0), max=z.clamp(min=0)))
    if "rest" in p_state:
        local(p_state["rest"]).mul_(delta == 0)


def differing(params: Sequence[Tensor], before: Sequence[Any], measure: Callable[[Sequence[Tensor]], list[Any]]) -> list[Tensor]:
    """The parameters that look otherwise than before, of as many as were looked at."""
    params = params[: len(before)]
    now = measure(params)
    return [] if now == before else [p for p, x, y in zip(params, before, now, strict=True) if x != y]


def versions(params: Sequence[Tensor]) -> list[Any]:
    """How often each was written in place, as a whole and, where it is sharded, here."""
    return [p._version if type(p) is Parameter else (p._version, local(p)._version) for p in params]


def checksums(params: Sequence[Tensor]) -> list[int]:
    """The sums of their elements as integers of as many bits, which no order of adding changes."""
    found = []
    for x in map(local, map(real, params)):
        bits = int_dtype(x.dtype)
        found.append(int(x.view(bits).sum(dtype=bits)))
    return found
