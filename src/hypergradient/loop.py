"""The one loop: every dot product, then every hyperparameter, then every update.

    g_t ──► d_{t-1} ──► h_t = −g_t · d_{t-1} ──► rule(α_{t-1}, h_t) ──► α_t ──► θ_t = θ_{t-1} − α_t d_t

Nothing is written before all hyperparameters of the step are known. So all tensors of a scope move with one learning rate, and a step
that cannot be made (a gradient that is not finite) leaves no trace.

With a horizon, or a ``Signal`` of several steps, the hypergradient is taken against a trace z of past directions instead of the last
alone; under a rule that averages, z is the way from the parameters to their running average.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import hyperparameter_update
from .element_lrs import update_elements, write_elements
from .external_edits import record_parameters
from .learning_rates import LearningRates
from .lr_update import all_entries, all_true, revert_unless, update_lr
from .parameter_update import StepPlan, flags_to_host, update_parameters
from .products import GradientEntry, gradient_entries, make_buckets
from .reductions import gradient_squares, hypergradient_sums, safe_start_sums
from .signal import curvatures

#: Steps in which a device looks for a safe start, since the host does not know whether there has been a gradient.
START_STEPS = 3


def step(opt: Any, loss: Any = None) -> None:
    """Adapt the hyperparameters of an optimizer by the gradients of its parameters, and move these; the loss where that matters."""
    warn_of_overwrite(opt)
    if opt.setup.rule.averages:
        opt.edits.adjust(opt.params, opt.state)
    plan = make_plan(opt, None)
    if opt.setup.direction.monotone:
        group = opt.param_groups[0]
        low = -float(loss) if group["maximize"] else float(loss)
        plan = replace(plan, loss=low, null=not low < group.get("last", {}).get("loss", math.inf))
    accepted = accept(opt, plan, stacklevel=8)  # the caller, seen through step() and torch's two wrappers
    if accepted:
        warn_of_decay(opt, plan)
    else:
        plan = replace(plan, ok=False)
    if accepted or opt.setup.rule.averages:
        opt.setup.scalars.write(hyperparameter_update.assignments(plan.batches, opt.param_groups))
        update_parameters(opt.setup, plan, opt.last_gradients, opt.param_groups, opt.state)
        write_results(opt, plan, stepped=True)
    if opt.setup.rule.averages:
        record_parameters(opt)


def adapt(opt: Any, given: Mapping[Tensor, Tensor]) -> None:
    """Adapt them by other gradients; nothing moves."""
    plan = make_plan(opt, given)
    if accept(opt, plan, stacklevel=6):
        opt.setup.scalars.write(hyperparameter_update.assignments(plan.batches, opt.param_groups))
        write_elements(opt.state, plan.elements, plan.ok)
        write_results(opt, plan)


def make_plan(opt: Any, given: Mapping[Tensor, Tensor] | None) -> StepPlan:
    """The new hyperparameters; nothing is written. Without gradients of its own a step after adapt() only asks whether it is finite."""
    setup, groups, of_step = opt.setup, opt.param_groups, given is None
    rule, scalars = setup.rule, setup.scalars
    adapts = not of_step or all(group["step_adapts"] for group in groups)
    hyperparameter_update.to_device(setup.other_rules, groups, scalars)
    rows = gradient_entries(setup.ranks, groups, opt.state, given)
    may_store = of_step and not scalars.on_device  # a CUDA graph knows tensors by their place
    stored = opt.last_gradients.select(rows, setup.direction.is_gradient, may_store) if setup.direction.stored else set()
    found = make_buckets(setup, rows, stored)
    opt.scope.prepare(groups)
    lrs = opt.scope.read(groups, opt.state)
    curvature = step_curvature(opt, rows, lrs) if of_step and setup.signal.curvature else {}
    sums, ok = hypergradient_sums(setup, found, lrs, groups, of_step, adapts)
    squared_norms = gradient_squares(setup, groups, sums["lr"][1]) if of_step and setup.signal.normalized else []
    if not adapts:
        unchanged = {name: lrs.columns[name] for name in ("alpha", *setup.memory_columns.values())} | {"h": opt.hypergradients}
        return StepPlan(found, stored, lrs, unchanged, [], [], ok, curvature, squared_norms)
    columns = lrs.columns | dict(zip(scalars.SUM_NAMES if setup.norms["lr"] else ("gx",), sums["lr"], strict=False))
    columns |= {"slope": sums["slope"][0]} if rule.adapts_discount else {}
    if rule.averages:
        columns |= safe_start_inputs(opt, rows, lrs)
    largest = min((torch.finfo(bucket.params[0].dtype).max for bucket in found), default=math.inf)
    unbounded = scalars.on_device and rule.averages  # whose steps shorten by themselves
    update = partial(update_lr, rule, None if unbounded else largest, None if setup.per_element else setup.memory_columns)
    new = scalars.apply(update, columns, lrs.size)
    batches = hyperparameter_update.update_batches(setup.other_rules, setup.bounds, groups, sums, scalars)
    elements, fine = update_elements(setup, rows, of_step, curvature, len(groups)) if setup.per_element else ([], [])
    for flag in (all_entries(new["finite"]), *(all_entries(batch.found["finite"]) for batch in batches), all_true(fine)):
        ok = flag if ok is True else ok if flag is True else ok & flag
    if setup.per_element and setup.ranks.is_sharded:
        ok = setup.ranks.all_agree(ok)
    tentative = [(batch.found, batch.columns) for batch in batches] + [(new, lrs.columns)] * (not rule.averages)
    for after, before in tentative if scalars.on_device else ():
        revert_unless(after, before, ok)
    return StepPlan(found, stored, lrs, new, batches, elements, ok, curvature, squared_norms)


def step_curvature(opt: Any, rows: Sequence[GradientEntry], lrs: LearningRates) -> dict[Tensor, Tensor]:
    """What the trace of each tensor is changed by, by what its learning rate has moved; of elements the diagonal."""
    if opt.setup.signal.curvature == "hessian" and (opt.setup.ranks.is_sharded or opt.setup.ranks.is_replicated()):
        raise RuntimeError('curvature="hessian" takes one process, since each rank has the Hessian of its own data: give None or "squares"')
    found: dict[int, list[Tensor]] = {}
    for row in rows:
        found.setdefault(lrs.index[row.position], []).append(row.p)
    return curvatures(opt.setup.signal, found.values(), opt.state)


def safe_start_inputs(opt: Any, rows: Sequence[GradientEntry], lrs: LearningRates) -> dict[str, Any]:
    """What a safe first learning rate is computed from, while a rule that averages may start."""
    opt.steps_seen += 1
    if opt.steps_seen > START_STEPS if opt.setup.scalars.on_device else all(lrs.columns["memory.steps"]):
        return {}
    return safe_start_sums(opt.setup, rows, lrs)


def accept(opt: Any, plan: StepPlan, stacklevel: int) -> bool:
    """Count a step that cannot be made, and tell whether it can, or the device decides; note the hypergradients of one that can."""
    ok, h = plan.ok, plan.found["h"]
    if isinstance(ok, Tensor) and (not opt.setup.scalars.on_device or opt.setup.direction.irreversible):
        ok = not flags_to_host(~ok.reshape(1))[0]
    if isinstance(ok, Tensor):  # no warning, which would have to ask for the value
        opt.skipped = opt.skipped if isinstance(opt.skipped, Tensor) else torch.full((), opt.skipped, device=ok.device)
        opt.skipped.add_(~ok)
        if isinstance(h, Tensor):
            last = opt.last_hypergradients
            opt.last_hypergradients = h if last is None or len(last) != len(h) else torch.where(ok, h, last)
            opt.hypergradients = list(opt.last_hypergradients.unbind())
    elif ok:
        opt.hypergradients = list(h)
    else:
        skip_step(opt, stacklevel)
        return False
    if plan.batches:
        opt.other_hypergradients = hyperparameter_update.hypergradients(plan.batches, opt.param_groups)
    return True


def write_results(opt: Any, plan: StepPlan, stepped: bool = False) -> None:
    """Put learning rates, and what the rule keeps, to where the next step finds them; after a step also what it used."""
    groups, lrs, scalars = opt.param_groups, opt.scope, opt.setup.scalars
    scalars.write(lrs.assignments(groups, opt.state, plan.lrs, plan.found))
    scalars.write(lrs.mean_assignments(groups, opt.state, "beta" in plan.found))
    if stepped:
        scalars.write(lrs.applied_assignments(groups, plan.lrs))
    lrs.record(groups, (scalars.on_device and opt.steps_seen >= START_STEPS) or not opt.setup.rule.averages)


def warn_of_overwrite(opt: Any) -> None:
    """Once, where somebody writes over what is adapted."""
    what = None if opt.warned_overwrite else opt.scope.overwrite_message(opt.param_groups)
    if what is not None:
        opt.warned_overwrite = True
        warnings.warn(
            f"{what}: the rule starts from it anew each time. A scheduler of torch.optim.lr_scheduler multiplies what is adapted instead",
            stacklevel=7,
        )


def warn_of_decay(opt: Any, plan: StepPlan) -> None:
    """Once, where the training loss moves weight decay."""
    hypergradients = (own.get("weight_decay", 0.0) for own in opt.other_hypergradients) if plan.batches and not opt.warned else ()
    if any(isinstance(h, Tensor) or h for h in hypergradients):
        opt.warned = True
        warnings.warn(
            "weight_decay is adapted on the training loss, which it drifts to zero (or its lower bound) on: "
            "call opt.adapt(validation_loss) instead",
            stacklevel=7,
        )


def skip_step(opt: Any, stacklevel: int) -> None:
    """Count a step that is not made, and warn of the first."""
    opt.skipped += 1
    if opt.skipped == 1:
        warnings.warn(
            f"{type(opt).__name__} skipped a step: a gradient or hypergradient was not finite. "
            "Parameters and learning rate stay as they were; opt.skipped counts such steps, and this is the only warning",
            stacklevel=stacklevel,
        )
