"""The dot products of a step added up: one sum a learning rate or hyperparameter, on the host or as one vector on a device.

This is the one place where they are all together; where parameters are sharded, it is here that ranks must add theirs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .columns import Device, to_floats, total
from .dials import Dials, Group
from .products import Bundle, Meeting, Term
from .tensors import Norms

Weight = Any
"""Of a bundle: what its tensors have moved by for each unit of a hyperparameter; a number or a vector, None for 1."""


def on_host(terms: Mapping[str, Sequence[tuple[Term, Sequence[int], Weight]]], sizes: Mapping[str, int]) -> dict[str, list[list[float]]]:
    """For each hyperparameter the columns Σ w g·x, Σ g·g and Σ w² x·x, and Σ g·x; of the terms with the entry of each tensor.

    Every sum is rounded once, so that it does not depend on the order.
    """
    scalars = [x for rows in terms.values() for term, _, _ in rows for _, kinds in term.parts for kind in kinds for x in kind]
    values = iter(to_floats(scalars))
    found = {}
    for name, rows in terms.items():
        entries: list[list[tuple[float, ...]]] = [[] for _ in range(sizes[name])]
        for term, index, weight in rows:
            w = 1.0 if weight is None else float(weight)
            pieces = [[next(values) for kind in kinds for _ in kind] for _, kinds in term.parts]
            gx, *norms = map(total, zip(*pieces, strict=True))
            gg, xx = (*norms, 0.0, 0.0)[:2]
            entries[index[term.bundle.rows[0]]].append((w * (term.scale * gx), gg, w**2 * (term.scale**2 * xx), gx))
        found[name] = [[total(column) for column in zip(*rows, strict=True)] or [0.0] * 4 for rows in entries]
    return {name: [list(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}


def on_device(
    terms: Mapping[str, Sequence[tuple[Term, Sequence[int], Weight]]], sizes: Mapping[str, int], numbers: Device, norms: bool
) -> dict[str, list[Tensor]]:
    """Vectors of Σ w g·x, and the roots of the other sums; of the same terms. Everything is added up by one ``index_add``."""
    kinds = 3 if norms else 1
    flat: list[list[Tensor]] = [[] for _ in range(kinds)]
    found_norms = all(isinstance(x, Norms) for rows in terms.values() for term, _, _ in rows for _, found in term.parts for x in found[1:])
    index, weights, start = list[int](), list[Any](), 0
    for name, rows in terms.items():
        for term, entries, weight in rows:
            w: Any = term.scale if weight is None else term.scale * weight
            for tensors, found in term.parts:
                count = len(found[0])
                for kind, column in enumerate(flat):
                    own = found[kind] if kind < len(found) else [numbers.constant(0.0)] * count
                    column += own if found_norms or not isinstance(own, Norms) else [x * x for x in own]
                index += [start + entries[term.bundle.rows[i]] for i in tensors[:count]]
                weights += [w[i] if isinstance(w, Tensor) and w.dim() else w for i in tensors[:count]]
        start += sizes[name]
    if not index:
        return {name: [numbers.constant((0.0,) * size)] * 3 for name, size in sizes.items()}
    sums = torch.stack([numbers.number(x) if x.device != numbers.device else x for column in flat for x in column])
    sums = sums.to(numbers.dtype).view(kinds, -1)
    if found_norms and norms:
        sums[1:].square_()
    if any(isinstance(w, Tensor) or w != 1.0 for w in weights):
        w = numbers.vector(weights)
        sums[0].mul_(w)
        if norms:
            sums[2].mul_(w * w)
    if start == 1:
        sums = sums.sum(1, keepdim=True)
    elif index != list(range(start)):
        sums = sums.new_zeros(kinds, start).index_add_(1, numbers.constant(tuple(index), torch.int64), sums)
    if norms:
        sums[1:].sqrt_()
    start, vectors = 0, {}
    for name, size in sizes.items():
        vectors[name] = [x[start : start + size] for x in sums.unbind()]
        start += size
    return vectors


def hypergradient_sums(
    meeting: Meeting, found: Sequence[Bundle], dials: Dials, groups: Sequence[Group], by_element: bool
) -> tuple[dict[str, list[Any]], Any]:
    """The sums of every hyperparameter (see ``on_host``), of dials or of param groups, and whether all are finite.

    A tensor counts with what it has moved by for each unit: the ratio to its dial, the learning rate for other hyperparameters.
    """
    group_of = [g for g, group in enumerate(groups) for _ in group["params"]]
    terms: dict[str, list[tuple[Term, Sequence[int], Weight]]] = {}
    for name, own in meeting.terms(found).items():
        index = dials.index if name == "lr" else group_of
        terms[name] = [(term, index, _weight(name, term.bundle, meeting, dials, by_element)) for term in own]
    sizes = {name: dials.size if name == "lr" else len(groups) for name in terms}
    if not isinstance(meeting.numbers, Device):
        sums = on_host(terms, sizes)
        ok = all(math.isfinite(x) for kinds in sums.values() for column in (kinds[0], kinds[3]) for x in column)
        if not ok and meeting.rules["lr"].averages:  # no dial goes on where one cannot
            sums["lr"][0] = [math.nan] * dials.size
        return sums, ok
    vectors = on_device(terms, sizes, meeting.numbers, any(rule.reads_norms for rule in meeting.rules.values()))
    if meeting.adapts and not meeting.rules["lr"].averages:
        return vectors, True  # as far as is known: what the rules make of it is looked at
    every = [kinds[0] for kinds in vectors.values()]
    lost = sum((x - x).sum() for x in every)
    if dials.size > 1 or len(every) > 1:
        vectors["lr"][0] = vectors["lr"][0] + lost
    return vectors, lost == 0


def _weight(name: str, bundle: Bundle, meeting: Meeting, dials: Dials, by_element: bool) -> Weight:
    weight = None
    if name == "lr":  # the way to the average is that of the whole update already
        weight = None if dials.last is None or meeting.rules["lr"].averages else dials.last[bundle.g]
    elif not by_element:
        weight = bundle.number("lr", meeting.numbers)
    applied = bundle.states[0].get("applied")
    if isinstance(applied, Tensor) and "trace" not in bundle.states[0]:
        return applied if weight is None else weight * applied
    return 0.0 if weight is None and name != "lr" and not by_element else weight
