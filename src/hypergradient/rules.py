"""Rules: how a hyperparameter follows its hypergradient. (α_{t-1}, β, h_t, ‖g_t‖, ‖∇αu_{t-1}‖) → α_t.

Each is one elementwise text: of Python floats, of vectors with an entry for each learning rate, or of the elements of a tensor. It is
handed ``xp``, which has the functions of torch for whichever these are: torch itself, or ``host`` for floats. So a rule asks no number
what it is, and chooses by ``where``. Rules are written for the learning rate, and move every other hyperparameter too, in the coordinates
of hyperparameters.py.
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
"""What a rule keeps of the steps so far, by name."""


@dataclass(frozen=True)
class RuleUpdate:
    """What a rule makes of a step.

    Args:
        alpha: α_t.
        memory: what it keeps.
        window: how many steps the average of a rule that ``averages`` looks over.
        back: whether the step is not taken, and the parameters go back to that average.
        part: how much of α_t the step takes.
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
    """What every rule is: its β, and a pure function from the last learning rate to the next.

    The optimizer copies ``first_beta`` to ``group["hypergrad_lr"]``, where it may be read and changed; the value found there is the
    one that a step uses.
    """

    beta: "float | Adapted"

    #: Whether the rule reads ``g_norm`` and ``d_norm``; they are not computed where it does not.
    reads_norms: ClassVar[bool] = False

    #: Whether the hypergradient is that of log α along the way from the iterate to its average, which the optimizer keeps then; ``move`` is
    #: handed the norm of the parameters as "size", too, beside what it keeps.
    averages: ClassVar[bool] = False

    #: Whether it makes the discount of the signal's trace, which it keeps as "discount"; ``move`` is handed "slope", too, g_t · g_{t-1}.
    adapts_discount: ClassVar[bool] = False

    #: Whether ``move`` is handed "curvature" of each element, too, and no step is to go beyond what that allows: Σ α c ≤ 1.
    uses_curvature: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("beta", self.beta)

    @property
    def adapts_log(self) -> bool:
        """Whether the hypergradient that it is handed is to be that of log α."""
        return False

    @property
    def initial_beta(self) -> float:
        """β_0."""
        return self.beta.value if isinstance(self.beta, Adapted) else self.beta

    def initial_memory(self) -> Memory:
        """What it keeps before the first step."""
        return {}

    def check_lr(self, lr: float) -> None:  # noqa: B027 - most rules start from any learning rate
        """Raise ValueError where the rule cannot start from ``lr``."""

    def summary(self, memory: Memory) -> dict[str, float]:
        """What the rule sees, for people."""
        return {}

    @abstractmethod
    def update(self, memory: Memory, alpha: Any, beta: Any, h: Any, g_norm: Any, d_norm: Any, xp: Any = float_ops) -> RuleUpdate:
        """The learning rate α_t.

        Args:
            memory: what the last step's ``Move`` kept.
            alpha: α_{t-1}.
            beta: β, the hypergradient learning rate.
            h: hypergradient h_t = g_t · ∇αu_{t-1}; 0 at the first step.
            g_norm: ‖g_t‖, 0 where the rule does not read norms.
            d_norm: ‖∇αu_{t-1}‖, the same.
            xp: the functions of such numbers: torch, or ``host`` for floats.
        """


@dataclass(frozen=True)
class Level(Rule):
    """A rule that moves in proportion to its β: y_t = y_{t-1} − β s_t, where y is the learning rate, or its logarithm.

    s_t = −∂y_t/∂β does not depend on β, so such rules can be stacked into towers (see ``Adapted``).
    """

    #: Whether it moves by a factor, so that it can neither leave 0 nor change a sign.
    is_multiplicative: ClassVar[bool] = False

    #: What s_t is made of, beside this step: by name, with what each is before the first step.
    memory_defaults: ClassVar[Mapping[str, float]] = {}

    @property
    def adapts_value(self) -> bool:
        """Whether it moves a hyperparameter of another kind itself, rather than a coordinate that keeps it in its range."""
        return False

    @abstractmethod
    def speed(self, memory: Memory, alpha: Any, h: Any, bound: Any, xp: Any = float_ops) -> tuple[Any, Memory]:
        """s_t and what it keeps, from that, α_{t-1}, h_t, and the bound that the norms set to that: |h_t| ≤ ‖g_t‖ ‖∇αu_{t-1}‖."""

    @abstractmethod
    def speed_bound(self, alpha: Any, bound: Any) -> Any:
        """The bound that those set to |s_t|."""

    def __post_init__(self) -> None:
        if isinstance(self.beta, Adapted):
            object.__setattr__(self, "reads_norms", self.reads_norms or self.beta.rule.reads_norms)
        else:
            super().__post_init__()

    def __call__(self, alpha: Any, beta: Any, h: Any, g_norm: Any, d_norm: Any, xp: Any = float_ops) -> Any:
        """α_t, where β stays, of a first step."""
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
        """This level's α_t and β_t, the highest level first; what the levels above keep is written to ``memory``.

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
    """A level that may move the learning rate or its logarithm: y_t = y_{t-1} − β s_t, with y = α, or y = log α and h by that.

    Of another hyperparameter φ it moves log φ, or log φ/(1−φ) where φ lies in (0, 1), unless ``log=False``: then φ itself.
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
        return 1.0  # s_t is of that size, whatever the hypergradients are

    def check_lr(self, lr: float) -> None:
        if self.adapts_log and lr == 0:
            raise ValueError(f"{type(self).__name__} with log=True moves log lr, so it can never leave lr=0: start from lr > 0")


@final
@dataclass(frozen=True)
class Additive(Learner):
    """The additive rule: α_t = α_{t-1} − β h_t.

    The learning rate may fall below zero, as the paper observes; ``lr_bounds=(0, None)`` forbids it, and ``log=True``, which moves its
    logarithm: α_t = α_{t-1} exp(−β h_t), h_t = ∂f/∂log α.

    Args:
        beta: β ≥ 0, in units of lr / (loss / lr), under ``log`` of 1 / loss; 0 keeps the learning rate. ``Adapted(β_0, rule)`` adapts it.
        log: True moves log α. Default: α; of another hyperparameter φ its logarithm, or that of φ/(1−φ), False moves φ itself.

    Raises:
        ValueError: ``beta`` is negative or not finite; later, under ``log``, the optimizer's lr is 0.

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
    """The multiplicative rule: α_t = α_{t-1} (1 − β h_t / (‖g_t‖ ‖∇αu_{t-1}‖)).

    A step changes the learning rate by at most the factor 1 ± β, whatever the scale of the loss and of the parameters.

    Args:
        beta: β ≥ 0, without unit; 0 keeps the learning rate, below 1 the learning rate stays positive.
            ``Adapted(β_0, rule)`` adapts it too.

    Raises:
        ValueError: ``beta`` is negative or not finite; later, the optimizer's lr is 0, which no factor can move.

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
        unknown = xp.logical_not(bound > 0)  # no gradient, or no last direction; where norms are beyond the numbers the cosine is 0
        cosine = xp.clamp(xp.div(h, bound), -1.0, 1.0)  # beyond 1 by rounding alone
        return alpha * xp.masked_fill(cosine, unknown, 0.0), {}

    def speed_bound(self, alpha: Any, bound: Any) -> Any:
        return abs(alpha)


@final
@dataclass(frozen=True)
class Adapted:
    """A β that a rule adapts, for one more level of order: ``Additive(beta=Adapted(1e-4, Additive(1e-10)))``, to any depth.

        H_t = ∂f_t/∂β = −h_t s_{t-1},    β_t = β_{t-1} − β' H_t,    α_t = α_{t-1} − β_t s_t

    where s = h under ``Additive``. It costs no tensor and no dot product, but three numbers. β' counts in units of the loss squared, and
    minibatches give H a bias: h_t and h_{t-1} share g_{t-1}, so that noise pushes β up by about ∇fᵀΣ∇f. ``Multiplicative`` above is the
    form that is safe against both: H over the product of the norms is a product of two cosines, in which independent noise in many
    dimensions cancels, and a step changes β by at most the factor 1 ± β'.

    Args:
        value: β_0 ≥ 0.
        rule: ``Additive(β')`` or ``Multiplicative(β')``, whose β' may be adapted in turn.

    Raises:
        ValueError: ``value`` is negative or not finite, or 0 where the rule cannot leave 0.
        TypeError: ``rule`` is another rule, which cannot stand in a tower.

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
    """Raise TypeError where ``rule`` cannot adapt anything but a learning rate."""
    if not isinstance(rule, Level) or rule.uses_curvature:
        raise TypeError(f"{name} takes a rule such as Additive(1e-6) or Multiplicative(0.01), got {rule!r}")


def norms_of(x: Mapping[str, Any], xp: Any) -> tuple[Any, Any]:
    """‖g‖ and ‖∂θ/∂φ‖ where the rule reads them: a device gives them as they are, the host their squares."""
    if "g_norm" in x:
        return x["g_norm"], x["d_norm"]
    return (xp.sqrt(x["gg"]), xp.sqrt(x["xx"])) if "gg" in x else (0.0, 0.0)


def clip(x: Any, low: Any, high: Any, xp: Any) -> Any:
    """x inside bounds that are numbers, or columns; one of each too."""
    if isinstance(low, float) and isinstance(high, float) and low == -math.inf and high == math.inf:
        return x
    if isinstance(low, Tensor) != isinstance(high, Tensor):
        return x.clamp(min=low).clamp(max=high)
    return xp.clamp(x, low, high)
