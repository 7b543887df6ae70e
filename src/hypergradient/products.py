"""The dot products that hypergradients are made of: g_t · ∂θ_{t-1}/∂φ, tensor by tensor, for every hyperparameter that moves."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .directions import Direction, Numbers, signed
from .fused import Runner
from .hyperparameters import LAST_STEPS, LastStep, known
from .rules import Rule
from .scopes import Group, State
from .tensors import BLOCK, SMALL, dot, finite_zero, real, to_floats, total


@dataclass(frozen=True)
class Products:
    """What one tensor adds to a hypergradient: g · x, and the squared norms of both where the rule reads norms; −x is the derivative."""

    gx: float = 0.0
    gg: float = 0.0
    xx: float = 0.0


def weigh(rows: Sequence[tuple[float, Products]]) -> tuple[float, float, float]:
    """h = −Σ w g·x, ‖g‖ and ‖w x‖ of tensors that moved by −w x for each unit of a hyperparameter."""
    h = 0.0 - total(w * x.gx for w, x in rows)  # 0, not −0, at the first step
    return h, math.sqrt(total(x.gg for _, x in rows)), math.sqrt(total(w**2 * x.xx for w, x in rows))


@dataclass(frozen=True)
class Bundle:
    """Tensors that go through a step as one: a large one, or small ones of a param group that differ in their elements alone."""

    params: list[Tensor]
    group: Group


@dataclass(frozen=True)
class Gradients:
    """The gradients of a step, and how they meet what the last one has left.

    Args:
        direction: that of the optimizer.
        groups: its param groups.
        state: its state.
        run: does the elementwise work.
        apart: whether each tensor has learning rates of its own, so that no two make a bundle.
        elements: whether each element has one, in the state's "lr".
        given: the gradients that ``adapt()`` was given; None for those of ``step()``, in ``p.grad``.
    """

    direction: Direction
    groups: Sequence[Group]
    state: State
    run: Runner
    apart: bool = False
    elements: bool = False
    given: Mapping[Tensor, Tensor] | None = None

    @property
    def buffers(self) -> tuple[str, ...]:
        """What the state of a tensor may have of its shape, that a step reads or writes."""
        return (*self.direction.buffers, "gradient", "trace", *(("lr",) if self.elements else ()))

    def of(self, p: Tensor) -> Tensor | None:
        """The gradient of a parameter."""
        return p.grad if self.given is None else self.given.get(p)

    def tensors(self) -> Iterator[tuple[Tensor, Group]]:
        """The parameters that have a gradient, with their param groups."""
        for group in self.groups:
            for p in group["params"]:
                if self.of(p) is not None:
                    yield p, group

    def check(self) -> None:
        """Raise TypeError where a gradient is sparse."""
        for p, _ in self.tensors():
            g = self.of(p)
            if g is not None and g.layout is not torch.strided:
                raise TypeError(
                    f"hypergradients take dense gradients, got {g.layout} for a parameter of shape {tuple(p.shape)}: "
                    "build its layer with sparse=False"
                )

    def bundles(self) -> list[Bundle]:
        """The parameters that have a gradient, small ones together."""
        names, counts = self.buffers, ("lr", "applied", *self.direction.counts)
        found: list[Bundle] = []
        filling: dict[Any, tuple[Bundle, int]] = {}
        for p, group in self.tensors():
            size = p.numel()
            if self.apart or size >= SMALL:
                found.append(Bundle([p], group))
                continue
            state, g = self.state.get(p, {}), self.of(p)
            alike = id(group), p.dtype, p.device, cast(Tensor, g).dtype, *[name in state for name in names], *map(state.get, counts)
            bundle, filled = filling.get(alike, (None, 0))
            if bundle is None or filled + size > BLOCK:
                bundle, filled = Bundle([], group), 0
                found.append(bundle)
            bundle.params.append(p)
            filling[alike] = bundle, filled + size
        return found

    def split(self, bundle: Bundle) -> dict[str, list[Tensor]]:
        """The real views of a bundle's tensors: the parameters "p", the gradients "g", the buffers that they have by name."""
        first = self.state.get(bundle.params[0], {})
        columns = {name: [real(self.state[p][name]) for p in bundle.params] for name in self.buffers if first.get(name) is not None}
        return {"p": [real(p) for p in bundle.params], "g": [real(cast(Tensor, self.of(p))) for p in bundle.params], **columns}

    def products(self, rules: Mapping[str, Rule], adapts: bool) -> dict[str, dict[Tensor, Products]]:
        """For each hyperparameter with its rule, those of all bundles, by their first tensors, brought to the host together.

        Where nothing ``adapts``, they are 0, or NaN where a gradient is not finite.
        """
        terms: dict[tuple[str, Tensor], list[tuple[float, list[Tensor]]]] = {}
        for bundle in self.bundles():
            for name, scale, row in self._terms(bundle, rules, adapts):
                terms.setdefault((name, bundle.params[0]), []).append((scale, row))
        values = iter(to_floats([x for pieces in terms.values() for _, row in pieces for x in row]))
        products: dict[str, dict[Tensor, Products]] = {name: {} for name in rules}
        for (name, p), pieces in terms.items():
            scale = pieces[0][0]
            sums = [total(column) for column in zip(*([next(values) for _ in row] for _, row in pieces), strict=True)]
            products[name][p] = Products(scale * sums[0], *(x * k for x, k in zip(sums[1:], (1.0, scale**2), strict=False)))
        return products

    def _terms(self, bundle: Bundle, rules: Mapping[str, Rule], adapts: bool) -> Iterator[tuple[str, float, list[Tensor]]]:
        """For each hyperparameter k and g · x, piece by piece, and g · g and x · x where its rule reads norms: ∂θ/∂φ = −α k x."""
        tensors, group = self.split(bundle), bundle.group
        state = self.state.get(bundle.params[0], {})
        applied = state.get("applied", False)
        moved = adapts and (applied or "trace" in tensors)
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
        fixed = self.direction, self.given is None, moved, kind, tuple((name, norms[name]) for name in ("lr", *names))
        for scalars in self.run(meet, tensors, now | last, *fixed):
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
