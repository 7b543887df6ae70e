"""The learning rates of an optimizer: one entry per param group, per tensor, or one for all (the scope), and which tensor uses which.

Scopes differ only in that index; under "global" the groups use fixed ratios of one learning rate. ``group["lr"]`` is what users read and
write, so every step starts from its value. Under a scheduler it is the scheduler's, and counts as a factor on the adapted learning rate in
``group["adapted_lr"]``. ``group["alpha"]`` always has what the last step used. The learning rate of a single tensor is ``state[p]["lr"]``;
that of elements, a tensor there.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor

from . import float_ops
from .checks import bounds_as_floats
from .group_lr import Group, adapted_lr, lr_key, replace_value, scheduler_factor
from .ranks import Ranks, local
from .scalars import DeviceScalars, Scalars
from .tensors import real, tensor_sums

ScopeName = Literal["group", "global", "tensor", "element"]
State = Mapping[Tensor, dict[str, Any]]
Assignment = tuple[dict[str, Any], str, Any]

#: Columns, with the options that store them.
COLUMNS = {"alpha": "lr", "beta": "hypergrad_lr"}

SCOPES = ("group", "global", "tensor", "element")


@dataclass(frozen=True, eq=False, repr=False)
class LearningRates:
    """The learning rates at the start of a step.

    Args:
        columns: "alpha", "beta", "low", "high" and "memory.NAME" of each entry: α_{t-1}, β, bounds, rule memory; with a scheduler also
            "factor" and "factor now", its factor in the last step and in this one.
        size: number of entries.
        index: the entry of each tensor, in the order of the param groups.
        ratios: each param group's learning rate over its entry's; None if all are 1.
        factors: each param group's scheduler factor; None if no group has one.
        scales: ratio times factor: what a group's tensors move by per unit of their entry.
        last_scales: the scales of the last step.
    """

    columns: dict[str, Any]
    size: int
    index: Sequence[int]
    ratios: Sequence[Any] | None = None
    factors: Sequence[Any] | None = None
    scales: Sequence[Any] | None = None
    last_scales: Sequence[Any] | None = None


@final
@dataclass
class Scope:
    """How tensors share learning rates, and where these are stored.

    Args:
        name: "group", "global", "tensor" or "element".
        scalars: on the host or on a device.
        memory_columns: the rule's memory: its names, with the names of their columns.
        applied_key: the key of what the last step used.
        ranks: how the parameters are sharded.
    """

    name: ScopeName
    scalars: Scalars
    memory_columns: Mapping[str, str]
    applied_key: str = "alpha"
    ranks: Ranks = field(default_factory=lambda: Ranks(None))
    _recorded: dict[int, tuple[Any, int]] = field(default_factory=dict)
    _external: dict[int, float] = field(default_factory=dict)

    def read(self, groups: Sequence[Group], state: State) -> LearningRates:
        """The learning rates, each with its α_{t-1}."""
        params = [(group, p) for group in groups for p in group["params"]]
        group_of = [g for g, group in enumerate(groups) for _ in group["params"]]
        index: Sequence[int] = range(len(params))
        ratios = last_scales = None
        if self.name in ("tensor", "element"):  # the dict of each entry, and its param group, which stores initial values
            holders = [(state.get(p, {}) if self.name == "tensor" else group, group) for group, p in params]
        elif self.name == "group":
            holders, index = [(group, group) for group in groups], group_of
            group_of = list(range(len(groups)))
        else:
            holders, index = [(groups[0], groups[0])], [0 for _ in params]
        bounds = [(0.0, 0.0) if group.get("lr_frozen") else bounds_as_floats(group["lr_bounds"]) for _, group in holders]
        if self.name == "tensor":
            rows = {key: [x for group in groups for x in self._rescaled(name, group, state)] for key, name in COLUMNS.items()}
        elif self.name == "global":  # a frozen group has a ratio of 0
            ratios, last_scales, alpha = self._group_ratios(groups)
            rows, bounds = {"alpha": [alpha]}, [self._global_bounds(bounds_as_floats(groups[0]["lr_bounds"]), ratios)]
            rows["beta"] = [groups[0]["hypergrad_lr"]]
        else:
            for group in groups if self.name == "element" else ():
                self._rescale_elements(group, state)
            rows = {"alpha": [adapted_lr(group) for _, group in holders], "beta": [group["hypergrad_lr"] for _, group in holders]}
        for name, key in self.memory_columns.items():
            rows[key] = [holder.get(f"memory_{name}", group["memory"][name]) for holder, group in holders]
        rows |= {"low": [low for low, _ in bounds], "high": [high for _, high in bounds]}
        columns = dict(zip(rows, self.scalars.columns(list(rows.values())), strict=True))
        for name, column in columns.items():
            if isinstance(column, float) and name not in ("beta", "low", "high"):  # adapted columns are vectors
                columns[name] = self.scalars.vector(rows[name])
        scales, factors = ratios, None
        if any("initial_lr" in group for group in groups):
            factors = self._as_list([scheduler_factor(group) for group in groups])
            before = self._as_list([group.get("last", {}).get("factor", 1.0) for group in groups])
            for name, found in (("factor", before), ("factor now", factors)):
                columns[name] = self.scalars.vector([found[0]] if self.name == "global" else [found[g] for g in group_of])
            scales = factors if ratios is None else [x * y for x, y in zip(ratios, factors, strict=True)]
            last_scales = before if last_scales is None else [x * y for x, y in zip(last_scales, before, strict=True)]
        return LearningRates(columns, len(holders), index, ratios, factors, scales, last_scales)

    def assignments(self, groups: Sequence[Group], state: State, lrs: LearningRates, found: Mapping[str, Any]) -> Iterator[Assignment]:
        """Where to write α_t, β_t and rule memory, so that ``read`` finds them."""
        columns = {"lr": list(found["alpha"])} | ({"hypergrad_lr": list(found["beta"])} if "beta" in found else {})
        memory = {name: list(found[key]) for name, key in self.memory_columns.items()}
        if self.name == "tensor":  # flat keys: torch 2.6 cannot flatten a dict in a tensor's state
            columns |= {f"memory_{name}": column for name, column in memory.items()}
            params = [p for group in groups for p in group["params"]]
            for k, p in enumerate(params):  # also shards on other ranks, which count in the mean
                if p in state or (self.ranks.group is not None and p.requires_grad):
                    yield from ((state[p], name, column[k]) for name, column in columns.items())
        for g, group in enumerate(groups) if self.name in ("group", "global") else ():
            k = 0 if self.name == "global" else g
            values = {lr_key(group) if name == "lr" else name: column[k] for name, column in columns.items()}
            if lrs.ratios is not None:
                values |= {lr_key(group): lrs.ratios[g] * columns["lr"][k], "lr_ratio": lrs.ratios[g]}
            yield from ((group, name, value) for name, value in values.items())
            if memory:  # in a new dict: an earlier state_dict() holds the old one
                group["memory"] = dict(group["memory"])
                yield from ((group["memory"], name, column[k]) for name, column in memory.items())

    def mean_assignments(self, groups: Sequence[Group], state: State, beta: bool) -> Iterator[Assignment]:
        """Where to write the mean of the tensors' learning rates, and of their β if adapted, once these are written."""
        for group in groups if self.name in ("tensor", "element") else ():
            for name in ("lr", "hypergrad_lr") if beta else ("lr",):
                left = self._current_mean(name, group, state)
                if left is not None:
                    yield group, lr_key(group) if name == "lr" else name, left
                    if self.name == "element":
                        yield group, "lr_left", left

    def prepare(self, groups: Sequence[Group]) -> None:
        """Prepare the learning rates to start from: of a group that was given none, and under a new scheduler.

        A group that was given none shows lr = 1 until the rule has found one, so that a scheduler has something to multiply.
        """
        for group in groups:
            free = group.get("lr_free", False)
            others = [other for other in groups if self.name == "global" and "last" in other] if free and "last" not in group else []
            if others:  # a group added later starts with the learning rate of the others
                group[lr_key(group)] = copy.deepcopy(adapted_lr(others[0]))
                group["lr_free"] = False
            elif "initial_lr" in group and "adapted_lr" not in group:
                lr = adapted_lr(group)
                group["adapted_lr"] = self.scalars.cast(lr.clone() if isinstance(lr, Tensor) else lr)
                del group[self.applied_key]  # it may be the same tensor as lr
            elif free and "initial_lr" not in group:
                replace_value(group, "lr", 1.0, 0.0)
            if group.get("lr_frozen") and self._is_thawed(group):
                group["lr_frozen"] = False

    def _is_thawed(self, group: Group) -> bool:
        """Whether the user has written a learning rate to a group that started with 0; on a device any write counts."""
        lr, (left, version) = group["lr"], self._recorded.get(id(group), (None, 0))
        if isinstance(lr, Tensor) and self.scalars.on_device:
            return left is not None and (lr is not left or lr._version != version)
        return bool(lr != 0)

    def record(self, groups: Sequence[Group], started: bool) -> None:
        """Record the learning rates, to notice later, on a device without their values, whether the user has written one.

        Args:
            groups: the param groups.
            started: assume that the rule has found a learning rate, as on a device; the host checks.
        """
        for group in groups:
            key = lr_key(group)
            if group.get("lr_free") and (started or (not self.scalars.on_device and group[key] != 0)):
                group["lr_free"] = False
            elif group.get("lr_free") and key == "lr":
                replace_value(group, "lr", 0.0, 1.0)
        lrs = {id(group): adapted_lr(group) for group in groups}
        self._recorded = {key: (lr, lr._version if isinstance(lr, Tensor) else 0) for key, lr in lrs.items()}

    def applied_assignments(self, groups: Sequence[Group], lrs: LearningRates) -> Iterator[Assignment]:
        """Where to write what the step has used: the mean if each tensor has its own."""
        for g, group in enumerate(groups):
            lr = adapted_lr(group)
            if lrs.factors is not None:
                yield group, self.applied_key, lrs.factors[g] * lr
            else:
                group[self.applied_key] = lr if self.scalars.on_device else float(lr)

    def overwrite_message(self, groups: Sequence[Group]) -> str | None:
        """A warning if the user overwrites the adapted learning rate with 0, or with the same value again and again."""
        for group in groups if not self.scalars.on_device else ():
            left, _ = self._recorded.get(id(group), (None, 0))
            lr = group["lr"]
            if left is None or isinstance(lr, Tensor) or lr_key(group) != "lr" or lr == left or group.get("lr_free"):
                continue
            again, self._external[id(group)] = self._external.get(id(group)) == lr, lr
            if again or (lr == 0 and left != 0):
                return f"lr={lr!r} was written over the adapted learning rate {left!r}" + (", again" if again else "")
        return None

    def _group_ratios(self, groups: Sequence[Group]) -> tuple[list[Any], list[Any], Any]:
        """Each group's learning rate over the largest, that of the last step, and the largest; if all are 0, their last ratios."""
        for name in ("hypergrad_lr", "lr_bounds"):
            values = {group[name] for group in groups if not isinstance(group[name], Tensor)}
            if len(values) > 1:
                raise ValueError(f'scope="global" needs the same {name} in all param groups, got {sorted(values, key=repr)}')
        xp: Any = torch if self.scalars.on_device else float_ops
        lrs = self._as_list([adapted_lr(group) for group in groups])
        left = self._as_list([group.get("lr_ratio", adapted_lr(group)) for group in groups])
        alpha = largest_magnitude(lrs, xp)
        now = relative_to_largest([xp.where(alpha == 0, ratio, lr) for ratio, lr in zip(left, lrs, strict=True)], xp)
        before = [ratio if "last" in group else ratio * 0.0 for ratio, group in zip(left, groups, strict=True)]
        return now, relative_to_largest(before, xp), alpha

    def _as_list(self, values: Sequence[Any]) -> list[Any]:
        return list(self.scalars.vector(values))

    def _global_bounds(self, bounds: tuple[float, float], ratios: Sequence[Any]) -> tuple[Any, Any]:
        """Bounds of the largest learning rate that keep all groups inside theirs; if impossible, only the upper bound holds."""
        low, high = bounds
        if math.isinf(low) and math.isinf(high):
            return low, high
        xp: Any = torch if self.scalars.on_device else float_ops
        low, high = self._as_list([low, high])
        bottom, top = self._as_list([-math.inf, math.inf])
        for ratio in ratios:
            both = xp.div(low, ratio), xp.div(high, ratio)
            bottom = xp.where(ratio == 0, bottom, xp.maximum(-xp.maximum(-both[0], -both[1]), bottom))
            top = xp.where(ratio == 0, top, -xp.maximum(-xp.maximum(*both), -top))
        return -xp.maximum(-top, -bottom), top

    def _is_unmodified(self, name: str, group: Group) -> bool:
        """Whether it is known, without reading the value, that the user has not written the group's learning rate since the last step."""
        lr, count = self._recorded.get(id(group), (None, 0))
        return self.scalars.on_device and lr is adapted_lr(group) and lr._version == count and not isinstance(group["hypergrad_lr"], Tensor)

    def _rescaled(self, name: str, group: Group, state: State) -> list[Any]:
        """The learning rates of a group's tensors, or their β; rescaled if the user has written the group's."""
        values = [state[p].get(name) if p in state else None for p in group["params"]]
        current = adapted_lr(group) if name == "lr" else group[name]
        if all(x is None for x in values) or self._is_unmodified(name, group):
            return [current if x is None else x for x in values]
        xp: Any = torch if self.scalars.on_device else float_ops
        found, left = self._as_list([current])[0], self._current_mean(name, group, state)
        unchanged = found == as_stored(current, left)
        if unchanged is True:
            return [current if x is None else x for x in values]
        factor = xp.div(found, left)
        return [found if x is None else xp.where(unchanged, x, xp.where(left == 0, found, x * factor)) for x in values]

    def _current_mean(self, name: str, group: Group, state: State) -> Any:
        """The mean over the tensors that have one; None if none has."""
        moved = [p for p in group["params"] if name in state.get(p, ())]
        values = [state[p][name] for p in moved]
        if not values or self.name == "element":
            some = self.ranks.is_sharded or any(x.numel() for x in values)
            return self._elementwise_mean(moved, values) if values and name == "lr" and some else None
        column = self.scalars.vector(values)
        if isinstance(column, Tensor):
            return column.mean()
        lowest = min(column)
        return lowest + math.fsum(x - lowest for x in column) / len(column)  # exact if all are equal

    def _elementwise_mean(self, params: Sequence[Tensor], lr_tensors: Sequence[Tensor]) -> Any:
        elements = [real(local(lr)) for lr in lr_tensors]
        found = tensor_sums(elements)
        sums: Any = found.to(self.scalars.device, self.scalars.dtype) if isinstance(self.scalars, DeviceScalars) else found.tolist()
        if self.ranks.is_sharded:
            both = torch.stack([torch.as_tensor(sums, dtype=torch.float64), torch.tensor([float(lr.numel()) for lr in elements])], 1)
            whole, counts = self.ranks.sum_rows(both.to(self.ranks.device), params).unbind()
            return whole / counts if self.scalars.on_device else float(whole / counts)
        count = sum(lr.numel() for lr in elements)
        return sums.sum() / count if isinstance(sums, Tensor) else math.fsum(sums) / count

    def _rescale_elements(self, group: Group, state: State) -> None:
        """Rescale elementwise learning rates if the user has written their mean."""
        left, lr_tensors = group.get("lr_left"), [real(local(state[p]["lr"])) for p in group["params"] if "lr" in state.get(p, ())]
        if left is None or not lr_tensors or self._is_unmodified("lr", group):
            return
        xp: Any = torch if self.scalars.on_device else float_ops
        found = self._as_list([adapted_lr(group)])[0]
        unchanged = found == as_stored(adapted_lr(group), left)
        if unchanged is True:
            return
        for lr in lr_tensors:
            scaled = lr * xp.where(unchanged, 1.0, xp.div(found, left))
            lr.copy_(torch.where(torch.as_tensor((left == 0) & xp.logical_not(unchanged), device=lr.device), found, scaled))
        self.scalars.write([(group, "lr_left", found)])


def largest_magnitude(values: Sequence[Any], xp: Any) -> Any:
    """The value of largest magnitude, the first of several."""
    most = values[0]
    for x in values[1:]:
        most = xp.where(abs(x) > abs(most), x, most)
    return most


def relative_to_largest(values: Sequence[Any], xp: Any) -> list[Any]:
    """Each value over the one of largest magnitude; 1 if all are 0."""
    most = largest_magnitude(values, xp)
    return [xp.where(most == 0, 1.0, xp.div(value, most)) for value in values]


def as_stored(there: Any, value: Any) -> Any:
    """``value`` rounded to the dtype of the option ``there``."""
    if isinstance(value, Tensor):
        return value.to(there.dtype).to(value.dtype) if isinstance(there, Tensor) else value
    return torch.tensor(value, dtype=there.dtype).item() if isinstance(there, Tensor) else value
