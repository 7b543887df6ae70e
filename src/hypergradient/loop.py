"""The one loop: every dot product, then every hyperparameter, then every update.

    g_t ──► d_{t-1} ──► h_t = −g_t · d_{t-1} ──► rule(α_{t-1}, h_t) ──► α_t ──► θ_t = θ_{t-1} − α_t d_t

Nothing is written before all hyperparameters of the step are known. So all tensors of a scope move with one learning rate, and a step
that cannot be made (a gradient that is not finite) leaves no trace.

With a horizon the hypergradient is taken against a trace z of past directions instead of the last alone; under a rule that averages, z is
the way from the parameters to their running average.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import others
from .average import start_sums
from .columns import Device
from .dials import Dials
from .products import Bundle, Meeting, Row, bundles, with_gradients
from .sums import hypergradient_sums
from .turn import all_finite, every, turn, turn_elements, undo, write_elements
from .updates import Plan, Update, known

#: Steps in which a device looks for a safe start, since the host does not know whether there has been a gradient.
BEGINS = 3


def step(opt: Any) -> None:
    """Adapt the hyperparameters of an optimizer by the gradients of its parameters, and move these."""
    plan = make_plan(opt, None)
    takes = accept(opt, plan, stacklevel=8)  # the caller, seen through step() and torch's two wrappers
    if takes:
        warn_of_decay(opt, plan)
    if not takes and not opt.rule.averages:
        return
    opt.numbers.put(others.write(plan.batches, opt.param_groups))
    horizon = None if opt.horizon == 1 and not opt.rule.averages else opt.horizon
    update = Update(opt.direction, opt.run, opt.numbers, opt.kept, list(opt.adapted), opt.rule.averages, horizon, opt.scope == "element")
    update(plan, opt.param_groups, opt.state)
    write(opt, plan)


def adapt(opt: Any, given: Mapping[Tensor, Tensor]) -> None:
    """Adapt them by other gradients; nothing moves."""
    plan = make_plan(opt, given)
    if accept(opt, plan, stacklevel=6):
        opt.numbers.put(others.write(plan.batches, opt.param_groups))
        for p, lr in plan.elements.items():
            write_elements(opt.state, p, lr, plan.ok)
        write(opt, plan)


def make_plan(opt: Any, given: Mapping[Tensor, Tensor] | None) -> Plan:
    """The new hyperparameters; nothing is written. Without gradients of its own a step after adapt() only asks whether it is finite."""
    groups, rule, numbers = opt.param_groups, opt.rule, opt.numbers
    adapts = given is not None or all(group["step_adapts"] for group in groups)
    others.to_device(opt.adapted, groups, numbers)
    rows = with_gradients(groups, opt.state, given)
    found = make_bundles(opt, rows, given is None)
    meeting = Meeting(opt.direction, opt.run, numbers, {"lr": rule, **opt.adapted}, given is None, adapts)
    dials = opt.dials.read(groups, opt.state)
    by_element = opt.scope == "element"
    sums, ok = hypergradient_sums(meeting, found, dials, groups, by_element)
    if not adapts:
        stay = {name: dials.columns[name] for name in ("alpha", *opt.memory.values())} | {"h": opt.hypergradients}
        return Plan(found, opt.keeping, dials, stay, [], {}, ok)
    columns = dials.columns | dict(zip(numbers.SUMS if rule.reads_norms else ("gx",), sums["lr"], strict=False))
    if rule.averages:
        columns |= starts(opt, rows, dials)
    largest = min((torch.finfo(bundle.params[0].dtype).max for bundle in found), default=math.inf)
    unbounded = numbers.on_device and rule.averages  # whose steps shorten by themselves
    turned = numbers.each(partial(turn, rule, None if unbounded else largest, None if by_element else opt.memory), columns, dials.size)
    moved = others.batches(opt.adapted, opt.bounds, groups, sums, numbers)
    new = turn_elements(rule, opt.direction, found, given is None) if by_element else {}
    for held in (every(turned["fine"]), *(every(batch.found["fine"]) for batch in moved), all_finite(new.values())):
        ok = held if ok is True else ok if held is True else ok & held
    if numbers.on_device and not rule.averages:
        undo(turned, dials.columns, ok)
    for batch in moved if numbers.on_device else ():
        undo(batch.found, batch.columns, ok)
    return Plan(found, opt.keeping, dials, turned, moved, new, ok)


def make_bundles(opt: Any, rows: Sequence[Row], own: bool) -> list[Bundle]:
    """The tensors in bundles; ``opt.keeping`` are those whose gradients are to be kept."""
    keeps = own and not opt.numbers.on_device  # a CUDA graph knows tensors by their place
    opt.keeping = opt.kept.look_after(rows, opt.direction.is_gradient, keeps) if opt.direction.stored else set()
    by_element = opt.scope == "element"
    buffers = (*opt.direction.buffers, "gradient", "trace", *("lr",) * by_element)
    lists = isinstance(opt.numbers, Device) and opt.numbers.device.type != "cpu"  # which take a number a tensor
    marks = ("applied",) if lists else ("lr", "applied", *opt.direction.counts)
    return bundles(rows, buffers, marks, by_element or (opt.scope == "tensor" and not lists), opt.keeping)


def starts(opt: Any, rows: Sequence[Row], dials: Dials) -> dict[str, Any]:
    """What a safe first learning rate is computed from, while a rule that averages may start."""
    opt.begun += 1
    if opt.begun > BEGINS if opt.numbers.on_device else all(dials.columns["memory.steps"]):
        return {}
    return start_sums(opt.direction, rows, dials, opt.numbers)


def accept(opt: Any, plan: Plan, stacklevel: int) -> bool:
    """Count a step that cannot be made, and tell whether it can, or the device decides; note the hypergradients of one that can."""
    ok = plan.ok
    if isinstance(ok, Tensor) and (not opt.numbers.on_device or opt.direction.asks):
        ok = not known(~ok.reshape(1))[0]
    if isinstance(ok, Tensor):  # no warning, which would have to ask for the value
        opt.skipped = opt.skipped if isinstance(opt.skipped, Tensor) else torch.full((), opt.skipped, device=ok.device)
        opt.skipped.add_(~ok)
        h = plan.found["h"]
        if isinstance(h, Tensor):
            before = opt.last_h
            opt.last_h = h if before is None or len(before) != len(h) else torch.where(ok, h, before)
            opt.hypergradients = list(opt.last_h.unbind())
    elif ok:
        opt.hypergradients = list(plan.found["h"])
    else:
        skip(opt, stacklevel)
        return False
    if plan.batches:
        opt.other_hypergradients = others.hypergradients(plan.batches, opt.param_groups)
    return True


def write(opt: Any, plan: Plan) -> None:
    """Put learning rates, and what the rule keeps, to where the next step finds them."""
    groups, dials = opt.param_groups, opt.dials
    opt.numbers.put(dials.write(groups, opt.state, plan.dials, plan.found))
    opt.numbers.put(dials.write_means(groups, opt.state, "beta" in plan.found))
    dials.wrote(groups)


def warn_of_decay(opt: Any, plan: Plan) -> None:
    """Once, where the training loss moves weight decay."""
    moved = [own.get("weight_decay", 0.0) for own in others.hypergradients(plan.batches, opt.param_groups)]
    if not opt.warned and any(isinstance(h, Tensor) or h for h in moved):
        opt.warned = True
        warnings.warn(
            "weight_decay is adapted on the training loss, which it drifts to zero (or its lower bound) on: "
            "call opt.adapt(validation_loss) instead",
            stacklevel=7,
        )


def skip(opt: Any, stacklevel: int) -> None:
    """Count a step that is not made, and warn of the first."""
    opt.skipped += 1
    if opt.skipped == 1:
        warnings.warn(
            f"{type(opt).__name__} skipped a step: a gradient or hypergradient was not finite. "
            + ("Parameters went back to their average" if opt.rule.averages else "Parameters and learning rate stay as they were")
            + "; opt.skipped counts such steps, and this is the only warning",
            stacklevel=stacklevel,
        )
