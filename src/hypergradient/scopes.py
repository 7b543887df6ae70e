"""Scopes: which tensors share one learning rate, where it was left, and where it is put.

``group["lr"]`` is what users and schedulers read and write, so every scope starts a step from what it finds there. The learning rate
of a single tensor stands in ``state[p]["lr"]``, which the update writes for every scope.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor

from .checks import Bounds, ends
from .numbers import Number, larger, number, put, smaller, total, where
from .rules import Memory, Move
from .tensors import make_buffer, real, to_floats

Group = dict[str, Any]
ScopeName = Literal["group", "global", "tensor", "element"]
State = Mapping[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class Members:
    """The tensors of one scope: each moves with the scope's learning rate ``alpha`` times its ratio.

    ``last`` has the ratios of the step before, whose derivative the hypergradient is; the two differ where a learning rate was written
    in between. ``memory`` is what the rule kept of the step before.
    """

    alpha: Any
    beta: Any
    bounds: tuple[Any, Any]
    ratios: dict[Tensor, Any]
    last: dict[Tensor, Any]
    memory: Memory


def alone(alpha: Number, group: Group, params: Sequence[Tensor], memory: Memory, on_device: bool) -> Members:
    """Tensors of one group that move with ``alpha`` itself."""
    ratios = dict.fromkeys(params, 1.0)
    return Members(alpha, number(group["hypergrad_lr"], on_device), ends(group["lr_bounds"]), ratios, ratios, memory)


class Scope(ABC):
    """How the param groups are divided into parts with one learning rate each."""

    @abstractmethod
    def read(self, groups: Sequence[Group], state: State, on_device: bool) -> list[Members]:
        """The parts, each with its α_{t-1}, as floats or as tensors (see numbers.py)."""

    @abstractmethod
    def write(self, groups: Sequence[Group], state: State, moves: Sequence[Move]) -> None:
        """Put α_t of each part, in the order of ``read``, where ``read`` finds it, and what the rule keeps: its memory, and β_t."""


@final
class ByGroup(Scope):
    """One learning rate a param group."""

    def read(self, groups: Sequence[Group], state: State, on_device: bool) -> list[Members]:
        lrs = [number(group["lr"], on_device) for group in groups]
        return [alone(lr, group, group["params"], group.get("memory", {}), on_device) for lr, group in zip(lrs, groups, strict=True)]

    def write(self, groups: Sequence[Group], state: State, moves: Sequence[Move]) -> None:
        for group, move in zip(groups, moves, strict=True):
            write_lr(group, move.alpha)
            write_memory(group, move)


@final
class Global(Scope):
    """One learning rate, that of the group with the largest; the others keep their ratio to it."""

    def read(self, groups: Sequence[Group], state: State, on_device: bool) -> list[Members]:
        for name in ("hypergrad_lr", "lr_bounds"):
            values = {group[name] for group in groups if not isinstance(group[name], Tensor)}
            if len(values) > 1:
                raise ValueError(f'scope="global" takes one {name} for all param groups, got {sorted(values, key=repr)}')
        ratios = ratios_of(groups, on_device)
        alpha = largest([number(group["lr"], on_device) for group in groups])
        now = {p: ratio for group, ratio in zip(groups, ratios, strict=True) for p in group["params"]}
        before = over_largest([number(group["lr_ratio"], on_device) if "last" in group else 0.0 for group in groups])
        last = {p: ratio for group, ratio in zip(groups, before, strict=True) for p in group["params"]}
        beta, bounds = number(groups[0]["hypergrad_lr"], on_device), self._bounds(groups[0]["lr_bounds"], ratios)
        return [Members(alpha, beta, bounds, now, last, groups[0].get("memory", {}))]

    def write(self, groups: Sequence[Group], state: State, moves: Sequence[Move]) -> None:
        for group, ratio in zip(groups, ratios_of(groups, isinstance(moves[0].alpha, Tensor)), strict=True):
            put(group, "lr_ratio", ratio)
            write_lr(group, ratio * moves[0].alpha)
            write_memory(group, moves[0])

    def _bounds(self, bounds: Bounds, ratios: Sequence[Any]) -> tuple[Any, Any]:
        """What the largest learning rate must keep to, so that all lie inside ``bounds``; where they cannot, below the upper bound."""
        low, high = ends(bounds)
        bottom, top = -math.inf, math.inf
        for ratio in ratios:
            both = low / where(ratio == 0, 1.0, ratio), high / where(ratio == 0, 1.0, ratio)
            bottom = larger(where(ratio == 0, -math.inf, smaller(*both)), bottom)
            top = smaller(where(ratio == 0, math.inf, larger(*both)), top)
        return smaller(top, bottom), top


@final
class ByTensor(Scope):
    """One learning rate a tensor; ``group["lr"]`` is their mean, and writing it scales them all. So it is with β where that is adapted."""

    def read(self, groups: Sequence[Group], state: State, on_device: bool) -> list[Members]:
        return [members for group in groups for members in self._members(group, state, on_device)]

    def _members(self, group: Group, state: State, on_device: bool) -> Iterator[Members]:
        lrs, betas = (self._values(name, group, state, on_device) for name in ("lr", "hypergrad_lr"))
        for p in group["params"]:
            own = state.get(p, {})
            memory = {name: own.get(f"memory_{name}", start) for name, start in group.get("memory", {}).items()}
            yield replace(alone(lrs[p], group, [p], memory, on_device), beta=betas[p])

    def write(self, groups: Sequence[Group], state: State, moves: Sequence[Move]) -> None:
        params = (p for group in groups for p in group["params"])
        for p, move in zip(params, moves, strict=True):
            if p in state:  # as numbers by themselves: torch 2.6 cannot flatten a dict in a tensor's state
                own = state[p]
                kept = {"lr": move.alpha, "hypergrad_lr": move.beta} | {f"memory_{name}": value for name, value in move.memory.items()}
                for name, value in kept.items():
                    if value is not None:
                        put(own, name, value)
        for group in groups:
            lr, beta = (self._left(name, group, state) for name in ("lr", "hypergrad_lr"))
            if lr is not None:
                write_lr(group, lr)
            if beta is not None:
                put(group, "hypergrad_lr", beta)

    def _values(self, name: str, group: Group, state: State, on_device: bool) -> dict[Tensor, Any]:
        """Those of the tensors, scaled where somebody wrote the group's."""
        found, left = number(group[name], on_device), self._left(name, group, state)
        own = {p: number(state[p][name], on_device) for p in group["params"] if name in state.get(p, {})}
        if left is not None:
            stays = found == as_stored(group[name], left)
            factor = found / where(left == 0, 1.0, left)
            own = {p: where(stays, value, where(left == 0, found, value * factor)) for p, value in own.items()}
        return {p: own.get(p, found) for p in group["params"]}

    def _left(self, name: str, group: Group, state: State) -> Any:
        """The mean of the tensors that have moved so far; None where none has."""
        moved = [state[p][name] for p in group["params"] if name in state.get(p, {})]
        if not moved:
            return None
        lowest = functools.reduce(smaller, moved)
        return lowest + total(value - lowest for value in moved) / len(moved)  # exact where all are equal


@final
class ByElement(Scope):
    """One learning rate an element, a tensor in ``state[p]["lr"]``; ``group["lr"]`` is their mean, and writing it scales them all.

    The rule moves them elementwise in the loop, so its moves say nothing of them.
    """

    def read(self, groups: Sequence[Group], state: State, on_device: bool) -> list[Members]:
        for group in groups:
            found, left = float(group["lr"]), group.get("lr_left")
            if left is not None and found != as_stored(group["lr"], left):
                for lr in self._own(group, state):
                    lr.mul_(found / left) if left != 0 else lr.fill_(found)
                group["lr_left"] = found
        return [alone(float(group["lr"]), group, [p], {}, on_device) for group in groups for p in group["params"]]

    def write(self, groups: Sequence[Group], state: State, moves: Sequence[Move]) -> None:
        for group in groups:
            own = self._own(group, state)
            if own:
                sums = to_floats([lr.sum(dtype=torch.promote_types(lr.dtype, torch.float32)) for lr in own])
                group["lr_left"] = total(sums) / sum(lr.numel() for lr in own)
                write_lr(group, group["lr_left"])

    def _own(self, group: Group, state: State) -> list[Tensor]:
        return [real(state[p]["lr"]) for p in group["params"] if "lr" in state.get(p, {})]


def ratios_of(groups: Sequence[Group], on_device: bool) -> list[Any]:
    """Each group's learning rate over the largest; where all are 0, the ratios as they last were."""
    lrs = [number(group["lr"], on_device) for group in groups]
    none = largest(lrs) == 0
    return over_largest([where(none, group.get("lr_ratio", lr), lr) for lr, group in zip(lrs, groups, strict=True)])


def largest(values: Sequence[Any]) -> Any:
    """The one of largest magnitude, the first of several."""
    most = values[0]
    for x in values[1:]:
        most = where(abs(x) > abs(most), x, most)
    return most


def over_largest(values: Sequence[Number]) -> list[Any]:
    """Each value over the one of largest magnitude; 1 where all are 0."""
    most = largest(values)
    return [where(most == 0, 1.0, value / where(most == 0, 1.0, most)) for value in values]


def as_stored(there: float | Tensor, value: Number) -> Any:
    """``value`` rounded as the option that is ``there`` would hold it."""
    if isinstance(value, Tensor):
        return value.to(there.dtype) if isinstance(there, Tensor) else value
    return torch.tensor(value, dtype=there.dtype).item() if isinstance(there, Tensor) else value


def read_lrs(group: Group, state: State, elements: bool) -> None:
    """The learning rates of a checkpoint's tensors as this scope keeps them: one an element, or their mean, one a tensor.

    Numbers on a device (``capturable``) are no learning rates of elements.
    """
    if not elements:
        group.pop("lr_left", None)
    for p in group["params"]:
        own = state.get(p, {})
        if "lr" in own and (isinstance(own["lr"], Tensor) and (elements or own["lr"].dim() > 0)) != elements:
            lr = own.pop("lr")
            if elements:
                make_buffer(own, "lr", p, lr)
            else:
                own.update(lr=real(lr).double().mean().item(), applied=False)  # the last step was of no one learning rate


def write_memory(group: Group, move: Move) -> None:
    """Keep what the rule keeps in the group, and β where it is adapted."""
    if "memory" in group:
        group["memory"] = dict(group["memory"])
        for name, value in move.memory.items():
            put(group["memory"], name, value)
    if move.beta is not None:
        put(group, "hypergrad_lr", move.beta)


def write_lr(group: Group, alpha: Number) -> None:
    """Set ``group["lr"]``: in place if it is a tensor, else as a Python float."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(alpha) if not isinstance(alpha, Tensor) else group["lr"].copy_(alpha.reshape(group["lr"].shape))
    else:
        group["lr"] = alpha


SCOPES: dict[ScopeName, Scope] = {"group": ByGroup(), "global": Global(), "tensor": ByTensor(), "element": ByElement()}
