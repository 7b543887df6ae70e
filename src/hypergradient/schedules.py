"""Schedules around a rule: the learning rate that is applied, as a function of the adapted one and of time."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, final

from . import float_ops
from .checks import check_number
from .rules import Adapted, Memory, Rule, RuleUpdate


@dataclass(frozen=True)
class Schedule(Rule):
    """The inner rule adapts a learning rate α_t, which is part of its state; steps are taken with ``applied(α_t, t)``.

    ``group["lr"]`` shows the applied learning rate. If it is overwritten, the inner rule continues from the new value.
    """

    rule: Rule
    beta: float | Adapted = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule must be a Rule such as Additive(1e-6) or TuningFree(), got {self.rule!r}")
        for name in ("beta", "reads_norms", "averages"):
            object.__setattr__(self, name, getattr(self.rule, name))

    @abstractmethod
    def applied(self, alpha: Any, t: Any, xp: Any = float_ops) -> Any:
        """The learning rate applied in step t (counted from 1), given the rule's ``alpha``; t is an int, or a vector on the device."""

    def check_lr(self, lr: float) -> None:
        self.rule.check_lr(lr)

    def used(self, before: Any, alpha: Any, t: Any, xp: Any = float_ops) -> Any:
        """As ``applied``, given also the learning rate ``before`` this step's update."""
        return self.applied(alpha, t, xp)

    @property
    def adapts_log(self) -> bool:
        return self.rule.adapts_log

    @property
    def _own(self) -> tuple[str, str, str]:
        """The names of its state: the number of steps, the adapted and the applied learning rate."""
        name = type(self).__name__.lower()
        return f"{name}_steps", f"{name}_alpha", f"{name}_applied"

    def initial_memory(self) -> Memory:
        return dict.fromkeys(self._own, 0.0) | self.rule.initial_memory()

    def summary(self, memory: Memory) -> dict[str, float]:
        return {"adapted lr": memory[self._own[1]], **self.rule.summary(memory)}

    def update(self, memory: Memory, alpha: Any, beta: Any, h: Any, g_norm: Any, d_norm: Any, xp: Any = float_ops) -> RuleUpdate:
        steps, adapted, applied = self._own
        near = abs(alpha - memory[applied]) <= 1e-6 * xp.maximum(abs(alpha), abs(memory[applied]))  # a tensor lr is rounded
        alpha = xp.where((memory[steps] > 0) & near, memory[adapted], alpha)
        update = self.rule.update(memory, alpha, beta, h, g_norm, d_norm, xp)
        t = memory[steps] + 1
        found = self.used(alpha, update.alpha, int(t) if xp is float_ops else t, xp)
        return replace(update, alpha=found, memory={**update.memory, steps: t, adapted: update.alpha, applied: found})


def inverse_square(t: int) -> float:
    """1/t²."""
    return 1 / t**2


@final
@dataclass(frozen=True)
class Transition(Schedule):
    """Steps are taken with ``γ_t = δ(t) α_t + (1 − δ(t)) α_∞``, as in the paper's proof of convergence.

    With α_∞ < 1/L, for a convex loss with L-Lipschitz gradient, this converges whatever the rule does, as long as α_t grows at most as t.

    Args:
        rule: adapts α_t.
        alpha_inf: α_∞ > 0, the learning rate in the limit.
        delta: δ, a function from t = 1, 2, ... to [0, 1] with δ(1) = 1, δ → 0 and t δ(t) → 0. On a device t is a tensor. Default 1/t².

    Raises:
        ValueError: ``alpha_inf`` is not a positive number, or δ(1) is not 1.
        TypeError: ``rule`` is not a Rule.

    Examples:
        >>> from hypergradient import Additive, Transition
        >>> rule = Transition(Additive(1e-4), alpha_inf=0.01)
        >>> [round(rule.applied(0.5, t), 4) for t in (1, 2, 10)]
        [0.5, 0.1325, 0.0149]

    References:
        Baydin et al., *Online Learning Rate Adaptation with Hypergradient Descent*, ICLR 2018, Theorem 5.1.
    """

    alpha_inf: float = field(kw_only=True)
    delta: Callable[[int], float] = field(kw_only=True, default=inverse_square)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha_inf", self.alpha_inf)
        if self.alpha_inf == 0:
            raise ValueError("alpha_inf must be above 0, got 0: the run would end with no step at all")
        if self.delta(1) != 1:
            raise ValueError(f"delta(1) must be 1, got {self.delta(1)!r}")

    def applied(self, alpha: Any, t: Any, xp: Any = float_ops) -> Any:
        delta = self.delta(t)
        return delta * alpha + (1 - delta) * self.alpha_inf


@final
@dataclass(frozen=True)
class Decay(Schedule):
    """The learning rate decays linearly to zero over the last part of a run whose length is known.

        applied(α_t, t) = α_t min(1, (T + 1 − t) / (r T))

    Args:
        rule: adapts α_t.
        total_steps: T >= 1, the number of steps of the whole run. Later steps change nothing.
        share: r in (0, 1], the fraction of the run over which the learning rate decays. Default 0.2.

    Raises:
        ValueError: ``total_steps`` or ``share`` is out of range.
        TypeError: ``rule`` is not a Rule.

    Examples:
        >>> from hypergradient import Decay, TuningFree
        >>> rule = Decay(TuningFree(), total_steps=1000)
        >>> [rule.applied(0.1, t) for t in (1, 801, 901, 1001)]
        [0.1, 0.1, 0.05, 0.0]
    """

    total_steps: int = field(kw_only=True)
    share: float = field(kw_only=True, default=0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("total_steps", self.total_steps, low=1)
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie above 0 and be at most 1, got {self.share!r}")

    def applied(self, alpha: Any, t: Any, xp: Any = float_ops) -> Any:
        return alpha * xp.clamp((self.total_steps + 1 - t) / (self.share * self.total_steps), 0.0, 1.0)


@final
@dataclass(frozen=True)
class Delayed(Schedule):
    """Each step uses the learning rate from before it was updated by the gradient of the same step.

        γ_1 = α_0,    γ_t = α_{t-1}

    The algorithms of Baydin et al. update α_t by ``g_t`` and then step along ``g_t`` with it; MetaOptimize steps first.

    Args:
        rule: adapts α_t.

    Raises:
        TypeError: ``rule`` is not a Rule.

    Examples:
        >>> from hypergradient import Delayed, LionRule
        >>> rule = Delayed(LionRule(1e-3, log=True))
        >>> rule.used(0.1, 0.2, t=7)
        0.1

    References:
        Sharifnassab, Salehkaleybar, Sutton, *MetaOptimize: A Framework for Optimizing Step Sizes and Other Meta-parameters*, ICML 2025.
    """

    def applied(self, alpha: Any, t: Any, xp: Any = float_ops) -> Any:
        return alpha

    def used(self, before: Any, alpha: Any, t: Any, xp: Any = float_ops) -> Any:
        return before
