"""Scopes: which tensors share one learning rate, where it was left, and where it is put.

``group["lr"]`` is what users and schedulers read and write, so every scope starts a step from what it finds there. The learning rate
of a single tensor stands in ``state[p]["lr"]``, which the update writes for every scope.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from .checks import Bounds, ends
from .rules import Memory
from .tensors import total

Group = dict[str, Any]
ScopeName = Literal["group", "global", "tensor"]
State = Mapping[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class Members:
    """The tensors of one scope: each moves with the scope's learning rate ``alpha`` times its ratio.

    ``last`` has the ratios of the step before, whose derivative the hypergradient is; the two differ where a learning rate was written
    in between. ``memory`` is what the rule kept of the step before.
    """

    alpha: float
    beta: float
    bounds: tuple[float, float]
    ratios: dict[Tensor, float]
    last: dict[Tensor, float]
    memory: Memory


def alone(alpha: float, group: Group, params: Sequence[Tensor], memory: Memory) -> Members:
    """Tensors of one group that move with ``alpha`` itself."""
    ratios = dict.fromkeys(params, 1.0)
    return Members(alpha, group["hypergrad_lr"], ends(group["lr_bounds"]), ratios, ratios, memory)


class Scope(ABC):
    """How the param groups are divided into parts with one learning rate each."""

    @abstractmethod
    def read(self, groups: Sequence[Group], state: State) -> list[Members]:
        """The parts, each with its α_{t-1}."""

    @abstractmethod
    def write(self, groups: Sequence[Group], state: State, alphas: Sequence[float]) -> None:
        """Put α_t of each part, in the order of ``read``, into the groups."""

    @abstractmethod
    def remember(self, groups: Sequence[Group], state: dict[Tensor, dict[str, Any]], memories: Sequence[Memory]) -> None:
        """Put what the rule keeps of each part where ``read`` finds it."""


@final
class ByGroup(Scope):
    """One learning rate a param group."""

    def read(self, groups: Sequence[Group], state: State) -> list[Members]:
        return [alone(float(group["lr"]), group, group["params"], group.get("memory", {})) for group in groups]

    def write(self, groups: Sequence[Group], state: State, alphas: Sequence[float]) -> None:
        for group, alpha in zip(groups, alphas, strict=True):
            write_lr(group, alpha)

    def remember(self, groups: Sequence[Group], state: dict[Tensor, dict[str, Any]], memories: Sequence[Memory]) -> None:
        for group, memory in zip(groups, memories, strict=True):
            group["memory"] = memory


@final
class Global(Scope):
    """One learning rate, that of the group with the largest; the others keep their ratio to it."""

    def read(self, groups: Sequence[Group], state: State) -> list[Members]:
        for name in ("hypergrad_lr", "lr_bounds"):
            values = {group[name] for group in groups}
            if len(values) > 1:
                raise ValueError(f'scope="global" takes one {name} for all param groups, got {sorted(values, key=repr)}')
        ratios = ratios_of(groups)
        alpha = max((float(group["lr"]) for group in groups), key=abs)
        now = {p: ratio for group, ratio in zip(groups, ratios, strict=True) for p in group["params"]}
        before = over_largest([group["lr_ratio"] if "last" in group else 0.0 for group in groups])
        last = {p: ratio for group, ratio in zip(groups, before, strict=True) for p in group["params"]}
        return [
            Members(alpha, groups[0]["hypergrad_lr"], self._bounds(groups[0]["lr_bounds"], ratios), now, last, groups[0].get("memory", {}))
        ]

    def write(self, groups: Sequence[Group], state: State, alphas: Sequence[float]) -> None:
        for group, ratio in zip(groups, ratios_of(groups), strict=True):
            group["lr_ratio"] = ratio
            write_lr(group, ratio * alphas[0])

    def remember(self, groups: Sequence[Group], state: dict[Tensor, dict[str, Any]], memories: Sequence[Memory]) -> None:
        for group in groups:
            group["memory"] = dict(memories[0])

    def _bounds(self, bounds: Bounds, ratios: Sequence[float]) -> tuple[float, float]:
        """What the largest learning rate must keep to, so that all lie inside ``bounds``; where they cannot, below the upper bound."""
        low, high = ends(bounds)
        both = [sorted((low / ratio, high / ratio)) for ratio in ratios if ratio != 0]
        top = min(high for _, high in both)
        return min(top, max(low for low, _ in both)), top


@final
class ByTensor(Scope):
    """One learning rate a tensor; ``group["lr"]`` is their mean, and writing it scales them all."""

    def read(self, groups: Sequence[Group], state: State) -> list[Members]:
        def memory(p: Tensor, group: Group) -> Memory:
            own = state.get(p, {})
            return {name: own.get(f"memory_{name}", start) for name, start in group.get("memory", {}).items()}

        return [alone(alpha, group, [p], memory(p, group)) for group in groups for p, alpha in self._alphas(group, state)]

    def write(self, groups: Sequence[Group], state: State, alphas: Sequence[float]) -> None:
        for group in groups:
            left = self._left(group, state)
            if left is not None:
                write_lr(group, left)

    def remember(self, groups: Sequence[Group], state: dict[Tensor, dict[str, Any]], memories: Sequence[Memory]) -> None:
        params = (p for group in groups for p in group["params"])
        for p, memory in zip(params, memories, strict=True):
            if p in state:  # as numbers by themselves: torch 2.6 cannot flatten a dict in a tensor's state
                state[p].update({f"memory_{name}": value for name, value in memory.items()})

    def _alphas(self, group: Group, state: State) -> list[tuple[Tensor, float]]:
        found, left = float(group["lr"]), self._left(group, state)
        own = {p: state[p]["lr"] for p in group["params"] if "lr" in state.get(p, {})}
        if left is not None and found != as_stored(group, left):  # somebody wrote group["lr"]
            own = {p: alpha * (found / left) if left != 0 else found for p, alpha in own.items()}
        return [(p, own.get(p, found)) for p in group["params"]]

    def _left(self, group: Group, state: State) -> float | None:
        """The mean learning rate of the tensors that have moved so far; None where none has."""
        moved: list[float] = [state[p]["lr"] for p in group["params"] if "lr" in state.get(p, {})]
        if not moved:
            return None
        lowest = min(moved)
        return lowest + total(alpha - lowest for alpha in moved) / len(moved)  # exact where all are equal


def ratios_of(groups: Sequence[Group]) -> list[float]:
    """Each group's learning rate over the largest; where all are 0, the ratios as they last were."""
    lrs = [float(group["lr"]) for group in groups]
    if not any(lrs):
        lrs = [group["lr_ratio"] for group in groups]
    return over_largest(lrs)


def over_largest(values: Sequence[float]) -> list[float]:
    """Each value over the one of largest magnitude; 1 where all are 0."""
    largest = max(values, key=abs)
    return [value / largest for value in values] if largest != 0 else [1.0] * len(values)


def as_stored(group: Group, alpha: float) -> float:
    """``alpha`` rounded as ``group["lr"]`` would hold it."""
    lr = group["lr"]
    return torch.tensor(alpha, dtype=lr.dtype).item() if isinstance(lr, Tensor) else alpha


def write_lr(group: Group, alpha: float) -> None:
    """Set ``group["lr"]``: in place if it is a tensor, else as a Python float."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(alpha)
    else:
        group["lr"] = alpha


SCOPES: dict[ScopeName, Scope] = {"group": ByGroup(), "global": Global(), "tensor": ByTensor()}
