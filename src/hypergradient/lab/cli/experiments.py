"""The commands of many runs: load the data, run what is missing, write figures, tables and report, tell how it went."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Annotated

import torch
from pydantic import Field, FiniteFloat
from rich.table import Table

from ..errors import LabError
from ..experiments import curves, flat
from ..experiments import demo as both
from ..experiments import heatmap as heat
from ..experiments import tower as towers
from ..experiments.run import run_of
from ..loggers import Loggers
from ..runs.config import Config, Count, Device, Seed, Text
from ..runs.data import Data, load
from ..runs.engine import StoppedError, Summary, flush_denormals
from ..runs.models import identified
from ..runs.store import Folder
from ..runs.train import Run
from ..sweeps import grid
from ..sweeps.sweep import Watch, check, check_engine
from ..sweeps.sweep import ended as ended_under
from ..sweeps.sweep import sweep as sweep_of
from .options import MAKING, TRAINING, Flag, Level, Making, Output, Seeds, Training
from .report import write_report
from .talk import count, note, notes, progress, table_of, tell

#: Writes an experiment's figures and tables, and gives the files; and tells how it went.
Write = Callable[[Folder, Sequence[Config], Sequence[Summary]], list[Path]]
Say = Callable[[Sequence[Config], Sequence[Summary]], str | Table]

#: Seconds that a pilot run takes at most.
PILOT = 3.0


def demo(*, output: Output = Path("runs/demo"), seed: Seed = 1, device: Device = "cpu", making: Making = MAKING) -> int:
    """Final losses from any learning rate, and without one; and the paper's six optimizers. Digits, no download: a minute.

    Args:
        output: Folder of report, figures, tables and runs.
        seed: Of the initial weights and the order of the images.
        device: Where torch computes: cpu, cuda, cuda:1, mps.
    """
    torch.set_num_threads(1)  # networks this small gain a fifth from a second thread, and lose tenfold where its core is held
    return experiment("demo", both.configurations(seed, device), both.write, output, making, say=say_demo)


def say_demo(configs: Sequence[Config], summaries: Sequence[Summary]) -> Table:
    """A table of the paper's six optimizers, and below what the flat figure shows."""
    runs = [run_of(config.as_dict(), None, summary.as_dict()) for config, summary in zip(configs, summaries, strict=True)]
    six = [i for i, run in enumerate(runs) if not flat.belongs(run)]
    table = table_of([configs[i] for i in six], [summaries[i] for i in six])
    table.caption, table.caption_justify, table.caption_style = flat.verdict(runs), "left", ""
    return table


def heatmap(
    *,
    data: Text | None = None,
    model: Text = "logreg",
    threshold: FiniteFloat = 0.29,
    cap: Count | None = None,
    epochs: Count | None = None,
    seeds: Seeds = 1,
    quick: Flag = False,
    training: Training = TRAINING,
    making: Making = MAKING,
    output: Output = Path("runs/heatmap"),
) -> int:
    """Iterations until a training loss is reached, over α0 × β in {1e-6 ... 1e-1}²: SGD, SGDN, Adam and their HD versions.

    Args:
        data: As for train. Default: ylecun/mnist; digits with --quick.
        model: As for train.
        threshold: The minibatch training loss to reach.
        cap: Iterations after which a run is given up. Default: 25,000; 1,000 with --quick.
        epochs: Passes over the data after which a run is given up. Default: no limit.
        seeds: How many seeds, from 1; the figure shows their median.
        quick: The digits that need no download: under a minute.
        output: Folder of report, figure, table and runs.
    """
    most = cap or (1000 if quick else 25_000)
    base = Config(data_or(data, quick), model, epochs=epochs or most, iterations=most, threshold=threshold, **vars(training))
    return experiment("heatmap", heat.grid(base, seeds), heat.write, output, making, say=heat.say)


def tower(
    *,
    data: Text | None = None,
    model: Text = "logreg",
    optimizer: Text = "SGD-HD",
    heights: Text | None = None,
    lr: Text | None = None,
    hypergrad_lr: Text | None = None,
    level: Level = "both",
    level_lr: Text | None = None,
    epochs: Count | None = None,
    seeds: Seeds = 1,
    quick: Flag = False,
    training: Training = TRAINING,
    making: Making = MAKING,
    output: Output = Path("runs/tower"),
) -> int:
    """The final training loss over α0 × β, from no adaptation to towers that adapt α, its β, the β of that, and so on.

    Args:
        data: As for train. Default: ylecun/mnist; digits with --quick.
        model: As for train.
        optimizer: SGD-HD, SGDN-HD or Adam-HD.
        heights: With commas; 0 does not adapt, 1 adapts α, 2 β too ... Default 0,1,2,3,4.
        lr: The α0, with commas. Default: powers of ten, 1e-5 to 1; for Adam-HD 1e-6 to 1e-1.
        hypergrad_lr: The β, with commas. Default: powers of ten, 1e-6 to 1e-2; for Adam-HD 1e-9 to 1e-5.
        level: Rule of the levels above the first.
        level_lr: β of every level above the first; additive=A,multiplicative=B gives each rule its own. Default: the first's for additive,
            0.02 for multiplicative.
        epochs: Passes over the data. Default 10 for logreg, 50 for cnn, else 100; 20 with --quick.
        seeds: How many seeds, from 1; the figures show their median.
        quick: The digits that need no download, 20 epochs: under a minute.
        output: Folder of report, figures, table and runs.
    """
    base = Config(data_or(data, quick), model, epochs=epochs or (20 if quick else None), **vars(training))
    configs = towers.grid(base, optimizer, heights, lr, hypergrad_lr, level, level_lr, seeds)
    return experiment("tower", configs, towers.write, output, making, say=towers.say)


def sensitivity(
    *,
    data: Text | None = None,
    model: Text = "logreg,mlp",
    hypergrad_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4,
    epochs: Count | None = None,
    seeds: Seeds = 1,
    quick: Flag = False,
    training: Training = TRAINING,
    making: Making = MAKING,
    output: Output = Path("runs/sensitivity"),
) -> int:
    """Curves from α0 in {1e-1 ... 1e-6}: SGD and Adam, their HD versions, additive and multiplicative.

    Args:
        data: As for train; MODEL=DATA,MODEL=DATA for a data set a model. Default: ylecun/mnist, vgg16=uoft-cs/cifar10; digits with --quick.
        model: One or more, with commas: logreg, mlp, cnn, vgg16, package.module:factory.
        hypergrad_lr: β of the HD versions.
        epochs: Passes over the data. Default: 50; 10 with --quick.
        seeds: How many seeds, from 1; the figure shows their median and the band between the lowest and the highest.
        quick: The digits that need no download: under a minute.
        output: Folder of report, figure, tables and runs.
    """
    base = Config(epochs=epochs or (10 if quick else 50), **vars(training))
    configs = curves.sensitivity(base, curves.data_of(model, data or ("digits" if quick else None)), hypergrad_lr, seeds)
    return experiment("sensitivity", configs, curves.write_sensitivity, output, making)


def tuning(
    *,
    data: Text | None = None,
    model: Text | None = None,
    epochs: Count | None = None,
    seeds: Seeds = 1,
    quick: Flag = False,
    training: Training = TRAINING,
    making: Making = MAKING,
    output: Output = Path("runs/tuning"),
) -> int:
    """Curves from α0 = 1e-3: SGD, SGDN, Adam and their HD versions, on MNIST and, for vgg16, on CIFAR-10.

    Args:
        data: As for train; MODEL=DATA,MODEL=DATA for a data set a model. Default: ylecun/mnist, vgg16=uoft-cs/cifar10; digits with --quick.
        model: One or more, with commas, as for train. Default: logreg,mlp,vgg16; logreg,mlp with --quick.
        epochs: Passes over the data. Default: 20 for logreg, 50 for cnn, 200 for vgg16, else 100; 10 with --quick.
        seeds: How many seeds, from 1; the figure shows their median and the band between the lowest and the highest.
        quick: The digits that need no download: under a minute.
        output: Folder of report, figure, tables and runs.
    """
    models = curves.data_of(model or ("logreg,mlp" if quick else "logreg,mlp,vgg16"), data or ("digits" if quick else None))
    configs = curves.tuning(Config(**vars(training)), models, epochs or (10 if quick else None), seeds)
    return experiment("tuning", configs, curves.write_tuning, output, making)


def sweep(
    file: Path,
    /,
    *,
    data: Text | None = None,
    model: Text | None = None,
    epochs: Count | None = None,
    seeds: Seeds | None = None,
    limit: Count | None = None,
    device: Text | None = None,
    making: Making = MAKING,
    output: Output = Path("runs/sweep"),
) -> int:
    """Any grid over any option of train, with seeds as an axis.

    Args:
        file: A TOML file: each key an option of train, each value one or a list; lists in an optimizer's call are axes too.
        data: Instead of the grid's.
        model: Instead of the grid's.
        epochs: Instead of the grid's.
        seeds: Seeds from 1, instead of the grid's.
        limit: Instead of the grid's.
        device: Instead of the grid's.
        output: Folder of report, table and runs.
    """
    given = {"data": data, "model": model, "epochs": epochs, "limit": limit, "device": device, "seed": seeds and [*range(1, seeds + 1)]}
    axes = grid.axes_of(file, grid.options_of(file, {name: value for name, value in given.items() if value is not None}))
    runs = grid.runs(file, axes)
    if (size := grid.size(axes)) > grid.MANY and not making.yes:
        raise LabError(asked(size, next(runs)))
    return experiment("sweep", runs, curves.write_sweep, output, making)


def data_or(data: str | None, quick: bool) -> str:
    """The data that is given, else MNIST, or with ``--quick`` digits."""
    return data or ("digits" if quick else "ylecun/mnist")


def asked(size: int, config: Config) -> str:
    """What is said of a grid of many runs: how many, and how long the first would take, by a pilot that is not written."""
    data = load(config.data, config.device)
    check([config], data, "auto")
    run, begun = Run(config, data), time.monotonic()
    for _ in run.go(Event(), PILOT / 10, lambda *_: None):
        if time.monotonic() - begun > PILOT:
            break
    each = (time.monotonic() - begun) * run.total / max(1, run.iteration)
    told = f"a pilot of {run.iteration:,} of its {run.total:,} iterations says that the first takes {each:.2g} s"
    return f"{size:,} runs: {told}, so all about {size * each / 3600:,.1f} hours, one after the other: add --yes to make them"


def experiment(name: str, configs: Iterable[Config], write: Write, output: Path, making: Making, say: Say | None = None) -> int:
    """Run what is missing, write figures, tables and report, and tell how it went: in ``say``'s words, or with a table of the runs."""
    flush_denormals()
    check_engine(making.engine, making.address)
    folder, configs = Folder(output), [*configs]
    folder.check_experiment()
    parts: dict[tuple[str, str], list[Config]] = {}
    for config in configs:
        parts.setdefault((config.data, config.device), []).append(config)
    loaded: dict[tuple[str, str], Data] = {}
    for part, own in parts.items():
        with notes.status(f"Loading {part[0]}"):
            loaded[part] = load(*part)
        parts[part] = [identified(config, loaded[part]) for config in own]
        check(parts[part], loaded[part], making.engine, making.address)
    configs = [*{config.name: config for own in parts.values() for config in own}.values()]
    with folder.lock(), Loggers([making.log or ""], output) as logs:
        there = ended_under(output, configs)
        note(f"{len(configs):,} runs on {', '.join(data for data, _ in parts)}, {len(there):,} of them there already, into {output}")
        files = folder.start_experiment(name, configs)
        ended: dict[str, Summary] = {}
        try:
            with progress() as bar:
                watch = count(bar, len(configs))
                for part, own in parts.items():
                    told = partial(continued, watch, len(ended))
                    how = making.engine, making.address, logs.write
                    summaries = sweep_of(own, loaded[part], output, *how, watch=told, known=there | ended)
                    ended |= zip([config.name for config in own], summaries, strict=True)
        except StoppedError:
            note("hypergradient: stopped; what was done is saved, and the same command goes on from there")
            return 130
        summaries = [ended[config.name] for config in configs]
        if not files or len(there) < len(configs):
            files = [write_report(output), *write(folder, configs, summaries)]
        folder.end_experiment(files)
        tell(configs, summaries, [*files, output / "experiment.json"], making.as_json, say and say(configs, summaries))
    return 0


def continued(watch: Watch, before: int, done: int, rate: float, best: float) -> None:
    """What is watched of a part, after so many runs of those before it."""
    watch(before + done, rate, best)
