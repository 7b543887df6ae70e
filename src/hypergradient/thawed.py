"""Tensors that begin when the learning rate of their scope has long been found, such as thawed layers, under a rule that averages.

Others have raised α by then, for what they are. A tensor that moves for the first time after the tenth step of its rule, or again after
more than fifty without a gradient, takes its k-th step with

    α min(1, exp(0.15 (k − 31)))

as if α climbed to where it is, and its average starts from where it lies and looks over the last max(10, k/5) steps.
``state[p]["late"]`` is k, which no other tensor has, and ``state[p]["still"]`` counts the steps without a gradient. On a device there is
none of it: a count on the host would be a constant in a CUDA graph.
"""

import math
from collections.abc import Sequence
from typing import Any

from .average import restart_average
from .runner import Coefficients
from .tuning import TuningFree

#: After how many steps of its rule a tensor is late, and after how many without a gradient it begins anew.
GRACE_STEPS, MAX_IDLE_STEPS = 10, 50

#: Steps that it climbs.
WARMUP_STEPS = 30


def count_step(states: Sequence[dict[str, Any]], steps: float) -> None:
    """Count the step that tensors are about to take, where they are late.

    Args:
        states: theirs, which move together; without a trace where they have never moved.
        steps: those of the rule before.
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
    """The numbers of a step, with the "alpha" and "average_weight" of a tensor that is late."""
    if "late" not in p_state or not isinstance(coef["average_weight"], float):
        return coef
    fraction = min(1.0, math.exp(TuningFree.MAX_CLIMB * (p_state["late"] - 1 - WARMUP_STEPS)))
    return coef | {
        "alpha": fraction * coef["alpha"],
        "average_weight": 1 / max(TuningFree.MIN_WINDOW, TuningFree.AVERAGE_FRACTION * p_state["late"]),
    }
