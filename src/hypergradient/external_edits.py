"""Parameters that the user writes between two steps: a clamp, a projection, a mask, restored rows, loaded weights.

The displacement z to the average (average.py) starts from where the step left the tensor. If the user has changed the tensor by δ since,

    z ← z − clamp(δ between 0 and z)

elementwise. An edit towards the average shortens z, so the average stays where it is; an edit past the average or away from it moves the
average along. So a clamped tensor has its average inside the clamp, restored rows have an average without the steps between, and weights
loaded from far away take the average along.

Measuring δ takes a copy of the tensor, which is made only for tensors that were edited before. An edit is noticed by the tensor's version,
which counts in-place operations, even those without effect. On the host it is also noticed by a bitwise checksum, since ``p.data`` does not
count: after the first three steps, and every thirtieth. At the first edit there is no copy yet: z ← 0, so the average restarts from the
tensor. In the first steps of a run or after loading a checkpoint z stays, since the edit can only be one step's, and the next is measured.

Before the first edit that is noticed, three kinds are missed: through ``p.data`` on an accelerator, where the host would have to wait for a
checksum; beside a compiled step, checksums aside; and whatever a replayed CUDA graph did not capture. None of this is in a checkpoint.
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

#: Checksums are taken every so many steps, and after each of the first, so that an edit is known to be one step's.
CHECK_EVERY, FIRST_CHECKS = 30, 3


@final
class ExternalEdits:
    """The parameters as the last step left them."""

    def __init__(self) -> None:
        self.steps: int = 0
        self.versions: list[Any] = []
        self.sums: list[int] = []
        self.copies: dict[Tensor, Tensor] = {}

    def adjust(self, params: Sequence[Tensor], state: State) -> None:
        """Adjust the displacements in ``state`` to the parameters as they are now."""
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
        """Record the parameters, with checksums if they are due at this step."""
        self.steps += 1
        for p, copy in self.copies.items():
            copy.copy_(local(real(p)))
        self.versions = versions(params)
        self.sums = checksums(params) if sums and (self.steps <= FIRST_CHECKS or self.steps % CHECK_EVERY == 0) else []


def record_parameters(opt: Any) -> None:
    """Record an optimizer's parameters, to notice what others change."""
    opt.edits.record(opt.params, sums=not opt.setup.scalars.on_device)


def switch_to_average(opt: Any) -> None:
    """Swap in the average, unless it is in the parameters already."""
    if not is_average(opt.state):
        opt.edits.adjust(opt.params, opt.state)
        swap_in_average(opt.state)


def switch_to_iterate(opt: Any) -> int:
    """Restore the iterate, and return how many parameters were written meanwhile."""
    if not is_average(opt.state):
        return 0
    written = restore_iterate(opt.state)
    record_parameters(opt)
    return written


def shorten_displacement(theta: Tensor, copy: Tensor, p_state: Mapping[str, Any]) -> None:
    """Adjust z of a tensor that was equal to ``copy``; elements that were edited lose their rounding error ``rest``."""
    z = local(real(p_state["trace"]))
    delta = theta.to(z.dtype) - copy
    z.sub_(torch.clamp(delta, min=z.clamp(max=0), max=z.clamp(min=0)))
    if "rest" in p_state:
        local(p_state["rest"]).mul_(delta == 0)


def differing(params: Sequence[Tensor], before: Sequence[Any], measure: Callable[[Sequence[Tensor]], list[Any]]) -> list[Tensor]:
    """The parameters whose measurement differs from before, among those that were measured."""
    params = params[: len(before)]
    now = measure(params)
    return [] if now == before else [p for p, x, y in zip(params, before, now, strict=True) if x != y]


def versions(params: Sequence[Tensor]) -> list[Any]:
    """How often each was written in place: the whole tensor and, if it is sharded, its local part."""
    return [p._version if type(p) is Parameter else (p._version, local(p)._version) for p in params]


def checksums(params: Sequence[Tensor]) -> list[int]:
    """The sum of each tensor's bits as integers, which does not depend on the order of addition."""
    found = []
    for x in map(local, map(real, params)):
        bits = int_dtype(x.dtype)
        found.append(int(x.view(bits).sum(dtype=bits)))
    return found
