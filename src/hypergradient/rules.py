"""Rules: how a learning rate follows its hypergradient. (α_{t-1}, β, h_t, ‖g_t‖, ‖∇αu_{t-1}‖) → α_t, in Python floats."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from .checks import check_number

Memory = dict[str, float]
"""What a rule keeps of the steps so far, for one scope."""


@dataclass(frozen=True)
class Move:
    """What a rule makes of a step.

    Args:
        alpha: α_t.
        memory: what it keeps.
        window: how many steps the average of a rule that ``averages`` looks over.
        back: whether the step is not taken, and the parameters go back to that average.
    """

    alpha: float
    memory: Memory
    window: float = 1.0
    back: bool = False


@dataclass(frozen=True)
class Rule(ABC):
    """What every rule is: its β, and a pure function from the last learning rate to the next.

    The optimizer copies ``beta`` to ``group["hypergrad_lr"]``, where it may be read and changed; the value found there is the one
    that a step uses.
    """

    beta: float

    #: Whether the rule reads ``g_norm`` and ``d_norm``; they are not computed where it does not.
    reads_norms: ClassVar[bool] = False

    #: Whether the hypergradient is that of log α along the way to the average of the iterates, which the optimizer keeps then.
    averages: ClassVar[bool] = False

    #: The names of what it keeps, all 0 at the start.
    remembers: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_number("beta", self.beta)

    def check_lr(self, lr: float) -> None:  # noqa: B027 - most rules start from any learning rate
        """Raise ValueError where the rule cannot start from ``lr``."""

    def summary(self, memory: Memory) -> dict[str, float]:
        """What the rule sees, for people."""
        return {}

    @abstractmethod
    def move(self, memory: Memory, alpha: float, beta: float, h: float, g_norm: float, d_norm: float) -> Move:
        """The learning rate α_t.

        Args:
            memory: what the last step's ``Move`` kept.
            alpha: α_{t-1}.
            beta: β, the hypergradient learning rate.
            h: hypergradient h_t = g_t · ∇αu_{t-1}; 0 at the first step.
            g_norm: ‖g_t‖, 0 where the rule does not read norms.
            d_norm: ‖∇αu_{t-1}‖, the same.
        """


@dataclass(frozen=True)
class Memoryless(Rule):
    """A rule that keeps nothing: a function of this step alone."""

    @abstractmethod
    def __call__(self, alpha: float, beta: float, h: float, g_norm: float, d_norm: float) -> float:
        """The learning rate α_t."""

    def move(self, memory: Memory, alpha: float, beta: float, h: float, g_norm: float, d_norm: float) -> Move:
        return Move(self(alpha, beta, h, g_norm, d_norm), memory)


@final
@dataclass(frozen=True)
class Additive(Memoryless):
    """The additive rule: α_t = α_{t-1} − β h_t.

    The learning rate may fall below zero, as the paper observes; ``lr_bounds=(0, None)`` forbids it.

    Args:
        beta: β ≥ 0, in units of lr / (loss / lr); 0 keeps the learning rate.

    Raises:
        ValueError: ``beta`` is negative or not finite.

    Examples:
        >>> from hypergradient import Additive
        >>> round(Additive(1e-4)(alpha=0.1, beta=1e-4, h=-20.0, g_norm=0.0, d_norm=0.0), 6)
        0.102

    References:
        Baydin et al., *Online Learning Rate Adaptation with Hypergradient Descent*, ICLR 2018, Algorithms 4 to 6.
    """

    def __call__(self, alpha: float, beta: float, h: float, g_norm: float, d_norm: float) -> float:
        return alpha - beta * h


@final
@dataclass(frozen=True)
class Multiplicative(Memoryless):
    """The multiplicative rule: α_t = α_{t-1} (1 − β h_t / (‖g_t‖ ‖∇αu_{t-1}‖)).

    A step changes the learning rate by at most the factor 1 ± β, whatever the scale of the loss and of the parameters.

    Args:
        beta: β ≥ 0, without unit; 0 keeps the learning rate, below 1 the learning rate stays positive.

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

    def check_lr(self, lr: float) -> None:
        if lr == 0:
            raise ValueError(
                "Multiplicative scales the learning rate by a factor, so it can never leave lr=0: "
                "start from lr > 0, or use Additive, which climbs from 0"
            )

    def __call__(self, alpha: float, beta: float, h: float, g_norm: float, d_norm: float) -> float:
        norms = g_norm * d_norm
        if not 0 < norms < math.inf:  # no gradient, no last direction, or norms beyond the numbers: no cosine
            return alpha
        cosine = min(1.0, max(-1.0, h / norms))  # beyond 1 by rounding alone
        return alpha * (1 - beta * cosine)
