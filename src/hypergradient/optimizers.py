"""The published optimizers: each is a direction, its defaults and its signature."""

import inspect
import sys
from typing import Any, TypeVar, Unpack, final

from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import directions
from .checks import check_number
from .learners import AdaGradRule
from .optimizer import HypergradientOptimizer, Shared
from .signal import Signal

#: The options that all optimizers share; fills the line ``{shared}`` of a docstring.
SHARED = """maximize: maximize the loss instead of minimizing it. Default False.
        hypergrad_lr: β >= 0, the hypergradient learning rate of the paper; short for ``rule=Additive(hypergrad_lr)``.
        rule: how the learning rate follows its hypergradient: ``TuningFree()``, which needs no tuning, ``Additive(beta)`` or
            ``Multiplicative(beta)`` of the paper, or an online learner such as ``AdaGradRule(beta)``. Default ``TuningFree()``.
        adapt: which hyperparameters are adapted, each with its rule, such as ``{"lr": Additive(1e-4), "momentum":
            Multiplicative(0.01)}``; given instead of ``rule``. Hyperparameters that are not named stay constant. There is one value per
            param group, in ``group["momentum"]`` and so on. ``Additive`` updates the logit of φ where φ lies in (0, 1), and log φ
            otherwise; ``Multiplicative`` multiplies the odds, or φ. Default: the learning rate alone.
        bounds: ranges of the hyperparameters in ``adapt`` other than lr, ``{NAME: (low, high)}``, None for the default: momentum and
            β1 (1e-3, 0.9999), β2 (1e-3, 0.999999), eps (1e-16, 1), weight_decay (1e-8, 1).
        horizon: over how many past directions the hypergradient of the learning rate looks, >= 1. 1 is the paper; more need one buffer.
            Default 1; with ``TuningFree`` a fifth of the run so far, or a fixed number of steps >= 2.
        signal: a ``Signal`` instead of ``horizon``: a discounted trace, with or without curvature, or normalized hypergradients.
        scope: what shares a learning rate: ``"group"``, one per param group; ``"global"``, one adaptation for all groups, which keeps
            the ratios of their learning rates; ``"tensor"``, one per tensor; ``"element"``, one per element. For the last two
            ``group["lr"]`` is the mean, and the learning rates are in ``opt.state[p]["lr"]``. Default ``"group"``.
        lr_bounds: lowest and highest learning rate, None for no bound. Default ``(None, None)``: it may become negative.
        fused: compile the dot products of large tensors, and their update where torch has no kernel of its own, by torch.compile. This
            needs a compiler and takes some seconds in the first steps. Default None: the fastest way that compiles nothing.
        capturable: keep scalars on the device: ``group["lr"]`` and other adapted hyperparameters are tensors (float64 if ``lr`` is a
            float), no step synchronizes, and steps can be captured in a CUDA graph after 3 warm-up steps. Skipped steps are counted in
            ``skipped`` without a warning. Default None: True unless the parameters are on a CPU.
        process_group: the ranks over which plain tensors are sharded, as under FSDP1 and ZeroRedundancyOptimizer. Not needed for
            DTensors (FSDP2, tensor parallelism) and DDP. Default None."""

LR = """lr: initial learning rate α_0 >= 0, a float or a tensor of one element, which is updated in place. Default: 1e-3, and with
            ``TuningFree`` a safe start that it computes; a given value is clipped to between one and three times that, and lr=0 keeps a
            group as it is."""

PARAMS = """params: tensors, named tensors or param groups, as in torch.optim. A param group may override every option below but
            ``rule``, ``adapt``, ``bounds``, ``horizon``, ``signal``, ``scope``, ``fused``, ``capturable`` and ``process_group``."""

Class = TypeVar("Class", bound=Any)


def documented(cls: Class) -> Class:
    """A class whose docstring and signature list the shared options."""
    shared = inspect.signature(HypergradientOptimizer.__init__).parameters
    own = inspect.signature(cls.__init__)
    params = [x for x in own.parameters.values() if x.kind is not inspect.Parameter.VAR_KEYWORD]
    cls.__init__.__signature__ = own.replace(parameters=params + [shared[name] for name in Shared.__annotations__])
    if cls.__doc__ is not None and sys.flags.optimize < 2:
        cls.__doc__ = cls.__doc__.replace("{params}", PARAMS).replace("{lr}", LR).replace("{shared}", SHARED)
    return cls


@final
@documented
class SGDHD(HypergradientOptimizer):
    """SGD-HD and SGDN-HD: stochastic gradient descent with optional (Nesterov) momentum that adapts its learning rate.

        h_t = g_t · ∇αu_{t-1},        α_t = α_{t-1} − β h_t
        θ_t = θ_{t-1} − α_t d_t,      ∇αu_t = −d_t

    This is the update with ``hypergrad_lr`` β. Without it there is nothing to choose: neither β nor a learning rate (see ``TuningFree``).
    The direction ``d_t`` is the step of torch.optim.SGD at learning rate 1: the gradient ``g_t`` (Algorithm 4), the momentum buffer
    ``v_t``, or ``g_t + μ v_t`` with Nesterov momentum (Algorithm 5). Since ``∇αu_0 = 0``, the first step does not change the learning rate.

    Args:
        {params}
        {lr}
        momentum: μ >= 0. With ``TuningFree`` it must be below 1, and is the weight of the running average in the point where gradients
            are evaluated. Default 0.
        dampening: τ, the dampening of the momentum buffer. Default 0.
        weight_decay: coupled L2 penalty λ >= 0: λθ is added to the gradient, in the hypergradient and in the update. Default 0.
        nesterov: use Nesterov momentum; requires momentum > 0 and dampening = 0. Default False. With ``TuningFree`` this and
            ``dampening`` have no effect.
        {shared}

    State:
        Buffers of the parameters' size: one for plain SGD (no copy where ``zero_grad()`` sets gradients to None: the last gradient itself
        is stored) and for momentum, two for Nesterov momentum; one more for a horizon above 1, one more for ``scope="element"``, and one
        more when plain momentum is adapted. One in all with ``TuningFree``, whatever the momentum.

    Raises:
        ValueError: an option is out of range; both ``hypergrad_lr`` and ``rule`` are given; ``params`` is empty.
        TypeError: ``rule`` is not a Rule; in ``step()``, a gradient is sparse.

    Examples:
        >>> import torch
        >>> from hypergradient import SGDHD
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = SGDHD([w], lr=0.01, momentum=0.9, nesterov=True, hypergrad_lr=1e-3)
        >>> for _ in range(10):
        ...     opt.zero_grad()
        ...     (w**2).sum().backward()
        ...     opt.step()
        >>> opt.param_groups[0]["lr"] > 0.01
        True

    References:
        Baydin, Cornish, Martínez Rubio, Schmidt, Wood, *Online Learning Rate Adaptation with Hypergradient Descent*, ICLR 2018,
        Algorithms 4 and 5, https://openreview.net/forum?id=BkrsAzWAb
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, {**options, "maximize": maximize}, directions.SGD(), default_hypergrad_lr=1e-6, **shared)


@final
@documented
class HDM(HypergradientOptimizer):
    """HDM: gradient descent with heavy-ball momentum and one learning rate per element, adapted by AdaGrad on normalized hypergradients.

        θ_t = θ_{t-1} − α_t g_t + μ_t (θ_{t-1} − θ_{t-2}),    N = ‖g_{t-1}‖²
        α_t = α_{t-1} − η h_t / √Σ h²,    h_t = −g_t g_{t-1} / N
        μ_t = μ_{t-1} − η_μ r_t / √Σ r²,    r_t = g_t · (θ_{t-2} − θ_{t-3}) / N

    HDM is made for convex problems with exact losses and gradients, not for minibatches. With ``monotone=True`` a step that has not
    lowered the loss becomes a null step: α and μ are updated, and the next step starts again from the same point, without the momentum
    term. This is HDM-Best of the authors' code, except for its estimate of L.

    Args:
        {params}
        lr: α_0 >= 0. Default 0 (``group["lr"]`` reads 1 before the first step, so that a scheduler has something to multiply).
        momentum: μ_0 in [0, 0.9995]. Default 0.95.
        weight_decay: coupled L2 penalty λ >= 0: λθ is added to the gradient. Default 0.
        monotone: take null steps. Requires ``step(closure)`` with the loss and gradients of all data. Default False.
        momentum_lr: η_μ >= 0. Default 1.
        {shared}

    Defaults that differ from the other optimizers: ``hypergrad_lr`` is η, in units of lr, default 0.1 (the paper uses 10/L for a convex
    loss with L-Lipschitz gradient); ``scope="element"``; ``lr_bounds=(0, None)``; ``signal=Signal(normalized=True)``.

    State:
        Three buffers of the parameters' size, and two more for ``scope="element"``.

    Raises:
        ValueError: an option is out of range; both ``hypergrad_lr`` and ``rule`` are given; the rule is ``TuningFree``, which averages;
            ``params`` is empty.
        TypeError: ``rule`` is not a Rule; in ``step()``, a gradient is sparse, or ``monotone=True`` and no closure is given.

    Examples:
        >>> import torch
        >>> from hypergradient import HDM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = HDM([w], hypergrad_lr=1.0, monotone=True)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (w**2 @ torch.tensor([1.0, 10.0])).sum()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(50):
        ...     loss = opt.step(closure)
        >>> loss.item() < 1e-4
        True

    References:
        Chu, Gao, Ye, Udell, *Provable and Practical Online Learning Rate Adaptation with Hypergradient Descent*, ICML 2025,
        https://arxiv.org/abs/2502.11229
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        monotone: bool = False,
        momentum_lr: float = 1.0,
        **shared: Unpack[Shared],
    ) -> None:
        check_number("momentum_lr", momentum_lr)
        if not ({"rule", "adapt"} & {name for name, value in shared.items() if value is not None}):
            eta = shared.pop("hypergrad_lr", None)
            eta = 0.1 if eta is None else eta
            check_number("hypergrad_lr", eta)
            shared["adapt"] = {"lr": AdaGradRule(eta), "momentum": AdaGradRule(momentum_lr, log=False)}
            shared.setdefault("bounds", {"momentum": (0.0, 0.9995)})
        own: Shared = {"signal": Signal(normalized=True), "scope": "element", "lr_bounds": (0.0, None)}
        own.update(shared)
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options, directions.HeavyBall(monotone=monotone), default_hypergrad_lr=0.1, default_lr=0.0, **own)
        if self.setup.rule.averages:
            raise ValueError("HDM takes a rule that does not average: SGDHD has momentum that TuningFree can leave to the average")


@final
@documented
class AdamHD(HypergradientOptimizer):
    """Adam-HD: Adam that adapts its learning rate.

        h_t = g_t · ∇αu_{t-1},        α_t = α_{t-1} − β h_t
        θ_t = θ_{t-1} − α_t d_t,      d_t = m̂_t / (√v̂_t + ε),    ∇αu_t = −d_t

    This is Algorithm 6, the update with ``hypergrad_lr`` β. Without it there is nothing to choose: neither β nor a learning rate (see
    ``TuningFree``). ``∇αu_{t-1}`` is recomputed from the moments before they are updated, so no state beyond Adam's own is needed. Since
    ``∇αu_0 = 0``, the first step does not change the learning rate.

    Args:
        {params}
        {lr}
        betas: decay rates of the first and second moment, each in [0, 1). Default (0.9, 0.999); with ``TuningFree`` (0.9, 0.99), where
            the first is the weight of the running average in the point where gradients are evaluated.
        eps: ε >= 0, added to the denominator. Default 1e-8.
        weight_decay: coupled L2 penalty λ >= 0: λθ is added to the gradient, in the hypergradient and in the update. Default 0.
        {shared}

    State:
        Two buffers of the parameters' size, as Adam, also with ``TuningFree``; one more for a horizon above 1, one more for
        ``scope="element"``, and one more when betas or weight decay are adapted.

    Raises:
        ValueError: an option is out of range; both ``hypergrad_lr`` and ``rule`` are given; ``params`` is empty.
        TypeError: ``rule`` is not a Rule; in ``step()``, a gradient is sparse.

    Examples:
        >>> import torch
        >>> from hypergradient import AdamHD
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = AdamHD([w], lr=1e-3, hypergrad_lr=1e-5)
        >>> for _ in range(10):
        ...     opt.zero_grad()
        ...     (w**2).sum().backward()
        ...     opt.step()
        >>> opt.param_groups[0]["lr"] > 1e-3, opt.hypergradients[0] < 0
        (True, True)

    References:
        Baydin, Cornish, Martínez Rubio, Schmidt, Wood, *Online Learning Rate Adaptation with Hypergradient Descent*, ICLR 2018,
        Algorithm 6, https://openreview.net/forum?id=BkrsAzWAb
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options, directions.Adam(decoupled=False), default_hypergrad_lr=1e-8, **shared)


@final
@documented
class AdamWHD(HypergradientOptimizer):
    """AdamW-HD: AdamW (Adam with decoupled weight decay) that adapts its learning rate.

        h_t = g_t · ∇αu_{t-1},        α_t = α_{t-1} − β h_t
        θ_t = θ_{t-1} − α_t d_t,      d_t = m̂_t / (√v̂_t + ε) + λ θ_{t-1},    ∇αu_t = −d_t

    This is the update with ``hypergrad_lr`` β. Without it there is nothing to choose: neither β nor a learning rate (see ``TuningFree``).
    The weight decay is part of the direction, as the derivative of the update requires. ``∇αu_{t-1}`` is recomputed from the moments
    before they are updated and from ``θ_{t-1}``, so no state beyond Adam's own is needed. Since ``∇αu_0 = 0``, the first step does not
    change the learning rate.

    Args:
        {params}
        {lr}
        betas: decay rates of the first and second moment, each in [0, 1). Default (0.9, 0.999); with ``TuningFree`` (0.9, 0.99), where
            the first is the weight of the running average in the point where gradients are evaluated.
        eps: ε >= 0, added to the denominator. Default 1e-8.
        weight_decay: decoupled weight decay λ >= 0. Default 1e-2.
        {shared}

    State:
        Two buffers of the parameters' size, as AdamW, also with ``TuningFree``; one more for a horizon above 1, one more for
        ``scope="element"``, and one more when betas are adapted.

    Raises:
        ValueError: an option is out of range; both ``hypergrad_lr`` and ``rule`` are given; ``params`` is empty.
        TypeError: ``rule`` is not a Rule; in ``step()``, a gradient is sparse.

    Examples:
        >>> import torch
        >>> from hypergradient import AdamWHD, Multiplicative
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = AdamWHD([w], lr=1e-3, weight_decay=0.1, rule=Multiplicative(0.05))
        >>> for _ in range(10):
        ...     opt.zero_grad()
        ...     (w**2).sum().backward()
        ...     opt.step()
        >>> opt.param_groups[0]["lr"] > 1e-3
        True

    References:
        Baydin et al., ICLR 2018, Algorithm 6, https://openreview.net/forum?id=BkrsAzWAb, with the weight decay of Loshchilov and Hutter,
        *Decoupled Weight Decay Regularization*, ICLR 2019, https://arxiv.org/abs/1711.05101
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options, directions.Adam(decoupled=True), default_hypergrad_lr=1e-8, **shared)
