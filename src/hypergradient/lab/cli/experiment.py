"""What the commands of many runs have in common: load the data, run what is missing, write figures, tables and report, tell how it went."""

from collections.abc import Callable, Sequence
from pathlib import Path

import typer
from rich.table import Table

from ..pages.report import write as write_report
from ..runs.config import Config
from ..runs.data import load
from ..runs.engine import StoppedError, Summary, flush_denormals
from ..runs.store import Folder
from ..sweeps.sweep import check, check_engine, sweep
from .talk import count, note, notes, progress, tell

#: Writes an experiment's figures and tables, and gives the files.
Write = Callable[[Folder, Sequence[Config], Sequence[Summary]], list[Path]]


def run_experiment(
    name: str,
    configs: Sequence[Config],
    write: Write,
    output: Path,
    engine: str,
    address: str | None,
    tensorboard: bool,
    as_json: bool,
    say: Callable[[Sequence[Config], Sequence[Summary]], str | Table] | None = None,
) -> None:
    """Run what is missing, write figures, tables and report, and tell how it went: in ``say``'s words, or with a table of all runs."""
    flush_denormals()
    check_engine(engine, address)
    folder = Folder(output)
    folder.check_experiment()
    parts: dict[tuple[str, str], list[Config]] = {}
    for config in configs:
        parts.setdefault((config.data, config.device), []).append(config)
    loaded = {}
    for part, own in parts.items():
        with notes.status(f"Loading {part[0]}"):
            loaded[part] = load(*part)
        check(own, loaded[part], engine, address)
    note(f"{len(configs)} runs on {', '.join(data for data, _ in parts)}, into {output}")
    folder.start_experiment(name, configs)
    ended: dict[Config, Summary] = {}
    try:
        with progress() as bar:
            watch = count(bar, len(configs))
            for part, own in parts.items():
                before = len(ended)
                summaries = sweep(
                    own,
                    loaded[part],
                    output,
                    engine=engine,
                    address=address,
                    tensorboard=tensorboard,
                    watch=lambda done, rate, best, before=before: watch(before + done, rate, best),  # type: ignore[misc]
                )
                ended |= zip(own, summaries, strict=True)
    except StoppedError:
        note("hypergradient: stopped; what was done is saved, and the same command goes on from there")
        raise typer.Exit(130) from None
    summaries = [ended[config] for config in configs]
    files = [write_report(output), *write(folder, configs, summaries), output / "experiment.json"]
    tell(configs, summaries, files, as_json, say and say(configs, summaries))
