"""The published optimizers: each a direction, its defaults and its signature."""

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

#: What the optimizers' arguments have in common, where a docstring has the line ``{shared}``.
SHARED = """maximize: ascend the loss. Default False.
        hypergrad_lr: β >= 0 of the paper; short for ``rule=Additive(hypergrad_lr)``.
        rule: how the learning rate follows the hypergradient: ``TuningFree()``, which needs no choice, ``Additive(beta)``,
            ``Multiplicative(beta)``, or an online learner such as ``AdaGradRule(beta)`` (docs/methods.md). Default ``TuningFree()``.
        adapt: the hyperparameters that move, each with its rule, instead of ``rule``; what is not named stays. ``Additive`` moves the
            logarithm of φ/(1−φ) where φ lies in (0, 1), of φ otherwise, ``Multiplicative`` what these are the logarithms of. One value a
            param group, in ``group["momentum"]`` and so on. Default: the learning rate alone.
        bounds: what they are held inside, ``{NAME: (low, high)}``, None for the default. Default momentum and β1 (1e-3, 0.9999), β2
            (1e-3, 0.999999), eps (1e-16, 1), weight_decay (1e-8, 1).
        horizon: how many past directions the learning rate's hypergradient looks over, >= 1; 1 is the paper, more take one buffer. Default
            1, under ``TuningFree`` a fifth of the run so far.
        signal: ``Signal(...)`` instead of ``horizon``: a discounted trace, with curvature or without, or normalized hypergradients.
        scope: ``"group"``, one learning rate a param group; ``"global"``, one adaptation that keeps the ratios between the groups;
            ``"tensor"``, one a tensor, ``"element"``, one a number, of which ``group["lr"]`` is the mean. Default ``"group"``.
        lr_bounds: lowest and highest learning rate, None for none. Default ``(None, None)``: it may fall below 0.
        fused: compile the dot products of large tensors, and their update where torch has no kernel of its own for it (torch.compile, which
            needs a compiler, and takes some seconds at the first steps). Default None: the fastest way that needs no compilation.
        capturable: keep numbers on the device: ``group["lr"]`` is a tensor (of float64, where ``lr`` is a float), and so is any other
            hyperparameter that is adapted; no step waits for a value, and steps can be captured in a CUDA graph, after 3 to warm up. Steps
            that are not taken are counted in ``skipped`` without a warning. Default None: where the parameters are not on a CPU.
        process_group: the ranks that plain tensors are spread over, each with a part of them, as under FSDP1 and ZeroRedundancyOptimizer.
            DTensors (FSDP2, tensor parallelism) and DDP need none. Default None."""

LR = """lr: learning rate to start from, α_0 >= 0, a float or a tensor of one element (updated in place). Default: a safe start, which
            ``TuningFree`` finds; it takes a given one from there up to 30 times that, and leaves a group with 0 where it is. 1e-3 under
            ``hypergrad_lr`` or another rule."""

PARAMS = """params: tensors, named tensors or param groups, as in torch.optim. Every option below but ``rule``, ``adapt``,
            ``bounds``, ``horizon``, ``signal``, ``scope``, ``fused``, ``capturable`` and ``process_group`` may differ by group."""

Class = TypeVar("Class", bound=Any)


def documented(cls: Class) -> Class:
    """A class whose docstring and signature have what all of them have in common filled in."""
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
    """SGD-HD and SGDN-HD: stochastic gradient descent, with or without (Nesterov) momentum, that adapts its learning rate.

        h_t = g_t · ∇αu_{t-1},    α_t = α_{t-1} − β h_t,    θ_t = θ_{t-1} − α_t d_t,    ∇αu_t = −d_t

    under ``hypergrad_lr``; without it there is neither β nor learning rate to choose (see ``TuningFree``). d_t is the step of
    torch.optim.SGD at learning rate 1: the gradient g_t (Algorithm 4), the momentum buffer v_t, or g_t + μ v_t with Nesterov momentum
    (Algorithm 5). ∇αu_0 = 0: the first step leaves the learning rate alone.

    Args:
        {params}
        {lr}
        momentum: μ >= 0; under ``TuningFree`` how far from the iterate to its average gradients are taken, below 1. Default 0.
        dampening: τ, for the momentum buffer. Default 0.
        weight_decay: coupled L2 penalty λ >= 0; λθ is part of g in the hypergradient and in the update. Default 0.
        nesterov: Nesterov momentum; needs momentum > 0 and no dampening. Default False. It and dampening change nothing under
            ``TuningFree``.
        {shared}

    State:
        one buffer of the parameters' size for SGD (the last gradient itself, where ``zero_grad()`` sets gradients to None) and for plain
        momentum, two for Nesterov momentum; one more under a horizon above 1, one more where each element has a learning rate, and one more
        where plain momentum is adapted. Under ``TuningFree`` one, whatever the momentum.

    Raises:
        ValueError: an option is out of its range; both ``hypergrad_lr`` and ``rule`` are given; no parameters.
        TypeError: ``rule`` is no Rule; at ``step()``, a gradient is sparse.

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
    """HDM: gradient descent with a learning rate an element and heavy-ball momentum, which AdaGrad moves by normalized hypergradients.

        θ_t = θ_{t-1} − α_t g_t + μ_t (θ_{t-1} − θ_{t-2}),    N = ‖g_{t-1}‖²
        α_t = α_{t-1} − η h_t / √Σ h²,    h_t = −g_t g_{t-1} / N;    μ_t = μ_{t-1} − η_μ r_t / √Σ r²,    r_t = g_t · (θ_{t-2} − θ_{t-3}) / N

    for convex problems whose loss and gradient are exact; minibatches are not what it is made for. With ``monotone`` a step that has not
    lowered the loss is a null step: α and μ move by it, and the next is made from where it began, without displacement. That is HDM-Best of
    the paper's code, but for its guess of L.

    Args:
        {params}
        lr: α_0 >= 0. Default 0, which reads 1 before the first step, so that a scheduler has something to multiply.
        momentum: μ_0 in [0, 0.9995]. Default 0.95.
        weight_decay: coupled L2 penalty λ >= 0; λθ is part of g. Default 0.
        monotone: take null steps; needs ``step(closure)``, whose loss counts, and whose gradients are those of all data. Default False.
        momentum_lr: η_μ >= 0. Default 1.
        {shared}

    ``hypergrad_lr`` is η here, in units of lr, default 0.1; 10/L is the paper's for a convex loss with L-Lipschitz gradient. The default of
    ``scope`` is ``"element"``, of ``lr_bounds`` (0, None), of ``signal`` ``Signal(normalized=True)``.

    State:
        three buffers of the parameters' size, and two more where each element has a learning rate.

    Raises:
        ValueError: an option is out of its range; both ``hypergrad_lr`` and ``rule`` are given; the rule averages; no parameters.
        TypeError: ``rule`` is no Rule; at ``step()``, a gradient is sparse, or there is no closure under ``monotone``.

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

        h_t = g_t · ∇αu_{t-1},    α_t = α_{t-1} − β h_t,    θ_t = θ_{t-1} − α_t m̂_t / (√v̂_t + ε),    ∇αu_t = −m̂_t / (√v̂_t + ε)

    (Algorithm 6) under ``hypergrad_lr``; without it there is neither β nor learning rate to choose (see ``TuningFree``). ∇αu_{t-1} is
    recomputed from the moments before they move on: no state beyond Adam's own. ∇αu_0 = 0: the first step leaves the learning rate alone.

    Args:
        {params}
        {lr}
        betas: decay of the first and second moment, each in [0, 1). Default (0.9, 0.999), under ``TuningFree`` (0.9, 0.99), where the first
            is how far from the iterate to its average gradients are taken.
        eps: ε >= 0, added to the denominator. Default 1e-8.
        weight_decay: coupled L2 penalty λ >= 0; λθ is part of g in the hypergradient and in the update. Default 0.
        {shared}

    State:
        two buffers of the parameters' size, as Adam, also under ``TuningFree``; one more under a horizon above 1, one more where each
        element has a learning rate, and one more where betas or weight decay are adapted.

    Raises:
        ValueError: an option is out of its range; both ``hypergrad_lr`` and ``rule`` are given; no parameters.
        TypeError: ``rule`` is no Rule; at ``step()``, a gradient is sparse.

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
    """AdamW-HD: AdamW, Adam with decoupled weight decay, that adapts its learning rate.

        h_t = g_t · ∇αu_{t-1},    α_t = α_{t-1} − β h_t,    θ_t = θ_{t-1} − α_t d_t,    ∇αu_t = −d_t,
        d_t = m̂_t / (√v̂_t + ε) + λ θ_{t-1}

    The decay is part of the direction, as the derivative of the update has it. ∇αu_{t-1} is recomputed from the moments before they move
    on and from θ_{t-1}: no state beyond Adam's own. ∇αu_0 = 0: the first step leaves the learning rate alone.

    Args:
        {params}
        {lr}
        betas: decay of the first and second moment, each in [0, 1). Default (0.9, 0.999), under ``TuningFree`` (0.9, 0.99), where the first
            is how far from the iterate to its average gradients are taken.
        eps: ε >= 0, added to the denominator. Default 1e-8.
        weight_decay: decoupled weight decay λ >= 0. Default 1e-2.
        {shared}

    State:
        two buffers of the parameters' size, as AdamW, also under ``TuningFree``; one more under a horizon above 1, one more where each
        element has a learning rate, and one more where betas are adapted.

    Raises:
        ValueError: an option is out of its range; both ``hypergrad_lr`` and ``rule`` are given; no parameters.
        TypeError: ``rule`` is no Rule; at ``step()``, a gradient is sparse.

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
        Baydin et al., ICLR 2018, Algorithm 6, https://openreview.net/forum?id=BkrsAzWAb, with the decay of Loshchilov and Hutter,
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
