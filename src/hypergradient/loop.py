"""The step: first all dot products, then all hyperparameters, then all parameter updates.

    g_t ──► d_{t-1} ──► h_t = −g_t · d_{t-1} ──► rule(α_{t-1}, h_t) ──► α_t ──► θ_t = θ_{t-1} − α_t d_t

Nothing is written before all hyperparameters of the step are known. So all tensors of a scope move with one learning rate, and a skipped
step (a gradient that is not finite) changes nothing.

With a horizon, or a ``Signal`` with a discount, the hypergradient is taken against a trace z of past directions instead of the last one;
under a rule that averages, z is the displacement from the parameters to their running average.
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

#: Steps in which a device may make its safe start, since the host does not know whether there was a gradient yet.
START_STEPS = 3


def step(opt: Any, loss: Any = None) -> None:
    """Adapt the hyperparameters of an optimizer by the gradients of its parameters, then update these; ``loss`` is needed if monotone."""
    warn_of_overwrite(opt)
    if opt.setup.rule.averages:
        opt.edits.adjust(opt.params, opt.state)
    plan = make_plan(opt, None)
    if opt.setup.direction.monotone:
        group = opt.param_groups[0]
        low = -float(loss) if group["maximize"] else float(loss)
        plan = replace(plan, loss=low, null=not low < group.get("last", {}).get("loss", math.inf))
    accepted = accept(opt, plan, stacklevel=8)  # the caller of step(), which torch wraps twice
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
    """Adapt the hyperparameters by other gradients; the parameters stay."""
    plan = make_plan(opt, given)
    if accept(opt, plan, stacklevel=6):
        opt.setup.scalars.write(hyperparameter_update.assignments(plan.batches, opt.param_groups))
        write_elements(opt.state, plan.elements, plan.ok)
        write_results(opt, plan)


def make_plan(opt: Any, given: Mapping[Tensor, Tensor] | None) -> StepPlan:
    """Compute the new hyperparameters, writing nothing. If adapt() adapts them, a step only checks that its gradients are finite."""
    setup, groups, of_step = opt.setup, opt.param_groups, given is None
    rule, scalars = setup.rule, setup.scalars
    adapts = not of_step or all(group["step_adapts"] for group in groups)
    hyperparameter_update.to_device(setup.other_rules, groups, scalars)
    rows = gradient_entries(setup.ranks, groups, opt.state, given)
    may_store = of_step and not scalars.on_device  # a CUDA graph needs fixed addresses
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
    unbounded = scalars.on_device and rule.averages  # such a rule shortens large steps itself
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
    """The change of each tensor's trace by curvature: a Hessian-vector product, or a diagonal."""
    if opt.setup.signal.curvature == "hessian" and (opt.setup.ranks.is_sharded or opt.setup.ranks.is_replicated()):
        raise RuntimeError('curvature="hessian" needs one process, since each rank has its own Hessian: give curvature=None or "squares"')
    found: dict[int, list[Tensor]] = {}
    for row in rows:
        found.setdefault(lrs.index[row.position], []).append(row.p)
    return curvatures(opt.setup.signal, found.values(), opt.state)


def safe_start_inputs(opt: Any, rows: Sequence[GradientEntry], lrs: LearningRates) -> dict[str, Any]:
    """The inputs of a safe first learning rate, while a rule that averages may start."""
    opt.steps_seen += 1
    if opt.steps_seen > START_STEPS if opt.setup.scalars.on_device else all(lrs.columns["memory.steps"]):
        return {}
    return safe_start_sums(opt.setup, rows, lrs)


def accept(opt: Any, plan: StepPlan, stacklevel: int) -> bool:
    """Whether the step is taken, or left to the device to decide; count skipped steps, and record the hypergradients of others."""
    ok, h = plan.ok, plan.found["h"]
    if isinstance(ok, Tensor) and (not opt.setup.scalars.on_device or opt.setup.direction.irreversible):
        ok = not flags_to_host(~ok.reshape(1))[0]
    if isinstance(ok, Tensor):  # no warning, since the host would have to wait for the value
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
    """Write learning rates and rule memory for the next step; after a step (``stepped``) also what it used."""
    groups, lrs, scalars = opt.param_groups, opt.scope, opt.setup.scalars
    scalars.write(lrs.assignments(groups, opt.state, plan.lrs, plan.found))
    scalars.write(lrs.mean_assignments(groups, opt.state, "beta" in plan.found))
    if stepped:
        scalars.write(lrs.applied_assignments(groups, plan.lrs))
    lrs.record(groups, (scalars.on_device and opt.steps_seen >= START_STEPS) or not opt.setup.rule.averages)


def warn_of_overwrite(opt: Any) -> None:
    """Warn once if the user overwrites the adapted learning rate."""
    what = None if opt.warned_overwrite else opt.scope.overwrite_message(opt.param_groups)
    if what is not None:
        opt.warned_overwrite = True
        warnings.warn(
            f"{what}: the rule starts over from it. A scheduler of torch.optim.lr_scheduler multiplies the adapted learning rate instead",
            stacklevel=7,
        )


def warn_of_decay(opt: Any, plan: StepPlan) -> None:
    """Warn once if weight decay is adapted on the training loss."""
    hypergradients = (own.get("weight_decay", 0.0) for own in opt.other_hypergradients) if plan.batches and not opt.warned else ()
    if any(isinstance(h, Tensor) or h for h in hypergradients):
        opt.warned = True
        warnings.warn(
            "weight_decay is adapted on the training loss, which drives it to zero (or its lower bound): "
            "call opt.adapt(validation_loss) instead",
            stacklevel=7,
        )


def skip_step(opt: Any, stacklevel: int) -> None:
    """Count a skipped step, and warn of the first."""
    opt.skipped += 1
    if opt.skipped == 1:
        warnings.warn(
            f"{type(opt).__name__} skipped a step: a gradient or hypergradient was not finite. "
            "Parameters and learning rate are unchanged. opt.skipped counts such steps; this warning is shown once",
            stacklevel=stacklevel,
        )
