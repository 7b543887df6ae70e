"""The dot products that hypergradients consist of: g_t · ∂θ_{t-1}/∂φ, tensor by tensor, for every adapted hyperparameter.

All products of a step are collected first and leave together: to the host in one transfer, and on a device as one vector.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .derivatives import LAST_STEPS
from .direction import Direction, signed
from .group_lr import Group
from .hyperparameters import known_derivatives
from .learning_rates import State
from .ranks import Ranks, Spec, local, placed_like
from .runner import Coefficients
from .scalars import Scalars
from .setup import Setup
from .tensors import Tensors, dot, finite_zero, is_zero, list_dots, real


class GradientEntry(NamedTuple):
    """A tensor with a gradient; its position in the order of the param groups, and the index of its group."""

    position: int
    group_index: int
    group: Group
    p: Tensor
    grad: Tensor
    state: dict[str, Any]
    spec: Spec | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Bucket:
    """Tensors of a param group that are processed together: they differ only in their elements, or on a device also in coefficients.

    Args:
        group: their param group.
        group_index: its index.
        indices: the tensors' positions.
        params: the parameters.
        grads: their gradients.
        states: their states, read when ``tensors`` is called; empty for tensors without one.
        buffers: the names of all state tensors that a step reads or writes.
        spec: over which process groups their sums are taken; None for plain tensors that each rank has whole.
    """

    group: Group
    group_index: int
    indices: list[int]
    params: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Any]]
    buffers: tuple[str, ...]
    spec: Spec | None

    def tensors(self) -> dict[str, list[Tensor]]:
        """Real views of the local tensors: the parameters "p", the gradients "g", and the buffers that exist, by name."""
        held = [name for name in self.buffers if self.states[0].get(name) is not None]  # torch.optim.SGD stores None for an unused buffer
        columns = {"p": self.params, "g": self.grads, **{name: [state[name] for state in self.states] for name in held}}
        if self.spec is not None:
            columns = {name: list(map(local, column)) for name, column in columns.items()}
        return {name: list(map(real, column)) for name, column in columns.items()} if self.params[0].is_complex() else columns

    def scalar(self, name: str, scalars: Scalars) -> Any:
        """A scalar of the states: one for all, or a vector if each has its own."""
        first = self.states[0].get(name)
        if not isinstance(first, Tensor) or all(state.get(name) is first for state in self.states):
            return first
        return scalars.vector([state[name] for state in self.states])

    @property
    def last_factor(self) -> Any:
        """The scheduler's factor in the last step."""
        return self.group["last"].get("factor", 1.0)

    @property
    def element_factor(self) -> Coefficients:
        """The same, for derivatives that read elementwise learning rates from the state."""
        return {"factor": self.last_factor} if "factor" in self.group["last"] else {}

    def last_lr(self, setup: Setup) -> Any:
        """The learning rate of the last step: a scalar or a vector; 1 for elements, whose own are in the state."""
        if setup.scope in ("group", "global"):
            return self.group["last"]["lr"]
        lr = 1.0 if setup.per_element else self.scalar("lr", setup.scalars)
        return lr if setup.per_element or (isinstance(self.last_factor, float) and self.last_factor == 1) else lr * self.last_factor

    def last_state(self, setup: Setup) -> dict[str, Any]:
        """The scalars of the last step that its direction depends on: counts, and the learning rate."""
        return {name: self.scalar(name, setup.scalars) for name in setup.direction.counters} | {"lr": self.last_lr(setup)}


def gradient_entries(ranks: Ranks, groups: Sequence[Group], state: State, given: Mapping[Tensor, Tensor] | None) -> list[GradientEntry]:
    """The tensors that have a gradient, in ``p.grad`` or among those given to ``adapt()``.

    Raises:
        TypeError: a gradient is sparse.
    """
    found: list[GradientEntry] = []
    i = -1
    for g, group in enumerate(groups):
        for p in group["params"]:
            i += 1
            grad = p.grad if given is None else given.get(p)
            if grad is None:
                continue
            if grad.layout is not torch.strided:
                raise TypeError(
                    f"hypergradients need dense gradients, got {grad.layout} for a parameter of shape {tuple(p.shape)}: "
                    "build its layer with sparse=False"
                )
            spec = ranks.spec_of(p)
            found.append(GradientEntry(i, g, group, p, grad if spec is None else placed_like(grad, p), state.get(p, {}), spec))
    return found


def make_buckets(setup: Setup, rows: Iterable[GradientEntry], stored: Container[Tensor], sums: bool = True) -> list[Bucket]:
    """Group the tensors in buckets: of one param group, with the same dtype, device, buffers and coefficients.

    Args:
        setup: the optimizer's parts.
        rows: the tensors.
        stored: those whose gradients are to be stored, which are kept apart.
        sums: whether each tensor needs its own sums if it has its own learning rate.
    """
    buffers = (*setup.direction.buffers, "gradient", "trace", "trace_momentum", "rest", *("lr",) * setup.per_element)
    separate = sums and setup.scope in ("tensor", "element") and not setup.uses_lists
    keys = () if setup.uses_lists and not setup.per_element else (*setup.direction.counters, *("late",) * setup.rule.averages)
    found: dict[Any, Bucket] = {}
    for i, g, group, p, grad, state, spec in rows:
        key: Any = p
        if not separate:
            present, values = map(state.__contains__, buffers), map(state.get, ("applied", *keys))
            key = g, p.dtype, p.device, grad.dtype, spec, bool(stored) and p in stored, *present, *values
        if key not in found:
            found[key] = Bucket(group, g, [], [], [], [], buffers, spec)
        bucket = found[key]
        bucket.indices.append(i)
        bucket.params.append(p)
        bucket.grads.append(grad)
        bucket.states.append(state)
    return list(found.values())


class Term(NamedTuple):
    """What some tensors contribute to a hypergradient: g · x, and the squared norms of g, x and θ if the rule reads them.

    There is one value per tensor, or per piece. ∂θ/∂φ is −w k x: k is the scale, the scalar part of a derivative, and w what the tensors
    moved by per unit of φ.
    """

    indices: Sequence[int]
    spec: Spec | None
    scale: Any
    parts: list[tuple[list[int], list[Any]]]


def hypergradient_terms(setup: Setup, bucket: Bucket, of_step: bool, adapts: bool) -> Iterator[tuple[str, Term]]:
    """The contributions of a bucket to the hypergradient of each hyperparameter.

    Args:
        setup: the optimizer's parts.
        bucket: the tensors.
        of_step: whether the gradients are the step's, rather than given to ``adapt()``.
        adapts: whether hyperparameters are adapted; otherwise the products are 0, or NaN if a gradient is not finite.
    """
    direction, group, first, tensors = setup.direction, bucket.group, bucket.states[0], bucket.tensors()
    applied = adapts and first.get("applied", False) is not False
    has_last = applied or (adapts and "trace" in tensors)
    names = known_derivatives(direction, list(setup.other_rules), first, group["last"]) if applied and setup.other_rules else []
    now = direction.objective_coef(group) if of_step else {}
    last: Coefficients = {}
    if names or (has_last and "trace" not in tensors):
        of = partial(LAST_STEPS[type(direction)].coefficients, direction) if names else direction.last_coef
        last = of(bucket.last_state(setup), group["last"]) | (bucket.element_factor if setup.per_element else {})
    norms = setup.norms
    ready = "trace" in tensors or direction.stored  # only dot products of existing tensors
    cheap = not names and not now.get("maximize") and is_zero(now.get("penalty", 0.0)) and (ready or not has_last)
    reads_slope = has_last and setup.rule.adapts_discount and "gradient" in tensors
    fixed = direction, of_step, has_last, tuple((name, norms[name]) for name in ("lr", *names)), reads_slope
    reads_size = has_last and setup.rule.averages
    parts = setup.run(dot_products, tensors, now | last, *fixed, reads_size, cheap=cheap, temporaries=13 if names else 4)
    offset = 0
    for name in ("lr", *names):
        count = 1 + norms[name] * (2 if has_last else 1) + (reads_size and name == "lr")
        scale = 1.0 if name == "lr" else last[f"scale of {name}"]
        yield name, Term(bucket.indices, bucket.spec, scale, [(rows, products[offset : offset + count]) for rows, products in parts])
        offset += count
    if reads_slope:
        yield "slope", Term(bucket.indices, bucket.spec, 1.0, [(rows, products[offset:]) for rows, products in parts])


def dot_products(
    piece: Mapping[str, Any],
    coef: Coefficients,
    direction: Direction,
    of_step: bool,
    has_last: bool,
    hyperparameters: tuple[tuple[str, bool], ...],
    reads_slope: bool,
    reads_size: bool,
) -> list[Any]:
    """The products of a gradient with what the last step left in the state, for one tensor, or for each of a list.

    Args:
        piece: the parameter "p", its gradient "g", its buffers.
        coef: coefficients of the gradient, of the last direction and of its derivatives.
        direction: the optimizer's.
        of_step: whether "g" is the step's gradient, rather than given to ``adapt()``.
        has_last: whether there is a last direction.
        hyperparameters: names, the learning rate first, each with whether norms are needed.
        slope: whether the product with the last gradient is needed.
        reads_size: whether the learning rate's rule reads the norm of the parameters, too.
    """
    g = minimized_gradient(piece, coef, direction, of_step)
    (_, norms), *others = hyperparameters
    if not has_last:  # no last direction: ∇αu_{t-1} = 0
        return [finite_zero(g), dot(g, g)] if norms else [finite_zero(g)]
    step = LAST_STEPS[type(direction)](piece["p"], piece, coef) if others else None
    d = step.d if step and "trace" not in piece else last_direction(piece, coef, direction)

    def pairs() -> "Iterator[tuple[Any, Any, bool]]":  # quoted: torch.compile of torch 2.6 cannot trace the annotation
        yield g, d, norms
        if reads_size:
            yield piece["p"], piece["p"], False
        for name, reads in others:
            # Weight decay minimises the loss without its own penalty.
            loss = signed(piece["g"], coef) if name == "weight_decay" and of_step else g
            assert step is not None
            yield loss, step.derivative(name), reads
        if reads_slope:
            yield g, piece["gradient"], False

    return inner_products(pairs())


def minimized_gradient(piece: Mapping[str, Any], coef: Coefficients, direction: Direction, of_step: bool) -> Any:
    """The gradient of the minimised objective; one given to ``adapt()`` is that already."""
    if not of_step:
        return piece["g"]
    return direction.gradient(piece["g"], None if is_zero(coef["penalty"]) else piece["p"], coef)  # reading "p" of a pack copies it


def last_direction(piece: Mapping[str, Any], coef: Coefficients, direction: Direction) -> Any:
    """d_{t-1}, or the trace of several."""
    if "trace" in piece:
        return piece["trace"]
    return direction.previous(None if is_zero(coef.get("weight_decay", 0.0)) else piece["p"], piece, coef)


def inner_products(pairs: Iterable[tuple[Any, Any, bool]]) -> list[Any]:
    """g · x of each pair, and if norms are needed g · g and x · x; all lists at once, single tensors one after the other."""
    found: list[Any] = []
    lists: list[tuple[Tensors, Tensors]] = []
    last, square = None, None
    for g, x, norms in pairs:
        if isinstance(g, Tensors):
            lists += [(g, x), (g, g), (x, x)] if norms else [(g, x)]
            continue
        found.append(dot(g, x))
        if norms:
            if g is not last or torch.compiler.is_compiling():  # a kernel computes each output anew
                last, square = g, dot(g, g)
            found += [square, dot(x, x)]
        del x  # free it before the next is made
    return list_dots(lists) if lists else found


def adapt_gradients(loss_or_grads: Tensor | Sequence[Tensor | None], groups: Sequence[Group]) -> dict[Tensor, Tensor]:
    """The gradients given to ``adapt()``, as real views, with the sign of the minimised objective.

    Raises:
        ValueError: there is none, or there is not one of a parameter's shape or None for each parameter.
        TypeError: it is neither a tensor nor a sequence of tensors.
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
    with_group = {p: (g, group) for (p, group), g in zip(params, grads, strict=True) if g is not None}
    return {p: signed(real(g), {"maximize": False, **group}) for p, (g, group) in with_group.items()}
