"""The poster's figures of curves: which runs they are made of, and what is written of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..errors import LabError
from ..runs.calls import Call
from ..runs.config import PAPER, Config, paper
from ..runs.engine import Summary
from ..runs.store import Folder
from . import charts
from .run import Run, runs_of

#: What tells the runs of one figure apart; the columns before a history's own.
OPTIONS = ("model", "optimizer", "rule", "lr", "hypergrad_lr", "seed")

#: The poster's β in the tuning examples, and its numbers of epochs.
TUNING_BETA = {"SGD-HD": 1e-3, "SGDN-HD": 1e-3, "Adam-HD": 1e-8}
TUNING_EPOCHS = {"logreg": 20, "mlp": 100, "vgg16": 200}

#: Rows of a run that figures show at most, closer together at the start, and runs that a sweep's shows.
POINTS, MOST = 2000, 200

SENSITIVITY_LRS = tuple(10.0**k for k in range(-1, -7, -1))


#: The paper's data: what a model is trained on where --data does not say.
PAPER_DATA = {"vgg16": "uoft-cs/cifar10"}
OTHER_DATA = "ylecun/mnist"


def data_of(models: str, data: str | None) -> dict[str, str]:
    """The models of ``--model A,B`` with what ``--data`` gives each: ``A=NAME`` for one, a bare name for those that are not named.

    Raises:
        LabError: data for a model that is not trained, or two for one.
    """
    names = models.split(",")
    given: dict[str, str] = {}
    for entry in data.split(",") if data else []:
        model, equals, name = entry.partition("=")
        key = model if equals else ""
        if key in given or (equals and model not in names):
            raise LabError(f"--data {data}: {entry} is {'for no model of --model ' + models if equals else 'one data set too many'}")
        given[key] = name if equals else entry
    return {model: given.get(model) or given.get("") or PAPER_DATA.get(model, OTHER_DATA) for model in names}


def tuning(base: Config, models: Mapping[str, str], epochs: int | None, seeds: int) -> list[Config]:
    """α_0 = 1e-3, the six optimizers, β = 1e-3 for SGD-HD and SGDN-HD, 1e-8 for Adam-HD."""
    return [
        replace(base, data=data, model=model, optimizer=call, seed=seed, epochs=epochs or TUNING_EPOCHS.get(model))
        for model, data in models.items()
        for seed in range(1, seeds + 1)
        for call in [paper(title, hypergrad_lr=TUNING_BETA.get(title)) for title in PAPER]
    ]


def sensitivity(base: Config, models: Mapping[str, str], beta: float, seeds: int) -> list[Config]:
    """α_0 in {1e-1 ... 1e-6}: SGD and Adam, their HD versions (additive) and "HDM" (multiplicative)."""
    factors = {"rule": Call("Multiplicative", (beta,))}
    return [
        replace(base, data=data, model=model, optimizer=paper(title, lr, **options), seed=seed)
        for model, data in models.items()
        for seed in range(1, seeds + 1)
        for family in ("SGD", "Adam")
        for title, options in ((family, {}), (f"{family}-HD", {"hypergrad_lr": beta}), (f"{family}-HD", factors))
        for lr in SENSITIVITY_LRS
    ]


def write_tuning(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    return write(folder, "tuning", runs_of(folder, configs, summaries))


def write_sensitivity(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    return write(folder, "sensitivity", runs_of(folder, configs, summaries))


def write_sweep(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    """sweep.csv, a row a run, its options and how it ended; the curves of the first runs; and final losses over the learning rate."""
    from . import plots

    runs = runs_of(folder, configs, summaries)
    rows = [{**run.options, **run.summary, "epochs": config.epochs} for run, config in zip(runs, configs, strict=True)]
    files = [plots.table(folder, "sweep", rows), *plots.save(plots.curves(charts.curves("sweep", runs, POINTS, MOST)), folder, "sweep")]
    losses = charts.over_lr(runs, MOST)
    return [*files, *(plots.save(plots.lines(losses), folder, "sweep-lr") if losses else [])]


def write(folder: Folder, name: str, runs: Sequence[Run], tabled: Sequence[Run] = ()) -> list[Path]:
    """Write the figure of the runs, and the tables of ``tabled``, by default the same runs; returns the files."""
    from . import plots

    files = plots.save(plots.curves(charts.curves(name, runs, POINTS, len(runs))), folder, name)
    for table in ("history", "epochs"):
        folder.write(f"{table}.parquet", partial(plots.labelled(table, tabled or runs, OPTIONS).to_parquet, index=False))
    return [*files, folder.path / "history.parquet", folder.path / "epochs.parquet"]
