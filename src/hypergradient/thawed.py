"""A warm-up for tensors that start, or resume, long after the learning rate of their scope was found, such as thawed layers.

Under a rule that averages α was raised for the other tensors. A tensor that moves for the first time after the tenth step of its rule, or
again after more than fifty steps without a gradient, takes its k-th step with

    α min(1, exp(0.15 (k − 31)))

as if α climbed to its value; its average starts from its current value and covers the last max(10, k/5) steps. ``state[p]["late"]`` is k,
for such tensors only, and ``state[p]["still"]`` counts steps without a gradient. A device has no such warm-up: a count on the host would be
a constant in a CUDA graph.
"""

import math
from collections.abc import Sequence
from typing import Any

from .average import restart_average
from .runner import Coefficients
from .tuning import TuningFree

#: A tensor that starts after so many steps of its rule is late; after so many steps without a gradient it starts over.
GRACE_STEPS, MAX_IDLE_STEPS = 10, 50

#: Steps of the warm-up.
WARMUP_STEPS = 30


def count_step(states: Sequence[dict[str, Any]], steps: float) -> None:
    """Count the step that late tensors are about to take.

    Args:
        states: those of tensors that move together; without a trace if they have never moved.
        steps: the steps of the rule so far.
    """
    count = states[0].get("late", None if "trace" in states[0] or steps <= GRACE_STEPS else 0)
    for p_state in states:
        p_state.pop("still", None)
        if count is not None:
            p_state["late"] = count + 1
        if count == 0:
            restart_average(p_state)


def count_idle_step(p_state: dict[str, Any]) -> None:
    """Count a step in which a tensor has no gradient."""
    p_state["still"] = p_state.get("still", 0) + 1
    if p_state["still"] > MAX_IDLE_STEPS:
        p_state["late"] = 0


def warmed_up(p_state: dict[str, Any], coef: Coefficients) -> Coefficients:
    """A step's coefficients, with the "alpha" and "average_weight" of a late tensor."""
    k = p_state.get("late")
    if k is None or not isinstance(coef["average_weight"], float):
        return coef
    fraction = min(1.0, math.exp(TuningFree.MAX_CLIMB * (k - 1 - WARMUP_STEPS)))
    return coef | {"alpha": fraction * coef["alpha"], "average_weight": 1 / max(TuningFree.MIN_WINDOW, TuningFree.AVERAGE_FRACTION * k)}
