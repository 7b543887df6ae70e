"""Times that can be compared: every row takes its turn in one run, and ratios are taken turn by turn; and the memory of a step."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], object]


def interleaved(
    rows: Mapping[str, Step], turns: int, *, warm: int = 2, before: Callable[[int], None] | None = None
) -> dict[str, list[float]]:
    """Seconds of each row in each turn, after ``warm`` turns that are not counted; ``before`` is called untimed with a running number."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(turns + warm):
        for name, step in rows.items():
            if before is not None:
                before(turn)
            begun = time.perf_counter()
            step()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios turn by turn, and the middle half of them."""
    each = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    return statistics.median(each), each[len(each) // 4], each[3 * len(each) // 4]


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


def fill(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines between the comments ``<!-- name -->`` and ``<!-- /name -->`` of a page."""
    before, rest = page.read_text().split(f"<!-- {name} -->")
    after = rest.split(f"<!-- /{name} -->")[1]
    page.write_text(f"{before}<!-- {name} -->\n" + "\n".join(["", *lines, "", f"<!-- /{name} -->"]) + after)
