"""Any optimizer, with its learning rate adapted: the direction is read from a step that the optimizer takes at learning rate 1."""

from typing import Any, Unpack, final

import torch

from .base import NOT_LINEAR, RESERVED_GROUP_KEYS, BaseStep, check_state
from .group_lr import Group
from .optimizer import HypergradientOptimizer, Shared


@final
class Hypergradient(HypergradientOptimizer):
    """Wraps any optimizer, of torch.optim or of another package, and adapts its learning rate.

        h_t = g_t · ∇αu_{t-1},        α_t = α_{t-1} − β h_t
        θ_t = θ_{t-1} − α_t d_t,      ∇αu_t = −d_t

    This is the update with ``hypergrad_lr`` β. Without it there is nothing to choose: neither β nor a learning rate (see ``TuningFree``).
    ``d_t`` is read from a step that the base optimizer takes at learning rate 1. The base's step must therefore be linear in its learning
    rate, as it is for SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta, Adamax, Muon, Lion and most others. Around SGD, Adam and
    AdamW the result equals SGDHD, AdamHD and AdamWHD up to rounding; those are cheaper, so prefer them.

    The wrapper is an Optimizer that shares ``param_groups`` and ``state`` with its base. Give schedulers, hooks, GradScaler and new param
    groups to the wrapper, not to the base. The gradient in h is that of the loss; coupled weight decay λθ of torch's optimizers is
    included.

    Args:
        base: the optimizer, with the initial learning rate. From now on it takes its steps through the wrapper.
        hypergrad_lr: β >= 0, the hypergradient learning rate of the paper; short for ``rule=Additive(hypergrad_lr)``.
        rule: how the learning rate follows its hypergradient: any rule. Default ``TuningFree()``, with which the base takes its steps
            without ``momentum`` (or the first of two ``betas``): it becomes the weight of the running average in the point where gradients
            are evaluated.
        horizon: over how many past directions the hypergradient looks, >= 1. 1 is the paper; more need one buffer. Default 1; with
            ``TuningFree`` a fifth of the run so far, or a fixed number of steps >= 2.
        signal: a ``Signal`` instead of ``horizon``: a discounted trace, with or without curvature, or normalized hypergradients.
        scope: ``"group"``, ``"global"``, ``"tensor"`` or ``"element"`` (see ``SGDHD``). Default ``"group"``.
        lr_bounds: lowest and highest learning rate, None for no bound. Default ``(None, None)``: it may become negative.

    State:
        One buffer of the parameters' size besides the base's own state; one more with ``TuningFree`` or a horizon above 1. For float16 and
        bfloat16 parameters d is rounded as they are, and ``TuningFree`` takes 6 bytes per parameter instead of 2.

    Raises:
        ValueError: the base's step is not linear in lr (ASGD, Rprop, Adafactor, LBFGS), the base already adapts its learning rate, or it
            has state or options under names that this class uses; an option is out of range.
        TypeError: ``base`` is not an optimizer; in ``step()``, a gradient is sparse.

    Examples:
        >>> import torch
        >>> from hypergradient import Hypergradient
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = Hypergradient(torch.optim.NAdam([w], lr=1e-3), hypergrad_lr=1e-5)
        >>> for _ in range(10):
        ...     opt.zero_grad()
        ...     (w**2).sum().backward()
        ...     opt.step()
        >>> opt.param_groups[0]["lr"] > 1e-3
        True

    References:
        Baydin et al., ICLR 2018, section 3, describe the technique for any optimizer, https://openreview.net/forum?id=BkrsAzWAb
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        **shared: Unpack[Shared],
    ) -> None:
        check_base(base)
        self.base = base
        groups = base.param_groups
        before = [dict(group) for group in groups]
        try:
            super().__init__(groups, dict(base.defaults), BaseStep(base), default_hypergrad_lr=1e-6, **shared)
        except BaseException:
            for group, options in zip(groups, before, strict=True):
                group.clear()
                group.update(options)
            raise
        self._share(groups)

    def _share(self, groups: list[Group]) -> None:
        """Let wrapper and base have the same list of param groups and the same state."""
        self.param_groups = self.base.param_groups = groups
        self.state = self.base.state
        if getattr(self.base, "maximize", False):  # pytorch_optimizer has it as an attribute
            for options in (self.defaults, *groups):
                options.setdefault("maximize", True)

    def __getstate__(self) -> Group:
        return {**super().__getstate__(), "base": self.base}

    def __setstate__(self, state: Group) -> None:
        """Restore the state of such a wrapper, or of the base alone; the base restores it as its own."""
        super().__setstate__(state)
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._share(self.param_groups)
        for own in self.state.values():
            # SGDHD and the like have no stored direction: they recompute it from their buffers.
            if isinstance(own, dict) and "applied" in own and "direction" not in own:
                own["applied"] = False


def check_base(base: Any) -> None:
    """Raise TypeError or ValueError if ``base`` cannot be wrapped."""
    if not isinstance(base, torch.optim.Optimizer):
        raise TypeError(f"base must be an optimizer such as torch.optim.Adam(params), got {base!r}")
    name = type(base).__name__
    if isinstance(base, HypergradientOptimizer) or any("hypergrad_lr" in group for group in base.param_groups):
        raise ValueError(f"{name} adapts its learning rate already: give Hypergradient an optimizer that does not")
    if name in NOT_LINEAR:
        raise ValueError(f"{name} cannot be wrapped, since its step is not linear in lr: {NOT_LINEAR[name]}")
    if any("lr" not in group for group in base.param_groups):
        raise ValueError(f"{name} cannot be wrapped: its param groups have no lr")
    taken = sorted(RESERVED_GROUP_KEYS & {key for group in base.param_groups for key in group})
    if taken:
        raise ValueError(f"{name} cannot be wrapped: its options {', '.join(map(repr, taken))} have the names of Hypergradient's own")
    check_state(base, [own for own in base.state.values() if isinstance(own, dict)])
