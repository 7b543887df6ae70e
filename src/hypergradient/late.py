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

from .average import forget_average
from .execute import Numbers
from .tuning import TuningFree

#: After how many steps of its rule a tensor is late, and after how many without a gradient it begins anew.
GRACE, LONG = 10, 50

#: Steps that it climbs.
STEPS = 30


def begin(states: Sequence[dict[str, Any]], steps: float) -> None:
    """Count the step that tensors are about to take, where they are late.

    Args:
        states: theirs, which move together; without a trace where they have never moved.
        steps: those of the rule before.
    """
    late = states[0].get("late", None if "trace" in states[0] or steps <= GRACE else 0)
    for own in states:
        own.pop("still", None)
        if late is not None:
            own["late"] = late + 1
        if late == 0:
            forget_average(own)


def lie_still(own: dict[str, Any]) -> None:
    """Count a step in which a tensor has no gradient."""
    own["still"] = own.get("still", 0) + 1
    if own["still"] > LONG:
        own["late"] = 0


def shortened(own: dict[str, Any], numbers: Numbers) -> Numbers:
    """The numbers of a step, with the "alpha" and "fade" of a tensor that is late."""
    if "late" not in own or not isinstance(numbers["fade"], float):
        return numbers
    part = min(1.0, math.exp(TuningFree.CLIMB * (own["late"] - 1 - STEPS)))
    return numbers | {"alpha": part * numbers["alpha"], "fade": 1 / max(TuningFree.SHORTEST, TuningFree.SHARE * own["late"])}
