"""The update of a step: θ_t = θ_{t-1} − α_t d_t, and what the next hypergradient needs to know of it.

On a device it is not known whether the step is taken. All goes on as if it were, with coefficients that leave everything as it was where it
is not: see directions.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from .average import follow, go_back
from .columns import Device, Host
from .dials import Dials, Group, Place, State
from .directions import Direction
from .execute import Numbers, Runner
from .hyperparameters import kept_gradient
from .kept import KeptGradients
from .others import Batch
from .products import Bundle
from .tensors import add_scaled, make_buffer, only, real, replace
from .turn import write_elements


@dataclass(frozen=True)
class Plan:
    """What a step makes of the hyperparameters; nothing is written yet.

    Args:
        bundles: the tensors that it moves.
        kept: those whose gradients are kept for the next step.
        dials: the learning rates as they were found.
        found: columns of what they become: "alpha", "h", "beta", "memory.NAME", "window" and "back" (see ``rules.Move``).
        batches: the other hyperparameters.
        elements: the learning rates of elements, by their tensor.
        ok: whether the step can be made: a bool, or a tensor of one.
    """

    bundles: list[Bundle]
    kept: set[Tensor]
    dials: Dials
    found: dict[str, Any]
    batches: list[Batch]
    elements: dict[Tensor, Tensor]
    ok: Any


@final
@dataclass(frozen=True)
class Update:
    """What takes the steps of an optimizer.

    Args:
        direction: what it steps along.
        run: does the elementwise work.
        numbers: the columns' kind.
        kept: the gradients that stand for directions.
        adapted: the hyperparameters that move beside the learning rate.
        averages: whether the trace is the way to the average.
        horizon: how many steps a trace looks over, where the rule does not say; None for that, or where there is none.
        elements: whether each element has a learning rate.
    """

    direction: Direction
    run: Runner
    numbers: Host | Device
    kept: KeptGradients
    adapted: list[str]
    averages: bool
    horizon: float | None
    elements: bool

    def __call__(self, plan: Plan, groups: Sequence[Group], state: State) -> None:
        """Move all tensors."""
        moves = Moves(self, plan)
        moving = [bundle for bundle in plan.bundles if not moves.stays(bundle)]
        if self.direction.asks:
            self.direction.begin({p: bundle.group for bundle in moving for p in bundle.params})
        for p, lr in plan.elements.items():
            write_elements(state, p, lr, plan.ok)
        for bundle in moving:
            if not all(bundle.states):
                bundle.states[:] = [own or state[p] for p, own in zip(bundle.params, bundle.states, strict=True)]
            if self.kept:
                self._release(bundle, plan.kept)
        if self.numbers.on_device:
            for name in ("applied", *self._numbers):
                unshare(name, moving)
        if sum(len(bundle.params) for bundle in moving) < len(plan.dials.index):
            self._leave(moving, moves, groups, state)
        for bundle in reversed(moving):
            self._advance(bundle, plan, moves.of_bundle(bundle))
        remember(groups, self.direction.remembers, plan.ok)

    def _leave(self, moving: Sequence[Bundle], moves: "Moves", groups: Sequence[Group], state: State) -> None:
        """See to the tensors that do not move."""
        went = {p for bundle in moving for p in bundle.params}
        held = {id(own[name]) for p in went for own in (state[p],) for name in self._numbers if isinstance(own.get(name), Tensor)}
        for i, (p, g) in enumerate((p, g) for g, group in enumerate(groups) for p in group["params"]):
            if p not in went and p in state:
                self._stay(p, state[p], moves.of(i, g), held)

    @property
    def _numbers(self) -> tuple[str, ...]:
        return ("lr", *self.direction.counts)

    def _release(self, bundle: Bundle, kept: set[Tensor]) -> None:
        for p, own in zip(bundle.params, bundle.states, strict=True):
            self.kept.release(p, own)
            if p in kept:
                own.pop("direction", None)

    def _stay(self, p: Tensor, own: dict[str, Any], numbers: Numbers, held: set[int]) -> None:
        """A tensor that does not move along its direction: without a gradient, or on the way back to its average."""
        for name in self._numbers:
            if id(own.get(name)) in held:  # of those that move
                own[name] = own[name].clone()
        back, goes = numbers["back"], numbers.get("goes")
        if back is not False and "trace" in own:
            go_back(real(p), real(own["trace"]), None if back is True else back.to(p.dtype))
        applied = own.get("applied", False)
        own["applied"] = False if goes is None or applied is False else (~numbers["ok"]).to(goes.dtype) * applied
        if not self.elements:
            own["lr"] = numbers["rate"] if goes is None else rate(numbers, own.get("lr"), self.averages)

    def _advance(self, bundle: Bundle, plan: Plan, numbers: Numbers) -> None:
        """θ_t = θ_{t-1} − α d_t of one bundle, with its buffers, which are made where there are none, and its trace."""
        group, first = bundle.group, bundle.states[0]
        kept = bundle.params[0] in plan.kept
        keeps = kept_gradient(self.direction, self.adapted, group)
        trace = self.averages or self.horizon is not None
        wants = () if kept else self.direction.wants(group)
        wants += ("gradient",) * keeps + ("trace",) * trace + ("lr",) * self.elements
        missing = [name for name in wants if first.get(name) is None]
        for name in missing:
            for p, own in zip(bundle.params, bundle.states, strict=True):
                make_buffer(own, name, p, numbers["rate"] if name == "lr" else 0.0)
        now = self._count(bundle, numbers) | {"first": "momentum_buffer" in missing}
        tensors = bundle.split()
        if bundle.params[0].device.type == "cpu":  # in the other order than for the dot products: what these read last is in the cache yet
            tensors = {name: column[::-1] for name, column in tensors.items()}
        goes = numbers.get("goes")
        plain = goes is None and not (keeps or self.elements or trace)
        if not (plain and isinstance(numbers["alpha"], float) and self.direction.step(tensors, now, group, numbers["alpha"])):
            own = self.direction.objective(group) | self.direction.numbers(now, group, goes)
            if goes is not None and (self.direction.stored or keeps or self.elements):
                own["stays"] = 1 - goes
            own |= {name: x for name, x in numbers.items() if name not in ("rate", "ok") and x is not False}
            self.run(move, tensors, own, self.direction, keeps, trace, self.averages, writes=True)
        if kept:
            for p, own in zip(bundle.params, bundle.states, strict=True):
                self.kept.hold(p, own)

    def _count(self, bundle: Bundle, numbers: Numbers) -> Numbers:
        """The numbers that a bundle's states have from now on, written there: its steps, its learning rate, that it has moved."""
        new: dict[str, Any] = {"applied": True}
        if "goes" not in numbers:
            new |= {name: int(bundle.states[0].get(name, 0)) + 1 for name in self.direction.counts}
            if not self.elements:
                new["lr"] = numbers["rate"]
            for own in bundle.states:
                own.update(new)
            return {**bundle.states[0], **new}
        for name in self.direction.counts:
            before = bundle.number(name, self.numbers)
            new[name] = numbers["goes"] + (0 if before is None else before)
        if not self.elements:
            new["lr"] = numbers["rate"] if self.averages else rate(numbers, bundle.number("lr", self.numbers), False)
        surely = self.direction.starts_at_zero or self.averages or self.horizon is not None
        applied = bundle.states[0].get("applied", surely)
        if applied is not True:
            ok = numbers["ok"].to(numbers["goes"].dtype)
            new["applied"] = torch.maximum(ok, torch.as_tensor(applied, dtype=ok.dtype, device=ok.device))
        self.numbers.put(places(bundle.states, new))
        return {**bundle.states[0], **new}


@final
class Moves:
    """What a step's tensors move by, from the columns of its dials: "rate" α, "alpha" α as applied, "kept" 1 − 1/n, "back".

    On a device also whether the tensor "goes", as 1 or 0, and whether the step is "ok"; a tensor that does not go has an "alpha" of 0.
    """

    def __init__(self, update: Update, plan: Plan) -> None:
        found, self.dials, self.numbers, self.direction = plan.found, plan.dials, update.numbers, update.direction
        window = found.get("window") if update.horizon is None else update.horizon
        self.backs = found.get("back")
        self.columns: dict[str, Any] = {"rate": found["alpha"]}
        if not isinstance(self.numbers, Device):
            windows = window if isinstance(window, list) else [window or 1.0] * plan.dials.size
            self.columns |= {"kept": [1 - 1 / n for n in windows], "back": self.backs or [False] * plan.dials.size}
            return
        self.fixed: Numbers = {}
        if update.direction.asks:  # a step that is taken only where it is known to be
            self.columns |= {"kept": 1 - 1 / (1.0 if window is None else window)}
            self.backs = None if self.backs is None else known(self.backs)
            return
        back = None if self.backs is None else self.backs.to(self.numbers.dtype)
        goes = plan.ok.to(self.numbers.dtype) if back is None else 1 - back
        self.fixed = {"ok": plan.ok}
        self.columns |= {"alpha": found["alpha"] * goes, "goes": goes}
        if update.averages and window is not None:
            self.columns |= {"kept": goes * (1 - 1 / window), "back": back}
        elif window is not None:
            self.columns |= {"kept": 1 - goes / window}

    def stays(self, bundle: Bundle) -> bool:
        """Whether it is known that a bundle goes back to its average instead."""
        return isinstance(self.backs, list) and bool(self.backs[self.dials.index[bundle.rows[0]]])

    def of(self, i: int, g: int) -> Numbers:
        """The numbers of one tensor, of its number and that of its param group."""
        k = self.dials.index[i]
        return self._scaled({name: x if isinstance(x, float) or not len_of(x) else x[k] for name, x in self.columns.items()}, g, k)

    def of_bundle(self, bundle: Bundle) -> Numbers:
        """The numbers of a bundle: vectors where its tensors have different dials."""
        dials = [self.dials.index[i] for i in bundle.rows]
        if len(dials) == 1 or not isinstance(self.numbers, Device) or len(set(dials)) == 1:
            return self.of(bundle.rows[0], bundle.g)
        if dials == list(range(self.dials.size)):
            return self._scaled(dict(self.columns), bundle.g, None)
        index = self.numbers.constant(tuple(dials), torch.int64)
        columns = {name: x.index_select(0, index) if isinstance(x, Tensor) and x.dim() else x for name, x in self.columns.items()}
        return self._scaled(columns, bundle.g, None)

    def _scaled(self, found: Numbers, g: int, k: int | None) -> Numbers:
        ratio = None if self.dials.ratios is None else self.dials.ratios[g]
        if ratio is not None and not (isinstance(ratio, float) and ratio == 1):
            found |= {name: ratio * found[name] for name in ("rate", "alpha") if name in found}
        if not isinstance(self.numbers, Device):
            return found | {"alpha": found["rate"]}
        if self.direction.asks:
            back = False if self.backs is None or k is None else self.backs[k]
            return found | {"alpha": found["rate"], "back": back}
        return {"back": False} | found | self.fixed


def len_of(x: Any) -> int:
    return len(x) if isinstance(x, list) or x.dim() else 0


def known(flags: Tensor) -> list[bool]:
    """What only the device knows; on the meta device, which knows nothing, False."""
    return [False] * flags.numel() if flags.is_meta else flags.tolist()


def rate(numbers: Numbers, before: Any, averages: bool) -> Any:
    """The learning rate of the last step that was taken."""
    if averages:
        return numbers["rate"]
    ok = numbers["ok"]
    return numbers["rate"] * ok if before is None else torch.where(ok, numbers["rate"], before)


def places(states: Sequence[dict[str, Any]], new: Mapping[str, Any]) -> Iterable[Place]:
    """Where a bundle's numbers are to be put: in place, in one tensor for all states where they are one number."""
    for name, value in new.items():
        if isinstance(value, Tensor) and value.dim():
            yield from ((own, name, x) for own, x in zip(states, value.unbind(), strict=True))
            continue
        first = states[0].get(name)
        if isinstance(first, Tensor) and isinstance(value, Tensor) and all(own.get(name) is first for own in states):
            yield states[0], name, value
            continue
        shared = value.clone() if isinstance(value, Tensor) else value
        for own in states:
            own[name] = shared


def unshare(name: str, moving: Sequence[Bundle]) -> None:
    """Give each bundle a number of its own where two have one tensor of it, as they may where a tensor has moved to another bundle."""
    owners: dict[int, tuple[int, Tensor]] = {}
    clones: dict[tuple[int, int], Tensor] = {}
    for i, bundle in enumerate(moving):
        for own in bundle.states:
            there = own.get(name)
            if isinstance(there, Tensor) and owners.setdefault(id(there), (i, there))[0] != i:
                key = i, id(there)
                if key not in clones:
                    clones[key] = there.clone()
                own[name] = clones[key]


def remember(groups: Sequence[Group], names: Sequence[str], ok: Any) -> None:
    """The options of the step, which the next hypergradient must see as they were; of the last that was taken, where a device knows it."""
    now, before = list[Tensor](), list[Tensor]()
    for group in groups:
        last = group.get("last")
        if last is None or not isinstance(ok, Tensor):
            options = {name: group[name] for name in names}
            if last != options:
                group["last"] = {name: copied(value) for name, value in options.items()}
            continue
        for name in names:
            if isinstance(group[name], tuple | list):
                pairs = [taken(x, y, ok, now, before) for x, y in zip(group[name], last.get(name, group[name]), strict=True)]
                group["last"] = group["last"] | {name: tuple(pairs)}
            else:
                group["last"] = group["last"] | {name: taken(group[name], last.get(name, group[name]), ok, now, before)}
    if now:
        torch._foreach_copy_(before, list(torch.where(ok, torch.stack(now), torch.stack(before)).unbind()))


def copied(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(copied, value))
    return value.clone() if isinstance(value, Tensor) else value


def taken(now: Any, before: Any, ok: Tensor, all_now: list[Tensor], all_before: list[Tensor]) -> Any:
    """An option as the last step that was taken had it; two tensors are left to be written together."""
    if isinstance(now, bool) or now is before or not (isinstance(now, Tensor) or isinstance(before, Tensor) or now != before):
        return now
    wide = torch.float32 if ok.device.type == "mps" else torch.float64
    x, y = (value if isinstance(value, Tensor) else torch.full((), value, dtype=wide, device=ok.device) for value in (now, before))
    if y is not before:
        return torch.where(ok, x, y)
    all_now.append(x.to(y.dtype))
    all_before.append(y)
    return y


def move(piece: Mapping[str, Any], numbers: Numbers, direction: Direction, keeps: bool, trace: bool, averages: bool) -> list[Tensor]:
    """θ_t = θ_{t-1} − α_t d_t, and what the next hypergradient needs: the gradient where it ``keeps`` it, and the trace."""
    theta = piece["p"]
    g = direction.gradient(piece["g"], theta, numbers)
    if "goes" in numbers:
        g = only(g, numbers.get("taken", numbers["goes"]))
    d = direction.advance(g, theta, piece, numbers)
    if keeps:
        replace(piece["gradient"], g, numbers)
    del g  # a copy of a list's gradients need not be held any longer
    step, alpha = None, piece["lr"] if "lr" in piece else numbers["alpha"]
    if "goes" in numbers or isinstance(alpha, list):
        step = d.mul(alpha)
        theta.sub_(step.mul_(numbers["goes"]) if "lr" in piece and "goes" in numbers else step)
    elif "lr" in piece:
        theta.addcmul_(d, alpha, value=-1)
    else:
        add_scaled(theta, -alpha, d, out=theta)
    if trace:
        follow(theta, piece["trace"], d, step, numbers, averages)
    return []
