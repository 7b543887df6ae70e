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

from . import others
from .dials import Dials
from .edits import note
from .elements import turn_elements, write_elements
from .products import Row, bundles, with_gradients
from .signal import curvatures
from .sums import hypergradient_sums, squares, start_sums
from .turn import all_of, every, turn, undo
from .updates import Plan, known, update

#: Steps in which a device looks for a safe start, since the host does not know whether there has been a gradient.
BEGINS = 3


def step(opt: Any, loss: Any = None) -> None:
    """Adapt the hyperparameters of an optimizer by the gradients of its parameters, and move these; the loss where that matters."""
    warn_of_writing(opt)
    if opt.setup.rule.averages:
        opt.edits.take_in(opt.params, opt.state)
    plan = make_plan(opt, None)
    if opt.setup.direction.monotone:
        group = opt.param_groups[0]
        low = -float(loss) if group["maximize"] else float(loss)
        plan = replace(plan, loss=low, null=not low < group.get("last", {}).get("loss", math.inf))
    takes = accept(opt, plan, stacklevel=8)  # the caller, seen through step() and torch's two wrappers
    if takes:
        warn_of_decay(opt, plan)
    else:
        plan = replace(plan, ok=False)
    if takes or opt.setup.rule.averages:
        opt.setup.numbers.put(others.write(plan.batches, opt.param_groups))
        update(opt.setup, plan, opt.kept, opt.param_groups, opt.state)
        write(opt, plan, moved=True)
    if opt.setup.rule.averages:
        note(opt)


def adapt(opt: Any, given: Mapping[Tensor, Tensor]) -> None:
    """Adapt them by other gradients; nothing moves."""
    plan = make_plan(opt, given)
    if accept(opt, plan, stacklevel=6):
        opt.setup.numbers.put(others.write(plan.batches, opt.param_groups))
        write_elements(opt.state, plan.elements, plan.ok)
        write(opt, plan)


def make_plan(opt: Any, given: Mapping[Tensor, Tensor] | None) -> Plan:
    """The new hyperparameters; nothing is written. Without gradients of its own a step after adapt() only asks whether it is finite."""
    setup, groups, own = opt.setup, opt.param_groups, given is None
    rule, numbers = setup.rule, setup.numbers
    adapts = not own or all(group["step_adapts"] for group in groups)
    others.to_device(setup.adapted, groups, numbers)
    rows = with_gradients(setup.ranks, groups, opt.state, given)
    keeps = own and not numbers.on_device  # a CUDA graph knows tensors by their place
    kept = opt.kept.look_after(rows, setup.direction.is_gradient, keeps) if setup.direction.stored else set()
    found = bundles(setup, rows, kept)
    opt.dials.begin(groups)
    dials = opt.dials.read(groups, opt.state)
    bent = bends(opt, rows, dials) if own and setup.signal.curvature else {}
    sums, ok = hypergradient_sums(setup, found, dials, groups, own, adapts)
    square = squares(setup, groups, sums["lr"][1]) if own and setup.signal.normalized else []
    if not adapts:
        stay = {name: dials.columns[name] for name in ("alpha", *setup.memory.values())} | {"h": opt.hypergradients}
        return Plan(found, kept, dials, stay, [], [], ok, bent, square)
    columns = dials.columns | dict(zip(numbers.SUMS if setup.norms["lr"] else ("gx",), sums["lr"], strict=False))
    columns |= {"slope": sums["slope"][0]} if rule.discounts else {}
    if rule.averages:
        columns |= starts(opt, rows, dials)
    largest = min((torch.finfo(bundle.params[0].dtype).max for bundle in found), default=math.inf)
    unbounded = numbers.on_device and rule.averages  # whose steps shorten by themselves
    own_turn = partial(turn, rule, None if unbounded else largest, None if setup.elements else setup.memory)
    turned = numbers.each(own_turn, columns, dials.size)
    moved = others.batches(setup.adapted, setup.bounds, groups, sums, numbers)
    new, fine = turn_elements(setup, bundles(setup, rows, (), sums=False), own, bent, len(groups)) if setup.elements else ([], [])
    for held in (every(turned["fine"]), *(every(batch.found["fine"]) for batch in moved), all_of(fine)):
        ok = held if ok is True else ok if held is True else ok & held
    if setup.elements and setup.ranks.many:
        ok = setup.ranks.agree(ok)
    tentative = [(batch.found, batch.columns) for batch in moved] + [(turned, dials.columns)] * (not rule.averages)
    for after, before in tentative if numbers.on_device else ():
        undo(after, before, ok)
    return Plan(found, kept, dials, turned, moved, new, ok, bent, square)


def bends(opt: Any, rows: Sequence[Row], dials: Dials) -> dict[Tensor, Tensor]:
    """What the trace of each tensor is changed by, by what its learning rate has moved; of elements the diagonal."""
    if opt.setup.signal.curvature == "hessian" and (opt.setup.ranks.many or opt.setup.ranks.alone()):
        raise RuntimeError('curvature="hessian" takes one process, since each rank has the Hessian of its own data: give None or "squares"')
    found: dict[int, list[Tensor]] = {}
    for row in rows:
        found.setdefault(dials.index[row.i], []).append(row.p)
    return curvatures(opt.setup.signal, found.values(), opt.state)


def starts(opt: Any, rows: Sequence[Row], dials: Dials) -> dict[str, Any]:
    """What a safe first learning rate is computed from, while a rule that averages may start."""
    opt.begun += 1
    if opt.begun > BEGINS if opt.setup.numbers.on_device else all(dials.columns["memory.steps"]):
        return {}
    return start_sums(opt.setup, rows, dials)


def accept(opt: Any, plan: Plan, stacklevel: int) -> bool:
    """Count a step that cannot be made, and tell whether it can, or the device decides; note the hypergradients of one that can."""
    ok, h = plan.ok, plan.found["h"]
    if isinstance(ok, Tensor) and (not opt.setup.numbers.on_device or opt.setup.direction.asks):
        ok = not known(~ok.reshape(1))[0]
    if isinstance(ok, Tensor):  # no warning, which would have to ask for the value
        opt.skipped = opt.skipped if isinstance(opt.skipped, Tensor) else torch.full((), opt.skipped, device=ok.device)
        opt.skipped.add_(~ok)
        if isinstance(h, Tensor):
            before = opt.last_h
            opt.last_h = h if before is None or len(before) != len(h) else torch.where(ok, h, before)
            opt.hypergradients = list(opt.last_h.unbind())
    elif ok:
        opt.hypergradients = list(h)
    else:
        skip(opt, stacklevel)
        return False
    if plan.batches:
        opt.other_hypergradients = others.hypergradients(plan.batches, opt.param_groups)
    return True


def write(opt: Any, plan: Plan, moved: bool = False) -> None:
    """Put learning rates, and what the rule keeps, to where the next step finds them; after a step also what it used."""
    groups, dials, numbers = opt.param_groups, opt.dials, opt.setup.numbers
    numbers.put(dials.write(groups, opt.state, plan.dials, plan.found))
    numbers.put(dials.write_means(groups, opt.state, "beta" in plan.found))
    if moved:
        numbers.put(dials.used(groups, plan.dials))
    dials.wrote(groups, (numbers.on_device and opt.begun >= BEGINS) or not opt.setup.rule.averages)


def warn_of_writing(opt: Any) -> None:
    """Once, where somebody writes over what is adapted."""
    what = None if opt.warned_of_writing else opt.dials.watch(opt.param_groups)
    if what is not None:
        opt.warned_of_writing = True
        warnings.warn(
            f"{what}: the rule starts from it anew each time. A scheduler of torch.optim.lr_scheduler multiplies what is adapted instead",
            stacklevel=7,
        )


def warn_of_decay(opt: Any, plan: Plan) -> None:
    """Once, where the training loss moves weight decay."""
    moved = (own.get("weight_decay", 0.0) for own in opt.other_hypergradients) if plan.batches and not opt.warned else ()
    if any(isinstance(h, Tensor) or h for h in moved):
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
            "Parameters and learning rate stay as they were; opt.skipped counts such steps, and this is the only warning",
            stacklevel=stacklevel,
        )
