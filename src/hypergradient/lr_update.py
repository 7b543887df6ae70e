"""What a rule makes of one learning rate, or elementwise of a column of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .rules import Rule, clip, norms_of
from .tuning import TuningFree, safe_start


def update_lr(rule: Rule, largest: float | None, memory_columns: Mapping[str, str] | None, xp: Any, x: Mapping[str, Any]) -> dict[str, Any]:
    """α_t inside its bounds, h_t, what the rule keeps, and whether the step can be made; α_{t-1} stays where the rule leaves it.

    Args:
        rule: the rule.
        largest: what a learning rate can be at most; None where it need not be looked at.
        kept: the names of what the rule keeps, with those they have in ``x``; None where learning rates are those of elements, so that
            these are only their mean.
        xp: the functions of such numbers (see rules.py).
        x: "alpha", "beta", "low", "high", "memory.NAME"; the sums "gx", "gg", "xx" where the rule reads norms, and "pp" where it averages;
            "start.NAME", what a safe first learning rate is computed from, while the rule may start; "factor", that of a scheduler in the
            last step.
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
    if waiting is not None:  # there was no gradient yet
        found = {name: xp.where(waiting, x.get(name, value), value) for name, value in found.items()}
    alpha = found["alpha"]
    inside = clip(alpha, x["low"], x["high"], xp)
    if inside is not alpha:
        found["alpha"] = alpha = xp.where(alpha == before, alpha, inside)
    finite = True if largest is None else abs(alpha) + (h - h) <= largest
    if rule.averages:
        reset = update.reset if waiting is None else update.reset & xp.logical_not(waiting)
        if "factor" in x:  # a step of 0 moves nothing, but for what is not finite
            reset = reset & xp.logical_or((x["factor"] != 0) & (x["factor now"] != 0), xp.logical_not(abs(h) < math.inf))
        return found | {"h": h, "finite": finite, "window": window, "reset": reset, "fraction": update.fraction}
    rest = [value for name, value in found.items() if name != "alpha"]
    return found | {"h": h, "finite": finite & (0 * sum(rest) == 0) if rest else finite}


def apply_schedule(found: dict[str, Any], x: Mapping[str, Any], xp: Any) -> dict[str, Any]:
    """What a rule that averages makes of a step whose learning rate was α times the factor of a scheduler.

    A factor of 0 teaches it nothing. A warm-up is what the rule makes itself: where a factor is larger than ever, what it rises by is taken
    from α, so that their product goes as the rule has it.
    """
    factor, now, peak = x["factor"], x["factor now"], x["memory.peak"]
    first = xp.masked_fill(now, now == 0, 1.0)  # the learning rate that the rule starts from is the product
    found = {name: xp.where(factor == 0, x.get(name, value), value) for name, value in found.items()}
    found["alpha"] = found["alpha"] / xp.where(peak > 0, xp.clamp(xp.div(now, peak), min=1.0), first)
    return found | {"memory.peak": xp.maximum(peak, now)}


def shortened_window(window: Any, factor: Any, peak: Any, xp: Any) -> Any:
    """The window of an average under a factor that has come down from its peak: a decay ends the average, but for ten steps."""
    fraction = xp.where(factor < peak, xp.div(factor, peak), 1.0)
    return xp.maximum(window * fraction, xp.clamp(window, max=TuningFree.MIN_WINDOW))


def revert_unless(found: dict[str, Any], before: Mapping[str, Any], ok: Tensor) -> None:
    """What was there before, where a device finds that the step cannot be made."""
    for name, value in found.items():
        if name in before:
            found[name] = torch.where(ok, value, before[name])


def all_entries(column: Any) -> Any:
    """Whether all of a column hold."""
    if isinstance(column, Tensor):
        return column.all() if column.numel() > 1 else column.reshape(())
    return column if isinstance(column, bool) else all(column)


def all_true(fine: Sequence[Tensor]) -> Any:
    """Whether all hold: a tensor where there is any."""
    return torch.stack([x.to(fine[0].device) for x in fine]).all() if fine else True
