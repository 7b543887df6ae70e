"""The one loop: every dot product, then every hyperparameter, then every update.

    g_t ──► d_{t-1} ──► h_t = −g_t · d_{t-1} ──► rule(α_{t-1}, h_t) ──► α_t ──► θ_t = θ_{t-1} − α_t d_t

Nothing is written before all hyperparameters of the step are known. So all tensors of a scope move with one learning rate, and a step
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

from .checks import Bounds, check_bounds, check_lr, check_number, ends
from .directions import SGD, Adam, Direction, Numbers
from .fused import READ_ONLY, Runner
from .hyperparameters import HYPERPARAMETERS, check_adapt, check_values, kept_gradient, spread
from .kept import KeptGradients
from .numbers import Truth, clip, every, finite, no, number, put, where, wide
from .products import Bundle, Gradients, Products, given_gradients, last_direction, objective, weigh
from .rules import Additive, Level, Move, Rule
from .scopes import SCOPES, Group, Members, ScopeName, read_lrs
from .tensors import SMALL, add_scaled, blocks, finite_zero, make_buffer, real, to_floats
from .tuning import TuningFree, first_steps, safe_starts

#: Steps in which ``capturable`` looks for a safe start, since the host does not know whether there has been a gradient.
BEGINS = 3


@dataclass(frozen=True)
class Plan:
    """What a step makes of the hyperparameters: of the learning rates scope by scope or element by element, of all others by group.

    ``bundles`` are the tensors that it moves, ``kept`` those whose gradients are kept for the next.
    """

    bundles: list[Bundle]
    kept: set[Tensor]
    scopes: list[Members]
    h: list[float]
    moves: list[Move]
    others_h: list[dict[str, float]]
    others: list[dict[str, Move]]
    elements: dict[Tensor, Tensor]
    finite: Any


class HypergradientOptimizer(torch.optim.Optimizer, ABC):
    """The loop, the scopes and the checkpoints of an optimizer; a final class adds its direction and its signature.

    Attributes:
        hypergradients: h_t of the learning rates in the last step, a float for each scope: one a param group ("group"), one in all
            ("global"), one a tensor in the order of the param groups ("tensor", "element"). Empty before the first step.
        other_hypergradients: ∂f/∂φ of the other hyperparameters in ``adapt``, a dict for each param group, by name: "momentum",
            "weight_decay", "beta1", "beta2", "eps".
        skipped: how many steps were not applied because a gradient or hypergradient was not finite. Under ``capturable`` it and the
            hypergradients are tensors.
    """

    def __init__(
        self,
        params: ParamsT,
        options: Group,
        *,
        hypergrad_lr: float | None,
        default_hypergrad_lr: float,
        rule: Rule | None,
        adapt: Mapping[str, Any] | None = None,
        bounds: Mapping[str, Any] | None = None,
        horizon: float | None,
        scope: ScopeName,
        lr_bounds: Bounds,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        params = params if isinstance(params, Tensor) else cast(ParamsT, list(params))
        rules = spread("adapt", {} if adapt is None else adapt, self.direction, type(self).__name__)
        if rule is not None and hypergrad_lr is not None:
            raise ValueError(f"give hypergrad_lr or rule, not both: got hypergrad_lr={hypergrad_lr!r} and rule={rule!r}")
        if "lr" in rules and (rule is not None or hypergrad_lr is not None):
            raise ValueError(
                f'give the rule of the learning rate once, by rule, hypergrad_lr or adapt["lr"], got adapt["lr"]={rules["lr"]!r} too'
            )
        rule = rules.pop("lr", rule)
        if rule is None and hypergrad_lr is None:
            if adapt is not None:  # which names what moves
                rule = Additive(0.0)
            elif not any("hypergrad_lr" in group for group in params if isinstance(group, dict)):
                rule = TuningFree()
        if rule is None:
            beta = default_hypergrad_lr if hypergrad_lr is None else hypergrad_lr
            check_number("hypergrad_lr", beta)
            rule = Additive(beta)
        if not isinstance(rule, Rule):
            raise TypeError(f"rule must be a Rule such as Additive(1e-6) or Multiplicative(0.01), got {rule!r}")
        if not isinstance(scope, str) or scope not in SCOPES:
            raise ValueError(f'scope must be "group", "global", "tensor" or "element", got {scope!r}')
        if scope == "element" and (not isinstance(rule, Level) or rule.fresh()):
            raise ValueError(f'scope="element" takes Additive or Multiplicative with a constant beta, got {rule!r}')
        if horizon is not None:
            check_number("horizon", horizon, low=2 if rule.averages else 1)
        if capturable and (rules or scope == "element"):
            what = 'scope="element"' if scope == "element" else f"adapt={sorted(rules)}"
            raise ValueError(f"capturable=True keeps learning rates of groups and tensors on the device, got {what}: leave one of both out")
        self.capturable = capturable
        self.rule = rule
        self.adapted: dict[str, Level] = rules
        self.bounds = check_adapt(rules, spread("bounds", {} if bounds is None else bounds, self.direction, type(self).__name__))
        self.scope = scope
        self.horizon = horizon
        self.run = Runner(bool(fused))
        self.kept = KeptGradients()
        self.skipped: Any = 0
        self.begun = 0
        self.warned = False
        self.hypergradients: list[float] = []
        self.other_hypergradients: list[dict[str, float]] = []
        if options["lr"] is None:
            options["lr"] = 0.0 if rule.averages else 1e-3
        super().__init__(params, {**options, "hypergrad_lr": rule.first_beta, "lr_bounds": lr_bounds})
        if isinstance(options["lr"], Tensor):
            self.defaults["lr"] = options["lr"].clone()  # the first group's own is updated in place; later groups start from this one

    @property
    @abstractmethod
    def direction(self) -> Direction:
        """The closed form that the optimizer steps along."""

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group, which starts with a learning rate of its own and no last direction.

        Args:
            param_group: ``{"params": tensors, option: value, ...}``; any option of the constructor but ``rule``, ``adapt``,
                ``bounds``, ``horizon``, ``scope``, ``fused`` and ``capturable``.

        Raises:
            ValueError: an option is out of its range, or is one of the first five of those.
        """
        options = {**self.defaults, **param_group}
        for name in ("rule", "adapt", "bounds", "horizon", "scope"):
            if name in param_group:
                raise ValueError(f"{name} holds for the whole optimizer: give it to the constructor, not to a param group")
        param_group["lr_bounds"] = check_bounds(options["lr_bounds"])
        starts_itself = self.rule.averages and not isinstance(options["lr"], Tensor) and options["lr"] == 0
        check_lr(options["lr"], (None, None) if starts_itself else options["lr_bounds"])
        check_number("hypergrad_lr", options["hypergrad_lr"])
        self.rule.check_lr(float(options["lr"]))
        self.direction.check(options)
        check_values(self.bounds, options)
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
            group.setdefault("step_adapts", True)
            if self.capturable and not isinstance(group["lr"], Tensor):
                device = group["params"][0].device if group["params"] else torch.device("cpu")
                group["lr"] = torch.tensor(float(group["lr"]), dtype=wide(device), device=device)
            if "last" in group:  # of the wrapper's checkpoint, which remembers nothing
                group["last"] = {name: group[name] for name in self.direction.remembers} | group["last"]
            for name, fresh in (("memory", self.rule.fresh()), ("adapted", self._fresh())):
                if fresh:
                    group[name] = fresh | {key: value for key, value in group.get(name, {}).items() if key in fresh}
            if self.scope == "global":
                group.setdefault("lr_ratio", number(group["lr"], self.capturable))
            if isinstance(group["lr"], Tensor):
                if any(group["lr"] is other for other in seen):
                    group["lr"] = group["lr"].clone()
                seen.append(group["lr"])

    def _fresh(self) -> dict[str, float]:
        """What the rules of the other hyperparameters keep in a param group: β and memory of each, by "name.key"."""
        return {
            f"{name}.{key}": value
            for name, rule in self.adapted.items()
            for key, value in ({"hypergrad_lr": rule.first_beta} | rule.fresh()).items()
        }

    def __getstate__(self) -> Group:
        own = (
            "run",
            "capturable",
            "rule",
            "adapted",
            "bounds",
            "scope",
            "horizon",
            "skipped",
            "warned",
            "hypergradients",
            "other_hypergradients",
        )
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)
        self.kept, self.begun = KeptGradients(), 0
        self._prepare_groups()
        for group in self.param_groups:
            if isinstance(self.direction, SGD | Adam):  # a base's is its own
                group["capturable"] = self.capturable
            self._read_numbers(group)
            read_lrs(group, self.state, self.scope == "element")

    def _read_numbers(self, group: Group) -> None:
        """Bring the numbers of a checkpoint to the host, unless they are to stay on the device."""
        if self.capturable:
            return
        states = [(self.state.get(p, {}), self._is_number) for p in group["params"]]
        for holder, has in [(group, ("hypergrad_lr", "lr_ratio").__contains__), (group.get("memory", {}), bool), *states]:
            for name, value in holder.items():
                if has(name) and isinstance(value, Tensor) and value.dim() == 0:
                    holder[name] = bool(value) if name == "applied" else value.item()

    def _is_number(self, name: str) -> bool:
        """Whether it is a number that the loop keeps of a tensor."""
        return name in ("lr", "hypergrad_lr", "applied", *self.direction.counts) or name.startswith("memory_")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the state of such an optimizer, as torch.optim's does.

        Args:
            state_dict: what ``state_dict()`` of such an optimizer has given, or of torch's own that it stands for.
        """
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(ids, params, strict=True):
            for name, value in state_dict["state"].get(i, {}).items():  # torch has rounded numbers to the dtype of the parameter
                if self.capturable and isinstance(value, Tensor) and value.dim() == 0 and self._is_number(name) and name != "step":
                    self.state[p][name] = value.to(p.device, wide(p.device), copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Adapt the hyperparameters by their hypergradients, then update the parameters with them.

        Once ``adapt()`` has been called it is that which adapts them, and this updates the parameters alone, until
        ``group["step_adapts"]`` is set to True again.

        Args:
            closure: evaluates the model again and returns the loss; called once, with gradients enabled.

        Returns:
            The loss that the closure returned, or None.

        Raises:
            TypeError: a gradient is sparse; nothing has moved then.
            RuntimeError: ``eval()`` was called, and ``train()`` not yet.
        """
        self._check_training()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan = self._plan(None)
        if self.capturable:
            self._count_skipped(plan.finite)
            before = self.hypergradients if len(self.hypergradients) == len(plan.h) else plan.h
            self.hypergradients = [where(plan.finite, h, old) for h, old in zip(plan.h, before, strict=True)]
        elif plan.finite:
            self._warn_of_decay(plan)
            self._adapt_others(plan)
        else:
            self._skip(stacklevel=5)  # the caller, seen through torch's two wrappers
        if self.capturable or plan.finite or self.rule.averages:
            self._apply(plan)
        return loss

    @torch.no_grad()
    def adapt(self, loss_or_grads: Tensor | Sequence[Tensor | None]) -> None:
        """Adapt the hyperparameters by the hypergradient of another quantity than the training loss, such as the loss on validation data.

            h = ∇F(θ_t) · ∂θ_t/∂φ

        Call it between two steps. From the first call on ``step()`` leaves the hyperparameters to it; they stay where it is not called.

        Args:
            loss_or_grads: a scalar F, made of the parameters as they are now, or its gradients, one a parameter in the order of the
                param groups, None where F does not depend on it. ``p.grad`` is neither read nor written. F is minimised; where a param
                group has ``maximize=True``, maximised.

        Raises:
            ValueError: there is no gradient in it, or not one of a parameter's shape for each.
            TypeError: the rule averages (``TuningFree``), and so must see the gradients that steps are made of.
            RuntimeError: ``eval()`` was called, and ``train()`` not yet.

        Examples:
            >>> import torch
            >>> from hypergradient import Additive, SGDHD
            >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
            >>> opt = SGDHD([w], lr=0.1, weight_decay=0.1, adapt={"weight_decay": Additive(1.0)})
            >>> for _ in range(10):
            ...     opt.adapt(((w - 0.2) ** 2).sum())  # on validation data
            ...     opt.zero_grad()
            ...     (w**2).sum().backward()  # on training data
            ...     opt.step()
            >>> opt.param_groups[0]["lr"], opt.param_groups[0]["weight_decay"] != 0.1
            (0.1, True)
        """
        self._check_training()
        if self.rule.averages:
            raise TypeError(
                f"adapt() takes Additive or Multiplicative; {self.rule!r} must see the gradients of the steps: leave adapt() out"
            )
        plan = self._plan(given_gradients(loss_or_grads, self.param_groups))
        if self.capturable or plan.finite:
            self._adapt_others(plan)
            self._write_elements(plan)
            SCOPES[self.scope].write(self.param_groups, self.state, plan.moves)
        else:
            self._skip(stacklevel=4)
        for group in self.param_groups:
            group["step_adapts"] = False

    def _check_training(self) -> None:
        if any("iterate" in state for state in self.state.values()):
            raise RuntimeError("the parameters are the average, for evaluation: call opt.train() before the next step")

    def _gradients(self, given: Mapping[Tensor, Tensor] | None = None) -> Gradients:
        return Gradients(self.direction, self.param_groups, self.state, self.run, self.scope, given, self.capturable)

    def _plan(self, given: Mapping[Tensor, Tensor] | None) -> Plan:
        """The new hyperparameters; nothing is written. Without gradients of its own a step after adapt() only asks whether it is finite."""
        adapts = given is not None or all(group["step_adapts"] for group in self.param_groups)
        gradients = self._gradients(given)
        kept = self._look_after(gradients)
        bundles = gradients.bundles(kept)
        products = gradients.products(bundles, {"lr": self.rule, **self.adapted}, adapts)
        scopes = SCOPES[self.scope].read(self.param_groups, self.state, self.capturable)
        found = [self._hypergradient(members, products["lr"]) for members in scopes]
        h = [row[0] for row in found]
        ok = every([finite(x) for x in [*h, *(row.gx for rows in products.values() for row in rows.values())]])
        if not adapts:
            stay = [Move(members.alpha, members.memory) for members in scopes]
            return Plan(bundles, kept, scopes, self.hypergradients, stay, [], [], {}, ok)
        if self.rule.averages:  # no scope goes on where one cannot
            found = [(where(ok, x, math.nan), *norms) for x, *norms in found]
        starts = self._starts(scopes)
        moves = [self._move(members, starts, *row) for members, row in zip(scopes, found, strict=True)]
        others = [self._others(group, products) for group in self.param_groups]
        others_h = [{name: row[0] for name, (row, _) in both.items()} for both in others]
        other_moves = [{name: move for name, (_, move) in both.items()} for both in others]
        largest = min(torch.finfo(dtype).max for dtype in {p.dtype for group in self.param_groups for p in group["params"]})
        ok &= every([(abs(move.alpha) <= largest) & move.finite for move in moves])
        ok &= every([move.finite for group in other_moves for move in group.values()])
        elements = self._elements(gradients, bundles) if self.scope == "element" else {}
        ok &= all(map(math.isfinite, to_floats([finite_zero(lr) for lr in elements.values()])))
        if not self.rule.averages:
            moves = [move.or_else(ok, Move(x.alpha, x.memory, beta=x.beta)) for x, move in zip(scopes, moves, strict=True)]
        return Plan(bundles, kept, scopes, h, moves, others_h, other_moves, elements, ok)

    def _look_after(self, gradients: Gradients) -> set[Tensor]:
        """Forget the directions that were gradients and have been changed, and tell which gradients of this step can be kept."""
        themselves = {id(group): self.direction.is_gradient(group) for group in self.param_groups}
        rows = [(p, state) for group, p, _, state in gradients.rows if themselves[id(group)]]
        changed = [state for p, state in rows if self.kept.changed(p, state)]
        for state in changed:
            state["applied"] = False
        if changed:
            warnings.warn(
                f"the gradients of {len(changed)} parameters were changed after a step that kept them, since zero_grad() had set them to "
                "None before: they do not count in this step's hypergradient, and are copied from now on",
                stacklevel=6,
            )
        if gradients.given is not None or self.capturable:  # a CUDA graph knows tensors by their place
            return set()
        return {p for p, _ in rows if p.numel() >= SMALL and self.kept.take(p)}  # small ones are copied together

    def _hypergradient(self, members: Members, products: dict[Tensor, Products]) -> tuple[Any, Any, Any]:
        """h_t = g_t · ∇αu_{t-1} of one scope, ‖g_t‖ and ‖∇αu_{t-1}‖; ∇αu is −r d for a tensor that moved by −r α d."""
        whole = self.rule.averages  # the way to the average is that of the whole update already
        fewer, more = sorted((products, members.last), key=len)
        return weigh([(1.0 if whole else members.last[p], products[p]) for p in fewer if p in more])

    def _starts(self, scopes: Sequence[Members]) -> dict[Tensor, tuple[float, float, float]] | None:
        """What a safe first learning rate is computed from, where a rule asks for one."""
        if not self.rule.averages:
            return None
        self.begun += 1
        if self.begun > BEGINS if self.capturable else all(x.memory["steps"] for x in scopes):
            return None
        return first_steps(self.direction, {p: group for group in self.param_groups for p in group["params"]}, self.capturable)

    def _move(
        self, members: Members, starts: Mapping[Tensor, tuple[float, float, float]] | None, h: float, g_norm: float, d_norm: float
    ) -> Move:
        """What the rule makes of one scope, α_t inside its bounds; what was found there stays where the rule leaves it."""
        alpha, memory = members.alpha, members.memory
        if self.scope == "element":
            return Move(alpha, memory)
        begins: Truth = False
        if starts is not None:
            low, high = safe_starts(starts, members.ratios)
            begins = (memory["steps"] == 0) & finite(h)
            alpha = where(begins & (low > 0), clip(alpha, low, high), alpha)
            begins &= low == 0  # no gradient yet
        move = self.rule.move(memory, alpha, members.beta, h, g_norm, d_norm).or_else(no(begins), Move(alpha, memory))
        stays = move.alpha == members.alpha
        return replace(move, alpha=where(stays, move.alpha, clip(move.alpha, *members.bounds)))

    def _others(self, group: Group, products: dict[str, dict[Tensor, Products]]) -> dict[str, tuple[tuple[float, float, float], Move]]:
        """For each other hyperparameter of a param group h, ‖g‖ and ‖∂θ/∂φ‖, and what its rule makes of them: ∂θ/∂φ = −α ∂d/∂φ."""
        found = {}
        members = set(group["params"]) if self.adapted else ()
        for name, rule in self.adapted.items():
            rows = [(p, x) for p, x in products[name].items() if p in members]
            own = weigh([(1.0 if self.scope == "element" else self.state[p]["lr"], x) for p, x in rows])
            kept = {key.removeprefix(f"{name}."): value for key, value in group["adapted"].items() if key.startswith(f"{name}.")}
            beta = kept.pop("hypergrad_lr")
            value = HYPERPARAMETERS[name].read(group)
            found[name] = own, HYPERPARAMETERS[name].move(rule, kept, value, beta, *own, self.bounds[name])
        return found

    def _adapt_others(self, plan: Plan) -> None:
        """Write what was planned for the other hyperparameters."""
        self.hypergradients = plan.h
        if not plan.others:
            return
        self.other_hypergradients = plan.others_h if self.adapted else []
        for group, moves in zip(self.param_groups, plan.others, strict=True):
            for name, move in moves.items():
                HYPERPARAMETERS[name].write(group, move.alpha)
                kept = move.memory | ({} if move.beta is None else {"hypergrad_lr": move.beta})
                group["adapted"] = group["adapted"] | {f"{name}.{key}": value for key, value in kept.items()}

    def _elements(self, gradients: Gradients, bundles: Sequence[Bundle]) -> dict[Tensor, Tensor]:
        """α of each element, of its own h = −g d: the product of two numbers, whose cosine is its sign."""
        rule = cast(Any, self.rule)  # elementwise, tensors stand for floats
        found = {}
        for bundle in bundles:
            (p,), (state,), group = bundle.params, bundle.states, bundle.group
            tensors = {name: x for name, (x,) in bundle.split().items()}
            if "trace" not in tensors and not state.get("applied", False):
                continue
            found[p] = tensors["lr"].clone()
            own = gradients.given is None
            now = self.direction.objective(group) if own else {}
            last = {} if "trace" in tensors else self.direction.last_numbers(state, group["last"])
            wide = torch.promote_types(found[p].dtype, torch.float32)  # in float16 g d is soon infinite, or 0
            for piece in blocks(tensors | {"new": found[p]}):
                h = -(objective(piece, now, self.direction, own).to(wide) * last_direction(piece, last, self.direction))
                moved = rule(piece["lr"].to(wide), group["hypergrad_lr"], h.sign() if rule.reads_norms else h, 1.0, 1.0)
                piece["new"].copy_(clip(moved, *ends(group["lr_bounds"])))
        return found

    def _write_elements(self, plan: Plan) -> None:
        for p, lr in plan.elements.items():
            real(self.state[p]["lr"]).copy_(lr)

    def _apply(self, plan: Plan) -> None:
        """Update the parameters, the learning rates, and what the rule keeps."""
        moves = {
            p: (move.alpha if isinstance(r, float) and r == 1 else r * move.alpha, self.horizon or move.window, move.back)
            for members, move in zip(plan.scopes, plan.moves, strict=True)
            for p, r in members.ratios.items()
        }
        self._update(plan, moves)
        SCOPES[self.scope].write(self.param_groups, self.state, plan.moves)

    def _update(self, plan: Plan, moves: Mapping[Tensor, tuple[float, float, bool]]) -> None:
        """θ_t = θ_{t-1} − α_t d_t, and what the next hypergradient needs to know of it.

        Args:
            plan: what the step has been found to be.
            moves: α_t of each tensor, how many steps its trace looks over, and whether it returns to its average instead.
        """
        moving = [bundle for bundle in plan.bundles if self.capturable or not moves[bundle.params[0]][2]]
        self.direction.begin({p: bundle.group for bundle in moving for p in bundle.params})
        self._write_elements(plan)
        for bundle in moving:
            for i, p in enumerate(bundle.params):
                bundle.states[i] = bundle.states[i] or self.state[p]
                self.kept.release(p, bundle.states[i])
                if p in plan.kept:
                    bundle.states[i].pop("direction", None)
        for bundle in reversed(moving):
            p = bundle.params[0]
            self._advance(bundle, plan, *moves[p], makes=p not in plan.kept)
        went = {p for bundle in moving for p in bundle.params}
        for group in self.param_groups:
            for p in group["params"]:
                if p not in went and p in self.state:
                    self._stay(p, *moves[p])
            group["last"] = {name: group[name] for name in self.direction.remembers}

    def _stay(self, p: Tensor, alpha: float, window: float, back: bool) -> None:
        """A tensor that does not move along its direction: without a gradient, or on the way ``back`` to its average."""
        state = self.state[p]
        if back and "trace" in state:
            trace = real(state["trace"])
            real(p).add_(trace)
            trace.zero_()
        state["applied"] = False
        if self.scope != "element":
            state["lr"] = alpha

    def _advance(self, bundle: Bundle, plan: Plan, alpha: Any, window: Any, back: Truth, makes: bool) -> None:
        """θ_t = θ_{t-1} − α d_t of one bundle, with its buffers, which it ``makes`` where there are none, and its trace.

        Where numbers are on the device it is there that this is undone if the step cannot be made, or the bundle goes ``back`` instead.
        """
        group, elements = bundle.group, self.scope == "element"
        keeps = kept_gradient(self.direction, list(self.adapted), group)
        traces = self.rule.averages or self.horizon not in (None, 1)
        for p, state in zip(bundle.params, bundle.states, strict=True):
            if makes:
                self.direction.prepare(p, state, group)
            if keeps:
                make_buffer(state, "gradient", p)
            if traces:
                make_buffer(state, "trace", p)
            if elements:
                make_buffer(state, "lr", p, alpha)
        state = bundle.states[0]
        # In the other order than for the dot products: the gradients and buffers of the last tensors are in the cache yet.
        tensors = {name: column[::-1] for name, column in bundle.split().items()}
        if keeps or elements or traces or self.capturable or not self.direction.step(tensors, state, group, alpha):
            trace = "average" if self.rule.averages else "trace" if traces else ""
            numbers = self.direction.objective(group) | self.direction.numbers(state, group) | {"alpha": alpha, "kept": 1 - 1 / window}
            if self.capturable:
                numbers |= {"goes": plan.finite & no(back), "back": back}
            self.run(move, tensors, numbers, self.direction, keeps, elements, trace, writes=True)
        goes = where(numbers["goes"], 1.0, 0.0) if self.capturable else 1.0
        for p, state in zip(bundle.params, bundle.states, strict=True):
            if self.capturable:
                for name in self.direction.counts:
                    state[name].sub_(1 - goes)
                applied = state.get("applied", False)
                put(state, "applied", where(plan.finite, goes, applied if isinstance(applied, Tensor) else float(applied)))
                put(state, "lr", where(plan.finite | self.rule.averages, alpha, state.get("lr", alpha)))
                continue
            state["applied"] = True
            if not elements:
                state["lr"] = alpha
            if not makes:
                self.kept.hold(p, state)

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
        scopes = SCOPES[self.scope].read(self.param_groups, self.state, self.capturable)
        for members, h in zip(scopes, self.hypergradients, strict=False):
            row = {"lr": members.alpha, "hypergradient": h}
            row = row | self.rule.summary(members.memory) | ({"horizon": self.horizon} if self.horizon else {})
            rows.append({name: float(value) for name, value in row.items()})
        return rows

    def _warn_of_decay(self, plan: Plan) -> None:
        """Once, where the training loss moves weight decay."""
        if not self.warned and any(h.get("weight_decay") for h in plan.others_h):
            self.warned = True
            warnings.warn(
                "weight_decay is adapted on the training loss, which it drifts to zero (or its lower bound) on: "
                "call opt.adapt(validation_loss) instead",
                stacklevel=5,
            )

    def _count_skipped(self, finite: Tensor) -> None:
        """Add to ``skipped`` on the device, without a warning, which would have to ask for the value."""
        if not isinstance(self.skipped, Tensor):
            self.skipped = torch.full((), self.skipped, device=finite.device)
        self.skipped.add_(~finite)

    def _skip(self, stacklevel: int) -> None:
        self.skipped += 1
        if self.skipped == 1:
            warnings.warn(
                f"{type(self).__name__} skipped a step: a gradient or hypergradient was not finite. "
                + ("Parameters went back to their average" if self.rule.averages else "Parameters and learning rate stay as they were")
                + "; opt.skipped counts such steps, and this is the only warning",
                stacklevel=stacklevel,
            )


def move(piece: Mapping[str, Tensor], numbers: Numbers, direction: Direction, keeps: bool, elements: bool, trace: str) -> list[Tensor]:
    """θ_t = θ_{t-1} − α_t d_t, and what the next hypergradient needs: the gradient where ``keeps``, a trace or the average.

    z_t = (1 − 1/n) z_{t-1} + d_t ("trace"); z_t = θ̄_t − θ_t, where θ̄_t = θ̄_{t-1} + (θ_t − θ̄_{t-1}) / n ("average").

    Where the host does not know whether a tensor "goes", nothing is left of it if it does not; if it goes "back", it does to its average.
    """
    theta, z = piece["p"], piece.get("trace")
    before = {name: x.clone() for name, x in piece.items() if name not in READ_ONLY} if "goes" in numbers else {}
    g = direction.gradient(piece["g"], theta, numbers)
    d = direction.advance(g, theta, piece, numbers)
    if keeps:
        piece["gradient"].copy_(g)
    if elements:
        theta.addcmul_(d, piece["lr"], value=-1)
    else:
        add_scaled(theta, -numbers["alpha"], d, out=theta)
    if z is not None and trace == "average":
        add_scaled(z, numbers["alpha"], d, out=z).mul_(numbers["kept"])
    elif z is not None and trace:
        z.mul_(numbers["kept"]).add_(d)
    for name, x in before.items():
        piece[name].copy_(torch.where(numbers["goes"] > 0, piece[name], x))
    if before and z is not None and trace == "average":
        theta.copy_(torch.where(numbers["back"] > 0, theta + z, theta))
        z.masked_fill_(numbers["back"] > 0, 0.0)
    return []
