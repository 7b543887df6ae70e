"""What the commands print: progress while they run, tables and file names when they end."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..runs.config import flat

if TYPE_CHECKING:
    from ..runs.config import Config
    from ..runs.engine import Summary
    from ..runs.train import Watch
    from ..sweeps.sweep import Watch as SweepWatch

#: The most rows that a table shows, its first columns, titles of other columns, and options that follow from others.
MAX_ROWS, FIRST_COLUMNS = 40, ("model", "optimizer")
COLUMN_TITLES = {"lr": "α0", "hypergrad_lr": "β"}
DERIVED = ("data_digest", "source_digest", "nesterov")

#: Progress and notes go to stderr, results to stdout.
stderr = Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """Print a line to stderr, unwrapped and without markup."""
    stderr.print(text, soft_wrap=True, markup=False)


@contextmanager
def progress() -> Iterator[Progress]:
    """Progress bars on a terminal; nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as bar:
        yield bar


def sweep_progress(bar: Progress, runs: int) -> "SweepWatch":
    """Add a sweep's progress bar: finished runs, iterations per second, best loss so far, time left."""
    task = bar.add_task("runs", total=runs, shown="")

    def watch(done: int, rate: float, best: float) -> None:
        shown = [f"{rate:,.0f} iterations/s"] * (rate > 0) + [f"best minibatch loss {best:.4g}"] * math.isfinite(best)
        bar.update(task, completed=done, shown="  ".join(shown))

    return watch


def run_progress(bar: Progress, config: "Config") -> "Watch":
    """Add a run's progress bar: iterations, loss, α, time left."""
    task: list[TaskID] = []

    def watch(iteration: int, iterations: int, loss: float, alpha: float) -> None:
        if not task:
            task.append(bar.add_task(f"{config.model} {config.call.title}", total=iterations, shown=""))
        if iteration % 10 == 0 or iteration == iterations:
            bar.update(task[0], completed=iteration, shown=f"loss {loss:.4f}  α {alpha:.3g}")

    return watch


def print_results(
    configs: "Sequence[Config]", summaries: "Sequence[Summary]", files: Sequence[Path], as_json: bool, result: str | Table | None = None
) -> None:
    """Print the results, as JSON or as a table (or ``result`` in its place), and the files written."""
    if as_json:
        pairs = zip(configs, summaries, strict=True)
        rows = [config.as_dict() | summary.as_dict() | {"optimizer": config.optimizer} for config, summary in pairs]
        print(json.dumps({"runs": rows, "files": [str(file) for file in files]}, indent=2))
        return
    if isinstance(result, str):
        note(result)
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(result or table_of(configs, summaries))
    diverged = [s for s in summaries if s.status == "diverged"]
    for s in diverged[:3]:
        note(f"{s.model} {s.optimizer} diverged at iteration {s.iterations}: the loss or a gradient was not finite")
    if diverged[3:]:
        note(f"{len(diverged) - 3} more of the {len(summaries)} runs diverged")
    note("Results: " + "  ".join(str(file) for file in files))


def table_of(configs: "Sequence[Config]", summaries: "Sequence[Summary]") -> Table:
    """One row per run, up to MAX_ROWS, with the options in which the runs differ."""
    rows = [flat(config.as_dict()) for config in configs]
    options = [name for name in differing(rows) if name not in FIRST_COLUMNS + DERIVED]
    table = Table(box=box.SIMPLE_HEAD, caption=f"and {len(rows) - MAX_ROWS:,} more runs: see the report" if len(rows) > MAX_ROWS else None)
    for name in (*FIRST_COLUMNS, *(COLUMN_TITLES.get(name, name.replace("_", " ")) for name in options)):
        table.add_column(name, no_wrap=True)
    for name in ("final α", "train loss", "valid loss", "accuracy", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, s in list(zip(rows, summaries, strict=True))[:MAX_ROWS]:
        given = [fmt(row.get(name)) for name in options]
        numbers = [fmt(s.alpha, ".3g"), fmt(s.train_loss, ".4f"), fmt(s.valid_loss, ".4f"), fmt(s.valid_accuracy, ".2%")]
        table.add_row(s.model, s.optimizer, *given, *numbers, f"{s.seconds:.1f} s")
    return table


def differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns in which rows differ."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if len({json.dumps(row.get(name)) for row in rows}) > 1]


def fmt(value: object, form: str = "g") -> str:
    return "-" if value is None else format(value, form) if isinstance(value, float) else str(value)
