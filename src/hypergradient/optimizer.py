"""The one loop: every dot product, then every learning rate, then every update.

    g_t ──► d_{t-1} ──► h_t = −g_t · d_{t-1} ──► rule(α_{t-1}, h_t) ──► α_t ──► θ_t = θ_{t-1} − α_t d_t

Nothing is written before all learning rates of the step are known. So all tensors of a scope move with one learning rate, and a step
that cannot be made (a gradient that is not finite) leaves no trace.

With a horizon the hypergradient is taken against a trace z of past directions instead of the last alone; under a rule that averages, z is
the way from the parameters to their running average.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .checks import Bounds, check_bounds, check_lr, check_number
from .directions import Direction
from .rules import Additive, Move, Rule
from .scopes import SCOPES, Group, Members, ScopeName
from .tensors import buffer, dot, finite_zero, real, to_floats, total
from .tuning import TuningFree, safe_starts


@dataclass(frozen=True)
class Products:
    """What one tensor adds to its scope: g · d_{t-1}, and the squared norms of both where the rule reads norms."""

    gd: float = 0.0
    gg: float = 0.0
    dd: float = 0.0


class HypergradientOptimizer(torch.optim.Optimizer, ABC):
    """The loop, the scopes and the checkpoints of an optimizer; a final class adds its direction and its signature.

    Attributes:
        hypergradients: h_t of the last step, a float for each scope: one a param group ("group"), one in all ("global"), one a
            tensor in the order of the param groups ("tensor"). Empty before the first step.
        skipped: how many steps were not applied because a gradient or hypergradient was not finite.
    """

    def __init__(
        self,
        params: ParamsT,
        options: Group,
        *,
        hypergrad_lr: float | None,
        default_hypergrad_lr: float,
        rule: Rule | None,
        horizon: float | None,
        scope: ScopeName,
        lr_bounds: Bounds,
    ) -> None:
        params = params if isinstance(params, Tensor) else cast(ParamsT, list(params))
        if rule is not None and hypergrad_lr is not None:
            raise ValueError(f"give hypergrad_lr or rule, not both: got hypergrad_lr={hypergrad_lr!r} and rule={rule!r}")
        if rule is None and hypergrad_lr is None and not any("hypergrad_lr" in group for group in params if isinstance(group, dict)):
            rule = TuningFree()
        if rule is None:
            beta = default_hypergrad_lr if hypergrad_lr is None else hypergrad_lr
            check_number("hypergrad_lr", beta)
            rule = Additive(beta)
        if not isinstance(rule, Rule):
            raise TypeError(f"rule must be a Rule such as Additive(1e-6) or Multiplicative(0.01), got {rule!r}")
        if not isinstance(scope, str) or scope not in SCOPES:
            raise ValueError(f'scope must be "group", "global" or "tensor", got {scope!r}')
        if horizon is not None:
            check_number("horizon", horizon, low=2 if rule.averages else 1)
        self.rule = rule
        self.scope = scope
        self.horizon = horizon
        self.skipped = 0
        self.hypergradients: list[float] = []
        if options["lr"] is None:
            options["lr"] = 0.0 if rule.averages else 1e-3
        super().__init__(params, {**options, "hypergrad_lr": rule.beta, "lr_bounds": lr_bounds})
        if isinstance(options["lr"], Tensor):
            self.defaults["lr"] = options["lr"].clone()  # the first group's own is updated in place; later groups start from this one

    @property
    @abstractmethod
    def direction(self) -> Direction:
        """The closed form that the optimizer steps along."""

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group, which starts with a learning rate of its own and no last direction.

        Args:
            param_group: ``{"params": tensors, option: value, ...}``; any option of the constructor but ``rule``,
                ``horizon`` and ``scope``.

        Raises:
            ValueError: an option is out of its range, or is ``rule``, ``horizon`` or ``scope``.
        """
        options = {**self.defaults, **param_group}
        for name in ("rule", "horizon", "scope"):
            if name in param_group:
                raise ValueError(f"{name} holds for the whole optimizer: give it to the constructor, not to a param group")
        param_group["lr_bounds"] = check_bounds(options["lr_bounds"])
        starts_itself = self.rule.averages and not isinstance(options["lr"], Tensor) and options["lr"] == 0
        check_lr(options["lr"], (None, None) if starts_itself else options["lr_bounds"])
        check_number("hypergrad_lr", options["hypergrad_lr"])
        self.rule.check_lr(float(options["lr"]))
        self.direction.check(options)
        if self.param_groups and options["lr"] is self.defaults["lr"] and isinstance(options["lr"], Tensor):
            param_group["lr"] = options["lr"].clone()
        super().add_param_group(param_group)
        for p in param_group["params"]:
            if p.is_conj():
                self.param_groups.pop()
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is a lazy conjugate, which cannot be updated: resolve_conj() it")
        self._prepare_groups()

    def _prepare_groups(self) -> None:
        """Give each group what the loop needs: the options that another class's checkpoint lacks, and a tensor lr of its own."""
        seen: list[Tensor] = []
        for group in self.param_groups:
            for name in ("hypergrad_lr", "lr_bounds"):
                group.setdefault(name, self.defaults[name])
            if self.rule.remembers:
                group.setdefault("memory", dict.fromkeys(self.rule.remembers, 0.0))
            if self.scope == "global":
                group.setdefault("lr_ratio", float(group["lr"]))
            if isinstance(group["lr"], Tensor):
                if any(group["lr"] is other for other in seen):
                    group["lr"] = group["lr"].clone()
                seen.append(group["lr"])

    def __getstate__(self) -> Group:
        own = ("rule", "scope", "horizon", "skipped", "hypergradients")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)
        self._prepare_groups()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Adapt the learning rates by their hypergradients, then update the parameters with them.

        Args:
            closure: evaluates the model again and returns the loss; called once, with gradients enabled.

        Returns:
            The loss that the closure returned, or None.

        Raises:
            TypeError: a gradient is sparse; nothing has moved then.
            RuntimeError: ``eval()`` was called, and ``train()`` not yet.
        """
        if any("iterate" in state for state in self.state.values()):
            raise RuntimeError("the parameters are the average, for evaluation: call opt.train() before the next step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        products = self._products()
        scopes = SCOPES[self.scope].read(self.param_groups, self.state)
        hypergradients = [self._hypergradient(members, products) for members in scopes]
        finite = all(math.isfinite(x) for x in [*(product.gd for product in products.values()), *(h for h, _, _ in hypergradients)])
        if not finite and self.rule.averages:
            hypergradients = [(math.nan, norm, norm) for _, norm, _ in hypergradients]
        groups = {p: group for group in self.param_groups for p in group["params"]}
        moves = [self._move(members, groups, *h) for members, h in zip(scopes, hypergradients, strict=True)]
        finite = finite and all(math.isfinite(move.alpha) for move in moves)
        if finite:
            self.hypergradients = [h for h, _, _ in hypergradients]
        else:
            self._skip()
        if finite or self.rule.averages:
            self._apply(scopes, moves)
        return loss

    def _products(self) -> dict[Tensor, Products]:
        """The dot products of all tensors that have a gradient, brought to the host together."""
        terms: dict[Tensor, list[Tensor]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.layout is not torch.strided:
                    raise TypeError(
                        f"{type(self).__name__} takes dense gradients, got {p.grad.layout} for a parameter of shape "
                        f"{tuple(p.shape)}: build its layer with sparse=False"
                    )
                terms[p] = self._terms(p, group)
        values = iter(to_floats([term for row in terms.values() for term in row]))
        return {p: Products(*[next(values) for _ in row]) for p, row in terms.items()}

    def _terms(self, p: Tensor, group: Group) -> list[Tensor]:
        g = self.direction.gradient(p, group)
        state = self.state.get(p, {})
        if "trace" in state:
            d = real(state["trace"])
        elif state.get("applied", False):
            d = self.direction.previous(p, state, group["last"])
        else:  # no last direction: ∇αu_{t-1} = 0
            return [finite_zero(g), dot(g, g)] if self.rule.reads_norms else [finite_zero(g)]
        return [dot(g, d), dot(g, g), dot(d, d)] if self.rule.reads_norms else [dot(g, d)]

    def _hypergradient(self, members: Members, products: dict[Tensor, Products]) -> tuple[float, float, float]:
        """h_t = g_t · ∇αu_{t-1} of one scope, ‖g_t‖ and ‖∇αu_{t-1}‖; ∇αu is −r d for a tensor that moved by −r α d."""
        whole = self.rule.averages  # the way to the average is that of the whole update already
        own = [(1.0 if whole else r, products[p]) for p, r in members.last.items() if p in products]
        h = 0.0 - total(r * x.gd for r, x in own)  # 0, not −0, at the first step
        return h, math.sqrt(total(x.gg for _, x in own)), math.sqrt(total(r**2 * x.dd for r, x in own))

    def _move(self, members: Members, groups: Mapping[Tensor, Group], h: float, g_norm: float, d_norm: float) -> Move:
        """What the rule makes of one scope, α_t inside its bounds; what was found there stays where the rule leaves it."""
        alpha, memory = members.alpha, members.memory
        if self.rule.averages and memory["steps"] == 0 and math.isfinite(h):
            low, high = safe_starts(self.direction, members.ratios, groups)
            if low == 0:  # no gradient yet
                return Move(alpha, memory)
            alpha = min(max(alpha, low), high)
        move = self.rule.move(memory, alpha, members.beta, h, g_norm, d_norm)
        low, high = members.bounds
        return move if move.alpha == members.alpha else replace(move, alpha=min(max(move.alpha, low), high))

    def _apply(self, scopes: Sequence[Members], moves: Sequence[Move]) -> None:
        """Update the parameters, the learning rates, and what the rule keeps."""
        alphas: dict[Tensor, float] = {}
        windows: dict[Tensor, float] = {}
        back: set[Tensor] = set()
        for members, move in zip(scopes, moves, strict=True):
            alphas |= {p: r * move.alpha for p, r in members.ratios.items()}
            windows |= dict.fromkeys(members.ratios, self.horizon or move.window)
            back |= set(members.ratios) if move.back else set()
        self._update(alphas, windows, back)
        SCOPES[self.scope].write(self.param_groups, self.state, [move.alpha for move in moves])
        if self.rule.remembers:
            SCOPES[self.scope].remember(self.param_groups, self.state, [move.memory for move in moves])

    def _update(self, alphas: dict[Tensor, float], windows: dict[Tensor, float], back: set[Tensor]) -> None:
        """θ_t = θ_{t-1} − α_t d_t, and what the next hypergradient needs to know of it; tensors in ``back`` return to their average."""
        for group in self.param_groups:
            for p in group["params"]:
                if p in back:
                    if "trace" in self.state.get(p, {}):
                        trace = real(self.state[p]["trace"])
                        real(p).add_(trace)
                        trace.zero_()
                elif p.grad is not None:
                    state = self.state[p]
                    d = self.direction.advance(self.direction.gradient(p, group), p, state, group)
                    real(p).add_(d, alpha=-alphas[p])
                    self._trace(p, d, alphas[p], windows[p])
                if p in self.state:
                    self.state[p].update(lr=alphas[p], applied=p.grad is not None and p not in back)
            group["last"] = {name: group[name] for name in self.direction.remembers}

    def _trace(self, p: Tensor, d: Tensor, alpha: float, window: float) -> None:
        """z_t = (1 − 1/n) z_{t-1} + d_t; under a rule that averages z_t = θ̄_t − θ_t, where θ̄_t = θ̄_{t-1} + (θ_t − θ̄_{t-1}) / n."""
        if window == 1 and not self.rule.averages:
            return
        z = buffer(self.state[p], "trace", p)
        if self.rule.averages:
            z.add_(d, alpha=alpha).mul_(1 - 1 / window)
        else:
            z.mul_(1 - 1 / window).add_(d)

    @torch.no_grad()
    def eval(self) -> None:
        """Put the running average of a rule that averages into the parameters, to evaluate or save the model; ``train()`` takes it back.

        Other rules have no average, and nothing happens. Statistics of batch norm are those of the iterates; after ``eval()``
        ``torch.optim.swa_utils.update_bn(batches, model)`` gives the model the average's.
        """
        for p, state in self.state.items():
            if self.rule.averages and "trace" in state and "iterate" not in state:
                state["iterate"] = p.clone()
                real(p).add_(real(state["trace"]))

    @torch.no_grad()
    def train(self) -> None:
        """Put the parameters back, bit for bit, to go on training after ``eval()``."""
        for p, state in self.state.items():
            if "iterate" in state:
                p.copy_(state.pop("iterate"))

    def summary(self) -> list[dict[str, float]]:
        """What the rule sees, a dict for each scope (see ``hypergradients``): to be printed or logged.

        Returns:
            ``lr`` and ``hypergradient`` of the last step; under ``TuningFree`` also ``signal``, the mean cosine of gradient and way to the
            average of late, ``noise``, its root mean square, ``horizon``, the steps that the average looks over, and ``climbing``, 1.0
            before the learning rate has turned for the first time.
        """
        rows = []
        for members, h in zip(SCOPES[self.scope].read(self.param_groups, self.state), self.hypergradients, strict=False):
            row = {"lr": members.alpha, "hypergradient": h}
            rows.append(row | self.rule.summary(members.memory) | ({"horizon": self.horizon} if self.horizon else {}))
        return rows

    def _skip(self) -> None:
        self.skipped += 1
        if self.skipped == 1:
            warnings.warn(
                f"{type(self).__name__} skipped a step: a gradient or hypergradient was not finite. "
                + ("Parameters went back to their average" if self.rule.averages else "Parameters and learning rate stay as they were")
                + "; opt.skipped counts such steps, and this is the only warning",
                stacklevel=5,  # the caller of step(), seen through torch's two wrappers
            )
