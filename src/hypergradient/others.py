"""The hyperparameters beside the learning rate, one of each a param group: where they stand, and what moves them together.

On a device ``group["momentum"]``, the entries of ``group["betas"]`` and so on are 0-dim tensors, as ``group["lr"]`` is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from .columns import Device, Host
from .dials import Place
from .factors import Group
from .hyperparameters import HYPERPARAMETERS, ends_of, move
from .rules import Adapted, Level, Rule, norms_of


@dataclass(frozen=True)
class Batch:
    """Hyperparameters whose rules differ in β alone, so that one call moves them in all param groups: name by name, group by group.

    Args:
        rule: the rule of the first.
        names: theirs.
        columns: what ``move`` needs, and "memory.NAME".
        found: the new values, what the rule keeps, β, and whether each move is "fine", by the same names.
    """

    rule: Level
    names: list[str]
    columns: dict[str, Any]
    found: dict[str, Any]


def fresh(rules: Mapping[str, Level]) -> dict[str, float]:
    """What their rules keep in a param group: β and memory of each, by "name.key"."""
    return {
        f"{name}.{key}": value for name, rule in rules.items() for key, value in ({"hypergrad_lr": rule.first_beta} | rule.fresh()).items()
    }


def to_device(rules: Mapping[str, Level], groups: Sequence[Group], numbers: Host | Device) -> None:
    """Make tensors of those that somebody has written as numbers."""
    if not isinstance(numbers, Device):
        return
    for name in rules:
        own = HYPERPARAMETERS[name]
        for group in groups:
            if not isinstance(own.read(group), Tensor):
                own.write(group, torch.full((), own.read(group), dtype=numbers.dtype, device=numbers.device))


def batches(
    rules: Mapping[str, Level],
    bounds: Mapping[str, tuple[float, float]],
    groups: Sequence[Group],
    sums: Mapping[str, Sequence[Any]],
    numbers: Host | Device,
) -> list[Batch]:
    """What the rules make of a step's dot products."""
    return [_batch(rules[names[0]], names, bounds, groups, sums, numbers) for names in alike(rules)]


def alike(rules: Mapping[Any, Rule]) -> list[list[Any]]:
    """The keys of rules that differ in β alone, together."""
    found: dict[Any, list[Any]] = {}
    for key, rule in rules.items():
        found.setdefault(form(rule), []).append(key)
    return list(found.values())


@cache
def form(rule: Rule) -> Rule:
    """A rule but for its β, or β_0."""
    return replace(rule, beta=replace(rule.beta, value=1.0) if isinstance(rule.beta, Adapted) else 0.0)


def _batch(rule: Level, names: list[str], bounds: Any, groups: Sequence[Group], sums: Any, numbers: Host | Device) -> Batch:
    pairs = [(name, group) for name in names for group in groups]
    rows = {"value": [HYPERPARAMETERS[name].read(group) for name, group in pairs]}
    rows |= {"beta": [group["adapted"][f"{name}.hypergrad_lr"] for name, group in pairs]}
    rows |= {"unit": [float(HYPERPARAMETERS[name].unit) for name, _ in pairs]}
    rows |= {"low": [bounds[name][0] for name, _ in pairs], "high": [bounds[name][1] for name, _ in pairs]}
    ends = [ends_of(rule, HYPERPARAMETERS[name].unit, bounds[name]) for name, _ in pairs]
    rows |= {"lowest": [low for low, _ in ends], "highest": [high for _, high in ends]}
    rows |= {f"memory.{key}": [group["adapted"][f"{name}.{key}"] for name, group in pairs] for key in rule.fresh()}
    columns = dict(zip(rows, numbers.columns(list(rows.values())), strict=True))
    for kind, key in enumerate(numbers.SUMS[:3] if rule.reads_norms else ("gx",)):
        parts = [sums[name][kind] for name in names]
        columns[key] = torch.cat(parts) if numbers.on_device else [x for part in parts for x in part]
    return Batch(rule, names, columns, numbers.each(partial(turn, rule), columns, len(pairs)))


def turn(rule: Level, xp: Any, x: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule makes of one hyperparameter: h, φ_t, β_t, what it keeps, and whether the step can be made."""
    memory = {name: x[f"memory.{name}"] for name in rule.fresh()}
    h = 0.0 - x["gx"]
    g_norm, d_norm = norms_of(x, xp)
    found = move(rule, memory, {**x, "h": h, "g_norm": g_norm, "d_norm": d_norm}, xp)
    fine = found.alpha - found.alpha + (h - h)
    for value in found.memory.values():
        fine = fine + (value - value)
    out = {"h": h, "value": found.alpha} | {f"memory.{name}": value for name, value in found.memory.items()}
    if found.beta is not None:
        out["beta"] = found.beta
        fine = fine + (found.beta - found.beta)
    return out | {"fine": fine == 0}


def hypergradients(moved: Sequence[Batch], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """∂f/∂φ of each param group, by name."""
    found: list[dict[str, Any]] = [{} for _ in groups]
    for batch in moved:
        h = iter(list(batch.found["h"]))
        for name in batch.names:
            for own in found:
                own[name] = next(h)
    return found


def write(moved: Sequence[Batch], groups: Sequence[Group]) -> Iterator[Place]:
    """Where all of it is to be put; on the host, values are written at once."""
    for group in groups if moved else ():
        group["adapted"] = dict(group["adapted"])  # a state_dict() that was taken keeps its own
    for batch in moved:
        columns = {name: list(column) for name, column in batch.found.items()}
        k = 0
        for name in batch.names:
            for group in groups:
                own, value = HYPERPARAMETERS[name], columns["value"][k]
                there = own.read(group)
                if isinstance(value, Tensor):
                    yield {"": there}, "", value
                else:
                    own.write(group, value)
                for key, column in columns.items():
                    if key.startswith("memory.") or key == "beta":
                        yield group["adapted"], f"{name}.{key.removeprefix('memory.') if key != 'beta' else 'hypergrad_lr'}", column[k]
                k += 1
