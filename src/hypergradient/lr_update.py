"""The update of a learning rate by its rule; elementwise, for floats or columns."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .rules import Rule, clip, norms_of
from .tuning import TuningFree, safe_start


def update_lr(rule: Rule, largest: float | None, memory_columns: Mapping[str, str] | None, xp: Any, x: Mapping[str, Any]) -> dict[str, Any]:
    """α_t inside its bounds, h_t, rule memory, and whether all are finite; α_{t-1} itself if the rule does not change it.

    Args:
        rule: the rule.
        largest: the largest learning rate that the parameters' dtype can hold; None to skip the check.
        memory_columns: names in the rule's memory, with their names in ``x``; None for elementwise learning rates, of which these are
            the mean.
        xp: torch, or ``float_ops`` for floats.
        x: "alpha", "beta", "low", "high", "memory.NAME"; the sums "gx", "gg", "xx" if the rule reads norms, and "pp" if it averages;
            "start.NAME", the inputs of a safe first learning rate, while the rule may start; "factor", the scheduler's in the last step,
            and "factor now".
    """
    h, before = 0.0 - x["gx"], x["alpha"]
    if memory_columns is None:
        return {"alpha": before, "h": h, "finite": h - h == 0}
    g_norm, d_norm = norms_of(x, xp)
    memory = {name: x[key] for name, key in memory_columns.items()}
    if rule.adapts_discount:
        memory["slope"] = x["slope"]
    if rule.averages:
        memory["size"] = x["size"] if "size" in x else xp.sqrt(x["pp"])
    alpha, waiting = before, None
    if "start.gg" in x:
        begins = (memory["steps"] == 0) & (abs(h) < math.inf)
        alpha = xp.where(begins, before * x["factor now"], before) if "factor" in x else before
        alpha, waiting = safe_start(xp, alpha, begins, x["start.gg"], x["start.pp"], x["start.dd"])
    update = rule.update(memory, alpha, x["beta"], h, g_norm, d_norm, xp)
    found = {"alpha": update.alpha}
    for name, key in memory_columns.items():
        found[key] = update.memory.get(name, x[key])
    if update.beta is not None:
        found["beta"] = update.beta
    window = update.window
    if rule.averages and "factor" in x:
        found = apply_schedule(found, x, xp)
        window = shortened_window(window, x["factor now"], found["memory.peak"], xp)
    if waiting is not None:  # no gradient so far
        found = {name: xp.where(waiting, x.get(name, value), value) for name, value in found.items()}
    alpha = found["alpha"]
    inside = clip(alpha, x["low"], x["high"], xp)
    if inside is not alpha:
        found["alpha"] = alpha = xp.where(alpha == before, alpha, inside)
    finite = True if largest is None else abs(alpha) + (h - h) <= largest
    if rule.averages:
        reset = update.reset if waiting is None else update.reset & xp.logical_not(waiting)
        if "factor" in x:  # a step of 0 resets nothing, unless a gradient is not finite
            reset = reset & xp.logical_or((x["factor"] != 0) & (x["factor now"] != 0), xp.logical_not(abs(h) < math.inf))
        return found | {"h": h, "finite": finite, "window": window, "reset": reset, "fraction": update.fraction}
    rest = [value for name, value in found.items() if name != "alpha"]
    return found | {"h": h, "finite": finite & (0 * sum(rest) == 0) if rest else finite}


def apply_schedule(found: dict[str, Any], x: Mapping[str, Any], xp: Any) -> dict[str, Any]:
    """Adjust a rule that averages to a step whose learning rate was α times a scheduler's factor.

    A factor of 0 leaves the rule unchanged. Warm-up is the rule's own task: when a factor exceeds its peak so far, α is divided by the
    increase, so that their product is what the rule intends.
    """
    factor, now, peak = x["factor"], x["factor now"], x["memory.peak"]
    first = xp.masked_fill(now, now == 0, 1.0)  # the rule's first learning rate is the product
    found = {name: xp.where(factor == 0, x.get(name, value), value) for name, value in found.items()}
    found["alpha"] = found["alpha"] / xp.where(peak > 0, xp.clamp(xp.div(now, peak), min=1.0), first)
    return found | {"memory.peak": xp.maximum(peak, now)}


def shortened_window(window: Any, factor: Any, peak: Any, xp: Any) -> Any:
    """The averaging window under a factor below its peak: a decay ends the averaging, except for ten steps."""
    fraction = xp.where(factor < peak, xp.div(factor, peak), 1.0)
    return xp.maximum(window * fraction, xp.clamp(window, max=TuningFree.MIN_WINDOW))


def revert_unless(found: dict[str, Any], before: Mapping[str, Any], ok: Tensor) -> None:
    """Restore the values from before, if the device finds that the step is skipped."""
    for name, value in found.items():
        if name in before:
            found[name] = torch.where(ok, value, before[name])


def all_entries(column: Any) -> Any:
    """Whether all entries of a column are true."""
    if isinstance(column, Tensor):
        return column.all() if column.numel() > 1 else column.reshape(())
    return column if isinstance(column, bool) else all(column)


def all_true(fine: Sequence[Tensor]) -> Any:
    """Whether all tensors are true: a tensor, or True if there are none."""
    return torch.stack([x.to(fine[0].device) for x in fine]).all() if fine else True
