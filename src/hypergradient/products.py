"""The dot products that hypergradients are made of: g_t · ∂θ_{t-1}/∂φ, tensor by tensor, for every hyperparameter that moves.

All that a step takes are gathered in one place, and leave it together: for the host with one transfer, and on a device as one vector.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .columns import Device, Host
from .derivatives import LAST_STEPS
from .dials import State
from .direction import Direction, signed
from .execute import Numbers
from .factors import Group
from .hyperparameters import known
from .ranks import Ranks, Spec, local, placed
from .setup import Setup
from .tensors import Tensors, dot, dots, finite_zero, is_zero, real


class Row(NamedTuple):
    """A tensor with a gradient: its number in the order of the param groups, and that of its group."""

    i: int
    g: int
    group: Group
    p: Tensor
    grad: Tensor
    state: dict[str, Any]
    spec: Spec | None = None


@dataclass(frozen=True)
class Bundle:
    """Tensors of a param group that go through a step as one, since they differ in their elements alone, or in numbers on a device.

    Args:
        group: their param group.
        g: its number.
        rows: the tensors' own.
        params: the parameters.
        grads: their gradients.
        states: their states, which ``split`` reads as they are then; empty for those that have none yet.
        buffers: what a state may have of its tensor's shape, that a step reads or writes.
        spec: over whom their sums are taken; None where they are plain tensors of which a rank has the whole.
    """

    group: Group
    g: int
    rows: list[int]
    params: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Any]]
    buffers: tuple[str, ...]
    spec: Spec | None

    def split(self) -> dict[str, list[Tensor]]:
        """Real views of what is local: the parameters "p", the gradients "g", and those of the buffers that they have, by name."""
        held = [name for name in self.buffers if self.states[0].get(name) is not None]  # torch.optim.SGD keeps None for one not yet used
        columns = {"p": self.params, "g": self.grads, **{name: [state[name] for state in self.states] for name in held}}
        if self.spec is not None:
            columns = {name: list(map(local, column)) for name, column in columns.items()}
        return {name: list(map(real, column)) for name, column in columns.items()} if self.params[0].is_complex() else columns

    def number(self, name: str, numbers: Host | Device) -> Any:
        """A number of the states: one for all, or a vector where they have each their own."""
        first = self.states[0].get(name)
        if not isinstance(first, Tensor) or all(state.get(name) is first for state in self.states):
            return first
        return numbers.vector([state[name] for state in self.states])

    @property
    def last_factor(self) -> Any:
        """What a scheduler has made of the learning rates in the last step."""
        return self.group["last"].get("factor", 1.0)

    @property
    def factor_of_elements(self) -> Numbers:
        """That, for derivatives that find the learning rates of elements in the state."""
        return {"factor": self.last_factor} if "factor" in self.group["last"] else {}

    def last_lr(self, setup: Setup) -> Any:
        """What the last step moved them by: a number, or a vector; of elements 1, whose own stand in the state."""
        if setup.scope in ("group", "global"):
            return self.group["last"]["lr"]
        lr = 1.0 if setup.elements else self.number("lr", setup.numbers)
        return lr if setup.elements or (isinstance(self.last_factor, float) and self.last_factor == 1) else lr * self.last_factor

    def last_state(self, setup: Setup) -> dict[str, Any]:
        """The numbers of the last step that coefficients of its direction are made of: counts, and what it moved them by."""
        return {name: self.number(name, setup.numbers) for name in setup.direction.counts} | {"lr": self.last_lr(setup)}


def with_gradients(ranks: Ranks, groups: Sequence[Group], state: State, given: Mapping[Tensor, Tensor] | None) -> list[Row]:
    """The tensors that have a gradient, in ``p.grad`` or among those that ``adapt()`` was given.

    Raises:
        TypeError: a gradient is sparse.
    """
    found: list[Row] = []
    i = -1
    for g, group in enumerate(groups):
        for p in group["params"]:
            i += 1
            grad = p.grad if given is None else given.get(p)
            if grad is None:
                continue
            if grad.layout is not torch.strided:
                raise TypeError(
                    f"hypergradients take dense gradients, got {grad.layout} for a parameter of shape {tuple(p.shape)}: "
                    "build its layer with sparse=False"
                )
            spec = ranks.of(p)
            found.append(Row(i, g, group, p, grad if spec is None else placed(grad, p), state.get(p, {}), spec))
    return found


def bundles(setup: Setup, rows: Iterable[Row], kept: Container[Tensor], sums: bool = True) -> list[Bundle]:
    """The tensors in bundles: of a param group, alike in dtype, device, buffers and numbers.

    Args:
        setup: the optimizer's parts.
        rows: the tensors.
        kept: those whose gradients are to be kept, which are not put with others.
        sums: whether the sums of each tensor are asked for, where each has learning rates of its own.
    """
    buffers = (*setup.direction.buffers, "gradient", "trace", "trace_momentum", "rest", *("lr",) * setup.elements)
    apart = sums and setup.scope in ("tensor", "element") and not setup.lists
    marks = ("applied",) if setup.lists and not setup.elements else ("applied", *setup.direction.counts, *("late",) * setup.rule.averages)
    found: dict[Any, Bundle] = {}
    for i, g, group, p, grad, state, spec in rows:
        alike: Any = p
        if not apart:
            held, numbers = map(state.__contains__, buffers), map(state.get, marks)
            alike = g, p.dtype, p.device, grad.dtype, spec, bool(kept) and p in kept, *held, *numbers
        if alike not in found:
            found[alike] = Bundle(group, g, [], [], [], [], buffers, spec)
        bundle = found[alike]
        bundle.rows.append(i)
        bundle.params.append(p)
        bundle.grads.append(grad)
        bundle.states.append(state)
    return list(found.values())


class Term(NamedTuple):
    """What some tensors, by their numbers, add to a hypergradient: g · x, and the squared norms of g, x and θ where the rule reads them.

    They are tensor by tensor, or piece by piece. ∂θ/∂φ is −w k x: the scale k is the part of a derivative that is one number, and w what
    the tensors have moved by for each unit.
    """

    rows: Sequence[int]
    spec: Spec | None
    scale: Any
    parts: list[tuple[list[int], list[Any]]]


def terms(setup: Setup, bundle: Bundle, own: bool, adapts: bool) -> Iterator[tuple[str, Term]]:
    """What a bundle adds to the hypergradient of each hyperparameter.

    Args:
        setup: the optimizer's parts.
        bundle: the tensors.
        own: whether the gradients are those of the step, rather than given to ``adapt()``.
        adapts: whether hyperparameters move; otherwise the products are 0, or NaN where a gradient is not finite.
    """
    direction, group, first, tensors = setup.direction, bundle.group, bundle.states[0], bundle.split()
    applied = adapts and first.get("applied", False) is not False
    moved = applied or (adapts and "trace" in tensors)
    names = known(direction, list(setup.adapted), first, group["last"]) if applied and setup.adapted else []
    now = direction.objective(group) if own else {}
    last: Numbers = {}
    if names or (moved and "trace" not in tensors):
        of = partial(LAST_STEPS[type(direction)].numbers, direction) if names else direction.last_numbers
        last = of(bundle.last_state(setup), group["last"]) | (bundle.factor_of_elements if setup.elements else {})
    norms = setup.norms
    ready = "trace" in tensors or direction.stored  # no work but dot products of tensors that there are
    light = not names and not now.get("maximize") and is_zero(now.get("penalty", 0.0)) and (ready or not moved)
    slope = moved and setup.rule.discounts and "gradient" in tensors
    fixed = direction, own, moved, tuple((name, norms[name]) for name in ("lr", *names)), slope
    sized = moved and setup.rule.averages
    parts = setup.run(meet, tensors, now | last, *fixed, sized, light=light, live=13 if names else 4)
    first_of = 0
    for name in ("lr", *names):
        count = 1 + norms[name] * (2 if moved else 1) + (sized and name == "lr")
        scale = 1.0 if name == "lr" else last[f"scale of {name}"]
        yield name, Term(bundle.rows, bundle.spec, scale, [(rows, scalars[first_of : first_of + count]) for rows, scalars in parts])
        first_of += count
    if slope:
        yield "slope", Term(bundle.rows, bundle.spec, 1.0, [(rows, scalars[first_of:]) for rows, scalars in parts])


def meet(
    piece: Mapping[str, Any],
    numbers: Numbers,
    direction: Direction,
    own: bool,
    moved: bool,
    rules: tuple[tuple[str, bool], ...],
    slope: bool,
    sized: bool,
) -> list[Any]:
    """The products of a gradient with what the last step has left of one tensor, or of each of a list.

    Args:
        piece: the parameter "p", its gradient "g", its buffers.
        numbers: coefficients of the gradient, of the last direction and of its derivatives.
        direction: that of the optimizer.
        own: whether "g" is the gradient of the step, rather than one that ``adapt()`` was given.
        moved: whether there is a last direction.
        rules: the hyperparameters, the learning rate first, each with whether norms are asked for.
        slope: whether the product with the last gradient is asked for.
        sized: whether that of the learning rate reads the parameters' size, too.
    """
    g = objective(piece, numbers, direction, own)
    (_, norms), *others = rules
    if not moved:  # no last direction: ∇αu_{t-1} = 0
        return [finite_zero(g), dot(g, g)] if norms else [finite_zero(g)]
    step = LAST_STEPS[type(direction)](piece["p"], piece, numbers) if others else None
    d = step.d if step and "trace" not in piece else last_direction(piece, numbers, direction)

    def pairs() -> "Iterator[tuple[Any, Any, bool]]":  # quoted: torch.compile of torch 2.6 cannot trace the annotation
        yield g, d, norms
        if sized:
            yield piece["p"], piece["p"], False
        for name, reads in others:
            # What weight decay is to minimise is the loss without the penalty that it makes.
            loss = signed(piece["g"], numbers) if name == "weight_decay" and own else g
            assert step is not None
            yield loss, step.by(name), reads
        if slope:
            yield g, piece["gradient"], False

    return inner(pairs())


def objective(piece: Mapping[str, Any], numbers: Numbers, direction: Direction, own: bool) -> Any:
    """What is minimised along; what ``adapt()`` was given is that itself."""
    if not own:
        return piece["g"]
    return direction.gradient(piece["g"], None if is_zero(numbers["penalty"]) else piece["p"], numbers)  # a pack copies what is asked for


def last_direction(piece: Mapping[str, Any], numbers: Numbers, direction: Direction) -> Any:
    """d_{t-1}, or the trace of several."""
    if "trace" in piece:
        return piece["trace"]
    return direction.previous(None if is_zero(numbers.get("weight_decay", 0.0)) else piece["p"], piece, numbers)


def inner(pairs: Iterable[tuple[Any, Any, bool]]) -> list[Any]:
    """g · x of each pair, and where norms are asked for also g · g and x · x; those of lists all together, others one after the other."""
    found: list[Any] = []
    lists: list[tuple[Tensors, Tensors]] = []
    last, square = None, None
    for g, x, norms in pairs:
        if isinstance(g, Tensors):
            lists += [(g, x), (g, g), (x, x)] if norms else [(g, x)]
            continue
        found.append(dot(g, x))
        if norms:
            if g is not last or torch.compiler.is_compiling():  # a kernel gives each of what it is asked for once
                last, square = g, dot(g, g)
            found += [square, dot(x, x)]
        del x  # before the next is made
    return dots(lists) if lists else found


def given_gradients(loss_or_grads: Tensor | Sequence[Tensor | None], groups: Sequence[Group]) -> dict[Tensor, Tensor]:
    """The gradients that ``adapt()`` takes, as real views, with the sign of what is minimised.

    Raises:
        ValueError: there is none, or not one of a parameter's shape or None for each.
        TypeError: it is neither a tensor nor tensors.
    """
    params = [(p, group) for group in groups for p in group["params"]]
    grads: Sequence[Tensor | None]
    if isinstance(loss_or_grads, Tensor):
        if loss_or_grads.numel() != 1 or not loss_or_grads.requires_grad:
            raise ValueError(
                "adapt() takes a scalar loss that has been computed from the parameters with gradients enabled, or gradients, got "
                f"a tensor of shape {tuple(loss_or_grads.shape)} with requires_grad={loss_or_grads.requires_grad}"
            )
        leaves = [p for p, _ in params if p.requires_grad]
        found = dict(zip(leaves, torch.autograd.grad(loss_or_grads, leaves, allow_unused=True), strict=True))
        grads = [found.get(p) for p, _ in params]
    elif isinstance(loss_or_grads, Iterable):
        grads = list(loss_or_grads)
    else:
        raise TypeError(f"adapt() takes a scalar loss or a list of gradients, got {loss_or_grads!r}")
    shapes = [None if g is None else tuple(g.shape) for g in grads]
    if len(grads) != len(params) or any(shape not in (None, tuple(p.shape)) for shape, (p, _) in zip(shapes, params, strict=True)):
        raise ValueError(f"adapt() takes a gradient or None for each of {len(params)} parameters, in their shapes, got shapes {shapes}")
    if all(g is None for g in grads):
        raise ValueError("adapt() got no gradient: the loss depends on no parameter of this optimizer")
    kept = {p: (g, group) for (p, group), g in zip(params, grads, strict=True) if g is not None}
    return {p: signed(real(g), {"maximize": False, **group}) for p, (g, group) in kept.items()}
