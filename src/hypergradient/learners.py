"""Online learners as rules: they update α, or log α, from all hypergradients so far. Each is y_t = y_{t-1} − β s_t with its own s_t."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from . import float_ops
from .checks import check_above, check_number, check_pair
from .rules import Learner, Memory, Rule, RuleUpdate


@final
@dataclass(frozen=True)
class AdaGradRule(Learner):
    """AdaGrad on the learning rate: ``G_t = G_{t-1} + h_t²``, ``s_t = h_t / (√G_t + ε)``, ``α_t = α_{t-1} − β s_t``.

    HDM adapts its learning rate and its momentum in this way, from hypergradients that are ``Signal(normalized=True)``. The rule does not
    depend on the scale of h, and its steps decrease as 1/√t.

    Args:
        beta: β >= 0, the size of the first update, in units of lr; dimensionless with ``log=True``. ``Adapted(β_0, rule)`` adapts β too.
        eps: ε > 0. Default 1e-12.
        log: True updates log α. Default None: α; for another hyperparameter its logarithm, or its logit where it lies in (0, 1). False
            updates that hyperparameter itself.

    Raises:
        ValueError: ``beta`` or ``eps`` is out of range; in the optimizer, ``log=True`` and lr is 0.

    Examples:
        >>> from hypergradient import AdaGradRule
        >>> round(AdaGradRule(0.1)(alpha=0.0, beta=0.1, h=-20.0, g_norm=0.0, d_norm=0.0), 6)
        0.1

    References:
        Chu, Gao, Ye, Udell, *Provable and Practical Online Learning Rate Adaptation with Hypergradient Descent*, ICML 2025.
    """

    eps: float = 1e-12

    memory_defaults: ClassVar[Mapping[str, float]] = {"sum": 0.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("eps", self.eps)

    def speed(self, memory: Memory, alpha: Any, h: Any, bound: Any, xp: Any = float_ops) -> tuple[Any, Memory]:
        total = memory["sum"] + h * h
        return h / (xp.sqrt(total) + self.eps), {"sum": total}


@final
@dataclass(frozen=True)
class AdamRule(Learner):
    """Adam on the learning rate: ``s_t = m̂_t / (√v̂_t + ε)``, with bias-corrected moving averages m of h and v of h².

    With ``log=True`` and a discounted ``Signal`` this is the second meta-update of MetaOptimize.

    Args:
        beta: β >= 0, about the change of α in one step; of log α with ``log=True``. ``Adapted(β_0, rule)`` adapts β too.
        betas: decay rates of m and v, each in [0, 1). Default (0.9, 0.999).
        eps: ε > 0. Default 1e-8.
        log: True updates log α. Default None: α; for another hyperparameter its logarithm, or its logit where it lies in (0, 1). False
            updates that hyperparameter itself.

    Raises:
        ValueError: an argument is out of range; in the optimizer, ``log=True`` and lr is 0.

    Examples:
        >>> from hypergradient import AdamRule
        >>> round(AdamRule(1e-3, log=True)(alpha=0.1, beta=1e-3, h=-20.0, g_norm=0.0, d_norm=0.0), 6)
        0.1001

    References:
        Sharifnassab, Salehkaleybar, Sutton, *MetaOptimize: A Framework for Optimizing Step Sizes and Other Meta-parameters*, ICML 2025.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    memory_defaults: ClassVar[Mapping[str, float]] = {"steps": 0.0, "mean": 0.0, "square": 0.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair("betas", self.betas)
        object.__setattr__(self, "betas", tuple(self.betas))
        check_above("eps", self.eps)

    def speed(self, memory: Memory, alpha: Any, h: Any, bound: Any, xp: Any = float_ops) -> tuple[Any, Memory]:
        b1, b2 = self.betas
        t, m, v = memory["steps"] + 1, xp.lerp(memory["mean"], h, 1 - b1), xp.lerp(memory["square"], h * h, 1 - b2)
        s = m / (1 - b1**t) / (xp.sqrt(v / (1 - b2**t)) + self.eps)
        return s, {"steps": t, "mean": m, "square": v}


@final
@dataclass(frozen=True)
class LionRule(Learner):
    """Lion on the learning rate: ``s_t = sign(b1 m_{t-1} + (1 − b1) h_t)``, then ``m_t = b2 m_{t-1} + (1 − b2) h_t``.

    With ``log=True`` and a discounted ``Signal`` this is the first meta-update of MetaOptimize: each step changes log α by ±β. Their
    package takes the sign with ``m_t`` instead of ``m_{t-1}``, which is b1 = 0.891 here. ``betas=(0, 0)`` is the sign of h alone.

    Args:
        beta: β >= 0, the change of α in one step; of log α with ``log=True``. ``Adapted(β_0, rule)`` adapts β too.
        betas: b1 and b2, each in [0, 1). Default (0.9, 0.99).
        log: True updates log α. Default None: α; for another hyperparameter its logarithm, or its logit where it lies in (0, 1). False
            updates that hyperparameter itself.

    Raises:
        ValueError: an argument is out of range; in the optimizer, ``log=True`` and lr is 0.

    Examples:
        >>> from hypergradient import LionRule
        >>> round(LionRule(1e-3, log=True)(alpha=0.1, beta=1e-3, h=-20.0, g_norm=0.0, d_norm=0.0), 6)
        0.1001

    References:
        Sharifnassab, Salehkaleybar, Sutton, ICML 2025; Chen et al., *Symbolic Discovery of Optimization Algorithms*, NeurIPS 2023.
    """

    betas: tuple[float, float] = (0.9, 0.99)

    memory_defaults: ClassVar[Mapping[str, float]] = {"mean": 0.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair("betas", self.betas)
        object.__setattr__(self, "betas", tuple(self.betas))

    def speed(self, memory: Memory, alpha: Any, h: Any, bound: Any, xp: Any = float_ops) -> tuple[Any, Memory]:
        b1, b2 = self.betas
        return xp.sign(xp.lerp(memory["mean"], h, 1 - b1)) + (h - h), {"mean": xp.lerp(memory["mean"], h, 1 - b2)}


@final
@dataclass(frozen=True)
class Autostep(Learner):
    """Autostep, for one learning rate per element: log α follows h over a running maximum of |h|, and overshooting steps are scaled down.

        v_t = max(|h_t|, v_{t-1} + α_{t-1} c_t (|h_t| − v_{t-1}) / τ)
        log α_t = log α_{t-1} − β h_t / v_t
        then α_t ← α_t / max(1, Σ α_t c_t) over the param group

    h is taken by log α against a discounted trace, and c is the curvature, both from ``Signal(1.0, curvature=...)``. Requires
    ``scope="element"``.

    Args:
        beta: β >= 0 (μ in the paper), the largest change of log α in one step. Default 0.01.
        tau: τ > 0, the time scale in steps on which the maximum is forgotten. Default 1e4.

    Raises:
        ValueError: ``beta`` or ``tau`` is out of range; in the optimizer, the scope is not "element", the signal has no curvature, or lr
            is 0.

    Examples:
        >>> import torch
        >>> from hypergradient import SGDHD, Autostep, Signal
        >>> w, x = torch.nn.Parameter(torch.zeros(3)), torch.tensor([1.0, 2.0, 0.0])
        >>> opt = SGDHD([w], lr=0.1, rule=Autostep(), scope="element", signal=Signal(1.0, curvature=lambda p: x**2))
        >>> for _ in range(20):
        ...     opt.zero_grad()
        ...     (0.5 * (w @ x - 1) ** 2).backward()
        ...     opt.step()
        >>> (w @ x - 1).abs().item() < 1e-3
        True

    References:
        Mahmood, Sutton, Degris, Pilarski, *Tuning-free Step-size Adaptation*, ICASSP 2012.
    """

    beta: float = 0.01
    tau: float = 1e4
    log: bool | None = field(default=True, init=False)

    memory_defaults: ClassVar[Mapping[str, float]] = {"largest": 0.0}
    uses_curvature: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("tau", self.tau)

    def speed(self, memory: Memory, alpha: Any, h: Any, bound: Any, xp: Any = float_ops) -> tuple[Any, Memory]:
        v = memory["largest"]
        v = xp.maximum(abs(h), v + alpha * memory["curvature"] * (abs(h) - v) / self.tau)
        return xp.masked_fill(xp.div(h, v), xp.logical_not(v > 0), 0.0) + (h - h), {"largest": v}


@final
@dataclass(frozen=True)
class Marthe(Rule):
    """MARTHE: α follows the hypergradient of a held-out loss (by ``opt.adapt``); β and the discount μ of the trace are adapted too.

        α_t = α_{t-1} − β_{t-1} h_t,    β_t = max(0, β_{t-1} + a h_t α_t)
        auto:  q = min(1, max(0, α_t / (g_val · g_t)))
               c ← c sign(μ) + μ,    μ ← q^(1/(c+1))

    Without ``auto`` μ is the ``discount`` of the optimizer's ``Signal``: 1 is RTHO, 0 is hypergradient descent on the held-out loss.

    Args:
        beta: β_0 >= 0. Default 1e-8.
        rate: a >= 0. Default 1e-6; 0 keeps β constant.
        auto: adapt μ, starting from 0. Needs one more buffer, for the last gradient. Default False.

    Raises:
        ValueError: ``beta`` or ``rate`` is negative or not finite.

    Examples:
        >>> import torch
        >>> from hypergradient import SGDHD, Marthe, Signal
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = SGDHD([w], lr=0.01, momentum=0.9, rule=Marthe(1e-4), signal=Signal(0.999, curvature="hessian"))
        >>> for _ in range(10):
        ...     (w.grad,) = torch.autograd.grad((w**2).sum(), [w], create_graph=True)  # on training data
        ...     opt.step()
        ...     opt.adapt(((w - 0.1) ** 2).sum())  # on validation data
        >>> opt.param_groups[0]["lr"] > 0.01
        True

    References:
        Donini, Franceschi, Pontil, Majumder, Frasconi, *MARTHE: Scheduling the Learning Rate Via Online Hypergradients*, IJCAI 2020;
        Franceschi, Donini, Frasconi, Pontil, *Forward and Reverse Gradient-Based Hyperparameter Optimization*, ICML 2017 (RTHO).
    """

    beta: float = 1e-8
    rate: float = 1e-6
    auto: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rate", self.rate)
        object.__setattr__(self, "adapts_discount", self.auto)

    def initial_memory(self) -> Memory:
        return {"discount": 0.0, "count": 0.0} if self.auto else {}

    def update(self, memory: Memory, alpha: Any, beta: Any, h: Any, g_norm: Any, d_norm: Any, xp: Any = float_ops) -> RuleUpdate:
        alpha = alpha - beta * h
        beta = xp.clamp(beta + self.rate * h * alpha, min=0.0)
        if not self.auto:
            return RuleUpdate(alpha, {}, beta=beta)
        mu, slope = memory["discount"], memory["slope"]
        q = xp.masked_fill(xp.clamp(xp.div(alpha, slope), 0.0, 1.0), xp.logical_not(slope > 0), 0.0)
        count = memory["count"] * xp.sign(mu) + mu
        return RuleUpdate(alpha, {"discount": q ** (1 / (count + 1)), "count": count}, beta=beta)

    def summary(self, memory: Memory) -> dict[str, float]:
        return {"discount": memory["discount"]} if self.auto else {}
