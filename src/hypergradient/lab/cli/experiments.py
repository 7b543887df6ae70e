"""The commands that run experiments: load the data, run what is missing, write figures, tables and report, print the results."""

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
from ..experiments import demo as demo_figures
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
from .console import note, print_results, progress, stderr, sweep_progress, table_of
from .options import MAKING, TRAINING, Flag, Level, Making, Output, Seeds, Training
from .report import write_report

#: Writes an experiment's figures and tables and returns the files; and summarises the results for the terminal.
Write = Callable[[Folder, Sequence[Config], Sequence[Summary]], list[Path]]
Say = Callable[[Sequence[Config], Sequence[Summary]], str | Table]

#: The longest pilot run, in seconds.
PILOT = 3.0


def demo(*, output: Output = Path("runs/demo"), seed: Seed = 1, device: Device = "cpu", making: Making = MAKING) -> int:
    """Final loss over six decades of learning rates and without one, and the paper's six optimizers, on digits in about a minute.

    Args:
        output: Folder for report, figures, tables and runs.
        seed: Seed of the initial weights and of the minibatch order; the losses over the learning rate also use the next two.
        device: Torch device: cpu, cuda, cuda:1, mps.
    """
    torch.set_num_threads(1)  # small networks: a second thread saves a fifth, but costs tenfold where its core is busy
    return experiment("demo", demo_figures.configurations(seed, device), demo_figures.write, output, making, say=say_demo)


def say_demo(configs: Sequence[Config], summaries: Sequence[Summary]) -> Table:
    """A table of the paper's six optimizers, and below it the verdict of the flat figure."""
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
    """Iterations to reach a training loss, over α0 × β in {1e-6 ... 1e-1}²: SGD, SGDN, Adam and their HD versions.

    Args:
        data: As for train. Default: ylecun/mnist; digits with --quick.
        model: As for train.
        threshold: The minibatch training loss to reach.
        cap: Give up a run after N iterations. Default: 25,000; 1,000 with --quick.
        epochs: Give up a run after N epochs. Default: no limit.
        seeds: Number of seeds (1 to N); the figure shows the median.
        quick: Use scikit-learn's digits (no download) and fewer steps: under a minute.
        output: Folder for report, figures, table and runs.
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
    """Final training loss over α0 × β, from no adaptation to towers that adapt α, its β, the β of that, and so on.

    Args:
        data: As for train. Default: ylecun/mnist; digits with --quick.
        model: As for train.
        optimizer: SGD-HD, SGDN-HD or Adam-HD.
        heights: Heights, comma-separated: 0 does not adapt, 1 adapts α, 2 also β, ... Default: 0,1,2,3,4.
        lr: Values of α0, comma-separated. Default: powers of ten, 1e-5 to 1; for Adam-HD 1e-6 to 1e-1.
        hypergrad_lr: Values of β, comma-separated. Default: powers of ten, 1e-6 to 1e-2; for Adam-HD 1e-9 to 1e-5.
        level: Rule of the levels above the first.
        level_lr: β of the levels above the first, for both rules or as additive=A,multiplicative=B. Default: that of the first level for
            additive, 0.02 for multiplicative.
        epochs: Number of epochs. Default: 10 for logreg, 50 for cnn, 100 for others; 20 with --quick.
        seeds: Number of seeds (1 to N); the figures show the median.
        quick: Use scikit-learn's digits (no download) and 20 epochs: under a minute.
        output: Folder for report, figures, table and runs.
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
        data: As for train, or MODEL=DATA,... for each model. Default: ylecun/mnist, vgg16=uoft-cs/cifar10; digits with --quick.
        model: Models, comma-separated: logreg, mlp, cnn, vgg16, package.module:factory.
        hypergrad_lr: β of the HD versions.
        epochs: Number of epochs. Default: 50; 10 with --quick.
        seeds: Number of seeds (1 to N); the figure shows the median and the range.
        quick: Use scikit-learn's digits (no download) and fewer steps: under a minute.
        output: Folder for report, figure, tables and runs.
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
        data: As for train, or MODEL=DATA,... for each model. Default: ylecun/mnist, vgg16=uoft-cs/cifar10; digits with --quick.
        model: Models, comma-separated, as for train. Default: logreg,mlp,vgg16; logreg,mlp with --quick.
        epochs: Number of epochs. Default: 20 for logreg, 50 for cnn, 200 for vgg16, 100 for others; 10 with --quick.
        seeds: Number of seeds (1 to N); the figure shows the median and the range.
        quick: Use scikit-learn's digits (no download) and fewer steps: under a minute.
        output: Folder for report, figure, tables and runs.
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
    """Run a grid over any options of train, read from a TOML file.

    Args:
        file: TOML file: each key an option of train, each value a single value or a list. Lists in an optimizer's call are axes too.
        data: Overrides the grid's.
        model: Overrides the grid's.
        epochs: Overrides the grid's.
        seeds: Number of seeds (1 to N); overrides the grid's.
        limit: Overrides the grid's.
        device: Overrides the grid's.
        output: Folder for report, figures, table and runs.
    """
    given = {"data": data, "model": model, "epochs": epochs, "limit": limit, "device": device, "seed": seeds and [*range(1, seeds + 1)]}
    axes = grid.axes_of(file, grid.options_of(file, {name: value for name, value in given.items() if value is not None}))
    runs = grid.runs(file, axes)
    if (size := grid.size(axes)) > grid.MANY and not making.yes:
        raise LabError(asked(size, next(runs)))
    return experiment("sweep", runs, curves.write_sweep, output, making)


def data_or(data: str | None, quick: bool) -> str:
    """The data set, by default MNIST, or digits with ``--quick``."""
    return data or ("digits" if quick else "ylecun/mnist")


def asked(size: int, config: Config) -> str:
    """The message for a large grid: its size, and how long the first run would take, measured by a pilot that is not stored."""
    data = load(config.data, config.device)
    check([config], data, "auto")
    run, begun = Run(config, data), time.monotonic()
    for _ in run.go(Event(), PILOT / 10, lambda *_: None):
        if time.monotonic() - begun > PILOT:
            break
    each = (time.monotonic() - begun) * run.total / max(1, run.iteration)
    told = f"a pilot of {run.iteration:,} of {run.total:,} iterations estimates {each:.2g} s for the first run"
    return f"{size:,} runs: {told}, or {size * each / 3600:,.1f} hours for all in sequence: add --yes to start them"


def experiment(name: str, configs: Iterable[Config], write: Write, output: Path, making: Making, say: Say | None = None) -> int:
    """Run what is missing, write figures, tables and report, and print the results: those of ``say``, or a table of the runs."""
    flush_denormals()
    check_engine(making.engine, making.address)
    folder, configs = Folder(output), [*configs]
    folder.check_experiment()
    parts: dict[tuple[str, str], list[Config]] = {}
    for config in configs:
        parts.setdefault((config.data, config.device), []).append(config)
    loaded: dict[tuple[str, str], Data] = {}
    for part, own in parts.items():
        with stderr.status(f"Loading {part[0]}"):
            loaded[part] = load(*part)
        parts[part] = [identified(config, loaded[part]) for config in own]
        check(parts[part], loaded[part], making.engine, making.address)
    configs = [*{config.name: config for own in parts.values() for config in own}.values()]
    with folder.lock(), Loggers([making.log or ""], output) as logs:
        there = ended_under(output, configs)
        note(f"{len(configs):,} runs on {', '.join(data for data, _ in parts)}, {len(there):,} already finished; output: {output}")
        files = folder.start_experiment(name, configs)
        ended: dict[str, Summary] = {}
        try:
            with progress() as bar:
                watch = sweep_progress(bar, len(configs))
                for part, own in parts.items():
                    told = partial(continued, watch, len(ended))
                    how = making.engine, making.address, logs.write
                    summaries = sweep_of(own, loaded[part], output, *how, watch=told, known=there | ended)
                    ended |= zip([config.name for config in own], summaries, strict=True)
        except StoppedError:
            note("hypergradient: stopped; all progress is saved, run the same command again to continue")
            return 130
        summaries = [ended[config.name] for config in configs]
        if not files or len(there) < len(configs):
            files = [write_report(output), *write(folder, configs, summaries)]
        folder.end_experiment(files)
        print_results(configs, summaries, [*files, output / "experiment.json"], making.as_json, say and say(configs, summaries))
    return 0


def continued(watch: Watch, before: int, done: int, rate: float, best: float) -> None:
    """Report the progress of a part, after ``before`` runs of earlier parts."""
    watch(before + done, rate, best)
