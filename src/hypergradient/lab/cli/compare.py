"""The command: what is chosen, what is missing, how it is run, and what is written of it."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console, Group

from ..compare import plots, verdict
from ..compare.methods import FIELD
from ..compare.plan import Plan, advance, drive, peers_of, plans, plans_of_methods
from ..compare.runs import RUNS, Job, Result, results_of
from ..compare.table import Row, alphas, comma_separated, over_lr, page, rows, say
from ..compare.verdict import Standing, of_field, standings
from ..compare.workers import Workers
from ..errors import LabError
from ..experiments.plots import save
from ..pages.report import write as write_report
from ..runs.data import Data, load
from ..runs.engine import StoppedError, stop_signals
from ..runs.peers import check_peer
from ..runs.store import FORMAT, Folder, provenance
from ..workloads import FAMILIES, WORKLOADS
from .talk import note, notes, progress

#: What workloads train on, and how --data names it.
DATA = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}

#: Of training and of validation images, so many are used.
IMAGES = 20_000, 2000

#: The workloads of --quick, which need no file.
QUICK = ("digits", "quadratic", "cancer", "raw")


def chosen(names: str | None, families: str | None, judged: bool | None, quick: bool) -> list[str]:
    """The workloads of ``--workload A,B``, ``--family F,G``, ``--judged`` or ``--made``; those of ``--quick``, or all.

    Raises:
        LabError: there is no such workload or family, or none is left.
    """
    wanted = picked("workload", names, WORKLOADS) or (QUICK if quick and not families else [*WORKLOADS])
    kinds = picked("family", families, FAMILIES) or [*FAMILIES]
    found = [name for name in wanted if WORKLOADS[name].family in kinds and judged in (None, WORKLOADS[name].judged)]
    if not found:
        raise LabError("--workload, --family and --judged or --made leave no workload: leave one of them out")
    return found


def picked(option: str, given: str | None, allowed: Iterable[str]) -> list[str]:
    """The entries of an option, each once."""
    entries = list(dict.fromkeys(given.split(","))) if given else []
    for entry in entries:
        if entry not in allowed:
            raise LabError(f"--{option} must be one or more, with commas, of {', '.join(allowed)}, got {entry!r}")
    return entries


def places_of(given: str | None) -> dict[str, str]:
    """What ``--data mnist=PATH,cifar10=PATH`` gives; Hub ids for the others.

    Raises:
        LabError: it is written otherwise.
    """
    found = dict(DATA)
    for entry in given.split(",") if given else []:
        name, equals, place = entry.partition("=")
        if name not in DATA or not equals:
            raise LabError(f"--data must be {' and '.join(f'{name}=FOLDER' for name in DATA)} with a comma between, got {entry!r}")
        found[name] = place
    return found


def compare(
    names: Sequence[str], places: Mapping[str, str], seeds: int, quick: bool, processes: int, output: Path, as_json: bool = False
) -> None:
    """Make the runs that are missing, write tables, figures and report, and tell how it went.

    Args:
        names: of workloads.
        places: of their data, by name.
        seeds: how many, from 1.
        quick: from two given learning rates instead of six.
        processes: how many runs are made at once.
        output: the folder.
        as_json: print the rows and nothing else.
    """
    for peer in {peer for name in names for base in WORKLOADS[name].bases for peer in peers_of(name, base)}:
        check_peer(peer)
    results = made(names, places, lambda own: plans(own, seeds, quick), processes, output)
    table = [row for row in rows(results) if row.method not in FIELD]
    tell(say(table), {"rows": [*map(finite, table)]}, write(Folder(output), results, table), as_json)


def compare_methods(
    names: Sequence[str], places: Mapping[str, str], seeds: int, processes: int, output: Path, as_json: bool = False
) -> None:
    """The same for the published hypergradient methods beside ours; with a verdict. Arguments as for ``compare``."""
    results = made(names, places, lambda own: plans_of_methods(own, seeds), processes, output)
    table = of_field(rows(results))
    lines, folder = standings(results, table), Folder(output)
    folder.write("compare-methods.csv", lambda file: file.write_text(verdict.comma_separated(lines)))
    folder.write("compare-methods-pairs.csv", lambda file: file.write_text(comma_separated(table)))
    folder.write("compare-methods.md", lambda file: file.write_text(verdict.page(lines, table)))
    files = [write_report(folder.path), *(folder.path / f"compare-methods{rest}" for rest in (".csv", "-pairs.csv", ".md"))]
    files += [*save(plots.rho(table), folder, "compare-methods-rho"), folder.path / RUNS]
    told = {"verdict": verdict.verdict(lines), "methods": [*map(finite, lines)], "rows": [*map(finite, table)]}
    tell(verdict.say(lines), told, files, as_json)


def tell(text: Group, told: dict[str, Any], files: Sequence[Path], as_json: bool) -> None:
    """What came of it, on stdout."""
    if as_json:
        print(json.dumps(told | {"files": [str(file) for file in files]}, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(text)
        note("Results: " + "  ".join(str(file) for file in files))


def made(
    names: Sequence[str], places: Mapping[str, str], plans: Callable[[Sequence[str]], Iterator[Plan]], processes: int, output: Path
) -> list[Result]:
    """The results in a folder, when the runs that plans of workloads ask for have been made there."""
    folder = Folder(output)
    known = start(folder)
    missing = [name for name in names if any(advance(plan, known) for plan in plans([name]))]
    note(f"{len(names)} workloads, {len(missing)} with runs to make, into {output}")
    if missing:
        with TemporaryDirectory() as side:
            run([*plans(missing)], data_files(missing, places, Path(side)), processes, folder, known)
    return [*known.values()]


def start(folder: Folder) -> dict[Job, Result]:
    """Claim a folder for a comparison; what it holds of one already.

    Raises:
        LabError: it holds something else, or cannot be written.
    """
    about = folder.read_json("experiment.json")
    if about is not None and about.get("experiment") != "compare":
        raise LabError(f"{folder.path} holds an experiment of hypergradient {about.get('experiment')}: choose another --output")
    if about is None and not (folder.path / RUNS).exists():  # runs that somebody has put there are gone on from
        folder.write(RUNS, lambda file: file.write_text(""))
    known = {found.job: found for found in results_of(folder)}
    folder.write_json("experiment.json", {"format": FORMAT, "experiment": "compare", **provenance()})
    return known


def data_files(names: Iterable[str], places: Mapping[str, str], side: Path) -> dict[str, Path]:
    """The data that workloads need, the first IMAGES of it, in files that all processes map."""
    files = {}
    for name in sorted({WORKLOADS[name].data or "" for name in names} - {""}):
        with notes.status(f"Loading {places[name]}"):
            data = load(places[name])
            cut = {"train": IMAGES[0], "valid": IMAGES[1]}
            values = {field.name: getattr(data, field.name) for field in fields(Data)}
            values |= {key: value[: cut[key[:5]]].clone() for key, value in values.items() if isinstance(value, torch.Tensor)}
            files[name] = side / f"{name}.pt"
            torch.save(values, files[name])
    return files


def run(own: Sequence[Plan], files: Mapping[str, Path], processes: int, folder: Folder, known: dict[Job, Result]) -> None:
    """Make the missing runs of plans, each written as soon as it has ended."""
    before, workers = len(known), Workers(processes, files)
    try:
        with stop_signals() as stopped, progress() as bar:
            task = bar.add_task("parts", total=len(own), shown="")

            def done(found: Result, ended: int) -> None:
                folder.append_json(RUNS, found.as_dict())
                job = found.job
                bar.update(task, completed=ended, shown=f"{len(known) - before:,} runs  {job.workload} {job.base} {job.method}")

            drive(own, known, workers, done, stopped)
    except StoppedError:
        note("hypergradient: stopped; what was done is saved, and the same command goes on from there")
        raise typer.Exit(130) from None
    finally:
        workers.close()


def write(folder: Folder, results: Sequence[Result], table: Sequence[Row]) -> list[Path]:
    """Tables, figures and report; returns the files."""
    folder.write("compare.csv", lambda file: file.write_text(comma_separated(table)))
    folder.write("compare.md", lambda file: file.write_text(page(table)))
    files = [write_report(folder.path), folder.path / "compare.csv", folder.path / "compare.md"]
    for name, figure in drawn(results, table).items():
        files += save(figure, folder, f"compare-{name}")
    return [*files, folder.path / RUNS]


def drawn(results: Sequence[Result], table: Sequence[Row]) -> dict[str, Figure]:
    """The figures by name."""
    curves = {work: over_lr([x for x in results if x.job.workload == work]) for work in dict.fromkeys(row.workload for row in table)}
    return {"rho": plots.rho(table), "lr": plots.loss_over_lr(curves), "alpha": plots.alpha_over_time(alphas(results))}


def finite(row: Row | Standing) -> dict[str, object]:
    """A row for JSON, which has no infinity."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in asdict(row).items()}
