"""What a rule makes of one learning rate, or elementwise of a column of them, or of the elements of a tensor."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import ends
from .dials import State
from .direction import Direction
from .execute import Numbers
from .factors import adapted
from .products import Bundle, last_direction, objective
from .ranks import local
from .rules import Rule, clipped, norms_of
from .setup import Setup
from .tensors import Tensors, copy_all, dot, finite_zero, make_buffer, real, replace
from .tuning import TuningFree, safe_start


def turn(rule: Rule, largest: float | None, kept: Mapping[str, str] | None, xp: Any, x: Mapping[str, Any]) -> dict[str, Any]:
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
    if kept is None:
        return {"alpha": before, "h": h, "fine": h - h == 0}
    g_norm, d_norm = norms_of(x, xp)
    memory = {name: x[key] for name, key in kept.items()}
    if rule.discounts:
        memory["slope"] = x["slope"]
    if rule.averages:
        memory["size"] = x["size"] if "size" in x else xp.sqrt(x["pp"])
    alpha, waits = before, None
    if "start.gg" in x:
        begins = (memory["steps"] == 0) & (abs(h) < math.inf)
        alpha = xp.where(begins, before * x["factor now"], before) if "factor" in x else before
        alpha, waits = safe_start(xp, alpha, begins, x["start.gg"], x["start.pp"], x["start.dd"])
    move = rule.move(memory, alpha, x["beta"], h, g_norm, d_norm, xp)
    found = {"alpha": move.alpha}
    for name, key in kept.items():
        found[key] = move.memory.get(name, x[key])
    if move.beta is not None:
        found["beta"] = move.beta
    window = move.window
    if rule.averages and "factor" in x:
        found = scheduled(found, x, xp)
        window = shorter(window, x["factor now"], found["memory.peak"], xp)
    if waits is not None:  # there was no gradient yet
        found = {name: xp.where(waits, x.get(name, value), value) for name, value in found.items()}
    alpha = found["alpha"]
    if not (isinstance(x["low"], float) and x["low"] == -math.inf and isinstance(x["high"], float) and x["high"] == math.inf):
        inside = clipped(alpha, x["low"], x["high"], xp)
        found["alpha"] = alpha = xp.where(alpha == before, alpha, inside)
    fine = True if largest is None else abs(alpha) + (h - h) <= largest
    if rule.averages:
        back = move.back if waits is None else move.back & xp.logical_not(waits)
        if "factor" in x:  # a step of 0 moves nothing, but for what is not finite
            back = back & xp.logical_or((x["factor"] != 0) & (x["factor now"] != 0), xp.logical_not(abs(h) < math.inf))
        return found | {"h": h, "fine": fine, "window": window, "back": back, "part": move.part}
    rest = [value for name, value in found.items() if name != "alpha"]
    return found | {"h": h, "fine": fine & (0 * sum(rest) == 0) if rest else fine}


def scheduled(found: dict[str, Any], x: Mapping[str, Any], xp: Any) -> dict[str, Any]:
    """What a rule that averages makes of a step whose learning rate was α times the factor of a scheduler.

    A factor of 0 teaches it nothing. A warm-up is what the rule makes itself: where a factor is larger than ever, what it rises by is taken
    from α, so that their product goes as the rule has it.
    """
    factor, now, peak = x["factor"], x["factor now"], x["memory.peak"]
    first = xp.masked_fill(now, now == 0, 1.0)  # the learning rate that the rule starts from is the product
    found = {name: xp.where(factor == 0, x.get(name, value), value) for name, value in found.items()}
    found["alpha"] = found["alpha"] / xp.where(peak > 0, xp.clamp(xp.div(now, peak), min=1.0), first)
    return found | {"memory.peak": xp.maximum(peak, now)}


def shorter(window: Any, factor: Any, peak: Any, xp: Any) -> Any:
    """The window of an average under a factor that has come down from its peak: a decay ends the average, but for ten steps."""
    part = xp.where(factor < peak, xp.div(factor, peak), 1.0)
    return xp.maximum(window * part, xp.clamp(window, max=TuningFree.SHORTEST))


def undo(found: dict[str, Any], before: Mapping[str, Any], ok: Tensor) -> None:
    """What was there before, where a device finds that the step cannot be made."""
    for name, value in found.items():
        if name in before:
            found[name] = torch.where(ok, value, before[name])


class Moved(NamedTuple):
    """What a step makes of the elements of a bundle: "lr" and what the rule keeps, by its name in the state; a tensor for each."""

    bundle: Bundle
    before: dict[str, list[Tensor]]
    new: dict[str, list[Tensor]]


def turn_elements(setup: Setup, bundles: Sequence[Bundle], own: bool, bent: Mapping[Tensor, Tensor]) -> tuple[list[Moved], list[Tensor]]:
    """α of each element and what its rule keeps, of its own h = −g d; and what is 0 where they are finite."""
    found, zeros, reached = list[Moved](), list[Tensor](), dict[int, list[Tensor]]()
    for bundle in bundles:
        tensors = bundle.split()
        moved = "trace" in tensors or bundle.states[0].get("applied", False) is not False
        if not (moved or own):  # adapt() before the first step, which is to make the state
            continue
        before = elements_of(setup, bundle, tensors["p"])
        new = {name: [torch.empty_like(x) for x in column] for name, column in before.items()}
        copy_all(*([x for column in columns.values() for x in column] for columns in (new, before)))
        found.append(Moved(bundle, before, new))
        tensors |= {f"new {name}": column for name, column in new.items()}
        if bundle.params[0] in bent:
            tensors["curvature"] = [local(real(bent[p])) for p in bundle.params]
        numbers = (setup.direction.objective(bundle.group) if own else {}) | numbers_of_elements(setup, bundle, moved, "trace" in tensors)
        fixed = setup.rule, setup.direction, own, moved, setup.numbers.on_device
        for _, (zero, *sums) in setup.run(turn_piece, tensors, numbers, *fixed, writes=True, flat=True, live=8):
            zeros += zero
            for part in sums:
                reached.setdefault(bundle.g, []).append(setup.ranks.add_up(part[0].double(), bundle.spec or ()))
    for g, parts in reached.items():  # no step goes beyond what the curvature allows
        most = torch.stack(parts).sum()
        divisor = torch.where(most.isfinite(), most, 1.0).clamp(min=1.0)
        for column in (moved.new["lr"] for moved in found if moved.bundle.g == g):
            Tensors(column).div_(divisor.to(column[0].dtype))
    return found, zeros


def elements_of(setup: Setup, bundle: Bundle, like: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The learning rates of elements and what their rule keeps, as they are in the states, or as they start."""
    found = {name: [local(real(state[name])) for state in bundle.states if name in state] for name in ("lr", *setup.keeps_element)}
    for name, value in {"lr": adapted(bundle.group), **setup.keeps_element}.items():
        if not found[name]:
            dtypes = [p.dtype if name == "lr" else torch.promote_types(p.dtype, torch.float32) for p in like]
            found[name] = [torch.empty_like(p, dtype=dtype).fill_(value) for p, dtype in zip(like, dtypes, strict=True)]
    return found


def numbers_of_elements(setup: Setup, bundle: Bundle, moved: bool, traced: bool) -> Numbers:
    """What ``turn_piece`` needs of options and of the last step: the coefficients of d_{t-1}, and "weight", what h is multiplied by."""
    group, of_log = bundle.group, setup.rule.of_log
    low, high = ends(group["lr_bounds"])
    found = {"beta": group["hypergrad_lr"], "low": low, "high": high, "by_alpha": of_log and not traced}
    if not moved:
        return found
    if not traced:
        state = {name: bundle.number(name, setup.numbers) for name in setup.direction.counts} | {"lr": bundle.last_lr(setup)}
        found |= setup.direction.last_numbers(state, group["last"]) | bundle.factor_of_elements
    weight: Any = 1.0 if traced and (of_log or setup.discounted) else bundle.last_factor  # which has it in it already
    applied = bundle.states[0].get("applied")
    weight = weight * applied if isinstance(applied, Tensor) else weight
    return found | {"weight": weight / group["last"].get("square", 1.0)}


def turn_piece(
    piece: Mapping[str, Any], numbers: Numbers, rule: Rule, direction: Direction, own: bool, moved: bool, guards: bool
) -> list[Tensor]:
    """The same of some elements, flat: "new lr" and "new memory_NAME" are moved in place.

    Where only the device knows whether they are finite it ``guards`` what was there, so that no product with 0 is NaN.
    """
    lr = piece["new lr"]
    wide = torch.promote_types(lr.dtype, torch.float32)  # in float16 g d is soon infinite, or 0
    g, alpha = objective(piece, numbers, direction, own).to(wide), lr.to(wide)
    c = (piece["curvature"].to(wide) if "curvature" in piece else g * g) if rule.caps else None
    h = -(g * last_direction(piece, numbers, direction)) * numbers["weight"] if moved else torch.zeros_like(g)
    h = h * alpha if numbers["by_alpha"] else h
    memory = {name: piece[f"new memory_{name}"] for name in rule.fresh()}
    move = rule.move(memory if c is None else memory | {"curvature": c}, alpha, numbers["beta"], h, abs(h), 1.0, torch)
    new = {"lr": move.alpha.clamp(numbers["low"], numbers["high"])} | {f"memory_{name}": move.memory[name] for name in memory}
    zero = sum((finite_zero(x) for x in new.values()), finite_zero(g))
    for name, x in new.items():
        there = piece[f"new {name}"]
        there.copy_(torch.where(x.isfinite(), x, there) if guards else x)
    return [zero] if c is None else [zero, dot(lr, c.to(lr.dtype))]


def every(column: Any) -> Any:
    """Whether all of a column hold."""
    if isinstance(column, Tensor):
        return column.all() if column.numel() > 1 else column.reshape(())
    return column if isinstance(column, bool) else all(column)


def all_zero(zeros: Sequence[Tensor]) -> Any:
    """Whether none is NaN: a tensor where there is any."""
    return (torch.stack([x.to(zeros[0].device, torch.float64) for x in zeros]) == 0).all() if zeros else True


def write_elements(state: State, moved: Iterable[Moved], ok: Any) -> None:
    """Put the learning rates of elements, and what their rule keeps, into their states."""
    for bundle, before, new in moved:
        for name, column in new.items():
            for p, x in zip(bundle.params, before[name], strict=True):
                make_buffer(state[p], name, p, x, None if name == "lr" else torch.promote_types(p.dtype, torch.float32))
            there = Tensors(local(real(state[p][name])) for p in bundle.params)
            goes = ok.to(there.dtype) if isinstance(ok, Tensor) else None
            replace(there, Tensors(column), {} if goes is None else {"goes": goes, "stays": 1 - goes})
