"""Sums of a step's dot products: one per learning rate or hyperparameter, on the host or as one vector on a device.

Only here are all products together, so this is where sharded parameters are reduced over ranks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .derivatives import LAST_STEPS
from .group_lr import Group
from .learning_rates import LearningRates
from .products import Bucket, GradientEntry, Term, hypergradient_terms
from .ranks import Spec, local
from .scalars import DeviceScalars, exact_sum, to_floats
from .setup import Setup
from .tensors import Norms, dot, real

#: Kinds of products that a rule may read: g · x, g · g, x · x and θ · θ.
NUM_KINDS = 4

#: Added to the squared norm by which hypergradients are normalized.
EPS = 1e-12


@dataclass(frozen=True, eq=False, repr=False)
class Weighted:
    """A term, the entry that each tensor adds to, and the weight: what the tensors moved by per unit of the hyperparameter."""

    term: Term
    index: Sequence[int]
    weight: Any


def hypergradient_sums(
    setup: Setup, buckets: Sequence[Bucket], lrs: LearningRates, groups: Sequence[Group], of_step: bool, adapts: bool
) -> tuple[dict[str, list[Any]], Any]:
    """For each hyperparameter the columns Σ w g·x, Σ g·g, Σ w² x·x and Σ θ·θ, by learning rate or param group; and whether all are finite.

    w is what a tensor moved by per unit: its ratio to the learning rate of the scope, or the learning rate for other hyperparameters. On a
    device the last three are square roots. Columns that no rule reads are 0.
    """
    group_of = [g for g, group in enumerate(groups) for _ in group["params"]]
    sizes = {name: lrs.size if name in ("lr", "slope") else len(groups) for name in (*setup.rules, *["slope"] * setup.rule.adapts_discount)}
    rows: dict[str, list[Weighted]] = {name: [] for name in sizes}
    averages = setup.rule.averages
    for bucket in buckets:
        applied = bucket.states[0].get("applied")  # 1 or 0 if only the device knows
        for name, term in hypergradient_terms(setup, bucket, of_step, adapts):
            if name == "lr" and averages:  # rescale z to the displacement from the iterate
                index, weight = lrs.index, 1 / (1 - setup.direction.interpolation(bucket.group))
            elif name == "lr":
                index, weight = lrs.index, lr_weight(setup, lrs, bucket)
            elif name == "slope":
                index, weight = lrs.index, 1.0
            else:
                index, weight = group_of, bucket.last_factor if setup.per_element else bucket.last_lr(setup)
                weight = weight if LAST_STEPS[type(setup.direction)].scaled_by_lr else 1.0
            if isinstance(applied, Tensor) and "trace" not in bucket.states[0]:
                weight = weight * applied
            rows[name].append(Weighted(term, index, weight))
    sums, ok = reduce_terms(setup, rows, sizes)
    if setup.signal.normalized:
        normalize(setup, sums, groups)
    if not isinstance(setup.scalars, DeviceScalars):
        if averages and not ok:  # if one learning rate's step is skipped, all are
            sums["lr"][0] = [math.nan] * lrs.size
        return sums, ok
    if adapts and not averages:
        return sums, True  # not known yet: the rules' results are checked later
    hypergradients = [kinds[0] for kinds in sums.values()]
    lost = sum((x - x).sum() for x in hypergradients)
    if lrs.size > 1 or len(hypergradients) > 1:
        sums["lr"][0] = sums["lr"][0] + lost
    return sums, lost == 0


def lr_weight(setup: Setup, lrs: LearningRates, bucket: Bucket) -> Any:
    """What tensors moved by per unit of their learning rate, or of its logarithm; 1 if their trace includes it."""
    if setup.has_discount or (setup.uses_trace and setup.rule.adapts_log):
        return 1.0
    if setup.rule.adapts_log and not setup.per_element and "last" in bucket.group:
        return bucket.last_lr(setup)
    return 1.0 if lrs.last_scales is None else lrs.last_scales[bucket.group_index]


def normalize(setup: Setup, sums: Mapping[str, list[Any]], groups: Sequence[Group]) -> None:
    """Divide hypergradients by ‖g‖² of their param group in the last step, or of all groups for a global learning rate."""
    last = [group.get("last", {}).get("square", 1.0) for group in groups]
    apart = [x for x, group in zip(last, groups, strict=True) for _ in group["params"]]
    of_lr = {"group": last, "global": last[:1]}.get(setup.scope, apart)
    for name, rule in setup.rules.items():
        by, found = setup.scalars.vector(of_lr if name == "lr" else last), sums[name]
        for kind in (0, 2) if rule.reads_norms else (0,):
            power = 2 if kind and isinstance(by, list) else 1  # the host has squared norms
            found[kind] = [x / y**power for x, y in zip(found[kind], by, strict=True)] if isinstance(by, list) else found[kind] / by


def gradient_squares(setup: Setup, groups: Sequence[Group], norms: Any) -> list[Any]:
    """‖g‖² of each param group, or of all under scope="global", from the column of gradient norms."""
    apart = [1 if setup.scope == "group" else len(group["params"]) for group in groups] if setup.scope != "global" else [1]
    if isinstance(norms, Tensor):
        # Finite in any case: a skipped step keeps the last value by a product with 0.
        found: list[Any] = [torch.nan_to_num(own.sum() + EPS) for own in torch.split(norms * norms, apart)]
    else:
        parts = iter(norms)
        found = [sum(next(parts) for _ in range(many)) + EPS for many in apart]
    return found * len(groups) if setup.scope == "global" else found


def safe_start_sums(setup: Setup, rows: Sequence[GradientEntry], lrs: LearningRates) -> dict[str, Any]:
    """‖g_1‖², ‖θ_0‖² and ‖d_1‖² over each learning rate's tensors, d scaled by their ratios: "start.gg", "start.pp" and "start.dd"."""
    of, found = {row.p: row for row in rows}, dict[str, list[Weighted]]()
    for p, d in setup.direction.first_directions({row.p: row.group for row in rows}, {row.p: real(row.grad) for row in rows}):
        ratio = 1.0 if lrs.ratios is None else lrs.ratios[of[p].group_index]
        for name, x, weight in (("start.gg", real(of[p].grad), 1.0), ("start.pp", local(real(p)), 1.0), ("start.dd", d, ratio**2)):
            found.setdefault(name, []).append(Weighted(Term([of[p].position], of[p].spec, 1.0, [([0], [[dot(x, x)]])]), lrs.index, weight))
    sums, _ = reduce_terms(setup, found, dict.fromkeys(("start.gg", "start.pp", "start.dd"), lrs.size))
    return {name: kinds[0] for name, kinds in sums.items()}


def reduce_terms(setup: Setup, rows: Mapping[str, Sequence[Weighted]], sizes: Mapping[str, int]) -> tuple[dict[str, list[Any]], Any]:
    """The columns of each name, summed by entry over all ranks; and whether all are finite, which on a device is left open."""
    ranks, scalars = setup.ranks, setup.scalars
    if not isinstance(scalars, DeviceScalars):
        sums = host_sums(rows, sizes) if not ranks.is_sharded else None
        if sums is None:
            flat = torch.zeros(NUM_KINDS * sum(sizes.values()), dtype=torch.float64, device=ranks.device)
            for s in ranks.specs:
                own = [x for columns in host_sums(with_spec(rows, s), sizes).values() for column in columns for x in column]
                flat += ranks.all_reduce(torch.tensor(own, dtype=torch.float64, device=ranks.device), s)
            values = iter(flat.tolist())
            sums = {name: [[next(values) for _ in range(size)] for _ in range(NUM_KINDS)] for name, size in sizes.items()}
        return sums, all(math.isfinite(x) for columns in sums.values() for x in columns[0])
    if not ranks.is_sharded:
        found = device_sums(rows, sizes, scalars, 1)
    else:
        found = torch.stack([ranks.all_reduce(device_sums(with_spec(rows, s), sizes, scalars, NUM_KINDS), s) for s in ranks.specs]).sum(0)
    found[1:].sqrt_()
    zeros = {size: [scalars.constant((0.0,) * size)] * (NUM_KINDS - len(found)) for size in sizes.values()}
    split = torch.split(found, list(sizes.values()), 1)
    return {name: [*x.unbind(), *zeros[size]] for (name, size), x in zip(sizes.items(), split, strict=True)}, True


def with_spec(rows: Mapping[str, Sequence[Weighted]], spec: Spec) -> dict[str, list[Weighted]]:
    """The terms of tensors that are sharded in this way."""
    return {name: [row for row in own if (row.term.spec or ()) == spec] for name, own in rows.items()}


def host_sums(rows: Mapping[str, Sequence[Weighted]], sizes: Mapping[str, int]) -> dict[str, list[list[float]]]:
    """Columns of floats; every sum is rounded once, so it does not depend on the order."""
    values = iter(to_floats([x for own in rows.values() for row in own for _, kinds in row.term.parts for kind in kinds for x in kind]))
    found = {}
    for name, size in sizes.items():
        entries: list[list[tuple[float, ...]]] = [[] for _ in range(size)]
        for row in rows.get(name, ()):
            tensors, _, scale, parts = row.term
            pieces = [[next(values) for kind in kinds for _ in kind] for _, kinds in parts]
            gx, *norms = map(exact_sum, zip(*pieces, strict=True))
            gg, xx, pp = (*norms, 0.0, 0.0, 0.0)[: NUM_KINDS - 1]
            w = float(row.weight)
            entries[row.index[tensors[0]]].append((w * (scale * gx), gg, w**2 * (scale**2 * xx), pp))
        columns = [[exact_sum(column) for column in zip(*entry, strict=True)] or [0.0] * NUM_KINDS for entry in entries]
        found[name] = [list(column) for column in zip(*columns, strict=True)]
    return found


def device_sums(rows: Mapping[str, Sequence[Weighted]], sizes: Mapping[str, int], scalars: DeviceScalars, least: int) -> Tensor:
    """A matrix with a row for each kind of product, at least ``least`` rows; one ``index_add`` sums them all."""
    most = max((len(found) for own in rows.values() for row in own for _, found in row.term.parts), default=1)
    flat: list[list[Tensor]] = [[] for _ in range(max(most, least))]
    rooted = all(isinstance(x, Norms) for own in rows.values() for row in own for _, found in row.term.parts for x in found[1:])
    index, weights, start = list[int](), list[Any](), 0
    for name, size in sizes.items():
        for row in rows.get(name, ()):
            tensors, _, scale, parts = row.term
            w = scale * row.weight
            for some, found in parts:
                count = len(found[0])
                for kind, column in enumerate(flat):
                    values = found[kind] if kind < len(found) else [scalars.constant(0.0)] * count
                    column += values if rooted or not isinstance(values, Norms) else [x * x for x in values]
                index += [start + row.index[tensors[i]] for i in some[:count]]
                weights += [w[i] if isinstance(w, Tensor) and w.dim() else w for i in some[:count]]
        start += size
    if not index:
        return torch.zeros(len(flat), start, dtype=scalars.dtype, device=scalars.device)
    sums = torch.stack([scalars.scalar(x) if x.device != scalars.device else x for column in flat for x in column])
    sums = sums.to(scalars.dtype).view(len(flat), -1)
    if rooted and most > 1:
        sums[1:].square_()
    if any(isinstance(w, Tensor) or w != 1.0 for w in weights):
        w = scalars.vector(weights)
        sums[0].mul_(w)
        if len(flat) > 2:
            sums[2].mul_(w * w if any(isinstance(w, Tensor) for w in weights) else scalars.vector([w**2 for w in weights]))
    if start == 1:
        sums = sums.sum(1, keepdim=True)
    elif index != list(range(start)):
        sums = sums.new_zeros(len(flat), start).index_add_(1, scalars.constant(tuple(index), torch.int64), sums)
    return sums
