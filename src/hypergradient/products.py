"""The dot products that hypergradients are made of: g_t · ∂θ_{t-1}/∂φ, tensor by tensor, for every hyperparameter that moves."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .directions import Direction, Numbers, signed
from .fused import Runner
from .hyperparameters import LAST_STEPS, LastStep, known
from .numbers import Number, sqrt, total
from .rules import Rule
from .scopes import Group, ScopeName, State
from .tensors import dot, finite_zero, is_zero, real, to_numbers


@dataclass(frozen=True)
class Products:
    """What one tensor adds to a hypergradient: g · x, and the squared norms of both where the rule reads norms; −x is the derivative."""

    gx: Number = 0.0
    gg: Number = 0.0
    xx: Number = 0.0


def weigh(rows: Sequence[tuple[Number, Products]]) -> tuple[Any, Any, Any]:
    """h = −Σ w g·x, ‖g‖ and ‖w x‖ of tensors that moved by −w x for each unit of a hyperparameter."""
    h = 0.0 - total(w * x.gx for w, x in rows)  # 0, not −0, at the first step
    return h, sqrt(total(x.gg for _, x in rows)), sqrt(total(w**2 * x.xx for w, x in rows))


@dataclass(frozen=True)
class Bundle:
    """Tensors of a param group that go through a step as one, since they differ in their elements alone.

    Args:
        group: their param group.
        params: the parameters.
        grads: their gradients.
        states: their states, which ``split`` reads as they are then; empty for those that have none yet.
        buffers: what a state may have of its tensor's shape, that a step reads or writes.
    """

    group: Group
    params: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Any]]
    buffers: tuple[str, ...]

    def split(self) -> dict[str, list[Tensor]]:
        """Real views: the parameters "p", the gradients "g", and those of the buffers that they have, by name."""
        held = [name for name in self.buffers if self.states[0].get(name) is not None]  # torch.optim.SGD keeps None for one not yet used
        columns = {"p": self.params, "g": self.grads, **{name: [state[name] for state in self.states] for name in held}}
        return {name: list(map(real, column)) for name, column in columns.items()} if self.params[0].is_complex() else columns


class Gradients:
    """The gradients of a step, and how they meet what the last one has left.

    Args:
        direction: that of the optimizer.
        groups: its param groups.
        state: its state.
        run: does the elementwise work.
        scope: each tensor has a learning rate of its own under "tensor", each element under "element", in the state's "lr".
        given: the gradients that ``adapt()`` was given; None for those of ``step()``, in ``p.grad``.
        on_device: whether the products stay on the device.

    Raises:
        TypeError: a gradient is sparse.
    """

    def __init__(
        self,
        direction: Direction,
        groups: Sequence[Group],
        state: State,
        run: Runner,
        scope: ScopeName,
        given: Mapping[Tensor, Tensor] | None = None,
        on_device: bool = False,
    ) -> None:
        self.direction, self.run, self.given, self.on_device = direction, run, given, on_device
        self.apart = scope in ("tensor", "element")
        self.buffers = (*direction.buffers, "gradient", "trace", *(("lr",) if scope == "element" else ()))
        self.rows: list[tuple[Group, Tensor, Tensor, dict[str, Any]]] = []
        for group in groups:
            for p in group["params"]:
                g = p.grad if given is None else given.get(p)
                if g is None:
                    continue
                if g.layout is not torch.strided:
                    raise TypeError(
                        f"hypergradients take dense gradients, got {g.layout} for a parameter of shape {tuple(p.shape)}: "
                        "build its layer with sparse=False"
                    )
                self.rows.append((group, p, g, state.get(p, {})))

    def bundles(self, kept: Container[Tensor] = ()) -> list[Bundle]:
        """All of them; those whose gradients are to be ``kept`` are not put with others."""
        numbers = ("lr", "applied", *self.direction.counts)
        found: dict[Any, Bundle] = {}
        for group, p, g, state in self.rows:
            alike: Any = p
            if not self.apart:
                held, marks = map(state.__contains__, self.buffers), map(state.get, numbers)
                alike = id(group), p.dtype, p.device, g.dtype, bool(kept) and p in kept, *held, *marks
            if alike not in found:
                found[alike] = Bundle(group, [], [], [], self.buffers)
            bundle = found[alike]
            bundle.params.append(p)
            bundle.grads.append(g)
            bundle.states.append(state)
        return list(found.values())

    def products(self, bundles: Sequence[Bundle], rules: Mapping[str, Rule], adapts: bool) -> dict[str, dict[Tensor, Products]]:
        """For each hyperparameter with its rule, those of all bundles, by their first tensors, brought to the host together or left there.

        Where nothing ``adapts``, they are 0, or NaN where a gradient is not finite.
        """
        terms: dict[tuple[str, Tensor], list[tuple[float, list[Tensor]]]] = {}
        for bundle in bundles:
            for name, scale, row in self._terms(bundle, rules, adapts):
                terms.setdefault((name, bundle.params[0]), []).append((scale, row))
        values = iter(to_numbers([x for pieces in terms.values() for _, row in pieces for x in row], self.on_device))
        products: dict[str, dict[Tensor, Products]] = {name: {} for name in rules}
        for (name, p), pieces in terms.items():
            scale = pieces[0][0]
            sums = [total(column) for column in zip(*([next(values) for _ in row] for _, row in pieces), strict=True)]
            products[name][p] = Products(scale * sums[0], *(x * k for x, k in zip(sums[1:], (1.0, scale**2), strict=False)))
        return products

    def _terms(self, bundle: Bundle, rules: Mapping[str, Rule], adapts: bool) -> Iterator[tuple[str, float, list[Tensor]]]:
        """For each hyperparameter k and g · x, piece by piece, and g · g and x · x where its rule reads norms: ∂θ/∂φ = −α k x."""
        tensors, group, state = bundle.split(), bundle.group, bundle.states[0]
        applied = state.get("applied", False)
        unsure = isinstance(applied, Tensor)  # which the device alone knows
        moved = adapts and (unsure or applied or "trace" in tensors)
        others = [name for name in rules if name != "lr"]
        names = known(self.direction, others, state, group["last"]) if others and adapts and applied else []
        now = {} if self.given is not None else self.direction.objective(group)
        kind = LAST_STEPS[type(self.direction)] if names else None
        last: Numbers = {}
        if kind is not None:
            last = kind.numbers(self.direction, state, group["last"])
        elif moved and "trace" not in tensors:
            last = self.direction.last_numbers(state, group["last"])
        norms = {name: rule.reads_norms for name, rule in rules.items()}
        ready = "trace" in tensors or self.direction.stored  # no work but dot products of tensors that there are
        light = not names and not now.get("maximize") and is_zero(now.get("penalty", 0.0)) and (ready or not moved)
        fixed = self.direction, self.given is None, moved, kind, tuple((name, norms[name]) for name in ("lr", *names))
        for scalars in self.run(meet, tensors, now | last, *fixed, light=light):
            if unsure and "trace" not in tensors:
                scalars = [torch.where(applied > 0, x, 0 * x) for x in scalars]
            rows = iter(scalars)
            for name in ("lr", *names):
                scale = 1.0 if name == "lr" else last[f"scale of {name}"]
                yield name, scale, [next(rows) for _ in range(1 + norms[name] * (2 if moved else 1))]


def meet(
    piece: Mapping[str, Tensor],
    numbers: Numbers,
    direction: Direction,
    own: bool,
    moved: bool,
    kind: type[LastStep] | None,
    rules: tuple[tuple[str, bool], ...],
) -> list[Tensor]:
    """The products of a gradient with what the last step has left of one tensor.

    Args:
        piece: the parameter "p", its gradient "g", its buffers.
        numbers: coefficients of the gradient, of the last direction and of its derivatives.
        direction: that of the optimizer.
        own: whether "g" is the gradient of the step, rather than one that ``adapt()`` was given.
        moved: whether there is a last direction.
        kind: what tells the derivatives by other hyperparameters than the learning rate; None where there are none.
        rules: the hyperparameters, the learning rate first, each with whether its rule reads norms.
    """
    g = objective(piece, numbers, direction, own)
    (_, norms), *others = rules
    if not moved:  # no last direction: ∇αu_{t-1} = 0
        return [finite_zero(g), dot(g, g)] if norms else [finite_zero(g)]
    step = kind(piece["p"], piece, numbers) if kind is not None else None
    d = step.d if step and "trace" not in piece else last_direction(piece, numbers, direction)
    scalars = inner(g, d, norms)
    for name, reads in others:
        # What weight decay is to minimise is the loss without the penalty that it makes.
        loss = signed(piece["g"], numbers) if name == "weight_decay" and own else g
        scalars += inner(loss, cast(LastStep, step).by(name), reads)
    return scalars


def objective(piece: Mapping[str, Tensor], numbers: Numbers, direction: Direction, own: bool) -> Tensor:
    """What is minimised along; what ``adapt()`` was given is that itself."""
    return direction.gradient(piece["g"], piece["p"], numbers) if own else piece["g"]


def last_direction(piece: Mapping[str, Tensor], numbers: Numbers, direction: Direction) -> Tensor:
    """d_{t-1}, or the trace of several."""
    return piece["trace"] if "trace" in piece else direction.previous(piece["p"], piece, numbers)


def inner(g: Tensor, x: Tensor, norms: bool) -> list[Tensor]:
    """g · x, and with ``norms`` also g · g and x · x."""
    return [dot(g, x), dot(g, g), dot(x, x)] if norms else [dot(g, x)]


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
