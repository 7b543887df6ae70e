"""The tuning-free rule: a learning rate found from a safe start, on the hypergradient of its logarithm over the last fifth of the run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from .directions import Direction
from .numbers import clip, exp, finite, larger, no, smaller, sqrt, total, where
from .rules import Memory, Move, Rule
from .tensors import dot, real, to_numbers


@final
@dataclass(frozen=True)
class TuningFree(Rule):
    """No learning rate to choose: log α climbs by its hypergradient until that turns, and then moves by powers of the time.

    The derivative of the loss by log α, over the last steps, is g_t · ∂θ_{t-1}/∂log α = −g_t · z_{t-1}, where z = θ̄ − θ is the way from the
    iterate to its running average θ̄ over the last ``max(10, t/5)`` steps. So one buffer serves twice: it gives the hypergradient, and the
    average that is evaluated (``opt.eval()``). The rule sees the cosine c of both, which no scale of loss or parameters changes:

        c_t = g_t · z_{t-1} / (‖g_t‖ ‖z_{t-1}‖),    m ← 0.9 m + 0.1 c,    v ← 0.99 v + 0.01 c²,    s = m̂ / √v̂

        climbing:      log α += min(0.35, 0.7/√t) s    until m < 0 after step 10: α is halved, and θ goes back to θ̄
        from then on:  log α += β q / max(10, t),    q = min(1, s + 0.3), three times that where it is positive

    s is the signal over its noise; 0.3 of it is given to the learning rate, since it is the average that is evaluated, and that bears the
    noise of a larger one. So, but for the returns below, α falls no faster than a power of the time, t^−β.

    A gradient that points back to the average and is suddenly large (twice the largest of late during the climb and for 50 steps after it;
    later three times, in two steps one after the other, which one odd minibatch is not) takes θ back to θ̄, and halves α; so does a mean
    cosine below −0.9, which only a loss that runs away has, and a gradient that is not finite. "The largest of late" grows by a tenth a
    step at most, so that it does not run away too.

    The first step moves the parameters by 1e-3 (1 + ‖θ_0‖). With an lr it is taken with that, where it moves them by more, up to
    0.03 (1 + ‖θ_0‖): a larger first step may do damage that nothing undoes, such as dead ReLUs.

    Args:
        beta: β ≥ 0, the power of the time that the learning rate falls by at most after the climb; it rises by three times that. 0 keeps
            what the climb found. Default 1.

    Raises:
        ValueError: ``beta`` is negative or not finite.

    Examples:
        >>> import torch
        >>> from hypergradient import SGDHD
        >>> w = torch.nn.Parameter(torch.tensor([5.0, -3.0]))
        >>> opt = SGDHD([w], momentum=0.9, nesterov=True)
        >>> for _ in range(300):
        ...     opt.zero_grad()
        ...     (w**2).sum().backward()
        ...     opt.step()
        >>> opt.eval()
        >>> (w**2).sum().item() < 1e-3
        True

    References:
        docs/tuning-free.md, where the parts are measured. The signal g · (θ̄ − θ) with the average from the start is that of D-Adaptation
        (Defazio and Mishchenko 2023), the safe start that of DoG (Ivgi, Hinder, Carmon 2023).
    """

    beta: float = 1.0

    reads_norms = True
    averages = True

    #: Share of the run, and steps at least, that the average looks over.
    SHARE: ClassVar = 0.2
    SHORTEST: ClassVar = 10.0

    #: Of the first step, over 1 + ‖θ_0‖: where no lr is given, and at most.
    FIRST: ClassVar = (1e-3, 0.03)

    #: The largest step of log α in the climb; what of its noise is added to the signal; how much faster α rises than it falls.
    CLIMB: ClassVar = 0.35
    BIAS: ClassVar = 0.3
    RISE: ClassVar = 3.0

    #: How many times the largest gradient of late is suddenly large: in and soon after the climb, and later, twice in succession.
    SUDDEN: ClassVar = (2.0, 3.0)

    def fresh(self) -> Memory:
        return dict.fromkeys(("steps", "signals", "signal", "power", "largest", "sudden", "turned"), 0.0)

    def move(self, memory: Memory, alpha: float, beta: float, h: float, g_norm: float, d_norm: float) -> Move:
        steps, turned = memory["steps"], memory["turned"]
        window = self._window(steps + 1)
        known = finite(h) & finite(g_norm) & finite(d_norm)
        moved = known & (steps > 0) & (g_norm * d_norm > 0)
        cosine = where(moved, clip(-h / where(moved, g_norm, 1.0) / where(moved, d_norm, 1.0), -1.0, 1.0), 0.0)
        signals = memory["signals"] + 1
        m = 0.9 * memory["signal"] + 0.1 * cosine
        v = 0.99 * memory["power"] + 0.01 * cosine**2
        climbs = turned == 0
        early = climbs | (steps < turned + 50)
        largest = memory["largest"]
        sudden = (cosine < 0) & (largest > 0) & (g_norm > where(early, *self.SUDDEN) * largest)
        runs_away = sudden & (early | (memory["sudden"] > 0))
        turns = moved & (runs_away | (m < -0.9) | (climbs & (m < 0) & (steps > 10)))

        s = (m / (1 - 0.9**signals)) / (sqrt(v / (1 - 0.99**signals)) + 1e-8)
        climb = smaller(self.CLIMB, 0.7 / sqrt(larger(steps, 1.0))) * s
        q = clip(s + self.BIAS, -1.0, 1.0)
        fall = beta * where(q > 0, self.RISE * q, q) / larger(10.0, steps)
        halves = (no(known) & (steps > 0)) | turns
        goes_on = where(moved, alpha * exp(where(climbs, climb, fall)), alpha)  # without a signal, where nothing has moved yet, or again

        grown = where(moved, larger(smaller(g_norm, 1.1 * largest), 0.99 * largest), larger(g_norm, 0.99 * largest))
        new = {
            "steps": where(known, steps + 1, steps),
            "signals": where(moved, signals, memory["signals"]),
            # What the signal was before is forgotten at the end of the climb, and at a return after it.
            "signal": where(moved, where(turns, 0.0, m), memory["signal"]),
            "power": where(moved, v, memory["power"]),
            "largest": where(known & no(turns), grown, largest),
            "sudden": where(moved, where(sudden, 1.0, 0.0), memory["sudden"]),
            "turned": where(turns & climbs, larger(1.0, steps), turned),
        }
        return Move(where(halves, alpha / 2, goes_on), new, window, no(known) | turns)

    def summary(self, memory: Memory) -> dict[str, float]:
        return {
            "signal": memory["signal"],
            "noise": sqrt(memory["power"]),
            "horizon": self._window(memory["steps"]),
            "climbing": where(memory["turned"] == 0, 1.0, 0.0),
        }

    def _window(self, steps: float) -> float:
        """How many steps the average looks over."""
        window: float = larger(self.SHORTEST, self.SHARE * steps)
        return window


def first_steps(
    direction: Direction, groups: Mapping[Tensor, dict[str, Any]], on_device: bool = False
) -> dict[Tensor, tuple[float, float, float]]:
    """‖g_1‖², ‖θ_0‖² and ‖d_1‖² of each tensor with a gradient; ``groups`` has the param group of each tensor."""
    moving = {p: group for p, group in groups.items() if p.grad is not None}
    terms: dict[Tensor, list[Tensor]] = {}
    for p, d in direction.first(moving):
        assert p.grad is not None
        terms[p] = [dot(x, x) for x in (real(p.grad), real(p), d)]
    values = iter(to_numbers([term for row in terms.values() for term in row], on_device))
    return {p: (next(values), next(values), next(values)) for p in terms}


def safe_starts(first: Mapping[Tensor, tuple[float, float, float]], ratios: Mapping[Tensor, float]) -> tuple[float, float]:
    """The learning rates at which the first step moves a scope by 1e-3 (1 + ‖θ_0‖), and by 0.03 (1 + ‖θ_0‖).

    Both are 0 where its gradients are zero or not finite.

    Args:
        first: the squares that ``first_steps`` has found.
        ratios: the scope's tensors, each moving with its ratio to the learning rate.
    """
    rows = [(ratio, *first[p]) for p, ratio in ratios.items() if p in first]
    # Without a gradient weight decay may give a direction yet: torch's distributed checkpoint primes state by such a step.
    moves = total(gg for _, gg, _, _ in rows) > 0
    d_norm = sqrt(total(ratio**2 * dd for ratio, _, _, dd in rows))
    moves = moves & (d_norm > 0) & (d_norm < math.inf)
    whole = where(moves, (1 + sqrt(total(theta for _, _, theta, _ in rows))) / where(moves, d_norm, 1.0), 0.0)
    return TuningFree.FIRST[0] * whole, TuningFree.FIRST[1] * whole
