"""``hypergradient compare``: what is chosen, what is missing, how it is run, and what is written of it."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from matplotlib.figure import Figure
from pydantic import Field
from rich.console import Console

from ..compare import plots, verdict
from ..compare.methods import FIELD, OTHERS
from ..compare.plan import Plan, advance, drive, peers_of, plans
from ..compare.runs import RUNS, Job, Result, results_of, stored
from ..compare.table import Row, alphas, comma_separated, over_lr, page, rows, say
from ..compare.verdict import Standing, of_field, standings
from ..compare.workers import Workers
from ..errors import LabError
from ..experiments.plots import save
from ..pages.report import write as write_report
from ..runs.config import number
from ..runs.data import Data, load
from ..runs.engine import StoppedError, stop_signals
from ..runs.files import FORMAT, provenance
from ..runs.peers import check_peer
from ..runs.store import Folder
from ..workloads import FAMILIES, WORKLOADS
from .options import Flag, Json, Output, Seeds
from .talk import note, notes, progress

#: What workloads train on, how --data names it, and the shape of its images, of which so many for training and for validation are used.
DATA = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
IMAGES = {"train": 20_000, "valid": 2000}

Processes = Annotated[int, Field(ge=1, le=1024), Parameter(converter=number)]

#: The workloads of --quick, which need no file.
QUICK = ("digits", "quadratic", "cancer", "raw")


def compare(
    *,
    workload: str | None = None,
    family: str | None = None,
    judged: Annotated[bool | None, Parameter(negative="--made")] = None,
    quick: Flag = False,
    seeds: Seeds | None = None,
    data: str | None = None,
    processes: Annotated[int, Field(ge=1, le=1024), Parameter(converter=number)] | None = None,
    output: Output = Path("runs/compare"),
    methods: Flag = False,
    as_json: Json = False,
) -> int:
    """Without a learning rate, on fifty workloads: beside tuned Adam, AdamW and SGD, with cosine decay too, Prodigy, DoG and others.

    Args:
        workload: Some of them, with commas: digits, gpt, drift ... Default: all; four with --quick.
        family: Those of some families, with commas: image, games ... Default: all.
        judged: Those that judge the rule, or those that it was made on. Default: both.
        quick: Four workloads without files, one seed, fewer given lr: under three minutes.
        seeds: How many seeds, from 1; losses are medians. Default: 3; 1 with --quick.
        data: mnist=DATA,cifar10=DATA, as train's --data. Default: ylecun/mnist and uoft-cs/cifar10.
        processes: How many runs are made at once, each on one core. Default: the number of CPUs.
        output: Folder of report, figures, tables and runs.
        methods: The published hypergradient methods, with their defaults, instead of Prodigy and so on: the paper's two rules, HDM,
            MetaOptimize, MARTHE, IDBD ..., beside the tuning-free one, on the workloads that it was made on.
        as_json: Print the rows as JSON, for machines, and nothing else on stdout.
    """
    names, places = chosen(workload, family, judged, quick, methods), places_of(data)
    for peer in {} if methods else {peer for name in names for base in WORKLOADS[name].bases for peer in peers_of(name, base)}:
        check_peer(OTHERS[peer])
    wanted = partial(plans, seeds=seeds or (1 if quick else 3), quick=quick, methods=methods)
    folder, known = Folder(output), found(Folder(output))
    on_files = {job.workload for job, x in known.items() if x.digest}
    with TemporaryDirectory() as side:
        files = data_files([name for name in names if name in on_files or lacking(wanted([name]), known)], places, Path(side))
        with folder.lock():
            results = made(names, wanted, files, processes or os.cpu_count() or 1, folder)
            return 130 if results is None else finish(folder, results, methods, as_json)


def made(
    names: Sequence[str], wanted: Callable[[Iterable[str]], Iterator[Plan]], files: Mapping[str, Path], processes: int, folder: Folder
) -> list[Result] | None:
    """The results in a folder, when the runs that plans of workloads ask for have been made there; None where it was stopped before."""
    known = start(folder, {name: stored(file).digest for name, file in files.items()})
    missing = {name: n for name in names if (n := lacking(wanted([name]), known))}
    to_make = f"at least {sum(missing.values()):,}" if missing else "none"
    note(f"{len(names)} workloads, {len(known):,} runs were there, {to_make} to make, into {folder.path}")
    try:
        if missing:
            run([*wanted(missing)], files, processes, folder, known)
    except StoppedError:
        note("hypergradient: stopped; what was done is saved, and the same command goes on from there")
        return None
    return [*known.values()]


def chosen(names: str | None, families: str | None, judged: bool | None, quick: bool, methods: bool = False) -> list[str]:
    """The workloads of ``--workload A,B``, ``--family F,G``, ``--judged``, ``--made`` (or ``--methods``); of ``--quick``, or all.

    Raises:
        LabError: there is no such workload or family, or none is left.
    """
    if methods and judged:
        raise LabError("--methods runs on the workloads that the rule was made on, and --judged takes the others: leave one of them out")
    wanted = picked("workload", names, WORKLOADS) or (QUICK if quick and families is None else [*WORKLOADS])
    kinds = picked("family", families, FAMILIES) or FAMILIES
    of_kinds = {name for kind in kinds for name in FAMILIES[kind]}
    left = [name for name in wanted if name in of_kinds and (False if methods else judged) in (None, WORKLOADS[name].judged)]
    if not left:
        raise LabError("--workload, --family and --judged or --made leave no workload: leave one of them out")
    return left


def picked(option: str, given: str | None, allowed: Iterable[str]) -> list[str]:
    """The entries of an option, none where it is not given."""
    entries = [] if given is None else given.split(",")
    for i, entry in enumerate(entries):
        if entry not in allowed or entry in entries[:i]:
            raise LabError(f"--{option} must be one or more, with commas, each once, of {', '.join(allowed)}, got {entry[:100]!r}")
    return entries


def places_of(given: str | None) -> dict[str, str]:
    """What ``--data mnist=PATH,cifar10=PATH`` gives; Hub ids for the others.

    Raises:
        LabError: it is written otherwise.
    """
    pairs = [entry.partition("=") for entry in ([] if given is None else given.split(","))]
    places = {name: place for name, _, place in pairs}
    if len(places) < len(pairs) or not all(name in DATA and place for name, place in places.items()):
        raise LabError(f"--data must be {' and '.join(f'{name}=DATA' for name in DATA)}, each once, with a comma between, got {given!r}")
    return DATA | places


def data_files(names: Iterable[str], places: Mapping[str, str], side: Path) -> dict[str, Path]:
    """The data that workloads need, the first IMAGES of it, in files that all processes map.

    Raises:
        LabError: it cannot be loaded, or its images are others.
    """
    files = {}
    for name in sorted({WORKLOADS[name].data or "" for name in names} - {""}):
        with notes.status(f"Loading {places[name]}"):
            data = load(places[name])
        shape = tuple(data.train_x.shape[1:])
        if (shape, data.classes) != (SHAPES[name], 10):
            raise LabError(
                f"--data {name}={places[name]}: must be images of shape {SHAPES[name]} in 10 classes, got {shape}, {data.classes}"
            )
        values = {field.name: getattr(data, field.name) for field in fields(Data)}
        values |= {key: value[: IMAGES[key[:5]]].clone() for key, value in values.items() if isinstance(value, torch.Tensor)}
        files[name] = side / f"{name}.pt"
        torch.save(values, files[name])
    return files


def found(folder: Folder) -> dict[Job, Result]:
    """The results that a folder holds, of a comparison or put there by somebody.

    Raises:
        LabError: it holds something else, or they cannot be read.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise LabError(f"--output {folder.path} is a file: give a folder")
    about = folder.read_json("experiment.json")
    if about is not None and about.get("experiment") != "compare":
        raise LabError(f"{folder.path} holds an experiment of hypergradient {about.get('experiment')}: choose another --output")
    if folder.read_json("config.json") is not None:
        raise LabError(f"{folder.path} holds a run: choose another --output")
    return {} if about is None and not (folder.path / RUNS).exists() else {x.job: x for x in results_of(folder)}


def start(folder: Folder, digests: Mapping[str, str]) -> dict[Job, Result]:
    """Claim a folder for a comparison on data of these digests; what it holds already."""
    found(folder)
    before = (folder.read_json("experiment.json") or {}).get("data")
    data = {**(before if isinstance(before, dict) else {}), **digests}
    if not (folder.path / RUNS).exists():  # first, as no comparison is without
        folder.write(RUNS, lambda file: file.write_text(""))
    folder.write_json("experiment.json", {"format": FORMAT, "experiment": "compare", "data": data, **provenance()})
    return found(folder)


def lacking(plans: Iterable[Plan], known: Mapping[Job, Result]) -> int:
    """How many runs are made before plans ask for others."""
    return sum(job not in known for plan in plans for job in advance(plan, known) or ())


def run(own: Sequence[Plan], files: Mapping[str, Path], processes: int, folder: Folder, known: dict[Job, Result]) -> None:
    """Make the missing runs of plans, each written as soon as it has ended."""
    before, workers = len(known), Workers(processes, files)
    digests = {name: stored(file).digest for name, file in files.items()}
    try:
        with stop_signals() as stopped, progress() as bar:
            task = bar.add_task("parts", total=len(own), shown="")

            def done(x: Result, ended: int) -> None:
                line = replace(x, digest=digests.get(WORKLOADS[x.job.workload].data or "")).as_dict()
                folder.append_json(RUNS, line | {"versions": provenance()["versions"]})
                shown = f"{len(known) - before:,} runs  {x.job.workload} {x.job.base} {x.job.method}"
                bar.update(task, completed=ended, shown=shown)

            drive(own, known, workers, done, stopped)
    finally:
        workers.close()


def finish(folder: Folder, results: Sequence[Result], methods: bool, as_json: bool) -> int:
    """Write tables, figures and report, and tell how it went; of the published methods or of all others. The exit status of that."""
    table = rows(results)
    if methods:
        table = of_field(table)
        lines = standings(results, table)
        texts = {"compare-methods.csv": verdict.comma_separated(lines), "compare-methods-pairs.csv": comma_separated(table)}
        texts["compare-methods.md"] = verdict.page(lines, table)
        figures, said = {"methods-rho": plots.rho(table)}, verdict.say(lines)
        told: dict[str, Any] = {"verdict": verdict.verdict(lines), "methods": [*map(finite, lines)]}
    else:
        table = [row for row in table if row.method not in FIELD]
        texts, figures = {"compare.csv": comma_separated(table), "compare.md": page(table)}, drawn(results, table)
        told, said = {}, say(table)
    for name, text in texts.items():
        folder.write(name, lambda file, text=text: file.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    files = [write_report(folder.path), *(folder.path / name for name in texts)]
    for name, figure in figures.items():
        files += save(figure, folder, f"compare-{name}")
    files.append(folder.path / RUNS)
    if as_json:
        print(json.dumps(told | {"rows": [*map(finite, table)], "files": [str(file) for file in files]}, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(said)
        note("Results: " + "  ".join(str(file) for file in files))
    return 0


def drawn(results: Sequence[Result], table: Sequence[Row]) -> dict[str, Figure]:
    """The figures by name."""
    curves = {work: over_lr([x for x in results if x.job.workload == work]) for work in dict.fromkeys(row.workload for row in table)}
    return {"rho": plots.rho(table), "lr": plots.loss_over_lr(curves), "alpha": plots.alpha_over_time(alphas(results))}


def finite(row: Row | Standing) -> dict[str, object]:
    """A row for JSON, which has no infinity."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in asdict(row).items()}
