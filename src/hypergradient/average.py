"""The trace of past directions, and the running average of the parameters: what is kept of a step beside the optimizer's own buffers.

``state[p]["trace"]`` is z: a sum of directions over a horizon, z_t = (1 − 1/n) z_{t-1} + d_t; or, under a rule that averages, the way from
the parameters to the average of the iterates, z_t = θ̄_t − θ_t. With ζ for the iterate and momentum b,

    ζ_t = ζ_{t-1} − α_t d_t,    θ̄_t = θ̄_{t-1} + (ζ_t − θ̄_{t-1}) / n,    θ_t = (1 − b) ζ_t + b θ̄_t

so gradients are taken between both (Defazio et al., The Road Less Scheduled, 2024): b does what momentum does, without a buffer of its own.
A direction that has momentum of its own goes with b = 0, where θ is the iterate. Neither ζ nor θ̄ is kept: in the way z, with k = 1 − 1/n,

    θ_t = θ_{t-1} − (1 − b k) α_t d_t − (1 − k) b / (1 − b) z_{t-1},    z_t = k (z_{t-1} + (1 − b) α_t d_t)

since at small learning rates the difference of two nearly equal parameters would be rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .dials import State
from .execute import Numbers
from .ranks import local
from .tensors import add_scaled, is_zero, real


def follow(z: Any, d: Any, numbers: Numbers) -> None:
    """z_t, a sum of directions, of z_{t-1}, written in place; ``numbers`` are "kept", 1 − 1/n, and on a device "goes", 1 or 0."""
    if "goes" in numbers:
        add_scaled(z.mul_(numbers["kept"]), numbers["goes"], d, out=z)
    else:
        z.mul_(numbers["kept"]).add_(d)


def interpolated(alpha: Any, fade: Any, b: Any, back: Any = None) -> Numbers:
    """The numbers of ``interpolate`` for momentum b: α, k, 1 − b k, 1 − b and −(1 − k) b / (1 − b).

    Args:
        alpha: α_t; 0 where the step does not go.
        fade: 1 − k = 1/n; 0 where it does not go.
        b: momentum.
        back: 1 where the parameters go back to their average, else 0; None where it is known that they do not.
    """
    if isinstance(alpha, float) and alpha == 0:  # as a scheduler or a frozen group has it: then the average stays too
        fade = 0.0
    found = {"alpha": alpha, "kept": 1 - fade if back is None else 1 - fade - back}
    return found if is_zero(b) else found | {"near": (1 - b) + b * fade, "far": 1 - b, "pull": fade * (-b / (1 - b))}


def interpolate(theta: Any, z: Any, d: Any, numbers: Numbers) -> None:
    """θ_t and z_t, in place of θ_{t-1} and z_{t-1}.

    Args:
        theta: θ_{t-1}; where "back" is 1, it becomes θ̄.
        z: z_{t-1}.
        d: d_t.
        numbers: of ``interpolated``; on a device also "back".
    """
    alpha, near, far = numbers["alpha"], numbers.get("near", 1.0), numbers.get("far", 1.0)
    if "pull" in numbers:
        add_scaled(theta, numbers["pull"], z, out=theta)
    if isinstance(alpha, float) and isinstance(near, float):
        add_scaled(theta, -near * alpha, d, out=theta)
        add_scaled(z, far * alpha, d, out=z)
    else:
        step = d.mul(alpha)
        add_scaled(z, far, step, out=z)
        theta.sub_(step.mul_(near) if "near" in numbers else step)
    if "back" in numbers:
        theta.add_(z.mul(numbers["back"]))
    z.mul_(numbers["kept"])


def go_back(theta: Any, z: Any, back: Any = None) -> None:
    """θ ← θ̄, and so z ← 0; where ``back``, a tensor, is 1, if it is given."""
    if back is None:
        theta.add_(z)
        z.zero_()
    else:
        theta.add_(z.mul(back))
        z.mul_(1 - back)


def is_average(state: State) -> bool:
    """Whether the parameters are the average."""
    return any("iterate" in own for own in state.values() if isinstance(own, dict))


def put_average(state: State) -> None:
    """The average instead of the iterate, which is kept beside it to be put back bit for bit."""
    for p, own in state.items():
        if isinstance(own, dict) and "trace" in own and "iterate" not in own:
            own["iterate"] = p.clone()
            real(p).add_(real(own["trace"]))


def where(params: Sequence[Tensor], state: State) -> tuple[float, float, float]:
    """Σ θ and Σ θ̄ of a param group, and how far rounding may have moved such a sum.

    By them can be told which of both the parameters are that a checkpoint is loaded beside.
    """
    theta, way, rounding = 0.0, 0.0, 0.0
    for p in params:
        if "trace" in state.get(p, ()) and p.numel():
            values = real(p.detach())
            theta += float(values.sum(dtype=torch.float64))
            way += float(real(state[p]["trace"]).sum(dtype=torch.float64))
            rounding += torch.finfo(p.dtype).eps * float(values.abs().sum(dtype=torch.float64)) / p.numel() ** 0.5
    return theta, theta + way, rounding


def start_from_average(saved: Sequence[Any], groups: Sequence[dict[str, Any]], state: State) -> bool:
    """Whether the parameters are the average of the checkpoint that was loaded, in place of the iterate: then that starts from them."""
    found = False
    for group, (theta, average, _) in zip(groups, saved, strict=True):
        now, _, rounding = where(group["params"], state)
        if abs(theta - average) > 30 * rounding and abs(now - average) < 0.01 * abs(theta - average):
            found = True
            for own in (state[p] for p in group["params"] if "trace" in state.get(p, ())):
                real(own["trace"]).zero_()
    return found


def put_iterate(state: dict[Tensor, dict[str, Any]]) -> int:
    """The iterate again; how many parameters somebody has written meanwhile: they stay, and their average starts from them."""
    written = 0
    for p, own in list(state.items()):
        if isinstance(own, dict) and "iterate" in own:
            state[p] = {name: x for name, x in own.items() if name != "iterate"}  # a state_dict() that was taken keeps its own
            iterate, z = own["iterate"], real(own["trace"])
            if p.is_meta or torch.equal(local(real(p)), local(real(iterate)).add(local(z))):
                p.copy_(iterate)
            else:
                written += 1
                z.zero_()
    return written
