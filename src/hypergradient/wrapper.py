"""Any optimizer, with its learning rate adapted: the direction is read from a step that the optimizer takes at learning rate 1."""

from typing import Any, Unpack, final

import torch

from .base import NOT_LINEAR, RESERVED_GROUP_KEYS, BaseStep, check_state
from .group_lr import Group
from .optimizer import HypergradientOptimizer, Shared


@final
class Hypergradient(HypergradientOptimizer):
    """Any optimizer with its learning rate adapted: torch.optim's, or of another package.

        h_t = g_t · ∇αu_{t-1},    α_t = α_{t-1} − β h_t,    θ_t = θ_{t-1} − α_t d_t,    ∇αu_t = −d_t

    under ``hypergrad_lr``; without it there is neither β nor learning rate to choose (see ``TuningFree``). d_t is read from a step that the
    base takes at learning rate 1. That asks for a base whose step is linear in its learning rate, as that of SGD, Adam, AdamW, NAdam,
    RAdam, RMSprop, Adagrad, Adadelta, Adamax, Muon, Lion and most others is. Around SGD, Adam and AdamW it is SGDHD, AdamHD and AdamWHD,
    but for rounding; those cost less, and are the ones to take.

    It is an Optimizer that shares ``param_groups`` and ``state`` with the base: schedulers, hooks, GradScaler and param groups are given to
    it, not to the base. The gradient in h is that of the loss; for torch's optimizers with coupled weight decay λθ is part of it.

    Args:
        base: the optimizer, with its learning rate to start from. It takes its steps through this one from now on.
        hypergrad_lr: β >= 0 of the paper; short for ``rule=Additive(hypergrad_lr)``.
        rule: how the learning rate follows the hypergradient: any. Default ``TuningFree()``, under which the base steps without its
            ``momentum`` or first of two ``betas``: so far from the iterate to its average gradients are taken instead.
        horizon: how many past directions the hypergradient looks over, >= 1; 1 is the paper, more take one buffer. Default 1, under
            ``TuningFree`` a fifth of the run so far.
        signal: ``Signal(...)`` instead of ``horizon``: a discounted trace, with curvature or without, or normalized hypergradients.
        scope: ``"group"``, ``"global"``, ``"tensor"`` or ``"element"`` (see ``SGDHD``). Default ``"group"``.
        lr_bounds: lowest and highest learning rate, None for none. Default ``(None, None)``: it may fall below 0.

    State:
        one buffer of the parameters' size beside the base's own; one more under ``TuningFree`` or a horizon above 1. In float16 and
        bfloat16 d is rounded as the parameters are; there ``TuningFree`` keeps 6 bytes instead of 2.

    Raises:
        ValueError: the base's step is not linear in lr (ASGD, Rprop, Adafactor, LBFGS); it adapts its learning rate already, or keeps state
            under the names that this uses; an option is out of its range.
        TypeError: ``base`` is no optimizer; at ``step()``, a gradient is sparse.

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
        Baydin et al., ICLR 2018, section 3: the technique is general, https://openreview.net/forum?id=BkrsAzWAb
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
        """One list of param groups and one state for both."""
        self.param_groups = self.base.param_groups = groups
        self.state = self.base.state
        if getattr(self.base, "maximize", False):  # where pytorch_optimizer keeps it
            for options in (self.defaults, *groups):
                options.setdefault("maximize", True)

    def __getstate__(self) -> Group:
        return {**super().__getstate__(), "base": self.base}

    def __setstate__(self, state: Group) -> None:
        """Go on from the state of such an optimizer, or of the base's own; the base reads it as it reads its own."""
        super().__setstate__(state)
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._share(self.param_groups)
        for own in self.state.values():
            # SGDHD and its like recompute it from what theirs are.
            if isinstance(own, dict) and "applied" in own and "direction" not in own:
                own["applied"] = False


def check_base(base: Any) -> None:
    """Raise TypeError or ValueError where ``base`` cannot be wrapped."""
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
        raise ValueError(f"{name} cannot be wrapped, since it has options {', '.join(map(repr, taken))} as Hypergradient has")
    check_state(base, [own for own in base.state.values() if isinstance(own, dict)])
