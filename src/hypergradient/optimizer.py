"""What all optimizers here have in common: their options and param groups, and what is called of them. The loop itself is loop.py."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import checkpoint, loop
from .average import is_average
from .checks import Bounds
from .compiled_step import register, step_in_graph
from .direction import Direction
from .directions import SGD, Adam
from .external_edits import ExternalEdits, switch_to_average, switch_to_iterate
from .group_lr import Group
from .last_gradients import LastGradients
from .learning_rates import ScopeName
from .options import check_param_group, resolve
from .products import adapt_gradients
from .rules import Rule
from .signal import Signal


class Shared(TypedDict, total=False):
    """The options that every optimizer here has, by keyword."""

    hypergrad_lr: float | None
    rule: Rule | None
    adapt: Mapping[str, Any] | None
    bounds: Mapping[str, Any] | None
    horizon: float | None
    signal: Signal | None
    scope: ScopeName
    lr_bounds: Bounds
    fused: bool | None
    capturable: bool | None
    process_group: Any


class HypergradientOptimizer(torch.optim.Optimizer):
    """The loop of an optimizer; a final class adds its direction and its signature.

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
        direction: Direction,
        *,
        default_hypergrad_lr: float,
        default_lr: float = 1e-3,
        hypergrad_lr: float | None = None,
        rule: Rule | None = None,
        adapt: Mapping[str, Any] | None = None,
        bounds: Mapping[str, Any] | None = None,
        horizon: float | None = None,
        signal: Signal | None = None,
        scope: ScopeName = "group",
        lr_bounds: Bounds = (None, None),
        fused: bool | None = None,
        capturable: bool | None = None,
        process_group: Any = None,
    ) -> None:
        params = params if isinstance(params, Tensor) else cast(ParamsT, list(params))
        given = {"hypergrad_lr": hypergrad_lr, "rule": rule, "adapt": adapt, "bounds": bounds, "horizon": horizon, "scope": scope}
        self.given: Group | None = given | {"signal": signal, "process_group": process_group}  # until it is made
        given = self.given | {"fused": fused, "capturable": capturable, "default": default_hypergrad_lr, "options": options}
        self.setup = resolve(type(self).__name__, params, direction, given)
        self.last_gradients, self.edits, self.scope = LastGradients(), ExternalEdits(), checkpoint.make_scope(self.setup)
        self.skipped: Any = 0
        self.steps_seen, self.handle, self.params, self.saved = 0, register(self), list[Tensor](), list[Any]()
        self.warned = self.warned_overwrite = self.warned_of_ranks = False
        self.hypergradients: list[Any] = []
        self.last_hypergradients: Tensor | None = None
        self.other_hypergradients: list[dict[str, Any]] = []
        self.lr_free = options["lr"] is None and (self.setup.rule.averages or default_lr == 0)
        if options["lr"] is None:
            options["lr"] = 1.0 if self.lr_free else default_lr
        if options.get("betas", ()) is None:
            options["betas"] = (0.9, 0.99 if self.setup.direction.averaging else 0.999)
        own = {"hypergrad_lr": self.setup.rule.initial_beta, "lr_bounds": lr_bounds}
        if isinstance(direction, SGD | Adam):  # a base's is its own
            own["capturable"] = self.setup.scalars.on_device
        super().__init__(params, {**options, **own})
        self.given = None
        if isinstance(options["lr"], Tensor):
            self.defaults["lr"] = options["lr"].clone()  # the first group's own is updated in place; later groups start from this one

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group, which starts with a learning rate of its own and no last direction.

        Args:
            param_group: ``{"params": tensors, option: value, ...}``; any option of the constructor but ``rule``, ``adapt``,
                ``bounds``, ``horizon``, ``signal``, ``scope``, ``fused``, ``capturable`` and ``process_group``.

        Raises:
            ValueError: an option is out of its range, or is one of those.
        """
        param_group.setdefault("lr_free", self.lr_free and "lr" not in param_group)
        check_param_group(param_group, self.defaults, self.setup, self.given)
        lr = {**self.defaults, **param_group}["lr"]
        if self.param_groups and lr is self.defaults["lr"] and isinstance(lr, Tensor):
            param_group["lr"] = lr.clone()
        super().add_param_group(param_group)
        for p in param_group["params"]:
            if p.is_conj():
                self.param_groups.pop()
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is a lazy conjugate, which cannot be updated: resolve_conj() it")
        checkpoint.fill_defaults(self)

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
        return step_in_graph(self, closure) if torch.compiler.is_compiling() else self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch would call the hooks in a compiled graph: they are called with _step()

    @torch.optim.Optimizer.profile_hook_step
    @torch.no_grad()
    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The step itself, with the hooks."""
        self._check_training()
        if closure is None and self.setup.direction.monotone:
            raise TypeError("monotone=True compares the loss of each step with the last: call step(closure), which returns the loss")
        checkpoint.check_fingerprint(self, stacklevel=6)
        checkpoint.convert_momentum(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        loop.step(self, loss)
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
        if self.setup.rule.averages:
            raise TypeError(
                f"adapt() takes Additive or Multiplicative; {self.setup.rule!r} must see the gradients of the steps: leave adapt() out"
            )
        if not self.warned_of_ranks and self.setup.ranks.is_replicated():
            self.warned_of_ranks = True
            warnings.warn(
                "adapt() has the gradients of this rank alone, so learning rates move apart unless the loss is one over all ranks: give "
                "gradients that are averaged over them",
                stacklevel=3,
            )
        loop.adapt(self, adapt_gradients(loss_or_grads, self.param_groups))
        for group in self.param_groups:
            group["step_adapts"] = False

    def _check_training(self) -> None:
        if is_average(self.state):
            raise RuntimeError("the parameters are the average, for evaluation: call opt.train() before the next step")

    @torch.no_grad()
    def eval(self) -> None:
        """Put the running average of a rule that averages into the parameters, to evaluate or save the model; ``train()`` takes it back.

        Other rules have no average, and nothing happens. Statistics of batch norm are those of the iterates; after ``eval()``
        ``torch.optim.swa_utils.update_bn(batches, model)`` gives the model the average's.
        """
        if self.setup.rule.averages:
            switch_to_average(self)

    @torch.no_grad()
    def train(self) -> None:
        """Put the parameters back, bit for bit, to go on training after ``eval()``.

        What somebody has written into them meanwhile, such as the best weights so far, is not thrown away: training goes on from there, and
        a warning says so.
        """
        written = switch_to_iterate(self)
        if written:
            warnings.warn(
                f"{written} parameters were written while they were the average: training goes on from them, and so does the average",
                stacklevel=3,
            )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The running average in the parameters, for as long as the block lasts: ``eval()`` before it, ``train()`` after it.

        Where they are the average already, they stay it.

        Examples:
            >>> import torch
            >>> from hypergradient import AdamHD
            >>> model = torch.nn.Linear(2, 1)
            >>> opt = AdamHD(model.parameters())
            >>> with opt.averaged():
            ...     weights = {name: x.clone() for name, x in model.state_dict().items()}
        """
        if is_average(self.state):
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()

    def summary(self) -> list[dict[str, float]]:
        """What the rule sees, a dict for each scope (see ``hypergradients``): to be printed or logged.

        Returns:
            ``lr``, what is adapted (a scheduler's factor is not in it; what the step used is ``group["alpha"]``), and ``hypergradient`` of
            the last step; under ``TuningFree`` also ``signal``, the mean cosine of gradient and way to the
            average of late, ``noise``, its root mean square, ``horizon``, the steps that the average looks over, and ``climbing``, 1.0
            before the learning rate has turned for the first time.
        """
        lrs = self.scope.read(self.param_groups, self.state)
        columns = {name: list(map(float, lrs.columns[name])) for name in ("alpha", *self.setup.memory_columns.values())}
        rows = []
        for k, h in enumerate(self.hypergradients):
            kept = {name: columns[key][k] for name, key in self.setup.memory_columns.items()}
            row = {"lr": columns["alpha"][k], "hypergradient": float(h)} | self.setup.rule.summary(kept)
            rows.append(row | ({"horizon": float(self.setup.horizon)} if self.setup.horizon else {}))
        return rows

    def state_dict(self) -> Group:
        """What ``load_state_dict()`` goes on from, as torch.optim's; under a rule that averages also where the parameters are."""
        return checkpoint.with_fingerprint(self, super().state_dict())

    def load_state_dict(self, state_dict: Group) -> None:
        """Go on from the state of such an optimizer, as torch.optim's does.

        Args:
            state_dict: what ``state_dict()`` of such an optimizer has given, or of torch's own that it stands for.

        Raises:
            ValueError: it is not of such an optimizer, or of other parameters.
        """
        with checkpoint.loading(self, state_dict):
            super().load_state_dict(state_dict)

    def __getstate__(self) -> Group:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in checkpoint.COPIED}}

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)
        checkpoint.resume(self)
