"""The learning rate of a param group and the scheduler that may stand beside it: which number is whose.

Without a scheduler ``group["lr"]`` is what is adapted. A scheduler leaves ``initial_lr`` there; then lr is its own, and a factor on what is
adapted, which stands in ``group["adapted_lr"]``.
"""

from typing import Any

from torch import Tensor

Group = dict[str, Any]


def lr_key(group: Group) -> str:
    """Where the learning rate that is adapted stands: in "lr", unless a scheduler writes that."""
    return "adapted_lr" if "initial_lr" in group else "lr"


def adapted_lr(group: Group) -> Any:
    """The learning rate that is adapted; where a scheduler has just come, what it starts from, which is 0 if the rule is to find it."""
    key = lr_key(group)
    return group[key] if key in group else 0.0 if group.get("lr_free") else reference_lr(group)


def reference_lr(group: Group) -> Any:
    """What a scheduler's learning rate is a part of: that which it starts from, or its top where it leaves that."""
    return group.get("max_lr", group["initial_lr"])


def scheduler_factor(group: Group) -> Any:
    """What a scheduler makes of the learning rate that is adapted; 1 where there is none."""
    if "initial_lr" not in group:
        return 1.0
    top = reference_lr(group)
    return group["lr"] / top if isinstance(top, Tensor) or top else 0.0


def replace_value(group: Group, name: str, old: float, new: float) -> None:
    """Put one number in the place of another, where that stands there."""
    if isinstance(group[name], Tensor):
        group[name].masked_fill_(group[name] == old, new)
    elif group[name] == old:
        group[name] = new
