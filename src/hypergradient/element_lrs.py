"""Learning rates of elements: the rule applied to each with its own h = −g d; on an accelerator many tensors are packed into one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import bounds_as_floats
from .direction import Direction
from .group_lr import adapted_lr
from .learning_rates import State
from .products import Bucket, GradientEntry, last_direction, make_buckets, minimized_gradient
from .ranks import local
from .rules import Rule, clip
from .runner import Coefficients
from .setup import Setup
from .tensors import Tensors, copy_tensors, dot, finite_zero, make_buffer, real, widest_dtype


class ElementUpdate(NamedTuple):
    """The update of a bucket's elementwise "lr" and rule memory, by key in the state, a tensor for each parameter."""

    bucket: Bucket
    before: dict[str, list[Tensor]]
    new: dict[str, list[Tensor]]


def update_elements(
    setup: Setup, rows: Sequence[GradientEntry], of_step: bool, curvature: Mapping[Tensor, Tensor], groups: int
) -> tuple[list[ElementUpdate], list[Tensor]]:
    """α of each element and its rule's memory, from its own h = −g d; and flags whether they are finite, in parts."""
    found, finite = list[ElementUpdate](), list[Tensor]()
    specs = setup.ranks.specs if setup.rule.uses_curvature else ()
    curvature_sums = {spec: torch.zeros(groups, dtype=widest_dtype(setup.ranks.device), device=setup.ranks.device) for spec in specs}
    for bucket in make_buckets(setup, rows, (), sums=False):
        tensors = bucket.tensors()
        has_last = "trace" in tensors or bucket.states[0].get("applied", False) is not False
        if not (has_last or of_step):  # adapt() before the first step, which makes the state
            continue
        before = current_elements(setup, bucket, tensors["p"])
        new = {name: [torch.empty_like(x) for x in column] for name, column in before.items()}
        copy_tensors(*([x for column in columns.values() for x in column] for columns in (new, before)))
        found.append(ElementUpdate(bucket, before, new))
        tensors |= {f"new {name}": column for name, column in new.items()}
        if bucket.params[0] in curvature:
            tensors["curvature"] = [local(real(curvature[p])) for p in bucket.params]
        coef = (setup.direction.objective_coef(bucket.group) if of_step else {}) | element_coef(setup, bucket, has_last, "trace" in tensors)
        fixed = setup.rule, setup.direction, of_step, has_last, setup.scalars.on_device
        for _, (all_finite, *sums) in setup.run(update_piece, tensors, coef, *fixed, writes=True, packed=True, temporaries=8):
            finite += all_finite
            for x in sums:
                curvature_sums[bucket.spec or ()][bucket.group_index] += x[0]
    if curvature_sums:  # Σ α c ≤ 1: the curvature bounds the step
        most = torch.stack([setup.ranks.all_reduce(x, spec) for spec, x in curvature_sums.items()]).sum(0)
        divisor = torch.where(most.isfinite(), most, 1.0).clamp(min=1.0)
        for bucket, _, new in found:
            Tensors(new["lr"]).div_(divisor[bucket.group_index].to(new["lr"][0].dtype))
    return found, finite


def current_elements(setup: Setup, bucket: Bucket, like: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Elementwise learning rates and rule memory, from the states or with their initial values."""
    found = {name: [local(real(state[name])) for state in bucket.states if name in state] for name in ("lr", *setup.element_memory)}
    lr = adapted_lr(bucket.group)
    for name, value in {"lr": lr.reshape(()) if isinstance(lr, Tensor) else lr, **setup.element_memory}.items():
        if not found[name]:
            dtypes = [p.dtype if name == "lr" else torch.promote_types(p.dtype, torch.float32) for p in like]
            found[name] = [torch.empty_like(p, dtype=dtype).fill_(value) for p, dtype in zip(like, dtypes, strict=True)]
    return found


def element_coef(setup: Setup, bucket: Bucket, has_last: bool, has_trace: bool) -> Coefficients:
    """Coefficients of ``update_piece``: options, the coefficients of d_{t-1}, and "weight", the factor of h."""
    group, adapts_log = bucket.group, setup.rule.adapts_log
    low, high = bounds_as_floats(group["lr_bounds"])
    found = {"beta": group["hypergrad_lr"], "low": low, "high": high, "times_alpha": adapts_log and not has_trace}
    if not has_last:
        return found
    if not has_trace:
        found |= setup.direction.last_coef(bucket.last_state(setup), group["last"]) | bucket.element_factor
    weight: Any = 1.0 if has_trace and (adapts_log or setup.has_discount) else bucket.last_factor  # the trace contains the factor
    applied = bucket.states[0].get("applied")
    weight = weight * applied if isinstance(applied, Tensor) else weight
    return found | {"weight": weight / group["last"].get("square", 1.0)}


def update_piece(
    piece: Mapping[str, Any], coef: Coefficients, rule: Rule, direction: Direction, of_step: bool, has_last: bool, masks: bool
) -> list[Tensor]:
    """The update of some elements, flat: "new lr" and "new memory_NAME" are updated in place.

    If only the device knows whether they are finite it ``masks``: what is not finite keeps its value, so that no product with 0 is NaN.
    """
    lr = piece["new lr"]
    dtype = torch.promote_types(lr.dtype, torch.float32)  # float16 would overflow or underflow in g d
    g, alpha = minimized_gradient(piece, coef, direction, of_step).to(dtype), lr.to(dtype)
    c = (piece["curvature"].to(dtype) if "curvature" in piece else g * g) if rule.uses_curvature else None
    h = -(g * last_direction(piece, coef, direction)) * coef["weight"] if has_last else torch.zeros_like(g)
    h = h * alpha if coef["times_alpha"] else h
    memory = {name: piece[f"new memory_{name}"] for name in rule.initial_memory()}
    update = rule.update(memory if c is None else memory | {"curvature": c}, alpha, coef["beta"], h, abs(h), 1.0, torch)
    new = {"lr": clip(update.alpha, coef["low"], coef["high"], torch)} | {f"memory_{name}": update.memory[name] for name in memory}
    all_parts = []
    for name, x in new.items():
        current = piece[f"new {name}"]
        is_finite = x.isfinite() if masks else finite_zero(x) == 0
        current.copy_(torch.where(is_finite, x, current) if masks else x)
        all_parts.append(is_finite.all() if masks else is_finite)
    all_finite = all_parts[0] if len(all_parts) == 1 else torch.stack(all_parts).all()
    return [all_finite] if c is None else [all_finite, dot(lr, c.to(lr.dtype))]


def write_elements(state: State, updates: Iterable[ElementUpdate], ok: Any) -> None:
    """Write elementwise learning rates and rule memory to the states."""
    for bucket, before, new in updates:
        for name, column in new.items():
            for p, x in zip(bucket.params, before[name], strict=True):
                make_buffer(state[p], name, p, x, None if name == "lr" else torch.promote_types(p.dtype, torch.float32))
            current = Tensors(local(real(state[p][name])) for p in bucket.params)
            if isinstance(ok, Tensor):
                taken = ok.to(current.dtype)
                current.mul_(1 - taken).add_(Tensors(column).mul_(taken))
            else:
                current.copy_(column)
