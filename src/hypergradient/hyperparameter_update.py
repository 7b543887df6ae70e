"""The update of the hyperparameters other than the learning rate, one of each per param group.

On a device ``group["momentum"]``, the entries of ``group["betas"]`` and so on are 0-dim tensors, as ``group["lr"]`` is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from .group_lr import Group
from .hyperparameters import HYPERPARAMETERS, coordinate_bounds, update_hyperparameter
from .learning_rates import Assignment
from .rules import Adapted, Level, Rule, norms_of
from .scalars import DeviceScalars, Scalars


@dataclass(frozen=True, eq=False, repr=False)
class RuleBatch:
    """Hyperparameters whose rules differ in β only, so that one call updates them in all param groups: name by name, group by group.

    Args:
        rule: the rule of the first.
        names: their names.
        columns: the arguments of ``update_hyperparameter``, and "memory.NAME".
        found: the new values, rule memory, β, and whether each is "finite", by the same names.
    """

    rule: Level
    names: list[str]
    columns: dict[str, Any]
    found: dict[str, Any]


def initial_memory(rules: Mapping[str, Level]) -> dict[str, float]:
    """The initial state of the rules in a param group: β and memory of each, by "name.key"."""
    memories = {name: {"hypergrad_lr": rule.initial_beta} | rule.initial_memory() for name, rule in rules.items()}
    return {f"{name}.{key}": value for name, memory in memories.items() for key, value in memory.items()}


def to_device(rules: Mapping[str, Level], groups: Sequence[Group], scalars: Scalars) -> None:
    """Make tensors of those that the user has written as numbers."""
    if not isinstance(scalars, DeviceScalars):
        return
    for name in rules:
        hyperparameter = HYPERPARAMETERS[name]
        for group in groups:
            if not isinstance(hyperparameter.read(group), Tensor):
                hyperparameter.write(group, torch.full((), hyperparameter.read(group), dtype=scalars.dtype, device=scalars.device))


def update_batches(
    rules: Mapping[str, Level],
    bounds: Mapping[str, tuple[float, float]],
    groups: Sequence[Group],
    sums: Mapping[str, Sequence[Any]],
    scalars: Scalars,
) -> list[RuleBatch]:
    """Apply the rules to the dot products of a step."""
    return [_update_batch(rules[names[0]], names, bounds, groups, sums, scalars) for names in group_alike(rules)]


def group_alike(rules: Mapping[Any, Rule]) -> list[list[Any]]:
    """The keys of rules, grouped by rules that differ in β only."""
    found: dict[Any, list[Any]] = {}
    for key, rule in rules.items():
        found.setdefault(without_beta(rule), []).append(key)
    return list(found.values())


@cache
def without_beta(rule: Rule) -> Rule:
    """A rule with its β, or β_0, replaced by a constant."""
    return replace(rule, beta=replace(rule.beta, value=1.0) if isinstance(rule.beta, Adapted) else 0.0)


def _update_batch(rule: Level, names: list[str], bounds: Any, groups: Sequence[Group], sums: Any, scalars: Scalars) -> RuleBatch:
    pairs = [(name, group) for name in names for group in groups]
    rows = {"value": [HYPERPARAMETERS[name].read(group) for name, group in pairs]}
    rows |= {"beta": [group["adapted"][f"{name}.hypergrad_lr"] for name, group in pairs]}
    rows |= {"unit": [float(HYPERPARAMETERS[name].unit) for name, _ in pairs]}
    rows |= {"low": [bounds[name][0] for name, _ in pairs], "high": [bounds[name][1] for name, _ in pairs]}
    coordinate_ends = [coordinate_bounds(rule, HYPERPARAMETERS[name].unit, bounds[name]) for name, _ in pairs]
    rows |= {"lowest": [low for low, _ in coordinate_ends], "highest": [high for _, high in coordinate_ends]}
    rows |= {f"memory.{key}": [group["adapted"][f"{name}.{key}"] for name, group in pairs] for key in rule.initial_memory()}
    columns = dict(zip(rows, scalars.columns(list(rows.values())), strict=True))
    for kind, key in enumerate(scalars.SUM_NAMES[:3] if rule.reads_norms else ("gx",)):
        parts = [sums[name][kind] for name in names]
        columns[key] = torch.cat(parts) if scalars.on_device else [x for part in parts for x in part]
    return RuleBatch(rule, names, columns, scalars.apply(partial(update_values, rule), columns, len(pairs)))


def update_values(rule: Level, xp: Any, x: Mapping[str, Any]) -> dict[str, Any]:
    """The rule's update of one hyperparameter: h, φ_t, β_t, memory, and whether all are finite."""
    memory = {name: x[f"memory.{name}"] for name in rule.initial_memory()}
    h = 0.0 - x["gx"]
    g_norm, d_norm = norms_of(x, xp)
    found = update_hyperparameter(rule, memory, {**x, "h": h, "g_norm": g_norm, "d_norm": d_norm}, xp)
    finite = found.alpha - found.alpha + (h - h)
    for value in found.memory.values():
        finite = finite + (value - value)
    out = {"h": h, "value": found.alpha} | {f"memory.{name}": value for name, value in found.memory.items()}
    if found.beta is not None:
        out["beta"] = found.beta
        finite = finite + (found.beta - found.beta)
    return out | {"finite": finite == 0}


def hypergradients(batches: Sequence[RuleBatch], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """∂f/∂φ of each param group, by name."""
    found: list[dict[str, Any]] = [{} for _ in groups]
    for batch in batches:
        h = iter(list(batch.found["h"]))
        for name in batch.names:
            for of_group in found:
                of_group[name] = next(h)
    return found


def assignments(batches: Sequence[RuleBatch], groups: Sequence[Group]) -> Iterator[Assignment]:
    """What to write where; on the host, hyperparameters are written at once."""
    for group in groups if batches else ():
        group["adapted"] = dict(group["adapted"])  # new: an earlier state_dict() holds the old one
    for batch in batches:
        columns = {name: list(column) for name, column in batch.found.items()}
        k = 0
        for name in batch.names:
            for group in groups:
                hyperparameter, value = HYPERPARAMETERS[name], columns["value"][k]
                current = hyperparameter.read(group)
                if isinstance(value, Tensor):
                    yield {"": current}, "", value
                else:
                    hyperparameter.write(group, value)
                for key, column in columns.items():
                    if key.startswith("memory.") or key == "beta":
                        yield group["adapted"], f"{name}.{key.removeprefix('memory.') if key != 'beta' else 'hypergrad_lr'}", column[k]
                k += 1
