"""Learning rates of elements: what a rule makes of each, of its own h = −g d; on an accelerator many tensors laid in one."""

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
from .rules import Rule, clipped
from .setup import Setup
from .tensors import Tensors, copy_all, dot, finite_zero, make_buffer, real, wide


class Moved(NamedTuple):
    """What a step makes of the elements of a bundle: "lr" and what the rule keeps, by its name in the state; a tensor for each."""

    bundle: Bundle
    before: dict[str, list[Tensor]]
    new: dict[str, list[Tensor]]


def turn_elements(
    setup: Setup, bundles: Sequence[Bundle], own: bool, bent: Mapping[Tensor, Tensor], groups: int
) -> tuple[list[Moved], list[Tensor]]:
    """α of each element and what its rule keeps, of its own h = −g d; and whether they are finite, in parts."""
    found, fine = list[Moved](), list[Tensor]()
    specs = setup.ranks.specs if setup.rule.caps else ()
    reached = {spec: torch.zeros(groups, dtype=wide(setup.ranks.device), device=setup.ranks.device) for spec in specs}
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
        for _, (whole, *sums) in setup.run(turn_piece, tensors, numbers, *fixed, writes=True, flat=True, live=8):
            fine += whole
            for x in sums:
                reached[bundle.spec or ()][bundle.g] += x[0]
    if reached:  # Σ α c ≤ 1: no step goes beyond what the curvature allows
        most = torch.stack([setup.ranks.add_up(x, spec) for spec, x in reached.items()]).sum(0)
        divisor = torch.where(most.isfinite(), most, 1.0).clamp(min=1.0)
        for bundle, _, new in found:
            Tensors(new["lr"]).div_(divisor[bundle.g].to(new["lr"][0].dtype))
    return found, fine


def elements_of(setup: Setup, bundle: Bundle, like: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The learning rates of elements and what their rule keeps, as they are in the states, or as they start."""
    found = {name: [local(real(state[name])) for state in bundle.states if name in state] for name in ("lr", *setup.keeps_element)}
    lr = adapted(bundle.group)
    for name, value in {"lr": lr.reshape(()) if isinstance(lr, Tensor) else lr, **setup.keeps_element}.items():
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
        found |= setup.direction.last_numbers(bundle.last_state(setup), group["last"]) | bundle.factor_of_elements
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
    dtype = torch.promote_types(lr.dtype, torch.float32)  # in float16 g d is soon infinite, or 0
    g, alpha = objective(piece, numbers, direction, own).to(dtype), lr.to(dtype)
    c = (piece["curvature"].to(dtype) if "curvature" in piece else g * g) if rule.caps else None
    h = -(g * last_direction(piece, numbers, direction)) * numbers["weight"] if moved else torch.zeros_like(g)
    h = h * alpha if numbers["by_alpha"] else h
    memory = {name: piece[f"new memory_{name}"] for name in rule.fresh()}
    move = rule.move(memory if c is None else memory | {"curvature": c}, alpha, numbers["beta"], h, abs(h), 1.0, torch)
    new = {"lr": clipped(move.alpha, numbers["low"], numbers["high"], torch)} | {f"memory_{name}": move.memory[name] for name in memory}
    fine = []
    for name, x in new.items():
        there = piece[f"new {name}"]
        finite = x.isfinite() if guards else finite_zero(x) == 0
        there.copy_(torch.where(finite, x, there) if guards else x)
        fine.append(finite.all() if guards else finite)
    whole = fine[0] if len(fine) == 1 else torch.stack(fine).all()
    return [whole] if c is None else [whole, dot(lr, c.to(lr.dtype))]


def write_elements(state: State, moved: Iterable[Moved], ok: Any) -> None:
    """Put the learning rates of elements, and what their rule keeps, into their states."""
    for bundle, before, new in moved:
        for name, column in new.items():
            for p, x in zip(bundle.params, before[name], strict=True):
                make_buffer(state[p], name, p, x, None if name == "lr" else torch.promote_types(p.dtype, torch.float32))
            there = Tensors(local(real(state[p][name])) for p in bundle.params)
            if isinstance(ok, Tensor):
                goes = ok.to(there.dtype)
                there.mul_(1 - goes).add_(Tensors(column).mul_(goes))
            else:
                there.copy_(column)
