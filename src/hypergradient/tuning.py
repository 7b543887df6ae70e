"""The tuning-free rule: from a safe start, the learning rate follows the hypergradient of its logarithm over the last fifth of the run."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from . import float_ops
from .rules import Memory, Rule, RuleUpdate


@final
@dataclass(frozen=True)
class TuningFree(Rule):
    """No learning rate to choose: log α climbs along its hypergradient until that changes sign, then changes as a power of time.

    Three sequences of parameters are involved. The iterate ζ takes steps along d, which has no momentum. θ̄ is the average of ζ over the
    last ``max(10, t/5)`` steps. Gradients are evaluated between the two, at ``θ = (1 − b) ζ + b θ̄`` with momentum b, which needs no buffer
    (average.py). The derivative of the loss by log α, over those steps, is ``g_t · ∂ζ/∂log α = −g_t · w_{t-1}``, where w is the
    displacement from ζ to θ̄. So one buffer serves three purposes: hypergradient, momentum, and the average that is evaluated
    (``opt.eval()``). The rule sees the cosine c of gradient and displacement, which is invariant to the scale of loss and parameters, and
    the length of w:

        c_t = g_t · w_{t-1} / (‖g_t‖ ‖w_{t-1}‖)
        m ← 0.9 m + 0.1 c,    v ← 0.99 v + 0.01 c²,    s = m̂ / √v̂
        r_t = (f − ‖w_{t-1}‖) / (f + ‖w_{t-1}‖),       f = 0.25 (1 + ‖θ_{t-1}‖)

        climb:    log α += min(0.15, 0.7/√t) (s + min(0, r))
        follow:   log α += β q / max(10, t),    q = s + r clipped to [−1, 1], doubled if negative

    The climb ends, with α halved, when m < 0 after step 10, or when r < 0 and ‖g_t‖ is three times its usual value.

    s, the signal-to-noise ratio of the cosine, tells a learning rate that is too small, but hardly distinguishes a good one from one that
    is ten times too large, since gradients are evaluated near the average. The room r does: where the signal is weak, α is stationary when
    the iterate is a quarter of the parameters' norm away from its average. Where the gradient is below a hundredth of its largest usual
    value, α rises by proportionally less: there is nothing left to learn, and what comes next may be another task. Apart from the returns
    below, α thus falls no faster than ``t^(−2β)`` and rises no faster than ``t^β``.

    A step is shortened where its gradient exceeds 1.5 times the usual one (the root mean square of the last hundred). A gradient with
    negative cosine that is suddenly large (four times the usual; during the climb and 50 steps after it once, later in two consecutive
    steps, which a single odd minibatch is not) returns θ to θ̄ and halves α. So does a mean cosine below −0.9, which only a diverging loss
    has. If a gradient is not finite, the step is skipped; from the second in succession on, θ returns to θ̄ and α is halved, once, until a
    gradient is finite again.

    The first step moves the iterate by ``1e-2 (1 + ‖θ_0‖)``. If lr is given, the first step uses it, as long as it moves the iterate by at
    least that and at most ``0.03 (1 + ‖θ_0‖)``: a larger first step can do damage that nothing undoes, such as dead ReLUs.

    Args:
        beta: β >= 0, the power of time with which the learning rate can rise after the climb; it can fall with twice that power. 0 keeps
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
        docs/tuning-free.md measures each part. The signal g · (θ̄ − θ), with the average since the start, is that of D-Adaptation (Defazio
        and Mishchenko 2023); the safe start is that of DoG (Ivgi, Hinder, Carmon 2023); gradients between iterate and average are those of
        Schedule-Free (Defazio et al. 2024).
    """

    beta: float = 1.0

    reads_norms = True
    averages = True

    #: The average looks over this share of the run, and over this many steps at least.
    AVERAGE_FRACTION: ClassVar = 0.2
    MIN_WINDOW: ClassVar = 10.0

    #: The length of the first step over 1 + ‖θ_0‖: without lr, and at most.
    FIRST_STEP: ClassVar = (1e-2, 0.03)

    #: The largest step of log α in the climb; and the distance of the iterate to its average, over the norm of the parameters, at which a
    #: signal of 0 does not change α.
    MAX_CLIMB: ClassVar = 0.15
    FAR: ClassVar = 0.25

    #: The multiple of the usual gradient that ends the climb at that distance; the fraction of the largest one below which α rises less.
    LARGE_GRADIENT: ClassVar = 3.0
    SMALL_GRADIENT: ClassVar = 0.01

    #: The multiple of the usual gradient that counts as suddenly large; and the one above which a step is shortened.
    SUDDEN_GRADIENT: ClassVar = 4.0
    SHORTENED_FROM: ClassVar = 1.5

    def initial_memory(self) -> Memory:
        return dict.fromkeys(("steps", "signals", "signal", "power", "sudden", "turned", "lost", "most"), 0.0) | {"usual": math.inf}

    def update(self, memory: Memory, alpha: Any, beta: Any, h: Any, g_norm: Any, d_norm: Any, xp: Any = float_ops) -> RuleUpdate:
        steps, turned, usual = memory["steps"], memory["turned"], memory["usual"]
        started, bound = steps > 0, g_norm * d_norm
        known = (h - h) + bound < math.inf
        moved = known & started & (bound > 0)
        cosine = xp.masked_fill(xp.clamp(xp.div(xp.div(-h, g_norm), d_norm), -1.0, 1.0), xp.logical_not(moved), 0.0)
        signals, m, v, s = self._signal(memory, cosine, moved, xp)
        climbs = turned == 0
        root = xp.sqrt(usual)
        times = g_norm / root  # 0 before the first
        sudden = (cosine < 0) & (times > self.SUDDEN_GRADIENT)
        soon = climbs | (steps - turned < 50)
        away = moved & ((sudden & xp.logical_or(soon, memory["sudden"])) | (m < -0.9))
        far = self.FAR * (1 + memory["size"])
        turns = away | (moved & climbs & (((m < 0) & (steps > 10)) | ((d_norm > far) & (times > self.LARGE_GRADIENT))))
        lost = xp.logical_not(known)
        back = away | (lost & (memory["lost"] > 0))

        change = self._change(s, (far - d_norm) / (far + d_norm), steps, climbs, beta, xp)  # applied only where a step was taken before
        most = xp.maximum(memory["most"], xp.masked_fill(root, root == math.inf, 0.0))
        change = xp.minimum(change, change * xp.clamp(xp.div(g_norm, self.SMALL_GRADIENT * most), max=1.0))
        factor = xp.masked_fill(xp.exp(xp.masked_fill(change, xp.logical_not(moved), 0.0)), turns | (lost & (memory["lost"] == 1)), 0.5)
        factor = factor * (1 + (known & (memory["lost"] == 2)))  # restores what a run of non-finite gradients halved

        grown = xp.where(usual < math.inf, xp.lerp(usual, g_norm**2, xp.clamp(1 / (steps + 1), min=0.01)), g_norm**2)
        seen = steps + known
        new = {
            "steps": seen,
            "signals": signals,
            # The signal starts anew at the end of the climb and at a return.
            "signal": xp.where(moved, xp.masked_fill(m, turns, 0.0), memory["signal"]),
            "power": xp.where(moved, v, memory["power"]),
            "usual": xp.where(back | lost | (g_norm == 0), usual, grown),
            "most": most,
            "lost": xp.masked_fill(xp.clamp(memory["lost"] + 1, max=2.0), known, 0.0),
            "sudden": xp.where(moved, sudden, memory["sudden"]),
            "turned": xp.where(turns & climbs, steps, turned),
        }
        part = xp.masked_fill(xp.clamp(self.SHORTENED_FROM / xp.clamp(times, min=1e-30), max=1.0), lost, 1.0)
        return RuleUpdate(alpha * factor, new, self._window(seen, xp), back, part)

    def summary(self, memory: Memory) -> dict[str, float]:
        return {
            "signal": memory["signal"],
            "noise": math.sqrt(memory["power"]),
            "horizon": self._window(memory["steps"], float_ops),
            "climbing": float(memory["turned"] == 0),
        }

    def _signal(self, memory: Memory, cosine: Any, moved: Any, xp: Any) -> tuple[Any, Any, Any, Any]:
        """The number of cosines so far, their mean and mean square, and s, the signal-to-noise ratio."""
        signals = memory["signals"] + moved
        m = xp.lerp(memory["signal"], cosine, 0.1)
        v = xp.lerp(memory["power"], cosine**2, 0.01)
        count = xp.clamp(signals, min=1.0)
        return signals, m, v, m / (1 - 0.9**count) / (xp.sqrt(v / (1 - 0.99**count)) + 1e-8)

    def _change(self, s: Any, room: Any, steps: Any, climbs: Any, beta: Any, xp: Any) -> Any:
        """The change of log α for a signal s and a room between 1 (the iterate is close to its average) and -1 (it is far)."""
        climb = xp.clamp(0.7 / xp.sqrt(xp.clamp(steps, min=1.0)), max=self.MAX_CLIMB) * (s + xp.clamp(room, max=0.0))
        q = xp.clamp(s + room, -1.0, 1.0)
        return xp.where(climbs, climb, beta * (q + xp.clamp(q, max=0.0)) / xp.clamp(steps, min=10.0))

    def _window(self, steps: Any, xp: Any) -> Any:
        """Over how many steps the average looks."""
        return xp.clamp(self.AVERAGE_FRACTION * steps, min=self.MIN_WINDOW)


def safe_start(xp: Any, alpha: Any, begins: Any, gg: Any, pp: Any, dd: Any) -> tuple[Any, Any]:
    """The learning rate of a first step, which moves the tensors of a scope by 1e-2 (1 + ‖θ_0‖) to 0.03 (1 + ‖θ_0‖).

    Args:
        xp: the functions to compute with: torch, or ``float_ops`` for floats.
        alpha: the given learning rate; 0 if none is given.
        begins: whether this is the first step; other learning rates are returned unchanged.
        gg: ‖g_1‖². If it is 0, weight decay may still give a direction, as when torch's distributed checkpoint primes the state by a step.
        pp: ‖θ_0‖².
        dd: ‖d_1‖².

    Returns:
        The learning rate, and whether there is no gradient yet, so that the rule waits.
    """
    still = xp.logical_not((gg > 0) & (dd > 0) & (dd < math.inf))
    whole = xp.masked_fill(xp.div(1 + xp.sqrt(pp), xp.sqrt(dd)), still, 0.0)
    low, high = (share * whole for share in TuningFree.FIRST_STEP)
    return xp.where(begins & xp.logical_not(still), xp.clamp(alpha, low, high), alpha), begins & still
