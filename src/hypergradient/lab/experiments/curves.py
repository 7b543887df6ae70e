"""The poster's figures of curves: which runs they are made of, and what is written of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib import colormaps

from ..errors import LabError
from ..runs.config import TITLES, Config
from ..runs.engine import Summary
from ..runs.store import EPOCHS, ITERATIONS, Folder, History
from ..sweeps.sweep import folder_of
from . import plots

#: What tells the runs of one figure apart; the columns before a history's own.
OPTIONS = {
    "model": pa.string(),
    "optimizer": pa.string(),
    "rule": pa.string(),
    "lr": pa.float64(),
    "hypergrad_lr": pa.float64(),
    "seed": pa.int64(),
}

#: The poster's β in the tuning examples, and its numbers of epochs.
TUNING_HYPERGRAD_LR = {"sgd": 1e-3, "sgdn": 1e-3, "adam": 1e-8}
TUNING_EPOCHS = {"logreg": 20, "mlp": 100, "vgg16": 200}

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
        vary(base, data=data, model=model, optimizer=name, seed=seed, epochs=epochs or TUNING_EPOCHS.get(model), hypergrad_lr=beta)
        for model, data in models.items()
        for seed in range(1, seeds + 1)
        for name in TITLES
        for beta in [TUNING_HYPERGRAD_LR[name.removesuffix("-hd")] if name.endswith("-hd") else None]
    ]


def sensitivity(base: Config, models: Mapping[str, str], beta: float, seeds: int) -> list[Config]:
    """α_0 in {1e-1 ... 1e-6}: SGD and Adam, their HD versions (additive) and "HDM" (multiplicative)."""
    return [
        vary(base, data=data, model=model, optimizer=name, rule=rule, lr=lr, seed=seed, hypergrad_lr=beta if name.endswith("-hd") else None)
        for model, data in models.items()
        for seed in range(1, seeds + 1)
        for family in ("sgd", "adam")
        for name, rule in ((family, "additive"), (f"{family}-hd", "additive"), (f"{family}-hd", "multiplicative"))
        for lr in SENSITIVITY_LRS
    ]


def vary(base: Config, **options: object) -> Config:
    return Config(**(base.as_dict() | options))


def by_initial_lr(config: Config) -> plots.Look:
    """One colour an α_0; baselines dashed, additive solid, multiplicative dotted."""
    colour = colormaps["viridis"]((math.log10(config.lr) + 6) / 5.5)
    style = plots.DASHED if not config.adapts else plots.SOLID if config.rule == "additive" else plots.DOTTED
    label = f"α$_0$ = {config.lr:g}" if style == plots.SOLID else None
    return plots.Look(colour, style, label)


#: What the line styles of ``by_initial_lr`` mean.
STYLES = {"baseline": plots.DASHED, "HD": plots.SOLID, "HDM (multiplicative)": plots.DOTTED}


def model_and_family(config: Config) -> str:
    return f"{config.title}, {TITLES[config.family]}"


def write_tuning(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    return write(folder, "tuning", histories(folder, configs), column=model_and_data, look=plots.by_optimizer)


def model_and_data(config: Config) -> str:
    return f"{config.title} ({config.data_title})"


def write_sensitivity(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    return write(folder, "sensitivity", histories(folder, configs), column=model_and_family, look=by_initial_lr, styles=STYLES)


def histories(folder: Folder, configs: Sequence[Config]) -> list[tuple[Config, History]]:
    return [(config, folder_of(folder.path, config).history()) for config in configs]


def write(
    folder: Folder,
    name: str,
    runs: Sequence[tuple[Config, History]],
    *,
    column: Callable[[Config], str],
    look: Callable[[Config], plots.Look],
    styles: Mapping[str, object] | None = None,
) -> list[Path]:
    """The figure of the runs, the two tables behind it, and where they come from; returns the files.

    Where there are several seeds the figure shows the first; the tables hold all.
    """
    first = min(config.seed for config, _ in runs)
    drawn = [(config, history) for config, history in runs if config.seed == first]
    files = plots.save(plots.curves(drawn, column=column, look=look, styles=styles), folder, name)
    for table, schema in (("history", ITERATIONS), ("epochs", EPOCHS)):
        rows = pa.concat_tables([labelled(config, history, table, schema) for config, history in runs])
        folder.write(f"{table}.parquet", partial(pq.write_table, rows))
    return [*files, folder.path / "history.parquet", folder.path / "epochs.parquet"]


def labelled(config: Config, history: History, name: str, schema: dict[str, pa.DataType]) -> pa.Table:
    """One of a run's tables, behind the columns that say which run it is: among them β, which these runs do not move."""
    columns = history.iterations if name == "history" else history.epochs
    rows = len(next(iter(columns.values())))
    options = {option: [getattr(config, option)] * rows for option in OPTIONS}
    return pa.table(columns | options, schema=pa.schema(list((OPTIONS | schema).items())))
