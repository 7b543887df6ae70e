"""The command ``hypergradient``. Only parsing and talking: what it does is in the rooms beside it, imported when a command needs them."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.exceptions import TyperException

from . import complain

if TYPE_CHECKING:
    from .config import Config
    from .sweep import Watch as SweepWatch
    from .train import Summary, Watch

app = typer.Typer(
    help="Hypergradient descent: train with a learning rate that adapts itself, and reproduce the paper (Baydin et al., ICLR 2018).",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

#: Progress and notes go to stderr, results to stdout.
notes = Console(stderr=True, highlight=False)

DataName = Annotated[str, typer.Option("--data", help="digits, a folder of Parquet files, or a Hub id such as ylecun/mnist.")]
ModelName = Annotated[str, typer.Option("--model", help="logreg, or mlp (a ReLU network with two hidden layers of 1000).")]
Engine = Annotated[str, typer.Option(help="auto, batched (runs that differ only in numbers as one program) or sequential.")]
Limit = Annotated[int | None, typer.Option(help="Train on the first so many images.", show_default="all")]
Seed = Annotated[int, typer.Option(help="Seed of the initial weights and of the order of the images.")]
Device = Annotated[str, typer.Option(help="Where torch computes: cpu, cuda, cuda:1, mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, for machines, and nothing else on stdout.")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for figure, tables and runs; an earlier demo there is replaced.")] = Path(
        "runs/demo"
    ),
    seed: Seed = 1,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """The paper's tuning example in small: six optimizers, two models, digits that need no download. Under a minute."""
    from .demo import configurations, demo
    from .train import StoppedError

    configs = configurations(seed, device)
    summaries: list[Summary] = []
    notes.print(
        f"Training {len(configs)} runs of {configs[0].epochs} epochs on the digits of scikit-learn, from learning rate {configs[0].lr}",
        soft_wrap=True,
    )
    with progress() as bar:
        whole = bar.add_task("all runs", total=len(configs), shown="")

        def done(summary: "Summary") -> None:
            summaries.append(summary)
            best = min((s.valid_loss for s in summaries if s.valid_loss is not None), default=float("nan"))
            bar.update(whole, completed=len(summaries), shown=f"best validation loss {best:.4f}")

        try:
            files = demo(output, configs, lambda config: follow(bar, config), done=done)
        except StoppedError:
            notes.print(f"hypergradient: stopped; the {len(summaries)} runs that had finished lie in {output}", soft_wrap=True)
            raise typer.Exit(130) from None
    tell(configs, summaries, files, as_json)


@app.command()
def train(
    data: DataName = "digits",
    model: ModelName = "logreg",
    optimizer: Annotated[str, typer.Option(help="sgd, sgdn, adam, sgd-hd, sgdn-hd or adam-hd.")] = "sgd-hd",
    lr: Annotated[float, typer.Option(help="Initial learning rate α0.")] = 1e-3,
    hypergrad_lr: Annotated[
        float | None, typer.Option(help="β of the -hd optimizers.", show_default="the authors': 1e-3, for adam-hd 1e-7")
    ] = None,
    momentum: Annotated[float, typer.Option(help="μ of sgdn and sgdn-hd.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Coupled L2 penalty.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="the authors': 10 for logreg, 100 for mlp")
    ] = None,
    seed: Seed = 1,
    device: Device = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/DATA-MODEL-OPTIMIZER-seedN")] = None,
    rule: Annotated[str, typer.Option(help="Of the -hd optimizers: additive or multiplicative.")] = "additive",
    limit: Limit = None,
    hidden: Annotated[int, typer.Option(help="Width of the network's two hidden layers.")] = 1000,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Train one model. The defaults are the paper's settings."""
    from .config import Config
    from .data import load
    from .store import Folder
    from .train import train

    config = Config(
        data, model, optimizer, lr, hypergrad_lr, momentum, weight_decay, batch_size, epochs, seed, device, rule, limit, hidden=hidden
    )
    folder = Folder(output or Path("runs") / f"{Path(data).name}-{model}-{optimizer}-seed{seed}")
    with notes.status(f"Loading {data}"):  # seen on a terminal only
        loaded = load(data, device)
    notes.print(
        f"Training {model} with {optimizer} on {len(loaded.train_y):,} images for {config.epochs} epochs, into {folder.path}",
        soft_wrap=True,
    )
    with progress() as bar:
        summary, _ = train(config, loaded, folder, resume=resume, watch=follow(bar, config))
    tell(
        [config],
        [summary],
        [folder.path / name for name in ("summary.json", "iterations.parquet", "epochs.parquet", "config.json")],
        as_json,
    )


@app.command()
def heatmap(
    data: DataName = "ylecun/mnist",
    model: ModelName = "logreg",
    threshold: Annotated[float, typer.Option(help="The minibatch training loss to reach.")] = 0.29,
    cap: Annotated[int, typer.Option(help="Iterations after which a run is given up.")] = 25_000,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 1; the figure shows their median.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    limit: Limit = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    output: Annotated[Path, typer.Option(help="Folder of figure, table and runs.")] = Path("runs/heatmap"),
    as_json: Json = False,
) -> None:
    """Iterations until a training loss is reached, over α0 × β in {1e-6 ... 1e-1}²: SGD, SGDN, Adam and their HD versions."""
    from . import heatmap as room
    from . import plots
    from .config import Config
    from .store import Folder, provenance

    at_least_1("seeds", seeds)
    at_least_1("cap", cap)
    base = Config(data, model, "sgd", epochs=cap, batch_size=batch_size, device=device, limit=limit, iterations=cap, threshold=threshold)
    configs = room.grid(base, seeds)
    summaries = run_sweep(configs, output, engine)
    folder = Folder(output)
    table = room.rows(configs, summaries)
    files = [room.write_csv(folder, table), *plots.save(room.figure(table, base), folder, "heatmap")]
    folder.write_json("heatmap.json", {"base": base.as_dict(), "seeds": seeds, **provenance()})
    reached = sum(row.iterations is not None for row in table)
    if as_json:
        print(json.dumps({"runs": len(table), "reached": reached, "files": [str(file) for file in files]}, indent=2))
    else:
        notes.print(f"{reached} of {len(table)} runs reached {threshold:g}. Results: " + "  ".join(map(str, files)), soft_wrap=True)


Seeds = Annotated[int, typer.Option(help="How many seeds, from 1.")]
Models = Annotated[str, typer.Option("--model", help="logreg, mlp, or both: logreg,mlp.")]


@app.command()
def sensitivity(
    data: DataName = "ylecun/mnist",
    model: Models = "logreg,mlp",
    hypergrad_lr: Annotated[float, typer.Option(help="β of the HD versions.")] = 1e-4,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 50,
    seeds: Seeds = 1,
    limit: Limit = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    output: Annotated[Path, typer.Option(help="Folder of figure, tables and runs.")] = Path("runs/sensitivity"),
    as_json: Json = False,
) -> None:
    """Curves from α0 in {1e-1 ... 1e-6}: SGD and Adam, their HD versions, additive and multiplicative."""
    from . import curves
    from .config import Config

    base = Config(data, epochs=epochs, device=device, limit=limit)
    configs = curves.sensitivity(base, model.split(","), hypergrad_lr, at_least_1("seeds", seeds))
    looks = {"column": curves.model_and_family, "look": curves.by_initial_lr, "styles": curves.STYLES}
    run_curves("sensitivity", configs, output, engine, as_json, looks)


@app.command()
def tuning(
    data: DataName = "ylecun/mnist",
    model: Models = "logreg,mlp",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", show_default="20 for logreg, 100 for mlp")] = None,
    seeds: Seeds = 1,
    limit: Limit = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    output: Annotated[Path, typer.Option(help="Folder of figure, tables and runs.")] = Path("runs/tuning"),
    as_json: Json = False,
) -> None:
    """Curves from α0 = 1e-3: SGD, SGDN, Adam and their HD versions."""
    from . import curves, plots
    from .config import MODEL_TITLES, Config

    configs = curves.tuning(Config(data, device=device, limit=limit), model.split(","), epochs, at_least_1("seeds", seeds))
    looks = {"column": lambda config: MODEL_TITLES[config.model], "look": plots.by_optimizer}
    run_curves("tuning", configs, output, engine, as_json, looks)


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="A TOML file: each key an option of train, each value one or a list.", metavar="GRID.toml")],
    engine: Engine = "auto",
    output: Annotated[Path, typer.Option(help="Folder of table and runs.")] = Path("runs/sweep"),
    as_json: Json = False,
) -> None:
    """Any grid over any option of train, with seeds as an axis."""
    from .grid import read, write_csv
    from .store import Folder, provenance

    configs = read(grid)
    summaries = run_sweep(configs, output, engine)
    folder = Folder(output)
    files = [write_csv(folder, configs, summaries), output / "sweep.json"]
    folder.write_json("sweep.json", {"configurations": [config.as_dict() for config in configs], **provenance()})
    tell(configs, summaries, files, as_json)


def run_sweep(configs: "list[Config]", output: Path, engine: str) -> "list[Summary]":
    """Load the data and run what is missing, with a line of progress."""
    from .data import load
    from .sweep import check_engine, sweep

    check_engine(engine)
    with notes.status(f"Loading {configs[0].data}"):
        loaded = load(configs[0].data, configs[0].device)
    notes.print(f"{len(configs)} runs on {configs[0].data}, into {output}", soft_wrap=True)
    with progress() as bar:
        return sweep(configs, loaded, output, engine=engine, watch=count(bar, len(configs)))


def run_curves(name: str, configs: "list[Config]", output: Path, engine: str, as_json: bool, looks: dict[str, Any]) -> None:
    """Run a sweep, write its figure, and tell how each run ended."""
    from .curves import write
    from .store import Folder
    from .sweep import folder_of

    summaries = run_sweep(configs, output, engine)
    runs = [(config, folder_of(output, config).history()) for config in configs]
    tell(configs, summaries, write(Folder(output), name, runs, **looks), as_json)


def at_least_1(name: str, value: int) -> int:
    from .config import LabError

    if value < 1:
        raise LabError(f"--{name} must be at least 1, got {value}")
    return value


def count(bar: Progress, runs: int) -> "SweepWatch":
    """A line for a sweep: runs done, iterations a second, time left."""
    task = bar.add_task("runs", total=runs, shown="")
    return lambda done, rate: bar.update(task, completed=done, shown=f"{rate:,.0f} iterations/s" if rate else "")


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


def follow(bar: Progress, config: "Config") -> "Watch":
    """A line of its own for a run: iterations, loss, α, time left."""
    task: list[TaskID] = []

    def watch(iteration: int, iterations: int, loss: float, alpha: float) -> None:
        if not task:
            task.append(bar.add_task(f"{config.model} {config.optimizer}", total=iterations, shown=""))
        if iteration % 10 == 0 or iteration == iterations:
            bar.update(task[0], completed=iteration, shown=f"loss {loss:.4f}  α {alpha:.3g}")

    return watch


def tell(configs: "list[Config]", summaries: "list[Summary]", files: list[Path], as_json: bool) -> None:
    """The closing words: JSON, or a table and where the results lie. The table names the options that the runs differ in."""
    if as_json:
        rows = [config.as_dict() | summary.as_dict() for config, summary in zip(configs, summaries, strict=True)]
        print(json.dumps({"runs": rows, "files": [str(file) for file in files]}, indent=2))
        return
    alike: dict[str, list[Config]] = {}
    for config in configs:
        alike.setdefault(f"{config.model} {label(config)}", []).append(config)
    named = {"lr": "α0", "hypergrad_lr": "β", "seed": "seed"}
    varied = [name for name in named if any(len({getattr(c, name) for c in group}) > 1 for group in alike.values())]
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("model", "optimizer", *(named[name] for name in varied)):
        table.add_column(name, no_wrap=True)
    for name in ("final α", "train loss", "valid loss", "accuracy", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for config, s in zip(configs, summaries, strict=True):
        options = [number(getattr(config, name), "g") for name in varied]
        numbers = [number(s.alpha, ".3g"), number(s.train_loss, ".4f"), number(s.valid_loss, ".4f"), number(s.valid_accuracy, ".2%")]
        table.add_row(s.model, label(config), *options, *numbers, f"{s.seconds:.1f} s")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for s in summaries:
        if s.status == "diverged":
            notes.print(f"{s.model} {s.optimizer} diverged: the loss of iteration {s.iterations} is not finite, and the run ended there")
    notes.print("Results: " + "  ".join(str(file) for file in files), soft_wrap=True)


def label(config: "Config") -> str:
    return f"{config.optimizer} mult." if config.adapts and config.rule == "multiplicative" else config.optimizer


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def run() -> None:
    """Run the command line: an error the user can mend is one line on stderr and exit status 2."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        code = complain(f"{error.format_message()} (see hypergradient --help)")
    except Exception as error:
        from .config import LabError
        from .train import StoppedError

        if isinstance(error, LabError):
            code = complain(str(error))
        elif isinstance(error, StoppedError):
            notes.print(f"hypergradient: {error}; add --resume to go on with it", soft_wrap=True)
            code = 130
        else:
            raise
    sys.exit(code if isinstance(code, int) else 0)
