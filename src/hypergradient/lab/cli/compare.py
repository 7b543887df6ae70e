"""``hypergradient compare``: select the workloads, run what is missing, write tables, figures and report."""

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
from ..compare.methods import PUBLISHED
from ..compare.plan import Plan, advance, peers_of, plans, run_plans
from ..compare.runs import RUNS, Job, Result, load_data_file, read_results
from ..compare.table import Row, alphas, comma_separated, over_lr, page, rich_tables, rows
from ..compare.verdict import MethodSummary, published_rows, summarize
from ..compare.workers import Workers
from ..errors import LabError
from ..experiments.plots import save
from ..pages.report import write as write_report
from ..runs.config import number
from ..runs.data import Data, load
from ..runs.engine import StoppedError, stop_signals
from ..runs.files import FORMAT, provenance
from ..runs.peers import PEER_CLASSES, check_peer
from ..runs.store import Folder
from ..workloads import FAMILIES, WORKLOADS
from .console import note, progress, stderr
from .options import Flag, Json, Output, Seeds

#: The data sets behind workloads, by their names in --data; the shapes of their images, and how many of them are used.
DATA = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
IMAGES = {"train": 20_000, "valid": 2000}

Processes = Annotated[int, Field(ge=1, le=1024), Parameter(converter=number)]

#: The workloads of --quick, which need no files.
QUICK = ("digits", "quadratic", "cancer", "raw")


def compare(
    *,
    workload: str | None = None,
    family: str | None = None,
    held_out: Annotated[bool | None, Parameter(negative="--development")] = None,
    quick: Flag = False,
    seeds: Seeds | None = None,
    data: str | None = None,
    processes: Processes | None = None,
    output: Output = Path("runs/compare"),
    methods: Flag = False,
    as_json: Json = False,
) -> int:
    """Compare the tuning-free optimizers on fifty workloads with tuned Adam, AdamW and SGD (constant and cosine), Prodigy, DoG and others.

    Args:
        workload: Workloads, comma-separated: digits, gpt, drift ... Default: all; four with --quick.
        family: Families of workloads, comma-separated: image, games ... Default: all.
        held_out: Only the held-out workloads, or only the development ones, on which the rule was tuned. Default: both.
        quick: Four workloads that need no files, one seed, two initial learning rates instead of six: under three minutes.
        seeds: Number of seeds (1 to N); losses are medians. Default: 3; 1 with --quick.
        data: mnist=DATA,cifar10=DATA, each as --data of train. Default: ylecun/mnist and uoft-cs/cifar10.
        processes: Number of runs in parallel, each on one core. Default: the number of CPUs.
        output: Folder for report, figures, tables and runs.
        methods: Compare with the published hypergradient methods at their defaults instead of Prodigy etc.: the paper's two rules, HDM,
            MetaOptimize, MARTHE, IDBD ...; on the development workloads only.
        as_json: Print the rows as JSON to stdout, and nothing else there.
    """
    names, sources = select_workloads(workload, family, held_out, quick, methods), data_sources(data)
    for peer in {} if methods else {peer for name in names for base in WORKLOADS[name].bases for peer in peers_of(name, base)}:
        check_peer(PEER_CLASSES[peer])
    planned = partial(plans, seeds=seeds or (1 if quick else 3), quick=quick, methods=methods)
    folder, known = Folder(output), stored_results(Folder(output))
    on_files = {job.workload for job, x in known.items() if x.digest}
    with TemporaryDirectory() as side:
        files = data_files([name for name in names if name in on_files or count_missing(planned([name]), known)], sources, Path(side))
        with folder.lock():
            results = run_missing(names, planned, files, processes or os.cpu_count() or 1, folder)
            return 130 if results is None else finish(folder, results, methods, as_json)


def run_missing(
    names: Sequence[str], planned: Callable[[Iterable[str]], Iterator[Plan]], files: Mapping[str, Path], processes: int, folder: Folder
) -> list[Result] | None:
    """Run what is missing for the planned workloads and return all results in the folder; None if stopped before the end."""
    known = prepare_folder(folder, {name: load_data_file(file).digest for name, file in files.items()})
    missing = {name: n for name in names if (n := count_missing(planned([name]), known))}
    left = f"at least {sum(missing.values()):,}" if missing else "none"
    note(f"Workloads: {len(names)}; runs finished: {len(known):,}, left: {left}; output: {folder.path}")
    try:
        if missing:
            run([*planned(missing)], files, processes, folder, known)
    except StoppedError:
        note("hypergradient: stopped; finished runs are saved, run the same command again to continue")
        return None
    return [*known.values()]


def select_workloads(names: str | None, families: str | None, held_out: bool | None, quick: bool, methods: bool = False) -> list[str]:
    """The workloads selected by ``--workload``, ``--family``, ``--held-out`` or ``--development`` (or ``--methods``), and ``--quick``.

    Raises:
        LabError: a name is unknown, or no workload is left.
    """
    if methods and held_out:
        raise LabError("--methods runs on the development workloads, --held-out selects the others: leave out one of the two")
    planned = parse_names("workload", names, WORKLOADS) or (QUICK if quick and families is None else [*WORKLOADS])
    kinds = parse_names("family", families, FAMILIES) or FAMILIES
    of_kinds = {name for kind in kinds for name in FAMILIES[kind]}
    left = [name for name in planned if name in of_kinds and (False if methods else held_out) in (None, WORKLOADS[name].held_out)]
    if not left:
        raise LabError("--workload, --family, --held-out and --development together select no workload: leave out one of them")
    return left


def parse_names(option: str, given: str | None, allowed: Iterable[str]) -> list[str]:
    """The comma-separated names of an option; none if it is not given."""
    entries = [] if given is None else given.split(",")
    for i, entry in enumerate(entries):
        if entry not in allowed or entry in entries[:i]:
            raise LabError(f"--{option} takes comma-separated names, each once, from {', '.join(allowed)}; got {entry[:100]!r}")
    return entries


def data_sources(given: str | None) -> dict[str, str]:
    """The source of each data set: as in ``--data mnist=PATH,cifar10=PATH``, else its Hub id.

    Raises:
        LabError: the option is malformed.
    """
    pairs = [entry.partition("=") for entry in ([] if given is None else given.split(","))]
    sources = {name: place for name, _, place in pairs}
    if len(sources) < len(pairs) or not all(name in DATA and place for name, place in sources.items()):
        raise LabError(f"--data takes {','.join(f'{name}=DATA' for name in DATA)} (or one of the two), got {given!r}")
    return DATA | sources


def data_files(names: Iterable[str], sources: Mapping[str, str], side: Path) -> dict[str, Path]:
    """Write the first IMAGES of the data sets that workloads need to files that all processes can memory-map.

    Raises:
        LabError: a data set cannot be loaded, or its images have another shape.
    """
    files = {}
    for name in sorted({WORKLOADS[name].data or "" for name in names} - {""}):
        with stderr.status(f"Loading {sources[name]}"):
            data = load(sources[name])
        shape = tuple(data.train_x.shape[1:])
        if (shape, data.classes) != (SHAPES[name], 10):
            raise LabError(
                f"--data {name}={sources[name]}: images must have shape {SHAPES[name]} and 10 classes, got {shape} and {data.classes}"
            )
        values = {field.name: getattr(data, field.name) for field in fields(Data)}
        values |= {key: value[: IMAGES[key[:5]]].clone() for key, value in values.items() if isinstance(value, torch.Tensor)}
        files[name] = side / f"{name}.pt"
        torch.save(values, files[name])
    return files


def stored_results(folder: Folder) -> dict[Job, Result]:
    """The results in the folder of a comparison, or in a ``runs.jsonl`` that was copied there.

    Raises:
        LabError: the folder contains something else, or the results cannot be read.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise LabError(f"--output {folder.path} is a file: choose a folder")
    about = folder.read_json("experiment.json")
    if about is not None and about.get("experiment") != "compare":
        raise LabError(f"{folder.path} contains an experiment of hypergradient {about.get('experiment')}: choose another --output")
    if folder.read_json("config.json") is not None:
        raise LabError(f"{folder.path} contains a training run: choose another --output")
    return {} if about is None and not (folder.path / RUNS).exists() else {x.job: x for x in read_results(folder)}


def prepare_folder(folder: Folder, digests: Mapping[str, str]) -> dict[Job, Result]:
    """Prepare a folder for a comparison on data with these digests, and return the results already in it."""
    stored_results(folder)
    before = (folder.read_json("experiment.json") or {}).get("data")
    data = {**(before if isinstance(before, dict) else {}), **digests}
    if not (folder.path / RUNS).exists():  # first: a comparison is recognised by it
        folder.write(RUNS, lambda file: file.write_text(""))
    folder.write_json("experiment.json", {"format": FORMAT, "experiment": "compare", "data": data, **provenance()})
    return stored_results(folder)


def count_missing(plans: Iterable[Plan], known: Mapping[Job, Result]) -> int:
    """The number of missing runs that the plans ask for first; brackets may ask for more later."""
    return sum(job not in known for plan in plans for job in advance(plan, known) or ())


def run(plans_to_run: Sequence[Plan], files: Mapping[str, Path], processes: int, folder: Folder, known: dict[Job, Result]) -> None:
    """Run what is missing, and write each result as soon as it is there."""
    before, workers = len(known), Workers(processes, files)
    digests = {name: load_data_file(file).digest for name, file in files.items()}
    try:
        with stop_signals() as stopped, progress() as bar:
            task = bar.add_task("parts", total=len(plans_to_run), shown="")

            def done(x: Result, ended: int) -> None:
                line = replace(x, digest=digests.get(WORKLOADS[x.job.workload].data or "")).as_dict()
                folder.append_json(RUNS, line | {"versions": provenance()["versions"]})
                shown = f"{len(known) - before:,} runs  {x.job.workload} {x.job.base} {x.job.method}"
                bar.update(task, completed=ended, shown=shown)

            run_plans(plans_to_run, known, workers, done, stopped)
    finally:
        workers.close()


def finish(folder: Folder, results: Sequence[Result], methods: bool, as_json: bool) -> int:
    """Write tables, figures and report, print the summary, and return the exit status."""
    table = rows(results)
    if methods:
        table = published_rows(table)
        lines = summarize(results, table)
        texts = {"compare-methods.csv": verdict.comma_separated(lines), "compare-methods-pairs.csv": comma_separated(table)}
        texts["compare-methods.md"] = verdict.page(lines, table)
        figures, tables = {"methods-rho": plots.rho(table)}, verdict.rich_tables(lines)
        summary: dict[str, Any] = {"verdict": verdict.verdict(lines), "methods": [*map(finite, lines)]}
    else:
        table = [row for row in table if row.method not in PUBLISHED]
        texts, figures = {"compare.csv": comma_separated(table), "compare.md": page(table)}, draw_figures(results, table)
        summary, tables = {}, rich_tables(table)
    for name, text in texts.items():
        folder.write(name, lambda file, text=text: file.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    files = [write_report(folder.path), *(folder.path / name for name in texts)]
    for name, figure in figures.items():
        files += save(figure, folder, f"compare-{name}")
    files.append(folder.path / RUNS)
    if as_json:
        print(json.dumps(summary | {"rows": [*map(finite, table)], "files": [str(file) for file in files]}, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(tables)
        note("Results: " + "  ".join(str(file) for file in files))
    return 0


def draw_figures(results: Sequence[Result], table: Sequence[Row]) -> dict[str, Figure]:
    """The figures, by name."""
    curves = {work: over_lr([x for x in results if x.job.workload == work]) for work in dict.fromkeys(row.workload for row in table)}
    return {"rho": plots.rho(table), "lr": plots.loss_over_lr(curves), "alpha": plots.alpha_over_time(alphas(results))}


def finite(row: Row | MethodSummary) -> dict[str, object]:
    """A row as a dict for JSON, with null for infinity."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in asdict(row).items()}
