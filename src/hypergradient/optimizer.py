"""The base class of all optimizers: options, param groups and public methods. The loop itself is in loop.py."""

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
from .learning_rates import Scope, ScopeName
from .options import check_param_group, resolve
from .products import adapt_gradients
from .rules import Rule
from .setup import Setup
from .signal import Signal


class Shared(TypedDict, total=False):
    """The keyword options of every optimizer."""

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
    """Base class of ``SGDHD``, ``AdamHD``, ``AdamWHD``, ``HDM`` and ``Hypergradient``; not to be instantiated itself.

    Attributes:
        hypergradients: the hypergradients h_t of the learning rates in the last step, one per scope: per param group (``"group"``), one
            in all (``"global"``), or per tensor in the order of the param groups (``"tensor"``, ``"element"``). Empty before the first
            step. Floats, or tensors with ``capturable``.
        other_hypergradients: ∂f/∂φ of the other hyperparameters in ``adapt``, one dict per param group, by name: "momentum",
            "weight_decay", "beta1", "beta2", "eps".
        skipped: the number of steps that were skipped because a gradient or hypergradient was not finite. A tensor with ``capturable``.
    """

    setup: Setup
    scope: Scope
    params: list[Tensor]
    last_gradients: LastGradients
    edits: ExternalEdits
    saved: list[Any]
    steps_seen: int
    handle: int
    lr_free: bool
    warned: bool
    warned_overwrite: bool
    warned_of_ranks: bool

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
        self.given: Group | None = given | {"signal": signal, "process_group": process_group}  # only during construction
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
        if isinstance(direction, SGD | Adam):  # a wrapped optimizer has its own
            own["capturable"] = self.setup.scalars.on_device
        super().__init__(params, {**options, **own})
        self.given = None
        if isinstance(options["lr"], Tensor):
            self.defaults["lr"] = options["lr"].clone()  # the first group's is updated in place; later groups start from this copy

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group. It starts with a learning rate of its own and without a last direction.

        Args:
            param_group: ``{"params": tensors, option: value, ...}`` with any option of the constructor except ``rule``, ``adapt``,
                ``bounds``, ``horizon``, ``signal``, ``scope``, ``fused``, ``capturable`` and ``process_group``.

        Raises:
            ValueError: an option is out of range, or is one of those.
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
        """Adapt the hyperparameters by their hypergradients, then update the parameters.

        After the first call of ``adapt()`` this updates the parameters only, until ``group["step_adapts"]`` is set to True again.

        Args:
            closure: reevaluates the model and returns the loss; called once, with gradients enabled. Optional.

        Returns:
            The loss that the closure returned, or None.

        Raises:
            TypeError: a gradient is sparse; nothing has been updated then.
            RuntimeError: ``eval()`` was called without a ``train()`` after it.
        """
        return step_in_graph(self, closure) if torch.compiler.is_compiling() else self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # else torch would call the hooks in a compiled graph too: _step() calls them

    @torch.optim.Optimizer.profile_hook_step
    @torch.no_grad()
    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The step itself, with its hooks."""
        self._check_training()
        if closure is None and self.setup.direction.monotone:
            raise TypeError("monotone=True compares the losses of successive steps: call step(closure) with a closure that returns it")
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
        """Adapt the hyperparameters by the hypergradient of another quantity than the training loss, such as the loss on held-out data.

            h = ∇F(θ_t) · ∂θ_t/∂φ

        Call it between two steps. From the first call on, ``step()`` no longer adapts the hyperparameters, and they change only here.

        Args:
            loss_or_grads: a scalar F computed from the current parameters; or its gradients, one per parameter in the order of the param
                groups, None where F does not depend on one. ``p.grad`` is neither read nor written. F is minimized, and maximized for param
                groups with ``maximize=True``.

        Raises:
            ValueError: there is no gradient, or a gradient does not have its parameter's shape.
            TypeError: the rule averages (``TuningFree``): it needs the gradients that the steps are made of.
            RuntimeError: ``eval()`` was called without a ``train()`` after it.

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
                f"adapt() takes Additive or Multiplicative; {self.setup.rule!r} needs the gradients of the steps: do not call adapt()"
            )
        if not self.warned_of_ranks and self.setup.ranks.is_replicated():
            self.warned_of_ranks = True
            warnings.warn(
                "adapt() sees the gradients of this rank alone, so learning rates will differ between ranks unless the loss is that of all "
                "ranks: give it gradients that are averaged over ranks",
                stacklevel=3,
            )
        loop.adapt(self, adapt_gradients(loss_or_grads, self.param_groups))
        for group in self.param_groups:
            group["step_adapts"] = False

    def _check_training(self) -> None:
        if is_average(self.state):
            raise RuntimeError("the running average is swapped in for evaluation: call opt.train() before the next step")

    @torch.no_grad()
    def eval(self) -> None:
        """Swap the running average into the parameters, to evaluate or save the model; ``train()`` restores the iterate.

        Only ``TuningFree`` averages; with other rules this does nothing. The running statistics of batch norm remain those of the iterates:
        call ``torch.optim.swa_utils.update_bn(batches, model)`` after ``eval()`` to compute those of the average.
        """
        if self.setup.rule.averages:
            switch_to_average(self)

    @torch.no_grad()
    def train(self) -> None:
        """Restore the parameters, bit for bit, to continue training after ``eval()``.

        If the parameters were overwritten in between, for example with the best weights so far, training continues from those, with a
        warning.
        """
        written = switch_to_iterate(self)
        if written:
            warnings.warn(
                f"{written} parameters were overwritten while the average was swapped in: training continues from their new values",
                stacklevel=3,
            )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager: ``eval()`` on entry, ``train()`` on exit.

        If the parameters already are the average on entry, they still are on exit.

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
        """What the rule currently sees, one dict per scope (see ``hypergradients``), to print or log.

        Returns:
            ``lr``, the adapted learning rate (without the factor of a scheduler; ``group["alpha"]`` is what the last step used), and
            ``hypergradient`` of the last step. With ``TuningFree`` also ``signal``, the recent mean of the cosine of gradient and
            displacement; ``noise``, its root mean square; ``horizon``, over how many steps the average looks; and ``climbing``, 1.0 until
            the learning rate has turned for the first time. With a schedule also ``adapted lr``; with a tower the β of each level.
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
        """The state of the optimizer, as in torch.optim; with a rule that averages also a sum that identifies the parameters."""
        return checkpoint.with_fingerprint(self, super().state_dict())

    def load_state_dict(self, state_dict: Group) -> None:
        """Load the state of such an optimizer, as in torch.optim, and continue from it.

        Args:
            state_dict: from ``state_dict()`` of such an optimizer, or of the optimizer of torch that it replaces (SGD, Adam, AdamW).

        Raises:
            ValueError: it belongs to another kind of optimizer or to other parameters.
        """
        with checkpoint.loading(self, state_dict):
            super().load_state_dict(state_dict)

    def __getstate__(self) -> Group:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in checkpoint.COPIED}}

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)
        checkpoint.resume(self)
