"""The parameter update of a step, θ_t = θ_{t-1} − α_t d_t, and the state that the next hypergradient needs.

On a device the host does not know whether the step is taken. The update is computed in any case, with coefficients that leave everything as
it was if the step is skipped: see directions.py.
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


@dataclass(frozen=True, eq=False, repr=False)
class StepPlan:
    """The results of a step before anything is written.

    Args:
        buckets: the tensors with a gradient.
        stored: parameters whose gradients are stored for the next step.
        lrs: the learning rates at the start of the step.
        found: columns of the new values: "alpha", "h", "beta", "memory.NAME", "window", "reset" and "fraction" (see ``rules.RuleUpdate``).
        batches: the other hyperparameters.
        elements: elementwise learning rates and rule memory.
        ok: whether the step is taken: a bool, or a tensor of one.
        curvature: the change of the trace (see ``signal.curvatures``).
        squares: ‖g_t‖² of each param group, if hypergradients are normalized.
        loss: the loss of the step, if steps that do not lower it are null steps.
        null: whether this is a null step.
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
    """Update all tensors, except those that are reset to their average."""
    columns, resets = step_coef(setup, plan)
    skipped = plan.ok is False  # known on the host only
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
    """Columns of coefficients, and which learning rates' tensors are known to be reset to their average.

    "alpha" is α; "trace_decay" 1 − 1/n for a trace, "average_weight" 1/n for an average. On a device also "taken" and "reset", 1 or 0; for
    a learning rate whose step is skipped, "alpha" and "average_weight" are 0.
    """
    alpha, reset, averages = plan.found["alpha"], plan.found.get("reset"), setup.rule.averages
    n: Any = plan.found.get("window") if setup.horizon is None else setup.horizon
    discount = plan.found["memory.discount"] if setup.rule.adapts_discount else None
    if averages:
        fraction = plan.found["fraction"]
        alpha = [x * y for x, y in zip(alpha, fraction, strict=True)] if isinstance(alpha, list) else alpha * fraction
    if not isinstance(setup.scalars, DeviceScalars) or setup.direction.irreversible:  # the host knows that it is taken
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
    """The coefficients of a bucket: vectors if its tensors have different learning rates."""
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
    """Whether ``x`` is one number for all learning rates."""
    return isinstance(x, float) or (isinstance(x, Tensor) and x.dim() == 0)


def flags_to_host(flags: Tensor) -> list[bool]:
    """Flags that only the device knows; False on the meta device, which has no values."""
    return [False] * flags.numel() if flags.is_meta else flags.tolist()


def leave_unmoved(plan: StepPlan, moving: Sequence[Bucket], resets: Any, weights: Any, groups: Sequence[Group], state: State) -> None:
    """Update the state of tensors that do not step along their direction: those without a gradient, and those reset to their average.

    The average of tensors without a gradient approaches them, as if it averaged their last n steps.
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
    """θ_t = θ_{t-1} − α_t d_t for one bucket, with its buffers, which are made if missing, and its trace."""
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
    """Count the step in the states of a bucket: by 1, or by "taken" in a tensor that is updated in place, shared by all of them."""
    new: dict[str, Any] = {}
    for name in setup.direction.counters:
        before = bucket.scalar(name, setup.scalars)
        if isinstance(before, Tensor) and not before.dim() and shared[id(before)] == len(bucket.states):
            new[name] = before.add_(taken)
            continue
        new[name] = (0 if before is None else before) + (1 if taken is None else taken)
        if isinstance(new[name], Tensor) and new[name].dim():
            setup.scalars.write((p_state, name, x) for p_state, x in zip(bucket.states, new[name].unbind(), strict=True))
        else:  # those of a bucket share one from now on
            for p_state in bucket.states:
                p_state[name] = new[name]
    applied = bucket.states[0].get("applied", True)  # a new tensor has buffers of 0
    if taken is not None and applied is not True:
        applied = ok.float() if applied is False else torch.maximum(ok.float(), applied)
    for p_state in bucket.states:
        p_state["applied"] = True if taken is None else applied
    return new


def remember_options(setup: Setup, plan: StepPlan, groups: Sequence[Group], alpha: Any, taken: Any) -> None:
    """Store the options of the step, which the next hypergradient needs; on a device those of the last step that was taken."""
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
    """θ_t = θ_{t-1} − α_t d_t, and what the next hypergradient needs: the gradient if ``keeps``, and the trace of the ``signal``.

    Averaged 16-bit parameters have the dtype ``half``, and are updated together with their ``rest``.
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
    del g  # free a copy of a list's gradients
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
