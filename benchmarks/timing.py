"""Interleaved timing: all rows take turns in one run, and ratios are computed turn by turn. Also the memory of a step."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from torch import nn

from hypergradient.lab.runs import calls, optimizers

Step = Callable[[], object]
Ratio = tuple[float, float, float]


def optimizer(call: str, params: Iterable[nn.Parameter]) -> Any:
    """The optimizer of a constructor call, written as text, for the given parameters."""
    return optimizers.make(calls.parse(call), nn.ParameterList(params))


def peer(model: nn.Module, optimizer: Any, loss: Callable[[Any], Any]) -> tuple[Step, Step]:
    """The preparation for a step of gradient-descent-the-ultimate-optimizer, a backward pass with a graph, and the step."""
    wrapped = gdtuo.ModuleWrapper(model, optimizer=optimizer)
    wrapped.initialize()

    def prepare() -> None:
        wrapped.begin()
        found = loss(wrapped.module)
        wrapped.zero_grad()
        found.backward(create_graph=True)

    return prepare, wrapped.step


def interleaved(
    rows: Mapping[str, Step], turns: int, *, warm: int = 2, before: Callable[[str, int], object] | None = None
) -> dict[str, list[float]]:
    """Seconds of each row in each turn, after ``warm`` warm-up turns. ``before`` is called untimed with row and turn."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(turns + warm):
        for name, step in rows.items():
            if before is not None:
                before(name, turn)
            begun = time.perf_counter()
            step()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def compared(
    rows: Mapping[str, Step], against: Mapping[str, str], turns: int, *, others: Mapping[str, str], each: int = 1, **options: Any
) -> list[dict[str, Any]]:
    """Time rows, interleaved, and compare them.

    Args:
        rows: the steps to time by name.
        against: the row to compare each row with; default the first.
        turns: number of turns.
        others: further rows to compare all rows with, by the name of the ratio.
        each: calls of a row per turn.
        options: passed to ``interleaved``.
    """

    def several(step: Step) -> Step:
        return lambda: [step() for _ in range(each)]

    seconds = interleaved({name: several(step) for name, step in rows.items()}, turns, **options)
    found = []
    for name, times in seconds.items():
        with_ = against.get(name, next(iter(rows)))
        row: dict[str, Any] = {"optimizer": name, "milliseconds": statistics.median(times) / each * 1e3, "against": with_}
        row |= {kind: ratio(times, seconds[other]) for kind, other in {"ratio": with_, **others}.items()}
        found.append(row)
        print(f"{name:42s} {row['milliseconds']:9.2f} ms {row['ratio'][0]:6.2f} of {with_}", flush=True)
    return found


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Median and quartiles of the ratio in each turn."""
    each = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    return statistics.median(each), each[len(each) // 4], each[3 * len(each) // 4]


def told(found: Sequence[float], digits: int = 2) -> str:
    """A ratio as text."""
    return "{:.{n}f} ({:.{n}f} to {:.{n}f})".format(*found, n=digits)


def peak_bytes(step: Callable[[], Any]) -> int:
    """The peak memory that a step allocates beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held = most = 0
    results: Any = profile.profiler
    for event in sorted(results.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
