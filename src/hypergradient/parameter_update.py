"""The update of a step: θ_t = θ_{t-1} − α_t d_t, and what the next hypergradient needs to know of it.

On a device it is not known whether the step is taken. All goes on as if it were, with coefficients that leave everything as it was where it
is not: see directions.py.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import thawed
from .average import HALF_DTYPES, average_coef, interpolate, join, reset_to_average, split
from .direction import Direction
from .directions import with_schedule
from .element_lrs import ElementUpdate, write_elements
from .group_lr import Group
from .hyperparameter_update import RuleBatch
from .hyperparameters import needs_last_gradient
from .last_gradients import LastGradients
from .learning_rates import LearningRates, State
from .products import Bucket
from .ranks import local
from .runner import Coefficients, make_buffers
from .scalars import DeviceScalars
from .setup import Setup
from .signal import Signal, update_trace
from .tensors import add_scaled, assign_if_taken, is_zero, real, zero_if_skipped


@dataclass(frozen=True)
class StepPlan:
    """What a step makes of the hyperparameters; nothing is written yet.

    Args:
        bundles: the tensors that it moves.
        kept: those whose gradients are kept for the next step.
        dials: the learning rates as they were found.
        found: columns of what they become: "alpha", "h", "beta", "memory.NAME", "window", "back" and "part" (see ``rules.Move``).
        batches: the other hyperparameters.
        elements: the learning rates of elements, and what their rule keeps.
        ok: whether the step can be made: a bool, or a tensor of one.
        curvature: what the trace is changed by (see ``signal.curvatures``).
        squares: ‖g_t‖² of each param group, where hypergradients are normalized.
        loss: that of the step, where one that does not lower it is taken back; whether it is, "null".
    """

    buckets: list[Bucket]
    stored: set[Tensor]
    lrs: LearningRates
    found: dict[str, Any]
    batches: list[RuleBatch]
    elements: list[ElementUpdate]
    ok: Any
    curvature: Mapping[Tensor, Tensor] = field(default_factory=dict)
    squares: Sequence[Any] = ()
    loss: float | None = None
    null: bool = False


def update_parameters(setup: Setup, plan: StepPlan, last_gradients: LastGradients, groups: Sequence[Group], state: State) -> None:
    """Move all tensors, but those that go back to their average."""
    columns, resets = step_coef(setup, plan)
    skipped = plan.ok is False  # on the host, where it is known
    moving = [bucket for bucket in plan.buckets if not (skipped or (resets and resets[plan.lrs.index[bucket.indices[0]]]))]
    if setup.direction.irreversible:
        setup.direction.begin_step({p: bucket.group for bucket in moving for p in bucket.params})
    write_elements(state, plan.elements, plan.ok)
    for bucket in moving:
        if not all(bucket.states):
            bucket.states[:] = [p_state or state[p] for p, p_state in zip(bucket.params, bucket.states, strict=True)]
        for p, p_state in zip(bucket.params, bucket.states, strict=True) if last_gradients else ():
            last_gradients.release(p, p_state)
            if p in plan.stored:
                p_state.pop("direction", None)
    if sum(len(bucket.params) for bucket in moving) < len(plan.lrs.index):
        leave_unmoved(plan, moving, columns.get("reset", resets), columns.get("average_weight"), groups, state)
    shared = Counter(id(p_state.get(name)) for p_state in state.values() if isinstance(p_state, dict) for name in setup.direction.counters)
    for bucket in moving if setup.rule.averages and not setup.scalars.on_device else ():
        thawed.count_step(bucket.states, plan.lrs.columns["memory.steps"][plan.lrs.index[bucket.indices[0]]])
    for bucket in reversed(moving):
        advance_bucket(setup, plan, bucket, bucket_coef(setup, plan.lrs, columns, bucket), shared)
        for p, p_state in zip(bucket.params, bucket.states, strict=True) if bucket.params[0] in plan.stored else ():
            last_gradients.store(p, p_state)
    remember_options(setup, plan, groups, columns["alpha"], columns.get("taken"))


def step_coef(setup: Setup, plan: StepPlan) -> tuple[dict[str, Any], list[bool] | None]:
    """What tensors move by, from the columns of their dials, and of which dials it is known that they go back to their average.

    "alpha" is α; "kept" 1 − 1/n for the trace, "fade" 1/n for the way to the average. On a device also "goes" and "back", 1 or 0; where a
    dial does not go its "alpha" and "fade" are 0.
    """
    alpha, reset, averages = plan.found["alpha"], plan.found.get("reset"), setup.rule.averages
    n: Any = plan.found.get("window") if setup.horizon is None else setup.horizon
    discount = plan.found["memory.discount"] if setup.rule.adapts_discount else None
    if averages:
        fraction = plan.found["fraction"]
        alpha = [x * y for x, y in zip(alpha, fraction, strict=True)] if isinstance(alpha, list) else alpha * fraction
    if not isinstance(setup.scalars, DeviceScalars) or setup.direction.irreversible:  # a step that is taken only where it is known to be
        weight: Any = [1 / x for x in n] if isinstance(n, list) else 1 / n if n is not None and setup.uses_trace else None
        decay = discount if discount is not None else None if averages or weight is None else 1 - weight
        trace = {"average_weight": weight} if averages else {} if decay is None else {"trace_decay": decay}
        return {"alpha": alpha} | trace, flags_to_host(reset) if isinstance(reset, Tensor) else reset
    taken = (plan.ok if reset is None else plan.ok & ~reset).to(setup.scalars.dtype)
    columns = {"alpha": alpha * taken, "taken": taken}
    if reset is not None:
        columns |= {"average_weight": taken / n, "reset": reset.to(setup.scalars.dtype)}
    elif setup.uses_trace:
        columns |= {"trace_decay": 1 - taken / n if discount is None else 1 - taken * (1 - discount)}
    return columns, None


def bucket_coef(setup: Setup, lrs: LearningRates, columns: Mapping[str, Any], bucket: Bucket) -> Coefficients:
    """The numbers of a bundle: vectors where its tensors have different dials."""
    index = [lrs.index[i] for i in bucket.indices]
    if not isinstance(setup.scalars, DeviceScalars) or len(set(index)) == 1:
        found = {name: x if is_scalar(x) else x[index[0]] for name, x in columns.items()}
    elif index == list(range(lrs.size)):
        found = dict(columns)
    else:
        positions = setup.scalars.constant(tuple(index), torch.int64)
        found = {name: x if is_scalar(x) else x.index_select(0, positions) for name, x in columns.items()}
    ratio = 1.0 if lrs.scales is None else lrs.scales[bucket.group_index]
    if isinstance(ratio, Tensor) or ratio != 1:
        found["alpha"] = ratio * found["alpha"]
        if setup.per_element:
            found["factor"] = ratio
        if setup.has_discount:
            found["ratio"] = ratio
        if setup.rule.averages and isinstance(ratio, Tensor):
            found["average_weight"] = torch.where(ratio == 0, 0.0, found["average_weight"])
    if setup.rule.averages:
        found = thawed.warmed_up(bucket.states[0], found)
        found |= average_coef(found["alpha"], found.pop("average_weight"), setup.direction.interpolation(bucket.group), found.get("reset"))
    return found


def is_scalar(x: Any) -> bool:
    """Whether it is one number for all dials."""
    return isinstance(x, float) or (isinstance(x, Tensor) and x.dim() == 0)


def flags_to_host(flags: Tensor) -> list[bool]:
    """What only the device knows; on the meta device, which knows nothing, False."""
    return [False] * flags.numel() if flags.is_meta else flags.tolist()


def leave_unmoved(plan: StepPlan, moving: Sequence[Bucket], resets: Any, weights: Any, groups: Sequence[Group], state: State) -> None:
    """See to the tensors that do not move along their direction: without a gradient, or on the way back to their average.

    The average of those without a gradient arrives where they lie, as if it were that of their last n steps.
    """
    moved, given = ({p for bucket in buckets for p in bucket.params} for buckets in (moving, plan.buckets))
    decays = weights is not None and plan.ok is not False
    skipped = (~plan.ok).float() if isinstance(plan.ok, Tensor) else None
    for p, k in zip([p for group in groups for p in group["params"]], plan.lrs.index, strict=True):
        if p in moved or p not in state:
            continue
        p_state, reset = state[p], resets[k] if resets is not None else False
        applied = p_state.get("applied", False)
        p_state["applied"] = False if skipped is None or applied is False else skipped if applied is True else skipped * applied
        if decays and "trace" in p_state and p not in given:
            weight = weights if is_scalar(weights) else weights[k]
            z = local(real(p_state["trace"]))
            z.mul_(1 - weight if isinstance(weight, float) else (1 - weight).to(z.dtype))
            if isinstance(weight, float):
                thawed.count_idle_step(p_state)
        if reset is not False and "trace" in p_state and p.requires_grad:
            reset_to_average(local(real(p)), p_state, None if reset is True else reset.to(real(p_state["trace"]).dtype))


def advance_bucket(setup: Setup, plan: StepPlan, bucket: Bucket, coef: Coefficients, shared: Counter[int]) -> None:
    """θ_t = θ_{t-1} − α d_t of one bundle, with its buffers, which are made where there are none, and its trace."""
    direction, group, first = setup.direction, bucket.group, bucket.states[0]
    keeps, signal = needs_last_gradient(direction, list(setup.other_rules), group) or setup.rule.adapts_discount, setup.signal
    needed = () if bucket.params[0] in plan.stored else direction.needed_buffers(group)
    half = bucket.params[0].dtype if setup.rule.averages and bucket.params[0].dtype in HALF_DTYPES else None
    needed += ("gradient",) * keeps + ("trace",) * setup.uses_trace + ("rest",) * (half is not None) + ("lr",) * setup.per_element
    needed += ("trace_momentum",) * (signal.curvature == "hessian" and not is_zero(group.get("momentum", 0.0)))
    missing = [name for name in needed if first.get(name) is None]
    for name in missing:
        value = plan.found["alpha"][plan.lrs.index[bucket.indices[0]]] if name == "lr" else 0.0
        widened = name.startswith("trace") and bucket.params[0].dtype in HALF_DTYPES and setup.float32_trace
        make_buffers(bucket.states, name, bucket.params, value, torch.float32 if widened else None)
        for p, p_state in zip(bucket.params, bucket.states, strict=True) if name in direction.initialized_from_params else ():
            p_state[name].copy_(p)
    taken = coef.get("taken")
    now = {**first, **count_step(setup, bucket, taken, plan.ok, shared), "first": "momentum_buffer" in missing}
    tensors = bucket.tensors()
    plain = isinstance(coef["alpha"], float) and not (keeps or setup.per_element or setup.uses_trace)
    if plain and direction.fused_step(tensors, now, group, coef["alpha"]):
        return
    if plan.curvature and bucket.params[0] in plan.curvature:
        tensors["curvature"] = [local(real(plan.curvature[p])) for p in bucket.params]
    merged = direction.objective_coef(group) | direction.coefficients(now, group, taken) | coef | ({"null_step": True} if plan.null else {})
    if setup.uses_trace and not setup.rule.averages:
        merged |= {"lr_weighted": setup.rule.adapts_log, "hessian": signal.curvature == "hessian"}
        merged["decay_rate"] = direction.decay_rate(group) if setup.has_discount else 0.0
    if taken is not None and (direction.stored or keeps or setup.per_element):
        merged["skipped"] = 1 - taken
    setup.run(apply_update, tensors, merged, direction, keeps, signal if setup.uses_trace else None, setup.rule.averages, half, writes=True)


def count_step(setup: Setup, bucket: Bucket, taken: Any, ok: Any, shared: Counter[int]) -> Coefficients:
    """The step, counted in the states of a bundle: by 1, or by "goes" in a tensor that stays where it is, one for all of them."""
    new: dict[str, Any] = {}
    for name in setup.direction.counters:
        before = bucket.scalar(name, setup.scalars)
        if isinstance(before, Tensor) and not before.dim() and shared[id(before)] == len(bucket.states):
            new[name] = before.add_(taken)
            continue
        new[name] = (0 if before is None else before) + (1 if taken is None else taken)
        if isinstance(new[name], Tensor) and new[name].dim():
            setup.scalars.write((p_state, name, x) for p_state, x in zip(bucket.states, new[name].unbind(), strict=True))
        else:  # those of a bundle share one from now on
            for p_state in bucket.states:
                p_state[name] = new[name]
    applied = bucket.states[0].get("applied", True)  # a tensor that is new has buffers of 0
    if taken is not None and applied is not True:
        applied = ok.float() if applied is False else torch.maximum(ok.float(), applied)
    for p_state in bucket.states:
        p_state["applied"] = True if taken is None else applied
    return new


def remember_options(setup: Setup, plan: StepPlan, groups: Sequence[Group], alpha: Any, taken: Any) -> None:
    """The options of the step, which the next hypergradient must see as they were; of the last that was taken, where a device knows it."""
    now, before = list[Tensor](), list[Tensor]()

    def latest(x: Any, y: Any) -> Any:
        if isinstance(x, tuple | list):
            return tuple(map(latest, x, y if isinstance(y, tuple | list) else x))
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x is not y):
            return x.clone() if isinstance(x, Tensor) else x
        now.append(x.to(y.dtype))
        before.append(y)
        return y

    for g, group in enumerate(groups):
        options = {name: group[name] for name in setup.direction.remembered_options}
        if setup.scope in ("group", "global"):
            k = g if setup.scope == "group" else 0
            options["lr"] = alpha[k] if plan.lrs.scales is None else plan.lrs.scales[g] * alpha[k]
        if plan.lrs.factors is not None:
            options["factor"] = plan.lrs.factors[g]
        options |= {"square": plan.squares[g]} if plan.squares else {}
        options |= {"loss": plan.loss} if plan.loss is not None else {}
        last = group.get("last", {})
        options |= {name: last[name] for name in ("square", "loss") if name in last} if plan.null else {}
        group["last"] = {name: latest(x, last.get(name)) for name, x in options.items()}
    if isinstance(taken, Tensor) and now and not setup.rule.averages:
        torch._foreach_lerp_(before, now, [taken] * len(now))  # exact at 0 and 1
    elif now:
        torch._foreach_copy_(before, now)


def apply_update(
    piece: Mapping[str, Any],
    coef: Coefficients,
    direction: Direction,
    keeps: bool,
    signal: Signal | None,
    averages: bool,
    half: torch.dtype | None,
) -> list[Tensor]:
    """θ_t = θ_{t-1} − α_t d_t, and what the next hypergradient needs: the gradient where it ``keeps`` it, and the trace of the ``signal``.

    Parameters of 16 bits that are averaged are of the dtype ``half``, and go together with their rest.
    """
    theta = piece["p"]
    g = direction.gradient(piece["g"], theta, coef)
    if "taken" in coef:
        g = zero_if_skipped(g, coef.get("taken_bits", coef["taken"]))
    d = direction.advance(g, theta, piece, coef)
    if keeps:
        assign_if_taken(piece["gradient"], g, coef)
    squares = g.mul(g) if signal is not None and signal.curvature == "squares" else None
    gradient_part = direction.gradient_part(g, piece, coef) if signal is not None and signal.part == "gradient" else d
    del g  # a copy of a list's gradients need not be held any longer
    if averages:
        exact = theta if half is None else join(theta, piece["rest"])
        interpolate(exact, piece["trace"], d, coef)
        if half is not None:
            split(exact, theta, piece["rest"], half)
        return []
    alpha = with_schedule(piece["lr"], coef) if "lr" in piece else coef["alpha"]
    if "taken" in coef or isinstance(alpha, list):
        step = d.mul(alpha)
        theta.sub_(step.mul_(coef["taken"]) if "lr" in piece and "taken" in coef else step)
    elif "lr" in piece:
        theta.addcmul_(d, alpha, value=-1)
    else:
        add_scaled(theta, -alpha, d, out=theta)
    if signal is not None:
        update_trace(piece, gradient_part, alpha, squares, coef)
    return []
