"""The running average of the parameters that a rule with ``averages`` keeps, and its state.

``state[p]["trace"]`` is z_t = θ̄_t − θ_t, the displacement from the parameters to the average. Under other rules it is a trace of past
directions (see signal.py). With ζ for the iterate, θ̄ for its average and b for the interpolation (momentum),

    ζ_t = ζ_{t-1} − α_t d_t,    θ̄_t = θ̄_{t-1} + (ζ_t − θ̄_{t-1}) / n,    θ_t = (1 − b) ζ_t + b θ̄_t

so gradients are taken between iterate and average (Defazio et al., The Road Less Scheduled, 2024), and b acts as momentum without a buffer
for it. A direction that keeps its own momentum has b = 0, where θ is the iterate. Neither ζ nor θ̄ is stored. In terms of z, with
k = 1 − 1/n,

    θ_t = θ_{t-1} − (1 − b k) α_t d_t − (1 − k) b / (1 − b) z_{t-1},    z_t = k (z_{t-1} + (1 − b) α_t d_t)

Storing θ̄ itself would lose z to rounding at small learning rates, as the difference of two nearly equal tensors.

16-bit parameters cannot accumulate small steps, and neither could a 16-bit average. There z is float32, and ``state[p]["rest"]``, in the
parameter's dtype, holds the rounding error of θ: the step is computed on θ + rest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .learning_rates import State
from .ranks import local
from .runner import Coefficients
from .tensors import add_scaled, is_zero, real

#: Dtypes of parameters that are stored in two parts, θ and rest.
HALF_DTYPES = (torch.bfloat16, torch.float16)


def average_coef(alpha: Any, weight: Any, b: Any, reset: Any = None) -> Coefficients:
    """Coefficients of ``interpolate``: α, k, 1 − b k, 1 − b and −(1 − k) b / (1 − b).

    Args:
        alpha: α_t; 0 for a skipped step.
        weight: 1 − k = 1/n; 0 for a skipped step.
        b: interpolation between iterate and average.
        reset: 1 where the parameters are reset to their average, else 0; None if no parameter is.
    """
    if isinstance(alpha, float) and alpha == 0:  # set by a scheduler or for a frozen group: the average stays too
        weight = 0.0
    found = {"alpha": alpha, "trace_decay": 1 - weight if reset is None else 1 - weight - reset}
    return found if is_zero(b) else found | {"step_scale": (1 - b) + b * weight, "trace_scale": 1 - b, "pull": weight * (-b / (1 - b))}


def interpolate(theta: Any, z: Any, d: Any, coef: Coefficients) -> None:
    """Update θ_{t-1} to θ_t and z_{t-1} to z_t, in place.

    Args:
        theta: θ_{t-1}; becomes θ̄ where "reset" is 1.
        z: z_{t-1}.
        d: d_t.
        coef: from ``average_coef``; on a device also "reset".
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
    """θ + rest in float32: a new tensor, or ``theta`` itself if it is a float32 copy already."""
    return theta.to(torch.float32).add_(rest)


def split(exact: Any, theta: Any, rest: Any, dtype: torch.dtype) -> None:
    """Write the sum θ + rest to its two parts, θ being the sum rounded; ``join`` then ``split`` changes no bit."""

    def rounded(x: Any) -> Any:
        return x.to(dtype).to(torch.float32)

    nearest = rounded(exact)
    nearest.add_(rounded(exact.sub(nearest)))  # as precise as two 16-bit numbers can be
    theta.copy_(rounded(nearest))
    rest.copy_(nearest.sub(theta))


def average_of(theta: Tensor, p_state: Mapping[str, Any]) -> Tensor:
    """θ̄, rounded to the dtype of θ."""
    z = local(real(p_state["trace"]))
    return theta.add(z) if "rest" not in p_state else join(theta, local(p_state["rest"])).add_(z).to(theta.dtype)


def reset_to_average(theta: Tensor, p_state: Mapping[str, Any], reset: Tensor | None = None) -> None:
    """θ ← θ̄ and z ← 0; only where ``reset`` is 1, if it is given."""
    z, exact = local(real(p_state["trace"])), join(theta, local(p_state["rest"])) if "rest" in p_state else theta
    exact.add_(z if reset is None else z.mul(reset))
    z.mul_(0 if reset is None else 1 - reset)
    if "rest" in p_state:
        split(exact, theta, local(p_state["rest"]), theta.dtype)


def restart_average(p_state: Mapping[str, Any]) -> None:
    """z ← 0, so that the average starts again from the current θ."""
    for name in ("trace", "rest"):
        if name in p_state:
            real(p_state[name]).zero_()


def is_average(state: State) -> bool:
    """Whether the parameters hold the average."""
    return any("iterate" in p_state for p_state in state.values() if isinstance(p_state, dict))


def swap_in_average(state: State) -> None:
    """Replace the parameters by their average, and store them as "iterate" to be restored bit for bit."""
    for p, p_state in state.items():
        if isinstance(p_state, dict) and "trace" in p_state and "iterate" not in p_state:
            p_state["iterate"] = p.clone()
            theta = local(real(p))
            theta.copy_(average_of(theta, p_state))


def fingerprint(params: Sequence[Tensor], state: State) -> tuple[float, float, float]:
    """Σ θ and Σ θ̄ of a param group, and the rounding error to expect in such a sum.

    They tell whether the parameters loaded with a checkpoint are its iterate or its average.
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
    """If the parameters are the average of the loaded checkpoint rather than its iterate, restart the average from them and return True."""
    found = False
    for group, (theta, average, _) in zip(groups, saved, strict=True):
        now, _, rounding = fingerprint(group["params"], state)
        if abs(theta - average) > 30 * rounding and abs(now - average) < 0.01 * abs(theta - average):
            found = True
            for p_state in (state[p] for p in group["params"] if "trace" in state.get(p, ())):
                restart_average(p_state)
    return found


def restore_iterate(state: dict[Tensor, dict[str, Any]]) -> int:
    """Restore the iterate, and return how many parameters were written meanwhile: these stay, and their average restarts from them."""
    written = 0
    for p, p_state in list(state.items()):
        if isinstance(p_state, dict) and "iterate" in p_state:
            state[p] = {name: x for name, x in p_state.items() if name != "iterate"}  # new: an earlier state_dict() holds the old one
            iterate = p_state["iterate"]
            if p.is_meta or torch.equal(local(real(p)), average_of(local(real(iterate)), p_state)):
                p.copy_(iterate)
            else:
                written += 1
                restart_average(p_state)
    return written
