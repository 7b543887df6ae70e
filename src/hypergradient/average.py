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

from .learning_rates import State
from .ranks import local
from .runner import Coefficients
from .tensors import add_scaled, is_zero, real

#: Parameters that are kept in two parts, θ and rest.
HALF_DTYPES = (torch.bfloat16, torch.float16)


def average_coef(alpha: Any, weight: Any, b: Any, reset: Any = None) -> Coefficients:
    """The numbers of ``interpolate`` for momentum b: α, k, 1 − b k, 1 − b and −(1 − k) b / (1 − b).

    Args:
        alpha: α_t; 0 where the step does not go.
        fade: 1 − k = 1/n; 0 where it does not go.
        b: momentum.
        back: 1 where the parameters go back to their average, else 0; None where it is known that they do not.
    """
    if isinstance(alpha, float) and alpha == 0:  # as a scheduler or a frozen group has it: then the average stays too
        weight = 0.0
    found = {"alpha": alpha, "trace_decay": 1 - weight if reset is None else 1 - weight - reset}
    return found if is_zero(b) else found | {"step_scale": (1 - b) + b * weight, "trace_scale": 1 - b, "pull": weight * (-b / (1 - b))}


def interpolate(theta: Any, z: Any, d: Any, coef: Coefficients) -> None:
    """θ_t and z_t, in place of θ_{t-1} and z_{t-1}.

    Args:
        theta: θ_{t-1}; where "back" is 1, it becomes θ̄.
        z: z_{t-1}.
        d: d_t.
        numbers: of ``interpolated``; on a device also "back".
    """
    alpha, step_scale, trace_scale = coef["alpha"], coef.get("step_scale", 1.0), coef.get("trace_scale", 1.0)
    if "pull" in coef:
        add_scaled(theta, coef["pull"], z, out=theta)
    if isinstance(alpha, float) and isinstance(step_scale, float):
        add_scaled(theta, -step_scale * alpha, d, out=theta)
        add_scaled(z, trace_scale * alpha, d, out=z)
    else:
        step = d.mul(alpha)
        add_scaled(z, trace_scale, step, out=z)
        theta.sub_(step.mul_(step_scale) if "step_scale" in coef else step)
    if "reset" in coef:
        theta.add_(z.mul(coef["reset"]))
    z.mul_(coef["trace_decay"])


def join(theta: Any, rest: Any) -> Any:
    """θ + rest, in float32: a new tensor, or ``theta`` itself where that is a copy of float32."""
    return theta.to(torch.float32).add_(rest)


def split(exact: Any, theta: Any, rest: Any, dtype: torch.dtype) -> None:
    """θ and rest of their sum, such that θ is that rounded: what is joined and parted again stays as it is, to the bit."""

    def rounded(x: Any) -> Any:
        return x.to(dtype).to(torch.float32)

    nearest = rounded(exact)
    nearest.add_(rounded(exact.sub(nearest)))  # what two numbers of 16 bits hold of it
    theta.copy_(rounded(nearest))
    rest.copy_(nearest.sub(theta))


def average_of(theta: Tensor, p_state: Mapping[str, Any]) -> Tensor:
    """θ̄, rounded as θ is."""
    z = local(real(p_state["trace"]))
    return theta.add(z) if "rest" not in p_state else join(theta, local(p_state["rest"])).add_(z).to(theta.dtype)


def reset_to_average(theta: Tensor, p_state: Mapping[str, Any], reset: Tensor | None = None) -> None:
    """θ ← θ̄, and so z ← 0; where ``back`` is 1, if it is given."""
    z, exact = local(real(p_state["trace"])), join(theta, local(p_state["rest"])) if "rest" in p_state else theta
    exact.add_(z if reset is None else z.mul(reset))
    z.mul_(0 if reset is None else 1 - reset)
    if "rest" in p_state:
        split(exact, theta, local(p_state["rest"]), theta.dtype)


def restart_average(p_state: Mapping[str, Any]) -> None:
    """z ← 0, of θ as it is: the average starts from there."""
    for name in ("trace", "rest"):
        if name in p_state:
            real(p_state[name]).zero_()


def is_average(state: State) -> bool:
    """Whether the parameters are the average."""
    return any("iterate" in p_state for p_state in state.values() if isinstance(p_state, dict))


def swap_in_average(state: State) -> None:
    """The average instead of the iterate, which is kept beside it to be put back bit for bit."""
    for p, p_state in state.items():
        if isinstance(p_state, dict) and "trace" in p_state and "iterate" not in p_state:
            p_state["iterate"] = p.clone()
            theta = local(real(p))
            theta.copy_(average_of(theta, p_state))


def fingerprint(params: Sequence[Tensor], state: State) -> tuple[float, float, float]:
    """Σ θ and Σ θ̄ of a param group, and how far rounding may have moved such a sum.

    By them can be told which of both the parameters are that a checkpoint is loaded beside.
    """
    theta, displacement, rounding = 0.0, 0.0, 0.0
    for p in params:
        if "trace" in state.get(p, ()) and p.numel():
            values = real(p.detach())
            theta += float(values.sum(dtype=torch.float64))
            displacement += float(real(state[p]["trace"]).sum(dtype=torch.float64))
            rounding += torch.finfo(p.dtype).eps * float(values.abs().sum(dtype=torch.float64)) / p.numel() ** 0.5
    return theta, theta + displacement, rounding


def restart_from_average(saved: Sequence[Any], groups: Sequence[dict[str, Any]], state: State) -> bool:
    """Whether the parameters are the average of the checkpoint that was loaded, in place of the iterate: then that starts from them."""
    found = False
    for group, (theta, average, _) in zip(groups, saved, strict=True):
        now, _, rounding = fingerprint(group["params"], state)
        if abs(theta - average) > 30 * rounding and abs(now - average) < 0.01 * abs(theta - average):
            found = True
            for p_state in (state[p] for p in group["params"] if "trace" in state.get(p, ())):
                restart_average(p_state)
    return found


def restore_iterate(state: dict[Tensor, dict[str, Any]]) -> int:
    """The iterate again; how many parameters somebody has written meanwhile: they stay, and their average starts from them."""
    written = 0
    for p, p_state in list(state.items()):
        if isinstance(p_state, dict) and "iterate" in p_state:
            state[p] = {name: x for name, x in p_state.items() if name != "iterate"}  # a state_dict() that was taken keeps its own
            iterate = p_state["iterate"]
            if p.is_meta or torch.equal(local(real(p)), average_of(local(real(iterate)), p_state)):
                p.copy_(iterate)
            else:
                written += 1
                restart_average(p_state)
    return written
