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

from . import late
from .average import HALVES, go_back, interpolate, interpolated, joined, part
from .columns import Device
from .dials import Dials, State
from .direction import Direction
from .directions import applied
from .elements import Moved, write_elements
from .execute import Numbers, make_buffers
from .factors import Group
from .hyperparameters import kept_gradient
from .kept import KeptGradients
from .others import Batch
from .products import Bundle
from .ranks import local
from .setup import Setup
from .signal import Signal, follow
from .tensors import add_scaled, is_zero, only, real, replace


@dataclass(frozen=True)
class Plan:
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

    bundles: list[Bundle]
    kept: set[Tensor]
    dials: Dials
    found: dict[str, Any]
    batches: list[Batch]
    elements: list[Moved]
    ok: Any
    curvature: Mapping[Tensor, Tensor] = field(default_factory=dict)
    squares: Sequence[Any] = ()
    loss: float | None = None
    null: bool = False


def update(setup: Setup, plan: Plan, kept: KeptGradients, groups: Sequence[Group], state: State) -> None:
    """Move all tensors, but those that go back to their average."""
    columns, backs = moves(setup, plan)
    stays = plan.ok is False  # on the host, where it is known
    moving = [bundle for bundle in plan.bundles if not (stays or (backs and backs[plan.dials.index[bundle.rows[0]]]))]
    if setup.direction.asks:
        setup.direction.begin({p: bundle.group for bundle in moving for p in bundle.params})
    write_elements(state, plan.elements, plan.ok)
    for bundle in moving:
        if not all(bundle.states):
            bundle.states[:] = [own or state[p] for p, own in zip(bundle.params, bundle.states, strict=True)]
        for p, own in zip(bundle.params, bundle.states, strict=True) if kept else ():
            kept.release(p, own)
            if p in plan.kept:
                own.pop("direction", None)
    if sum(len(bundle.params) for bundle in moving) < len(plan.dials.index):
        leave(plan, moving, columns.get("back", backs), columns.get("fade"), groups, state)
    shared = Counter(id(own.get(name)) for own in state.values() if isinstance(own, dict) for name in setup.direction.counts)
    for bundle in moving if setup.rule.averages and not setup.numbers.on_device else ():
        late.begin(bundle.states, plan.dials.columns["memory.steps"][plan.dials.index[bundle.rows[0]]])
    for bundle in reversed(moving):
        advance(setup, plan, bundle, of_bundle(setup, plan.dials, columns, bundle), shared)
        for p, own in zip(bundle.params, bundle.states, strict=True) if bundle.params[0] in plan.kept else ():
            kept.hold(p, own)
    remember(setup, plan, groups, columns["alpha"], columns.get("goes"))


def moves(setup: Setup, plan: Plan) -> tuple[dict[str, Any], list[bool] | None]:
    """What tensors move by, from the columns of their dials, and of which dials it is known that they go back to their average.

    "alpha" is α; "kept" 1 − 1/n for the trace, "fade" 1/n for the way to the average. On a device also "goes" and "back", 1 or 0; where a
    dial does not go its "alpha" and "fade" are 0.
    """
    alpha, back, averages = plan.found["alpha"], plan.found.get("back"), setup.rule.averages
    n: Any = plan.found.get("window") if setup.horizon is None else setup.horizon
    discount = plan.found["memory.discount"] if setup.rule.discounts else None
    if averages:
        part = plan.found["part"]
        alpha = [x * y for x, y in zip(alpha, part, strict=True)] if isinstance(alpha, list) else alpha * part
    if not isinstance(setup.numbers, Device) or setup.direction.asks:  # a step that is taken only where it is known to be
        fade: Any = [1 / x for x in n] if isinstance(n, list) else 1 / n if n is not None and setup.traces else None
        kept = {"fade": fade} if averages else {"kept": discount} if discount is not None else {} if fade is None else {"kept": 1 - fade}
        return {"alpha": alpha} | kept, known(back) if isinstance(back, Tensor) else back
    goes = (plan.ok if back is None else plan.ok & ~back).to(setup.numbers.dtype)
    columns = {"alpha": alpha * goes, "goes": goes}
    if back is not None:
        columns |= {"fade": goes / n, "back": back.to(setup.numbers.dtype)}
    elif setup.traces:
        columns |= {"kept": 1 - goes / n if discount is None else 1 - goes * (1 - discount)}
    return columns, None


def of_bundle(setup: Setup, dials: Dials, columns: Mapping[str, Any], bundle: Bundle) -> Numbers:
    """The numbers of a bundle: vectors where its tensors have different dials."""
    index = [dials.index[i] for i in bundle.rows]
    if not isinstance(setup.numbers, Device) or len(set(index)) == 1:
        found = {name: x if single(x) else x[index[0]] for name, x in columns.items()}
    elif index == list(range(dials.size)):
        found = dict(columns)
    else:
        where = setup.numbers.constant(tuple(index), torch.int64)
        found = {name: x if single(x) else x.index_select(0, where) for name, x in columns.items()}
    ratio = 1.0 if dials.ratios is None else dials.ratios[bundle.g]
    if isinstance(ratio, Tensor) or ratio != 1:
        found["alpha"] = ratio * found["alpha"]
        if setup.elements:
            found["factor"] = ratio
        if setup.discounted:
            found["ratio"] = ratio
        if setup.rule.averages and isinstance(ratio, Tensor):
            found["fade"] = torch.where(ratio == 0, 0.0, found["fade"])
    if setup.rule.averages:
        found = late.shortened(bundle.states[0], found)
        found |= interpolated(found["alpha"], found.pop("fade"), setup.direction.share(bundle.group), found.get("back"))
    return found


def single(x: Any) -> bool:
    """Whether it is one number for all dials."""
    return isinstance(x, float) or (isinstance(x, Tensor) and x.dim() == 0)


def known(flags: Tensor) -> list[bool]:
    """What only the device knows; on the meta device, which knows nothing, False."""
    return [False] * flags.numel() if flags.is_meta else flags.tolist()


def leave(plan: Plan, moving: Sequence[Bundle], backs: Any, fades: Any, groups: Sequence[Group], state: State) -> None:
    """See to the tensors that do not move along their direction: without a gradient, or on the way back to their average.

    The average of those without a gradient arrives where they lie, as if it were that of their last n steps.
    """
    went, given = ({p for bundle in bundles for p in bundle.params} for bundles in (moving, plan.bundles))
    arrives = fades is not None and plan.ok is not False
    stays = (~plan.ok).float() if isinstance(plan.ok, Tensor) else None
    for p, k in zip([p for group in groups for p in group["params"]], plan.dials.index, strict=True):
        if p in went or p not in state:
            continue
        own, back = state[p], backs[k] if backs is not None else False
        applied = own.get("applied", False)
        own["applied"] = False if stays is None or applied is False else stays if applied is True else stays * applied
        if arrives and "trace" in own and p not in given:
            fade = fades if single(fades) else fades[k]
            z = local(real(own["trace"]))
            z.mul_(1 - fade if isinstance(fade, float) else (1 - fade).to(z.dtype))
            if isinstance(fade, float):
                late.lie_still(own)
        if back is not False and "trace" in own and p.requires_grad:
            go_back(local(real(p)), own, None if back is True else back.to(real(own["trace"]).dtype))


def advance(setup: Setup, plan: Plan, bundle: Bundle, numbers: Numbers, shared: Counter[int]) -> None:
    """θ_t = θ_{t-1} − α d_t of one bundle, with its buffers, which are made where there are none, and its trace."""
    direction, group, first = setup.direction, bundle.group, bundle.states[0]
    keeps, signal = kept_gradient(direction, list(setup.adapted), group) or setup.rule.discounts, setup.signal
    wants = () if bundle.params[0] in plan.kept else direction.wants(group)
    half = bundle.params[0].dtype if setup.rule.averages and bundle.params[0].dtype in HALVES else None
    wants += ("gradient",) * keeps + ("trace",) * setup.traces + ("rest",) * (half is not None) + ("lr",) * setup.elements
    wants += ("trace_momentum",) * (signal.curvature == "hessian" and not is_zero(group.get("momentum", 0.0)))
    missing = [name for name in wants if first.get(name) is None]
    for name in missing:
        value = plan.found["alpha"][plan.dials.index[bundle.rows[0]]] if name == "lr" else 0.0
        wide = name.startswith("trace") and bundle.params[0].dtype in HALVES and setup.widens
        make_buffers(bundle.states, name, bundle.params, value, torch.float32 if wide else None)
        for p, own in zip(bundle.params, bundle.states, strict=True) if name in direction.copies else ():
            own[name].copy_(p)
    goes = numbers.get("goes")
    now = {**first, **count(setup, bundle, goes, plan.ok, shared), "first": "momentum_buffer" in missing}
    tensors = bundle.split()
    plain = isinstance(numbers["alpha"], float) and not (keeps or setup.elements or setup.traces)
    if plain and direction.step(tensors, now, group, numbers["alpha"]):
        return
    if plan.curvature and bundle.params[0] in plan.curvature:
        tensors["curvature"] = [local(real(plan.curvature[p])) for p in bundle.params]
    coefficients = direction.objective(group) | direction.numbers(now, group, goes) | numbers | ({"null": True} if plan.null else {})
    if setup.traces and not setup.rule.averages:
        coefficients |= {"weighted": setup.rule.of_log, "hessian": signal.curvature == "hessian"}
        coefficients["shrink"] = direction.shrinks(group) if setup.discounted else 0.0
    if goes is not None and (direction.stored or keeps or setup.elements):
        coefficients["stays"] = 1 - goes
    setup.run(move, tensors, coefficients, direction, keeps, signal if setup.traces else None, setup.rule.averages, half, writes=True)


def count(setup: Setup, bundle: Bundle, goes: Any, ok: Any, shared: Counter[int]) -> Numbers:
    """The step, counted in the states of a bundle: by 1, or by "goes" in a tensor that stays where it is, one for all of them."""
    new: dict[str, Any] = {}
    for name in setup.direction.counts:
        before = bundle.number(name, setup.numbers)
        if isinstance(before, Tensor) and not before.dim() and shared[id(before)] == len(bundle.states):
            new[name] = before.add_(goes)
            continue
        new[name] = (0 if before is None else before) + (1 if goes is None else goes)
        if isinstance(new[name], Tensor) and new[name].dim():
            setup.numbers.put((own, name, x) for own, x in zip(bundle.states, new[name].unbind(), strict=True))
        else:  # those of a bundle share one from now on
            for own in bundle.states:
                own[name] = new[name]
    applied = bundle.states[0].get("applied", True)  # a tensor that is new has buffers of 0
    if goes is not None and applied is not True:
        applied = ok.float() if applied is False else torch.maximum(ok.float(), applied)
    for own in bundle.states:
        own["applied"] = True if goes is None else applied
    return new


def remember(setup: Setup, plan: Plan, groups: Sequence[Group], alpha: Any, goes: Any) -> None:
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
        options = {name: group[name] for name in setup.direction.remembers}
        if setup.scope in ("group", "global"):
            k = g if setup.scope == "group" else 0
            options["lr"] = alpha[k] if plan.dials.ratios is None else plan.dials.ratios[g] * alpha[k]
        if plan.dials.factors is not None:
            options["factor"] = plan.dials.factors[g]
        options |= {"square": plan.squares[g]} if plan.squares else {}
        options |= {"loss": plan.loss} if plan.loss is not None else {}
        last = group.get("last", {})
        options |= {name: last[name] for name in ("square", "loss") if name in last} if plan.null else {}
        group["last"] = {name: latest(x, last.get(name)) for name, x in options.items()}
    if isinstance(goes, Tensor) and now and not setup.rule.averages:
        torch._foreach_lerp_(before, now, [goes] * len(now))  # exact at 0 and 1
    elif now:
        torch._foreach_copy_(before, now)


def move(
    piece: Mapping[str, Any],
    numbers: Numbers,
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
    g = direction.gradient(piece["g"], theta, numbers)
    if "goes" in numbers:
        g = only(g, numbers.get("taken", numbers["goes"]))
    d = direction.advance(g, theta, piece, numbers)
    if keeps:
        replace(piece["gradient"], g, numbers)
    squares = g.mul(g) if signal is not None and signal.curvature == "squares" else None
    part_of_d = direction.of_gradient(g, piece, numbers) if signal is not None and signal.part == "gradient" else d
    del g  # a copy of a list's gradients need not be held any longer
    if averages:
        exact = theta if half is None else joined(theta, piece["rest"])
        interpolate(exact, piece["trace"], d, numbers)
        if half is not None:
            part(exact, theta, piece["rest"], half)
        return []
    alpha = applied(piece["lr"], numbers) if "lr" in piece else numbers["alpha"]
    if "goes" in numbers or isinstance(alpha, list):
        step = d.mul(alpha)
        theta.sub_(step.mul_(numbers["goes"]) if "lr" in piece and "goes" in numbers else step)
    elif "lr" in piece:
        theta.addcmul_(d, alpha, value=-1)
    else:
        add_scaled(theta, -alpha, d, out=theta)
    if signal is not None:
        follow(piece, part_of_d, alpha, squares, numbers)
    return []
