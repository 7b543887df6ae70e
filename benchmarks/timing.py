"""Times that can be compared: every row takes its turn in one run, and ratios are taken turn by turn; and the memory of a step."""

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
    """What a constructor's call in words makes over parameters."""
    return optimizers.make(calls.parse(call), nn.ParameterList(params))


def peer(model: nn.Module, optimizer: Any, loss: Callable[[Any], Any]) -> tuple[Step, Step]:
    """What must come before a step of gradient-descent-the-ultimate-optimizer, a backward pass with a graph, and the step."""
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
    """Seconds of each row in each turn, after ``warm`` turns that are not counted; ``before`` is called untimed with row and turn."""
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
    """Rows beside each other.

    Args:
        rows: what takes its turn, ``each`` times.
        against: which other row a row is compared with; the first where nothing is said.
        turns: how many.
        others: with which rows all are compared too, by what that is called.
        each: how often a row is called in a turn.
        options: of ``interleaved``.
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
    """Median of the ratios turn by turn, and the middle half of them."""
    each = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    return statistics.median(each), each[len(each) // 4], each[3 * len(each) // 4]


def told(found: Sequence[float], digits: int = 2) -> str:
    """A ratio in words."""
    return "{:.{n}f} ({:.{n}f} to {:.{n}f})".format(*found, n=digits)


def peak_bytes(step: Callable[[], Any]) -> int:
    """The most that a step holds at a time beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held = most = 0
    results: Any = profile.profiler
    for event in sorted(results.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
