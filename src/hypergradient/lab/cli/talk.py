"""What the commands say: progress while they run, tables and file names when they end."""

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

#: Runs that a table shows at most, its first columns, how others are named, and those that follow from others.
MOST, HEADS = 40, ("model", "optimizer")
NAMED = {"lr": "α0", "hypergrad_lr": "β"}
FOLLOWING = ("data_digest", "source_digest", "nesterov")

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
            task.append(bar.add_task(f"{config.model} {config.call.title}", total=iterations, shown=""))
        if iteration % 10 == 0 or iteration == iterations:
            bar.update(task[0], completed=iteration, shown=f"loss {loss:.4f}  α {alpha:.3g}")

    return watch


def tell(
    configs: "Sequence[Config]", summaries: "Sequence[Summary]", files: Sequence[Path], as_json: bool, say: str | Table | None = None
) -> None:
    """The closing words: JSON, or how it went and where the results lie; ``say`` stands for a table of all runs."""
    if as_json:
        pairs = zip(configs, summaries, strict=True)
        rows = [config.as_dict() | summary.as_dict() | {"optimizer": config.optimizer} for config, summary in pairs]
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
    """A row a run, MOST of them, with the options that the runs differ in."""
    rows = [flat(config.as_dict()) for config in configs]
    options = [name for name in varied(rows) if name not in HEADS + FOLLOWING]
    table = Table(box=box.SIMPLE_HEAD, caption=f"and {len(rows) - MOST:,} runs more, in the report" if len(rows) > MOST else None)
    for name in (*HEADS, *(NAMED.get(name, name.replace("_", " ")) for name in options)):
        table.add_column(name, no_wrap=True)
    for name in ("final α", "train loss", "valid loss", "accuracy", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, s in list(zip(rows, summaries, strict=True))[:MOST]:
        given = [number(row.get(name)) for name in options]
        numbers = [number(s.alpha, ".3g"), number(s.train_loss, ".4f"), number(s.valid_loss, ".4f"), number(s.valid_accuracy, ".2%")]
        table.add_row(s.model, s.optimizer, *given, *numbers, f"{s.seconds:.1f} s")
    return table


def varied(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What rows differ in."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if len({json.dumps(row.get(name)) for row in rows}) > 1]


def number(value: object, form: str = "g") -> str:
    return "-" if value is None else format(value, form) if isinstance(value, float) else str(value)
