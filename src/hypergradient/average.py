"""The running average of the parameters, under a rule that averages: what is kept of a step beside the optimizer's own buffers.

``state[p]["trace"]`` is z, the way from the parameters to the average of the iterates, z_t = θ̄_t − θ_t; under other rules a trace of past
directions (see signal.py). With ζ for the iterate and momentum b,

    ζ_t = ζ_{t-1} − α_t d_t,    θ̄_t = θ̄_{t-1} + (ζ_t − θ̄_{t-1}) / n,    θ_t = (1 − b) ζ_t + b θ̄_t

so gradients are taken between both (Defazio et al., The Road Less Scheduled, 2024): b does what momentum does, without a buffer of its own.
A direction that has momentum of its own goes with b = 0, where θ is the iterate. Neither ζ nor θ̄ is kept: in the way z, with k = 1 − 1/n,

    θ_t = θ_{t-1} − (1 − b k) α_t d_t − (1 − k) b / (1 − b) z_{t-1},    z_t = k (z_{t-1} + (1 − b) α_t d_t)

since at small learning rates the difference of two nearly equal parameters would be rounding.

Parameters of 16 bits are too coarse for a sum of small steps, and so would be an average of theirs. Under a rule that averages z is float32
there, and ``state[p]["rest"]``, of 16 bits as they are, holds what rounding has taken from θ: steps are made of θ + rest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .dials import State
from .execute import Numbers
from .ranks import local
from .tensors import add_scaled, is_zero, real

#: Parameters that are kept in two parts, θ and rest.
HALVES = (torch.bfloat16, torch.float16)


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


def joined(theta: Any, rest: Any) -> Any:
    """θ + rest, in float32: a new tensor, or ``theta`` itself where that is a copy of float32."""
    return theta.to(torch.float32).add_(rest)


def part(exact: Any, theta: Any, rest: Any, dtype: torch.dtype) -> None:
    """θ and rest of their sum, such that θ is that rounded: what is joined and parted again stays as it is, to the bit."""

    def rounded(x: Any) -> Any:
        return x.to(dtype).to(torch.float32)

    near = rounded(exact)
    near.add_(rounded(exact.sub(near)))  # what two numbers of 16 bits hold of it
    theta.copy_(rounded(near))
    rest.copy_(near.sub(theta))


def average_of(theta: Tensor, own: Mapping[str, Any]) -> Tensor:
    """θ̄, rounded as θ is."""
    z = local(real(own["trace"]))
    return theta.add(z) if "rest" not in own else joined(theta, local(own["rest"])).add_(z).to(theta.dtype)


def go_back(theta: Tensor, own: Mapping[str, Any], back: Tensor | None = None) -> None:
    """θ ← θ̄, and so z ← 0; where ``back`` is 1, if it is given."""
    z, exact = local(real(own["trace"])), joined(theta, local(own["rest"])) if "rest" in own else theta
    exact.add_(z if back is None else z.mul(back))
    z.mul_(0 if back is None else 1 - back)
    if "rest" in own:
        part(exact, theta, local(own["rest"]), theta.dtype)


def forget_average(own: Mapping[str, Any]) -> None:
    """z ← 0, of θ as it is: the average starts from there."""
    for name in ("trace", "rest"):
        if name in own:
            real(own[name]).zero_()


def is_average(state: State) -> bool:
    """Whether the parameters are the average."""
    return any("iterate" in own for own in state.values() if isinstance(own, dict))


def put_average(state: State) -> None:
    """The average instead of the iterate, which is kept beside it to be put back bit for bit."""
    for p, own in state.items():
        if isinstance(own, dict) and "trace" in own and "iterate" not in own:
            own["iterate"] = p.clone()
            theta = local(real(p))
            theta.copy_(average_of(theta, own))


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
                forget_average(own)
    return found


def put_iterate(state: dict[Tensor, dict[str, Any]]) -> int:
    """The iterate again; how many parameters somebody has written meanwhile: they stay, and their average starts from them."""
    written = 0
    for p, own in list(state.items()):
        if isinstance(own, dict) and "iterate" in own:
            state[p] = {name: x for name, x in own.items() if name != "iterate"}  # a state_dict() that was taken keeps its own
            iterate = own["iterate"]
            if p.is_meta or torch.equal(local(real(p)), average_of(local(real(iterate)), own)):
                p.copy_(iterate)
            else:
                written += 1
                forget_average(own)
    return written
