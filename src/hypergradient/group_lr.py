"""The learning rate of a param group, with or without a scheduler of torch.optim.lr_scheduler.

Without a scheduler ``group["lr"]`` is adapted. A scheduler sets ``initial_lr``; then ``group["lr"]`` belongs to the scheduler and counts as
a factor, and the adapted learning rate is ``group["adapted_lr"]``.
"""

from typing import Any

from torch import Tensor

Group = dict[str, Any]


def lr_key(group: Group) -> str:
    """The key of the adapted learning rate: "lr", or "adapted_lr" under a scheduler."""
    return "adapted_lr" if "initial_lr" in group else "lr"


def adapted_lr(group: Group) -> Any:
    """The adapted learning rate. Under a new scheduler, the one it starts from; 0 if the rule is to find it."""
    key = lr_key(group)
    return group[key] if key in group else 0.0 if group.get("lr_free") else reference_lr(group)


def reference_lr(group: Group) -> Any:
    """The learning rate that a scheduler's factor is relative to: its peak if it has one, else the initial one."""
    return group.get("max_lr", group["initial_lr"])


def scheduler_factor(group: Group) -> Any:
    """The factor by which a scheduler scales the adapted learning rate; 1 without one."""
    if "initial_lr" not in group:
        return 1.0
    top = reference_lr(group)
    return group["lr"] / top if isinstance(top, Tensor) or top else 0.0


def replace_value(group: Group, name: str, old: float, new: float) -> None:
    """Replace the value ``old`` by ``new``, if the option has it."""
    if isinstance(group[name], Tensor):
        group[name].masked_fill_(group[name] == old, new)
    elif group[name] == old:
        group[name] = new
