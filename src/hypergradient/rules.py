"""Rules: how a hyperparameter follows its hypergradient, as a map (α_{t-1}, β, h_t, ‖g_t‖, ‖∇αu_{t-1}‖) → α_t.

Each rule is one elementwise formula, which is evaluated on Python floats, on vectors with an entry per learning rate, or on the elements of
a tensor. The argument ``xp`` provides the functions of torch for whichever it is: torch itself, or ``float_ops`` for floats. A rule never
asks for a type and branches with ``where``. Rules are written for the learning rate, and adapt every other hyperparameter too, in the
coordinates of hyperparameters.py.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from torch import Tensor

from . import float_ops
from .checks import check_flag, check_number

Memory = dict[str, Any]
"""The state of a rule, by name."""


@dataclass(frozen=True)
class RuleUpdate:
    """The result of a rule for one step.

    Args:
        alpha: α_t.
        memory: the new state of the rule.
        window: over how many steps the average looks, for a rule that ``averages``.
        back: whether to skip the step and return the parameters to the average.
        part: the share of α_t that the step uses, in [0, 1].
        beta: β_t, where it is adapted too.
    """

    alpha: Any
    memory: Memory
    window: Any = 1.0
    reset: Any = False
    fraction: Any = 1.0
    beta: Any = None


@dataclass(frozen=True)
class Rule(ABC):
    """Base class of all rules: β, and a pure function from the last learning rate to the next.

    The optimizer copies ``initial_beta`` to ``group["hypergrad_lr"]``, where it can be read and changed; a step uses the value found there.
    To write a rule of your own, derive a frozen dataclass from this and implement ``update``; ``xp`` has the functions of torch, so that
    one formula serves floats and tensors.
    """

    beta: "float | Adapted"

    #: Whether the rule reads ``g_norm`` and ``d_norm``, which are computed only then.
    reads_norms: ClassVar[bool] = False

    #: Whether the hypergradient is that of log α against the displacement from the iterate to its average, which the optimizer then
    #: maintains; the ``memory`` of ``update`` also has the norm of the parameters, as "size".
    averages: ClassVar[bool] = False

    #: Whether the rule sets the discount of the signal's trace, as "discount" in its state; ``memory`` also has g_t · g_{t-1}, as "slope".
    adapts_discount: ClassVar[bool] = False

    #: Whether ``memory`` also has the curvature c of each element, as "curvature", and learning rates are scaled down to Σ α c ≤ 1.
    uses_curvature: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("beta", self.beta)

    @property
    def adapts_log(self) -> bool:
        """Whether the rule needs the hypergradient with respect to log α instead of α."""
        return False

    @property
    def initial_beta(self) -> float:
        """β_0, the initial hypergradient learning rate."""
        return self.beta.value if isinstance(self.beta, Adapted) else self.beta

    def initial_memory(self) -> Memory:
        """The state of the rule before the first step, by name."""
        return {}

    def check_lr(self, lr: float) -> None:  # noqa: B027 - most rules start from any learning rate
        """Raise ValueError if the rule cannot start from the learning rate ``lr``."""

    def summary(self, memory: Memory) -> dict[str, float]:
        """The entries of the rule in ``opt.summary()``."""
        return {}

    @abstractmethod
    def update(self, memory: Memory, alpha: Any, beta: Any, h: Any, g_norm: Any, d_norm: Any, xp: Any = float_ops) -> RuleUpdate:
        """The learning rate α_t.

        Args:
            memory: the state from the last step's ``RuleUpdate``.
            alpha: α_{t-1}.
            beta: β, the hypergradient learning rate.
            h: the hypergradient ``h_t = g_t · ∇αu_{t-1}``; 0 in the first step.
            g_norm: ‖g_t‖; 0 if the rule does not read norms.
            d_norm: ‖∇αu_{t-1}‖; likewise.
            xp: the functions to compute with: torch, or ``float_ops`` for floats.
        """


@dataclass(frozen=True)
class Level(Rule):
    """A rule whose update is proportional to β: y_t = y_{t-1} − β s_t, where y is the learning rate or its logarithm.

    Since ``s_t = −∂y_t/∂β`` does not depend on β, such rules can be stacked into towers (see ``Adapted``).
    """

    #: Whether the update is a factor, which can neither leave 0 nor change the sign.
    is_multiplicative: ClassVar[bool] = False

    #: The state that s_t needs, by name, with the values before the first step.
    memory_defaults: ClassVar[Mapping[str, float]] = {}

    @property
    def adapts_value(self) -> bool:
        """Whether another hyperparameter than lr is updated itself, rather than a coordinate that keeps it in its range."""
        return False

    @abstractmethod
    def speed(self, memory: Memory, alpha: Any, h: Any, bound: Any, xp: Any = float_ops) -> tuple[Any, Memory]:
        """``s_t`` and the new state, from the state, α_{t-1}, ``h_t``, and ``bound`` = ‖g_t‖ ‖∇αu_{t-1}‖ ≥ |h_t|."""

    @abstractmethod
    def speed_bound(self, alpha: Any, bound: Any) -> Any:
        """An upper bound of ``|s_t|``, given ``bound`` ≥ ``|h_t|``."""

    def __post_init__(self) -> None:
        if isinstance(self.beta, Adapted):
            object.__setattr__(self, "reads_norms", self.reads_norms or self.beta.rule.reads_norms)
        else:
            super().__post_init__()

    def __call__(self, alpha: Any, beta: Any, h: Any, g_norm: Any, d_norm: Any, xp: Any = float_ops) -> Any:
        """α_t of a first step, with constant β."""
        return self.update(self.initial_memory(), alpha, beta, h, g_norm, d_norm, xp).alpha

    def initial_memory(self) -> Memory:
        rule, level, memory = self, 1, Memory(self.memory_defaults)
        while isinstance(rule.beta, Adapted):
            memory |= {f"speed_{level}": 0.0, f"reach_{level}": 0.0}
            memory |= {f"hypergrad_lr_{level}": rule.beta.value} if level > 1 else {}  # the first is group["hypergrad_lr"]
            rule, level = rule.beta.rule, level + 1
            memory |= {f"{name}_{level}": value for name, value in rule.memory_defaults.items()}
        return memory

    def summary(self, memory: Memory) -> dict[str, float]:
        return {name: value for name, value in memory.items() if name.startswith("hypergrad_lr")}

    def update(self, memory: Memory, alpha: Any, beta: Any, h: Any, g_norm: Any, d_norm: Any, xp: Any = float_ops) -> RuleUpdate:
        memory = dict(memory)
        found, beta = self._adapt(memory, 1, alpha, beta, h, g_norm * d_norm, xp)
        return RuleUpdate(found, memory, beta=beta if isinstance(self.beta, Adapted) else None)

    def _adapt(self, memory: Memory, level: int, alpha: Any, beta: Any, h: Any, bound: Any, xp: Any) -> tuple[Any, Any]:
        """α_t and β_t of this level, the highest level first; writes the state of the levels above to ``memory``.

        H^(k+1)_t = −H^(k)_t s^(k)_{t-1}: the derivative of the loss by β, through the α_{t-1} that it has made.
        """
        own = {name: f"{name}_{level}" for name in self.memory_defaults} if level > 1 else {}
        s, new_memory = self.speed(memory | {name: memory[key] for name, key in own.items()} if own else memory, alpha, h, bound, xp)
        memory |= {own.get(name, name): value for name, value in new_memory.items()}
        if isinstance(self.beta, Adapted):
            speed, reach, name = f"speed_{level}", f"reach_{level}", f"hypergrad_lr_{level + 1}"
            above = self.beta.rule
            by = beta if above.adapts_log else 1.0
            beta, next_beta = above._adapt(
                memory, level + 1, beta, memory.get(name, above.initial_beta), -h * memory[speed] * by, bound * memory[reach] * abs(by), xp
            )
            memory |= {speed: s, reach: self.speed_bound(alpha, bound)} | ({name: next_beta} if name in memory else {})
        return (alpha * xp.exp(-beta * s) if self.adapts_log else alpha - beta * s), beta


@dataclass(frozen=True)
class Learner(Level):
    """A level that can update the learning rate or its logarithm: y_t = y_{t-1} − β s_t, with y = α or y = log α, and h taken by that.

    For another hyperparameter φ it updates log φ, or the logit of φ where φ lies in (0, 1); with ``log=False`` φ itself.
    """

    log: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("log", self.log, none=True)

    @property
    def adapts_log(self) -> bool:
        return self.log is True

    @property
    def adapts_value(self) -> bool:
        return self.log is False

    def speed_bound(self, alpha: Any, bound: Any) -> Any:
        return 1.0  # |s_t| is about 1, whatever the scale of the hypergradients

    def check_lr(self, lr: float) -> None:
        if self.adapts_log and lr == 0:
            raise ValueError(f"{type(self).__name__} with log=True updates log lr, so it can never leave lr=0: start from lr > 0")


@final
@dataclass(frozen=True)
class Additive(Learner):
    """The additive rule: ``α_t = α_{t-1} − β h_t``.

    The learning rate can become negative, as the paper observes. ``lr_bounds=(0, None)`` prevents that, and so does ``log=True``, which
    updates the logarithm: ``α_t = α_{t-1} exp(−β h_t)`` with ``h_t = ∂f/∂log α``.

    Args:
        beta: β >= 0, in units of lr² / loss; with ``log=True`` of 1 / loss. 0 keeps the learning rate constant. ``Adapted(β_0, rule)``
            adapts β too.
        log: True updates log α. Default None: α; for another hyperparameter its logarithm, or its logit where it lies in (0, 1). False
            updates that hyperparameter itself.

    Raises:
        ValueError: ``beta`` is negative or not finite; in the optimizer, ``log=True`` and lr is 0.

    Examples:
        >>> from hypergradient import Additive
        >>> round(Additive(1e-4)(alpha=0.1, beta=1e-4, h=-20.0, g_norm=0.0, d_norm=0.0), 6)
        0.102

    References:
        Baydin et al., *Online Learning Rate Adaptation with Hypergradient Descent*, ICLR 2018, Algorithms 4 to 6.
    """

    def speed(self, memory: Memory, alpha: Any, h: Any, bound: Any, xp: Any = float_ops) -> tuple[Any, Memory]:
        return h, {}

    def speed_bound(self, alpha: Any, bound: Any) -> Any:
        return bound


@final
@dataclass(frozen=True)
class Multiplicative(Level):
    """The multiplicative rule: ``α_t = α_{t-1} (1 − β h_t / (‖g_t‖ ‖∇αu_{t-1}‖))``.

    One step changes the learning rate by at most a factor of 1 ± β, whatever the scale of the loss and the parameters.

    Args:
        beta: β >= 0, dimensionless. 0 keeps the learning rate constant; below 1 it stays positive. ``Adapted(β_0, rule)`` adapts β too.

    Raises:
        ValueError: ``beta`` is negative or not finite; in the optimizer, lr is 0, which no factor can change.

    Examples:
        >>> from hypergradient import Multiplicative
        >>> round(Multiplicative(0.02)(alpha=0.1, beta=0.02, h=-3.0, g_norm=2.0, d_norm=2.0), 6)
        0.1015

    References:
        Baydin et al., *Online Learning Rate Adaptation with Hypergradient Descent*, ICLR 2018, Algorithms 4 to 6.
    """

    reads_norms = True
    is_multiplicative = True

    def check_lr(self, lr: float) -> None:
        if lr == 0:
            raise ValueError(
                "Multiplicative scales the learning rate by a factor, so it can never leave lr=0: "
                "start from lr > 0, or use Additive, which climbs from 0"
            )

    def speed(self, memory: Memory, alpha: Any, h: Any, bound: Any, xp: Any = float_ops) -> tuple[Any, Memory]:
        unknown = xp.logical_not(bound > 0)  # no gradient or no last direction; where a norm overflows the cosine is 0
        cosine = xp.clamp(xp.div(h, bound), -1.0, 1.0)  # exceeds 1 only by rounding
        return alpha * xp.masked_fill(cosine, unknown, 0.0), {}

    def speed_bound(self, alpha: Any, bound: Any) -> Any:
        return abs(alpha)


@final
@dataclass(frozen=True)
class Adapted:
    """A β that is adapted by a rule of its own, to any depth: ``Additive(beta=Adapted(1e-4, Additive(1e-10)))``.

        H_t = ∂f_t/∂β = −h_t s_{t-1},    β_t = β_{t-1} − β' H_t,    α_t = α_{t-1} − β_t s_t

    where s = h for ``Additive``. This costs no tensor and no dot product, only three scalars. Two cautions: β' depends on the square of
    the loss's scale, and minibatches bias H, since ``h_t`` and ``h_{t-1}`` share ``g_{t-1}``, so that noise raises β by about ∇fᵀΣ∇f.
    ``Multiplicative`` as the upper rule avoids both: H divided by the norms is a product of two cosines, in which independent noise in
    many dimensions cancels, and one step changes β by at most a factor of 1 ± β'.

    Args:
        value: β_0 >= 0.
        rule: ``Additive(β')``, ``Multiplicative(β')`` or a learner such as ``AdaGradRule(β')``; its β' may be ``Adapted`` in turn.

    Raises:
        ValueError: ``value`` is negative or not finite, or 0 with a rule that cannot leave 0.
        TypeError: ``rule`` cannot be part of a tower (``TuningFree``, ``Marthe``, ``Autostep`` and schedules cannot).

    Examples:
        >>> import torch
        >>> from hypergradient import SGDHD, Adapted, Additive, Multiplicative
        >>> w = torch.nn.Parameter(torch.tensor([5.0, -3.0]))
        >>> opt = SGDHD([w], lr=1e-3, rule=Additive(Adapted(1e-6, Multiplicative(0.1))))
        >>> for _ in range(20):
        ...     opt.zero_grad()
        ...     (w**2).sum().backward()
        ...     opt.step()
        >>> opt.param_groups[0]["hypergrad_lr"] > 1e-6
        True

    References:
        Baydin et al., ICLR 2018, name higher-order hypergradients as future work; Chandra et al., *Gradient Descent: The Ultimate
        Optimizer*, NeurIPS 2022, build such towers by automatic differentiation. docs/hypergradients.md derives the closed form.
    """

    value: float
    rule: Level

    def __post_init__(self) -> None:
        check_number("value", self.value)
        check_level("Adapted", self.rule)
        if self.value == 0 and (self.rule.is_multiplicative or self.rule.adapts_log):
            name = type(self.rule).__name__
            raise ValueError(f"{name} scales β by a factor, so it can never leave 0: start from value > 0, or use Additive")


def check_level(name: str, rule: Any) -> None:
    """Raise TypeError if ``rule`` can adapt nothing but a learning rate."""
    if not isinstance(rule, Level) or rule.uses_curvature:
        raise TypeError(f"{name} takes a rule such as Additive(1e-6) or Multiplicative(0.01), got {rule!r}")


def norms_of(x: Mapping[str, Any], xp: Any) -> tuple[Any, Any]:
    """‖g‖ and ‖∂θ/∂φ‖ if the rule reads them: given as they are on a device, as squares on the host."""
    if "g_norm" in x:
        return x["g_norm"], x["d_norm"]
    return (xp.sqrt(x["gg"]), xp.sqrt(x["xx"])) if "gg" in x else (0.0, 0.0)


def clip(x: Any, low: Any, high: Any, xp: Any) -> Any:
    """x clipped to bounds, which are scalars, columns, or one of each."""
    if isinstance(low, float) and isinstance(high, float) and low == -math.inf and high == math.inf:
        return x
    if isinstance(low, Tensor) != isinstance(high, Tensor):
        return x.clamp(min=low).clamp(max=high)
    return xp.clamp(x, low, high)
