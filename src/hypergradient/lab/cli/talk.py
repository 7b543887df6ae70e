"""What the commands say: progress while they run, tables and file names when they end."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from ..runs.config import Config
    from ..runs.engine import Summary
    from ..runs.train import Watch
    from ..sweeps.sweep import Watch as SweepWatch

#: Progress and notes go to stderr, results to stdout.
notes = Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """A line on stderr, not broken and not read as markup."""
    notes.print(text, soft_wrap=True, markup=False)


@contextmanager
def progress() -> Iterator[Progress]:
    """Live bars on a terminal, nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as bar:
        yield bar


def count(bar: Progress, runs: int) -> "SweepWatch":
    """A line for a sweep: runs done, iterations a second, best loss so far, time left."""
    task = bar.add_task("runs", total=runs, shown="")

    def watch(done: int, rate: float, best: float) -> None:
        shown = [f"{rate:,.0f} iterations/s"] * (rate > 0) + [f"best minibatch loss {best:.4g}"] * math.isfinite(best)
        bar.update(task, completed=done, shown="  ".join(shown))

    return watch


def follow(bar: Progress, config: "Config") -> "Watch":
    """A line of its own for a run: iterations, loss, α, time left."""
    task: list[TaskID] = []

    def watch(iteration: int, iterations: int, loss: float, alpha: float) -> None:
        if not task:
            task.append(bar.add_task(f"{config.model} {config.optimizer}", total=iterations, shown=""))
        if iteration % 10 == 0 or iteration == iterations:
            bar.update(task[0], completed=iteration, shown=f"loss {loss:.4f}  α {alpha:.3g}")

    return watch


def tell(
    configs: "Sequence[Config]", summaries: "Sequence[Summary]", files: Sequence[Path], as_json: bool, say: str | Table | None = None
) -> None:
    """The closing words: JSON, or how it went and where the results lie; ``say`` stands for a table of all runs."""
    if as_json:
        rows = [config.as_dict() | summary.as_dict() for config, summary in zip(configs, summaries, strict=True)]
        print(json.dumps({"runs": rows, "files": [str(file) for file in files]}, indent=2))
        return
    if isinstance(say, str):
        note(say)
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(say or table_of(configs, summaries))
    diverged = [s for s in summaries if s.status == "diverged"]
    for s in diverged[:3]:
        note(f"{s.model} {s.optimizer} diverged: the loss of iteration {s.iterations} is not finite, and the run ended there")
    if diverged[3:]:
        note(f"and {len(diverged) - 3} more of {len(summaries)} runs diverged")
    note("Results: " + "  ".join(str(file) for file in files))


def table_of(configs: "Sequence[Config]", summaries: "Sequence[Summary]") -> Table:
    """A row a run, with the options that the runs differ in."""
    alike: dict[str, list[Config]] = {}
    for config in configs:
        alike.setdefault(f"{config.model} {label(config)}", []).append(config)
    named = {"lr": "α0", "hypergrad_lr": "β", "seed": "seed"}
    varied = [name for name in named if any(len({getattr(c, name) for c in group}) > 1 for group in alike.values())]
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("model", "optimizer", *(named[name] for name in varied)):
        table.add_column(name, no_wrap=True)
    for name in ("final α", "train loss", "valid loss", "accuracy", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for config, s in zip(configs, summaries, strict=True):
        options = [number(getattr(config, name), "g") for name in varied]
        numbers = [number(s.alpha, ".3g"), number(s.train_loss, ".4f"), number(s.valid_loss, ".4f"), number(s.valid_accuracy, ".2%")]
        table.add_row(s.model, label(config), *options, *numbers, f"{s.seconds:.1f} s")
    return table


def label(config: "Config") -> str:
    return f"{config.optimizer} mult." if config.adapts and config.rule == "multiplicative" else config.optimizer


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
