"""The command ``hypergradient``. Only parsing: what it does is in the rooms beside it, imported when a command needs them."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from .. import complain
from .talk import follow, note, notes, progress, tell

if TYPE_CHECKING:
    from ..runs.engine import Summary

app = typer.Typer(
    help="Hypergradient descent: train with a learning rate that adapts itself, and reproduce the paper (Baydin et al., ICLR 2018).",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

DataNames = Annotated[
    str | None,
    typer.Option(
        "--data", help="As for train; MODEL=DATA,MODEL=DATA for a data set a model.", show_default="ylecun/mnist, vgg16=uoft-cs/cifar10"
    ),
]
DataName = Annotated[
    str, typer.Option("--data", help="digits, text, quadratic, regression, a folder of Parquet files, or a Hub id such as ylecun/mnist.")
]
ModelName = Annotated[
    str, typer.Option("--model", help="logreg, mlp, cnn, cnn-bn, vgg16, transformer, linear, or your own: package.module:factory.")
]
Models = Annotated[str, typer.Option("--model", help="One or more, with commas: logreg, mlp, cnn, vgg16, package.module:factory.")]
Engine = Annotated[str, typer.Option(help="auto, batched (runs that differ only in numbers as one program), sequential, or ray.")]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster, or auto.", show_default="one is started here")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the data.", show_default="the paper's")]
Limit = Annotated[int | None, typer.Option(help="Train and validate on the first so many images.", show_default="all")]
Seed = Annotated[int, typer.Option(help="Of the initial weights, the order of the images, dropout and crops.")]
Seeds = Annotated[int, typer.Option(help="How many seeds, from 1.")]
LevelLr = Annotated[
    float | None, typer.Option(help="β of every level above the first.", show_default="the first's for additive, 0.02 for multiplicative")
]
Device = Annotated[str, typer.Option(help="Where torch computes: cpu, cuda, cuda:1, mps.")]
BatchSize = Annotated[int, typer.Option(help="Images a step.")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Write event files for TensorBoard too.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, for machines, and nothing else on stdout.")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of report, figure and runs; an earlier demo there is replaced.")] = Path("runs/demo"),
    seed: Seed = 1,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """The paper's tuning example in small: six optimizers, two models, digits that need no download. Under a minute."""
    from ..experiments.demo import configurations, demo
    from ..pages.report import write as write_report
    from ..runs.engine import StoppedError, flush_denormals

    flush_denormals()
    configs = configurations(seed, device)
    summaries: list[Summary] = []
    note(f"Training {len(configs)} runs of {configs[0].epochs} epochs on the digits of scikit-learn, from learning rate {configs[0].lr}")
    with progress() as bar:
        whole = bar.add_task("all runs", total=len(configs), shown="")

        def done(summary: "Summary") -> None:
            summaries.append(summary)
            best = min((s.valid_loss for s in summaries if s.valid_loss is not None), default=float("nan"))
            bar.update(whole, completed=len(summaries), shown=f"best validation loss {best:.4f}")

        try:
            files = demo(output, configs, lambda config: follow(bar, config), done=done)
        except StoppedError:
            note(f"hypergradient: stopped; the {len(summaries)} runs that had finished lie in {output}")
            raise typer.Exit(130) from None
    tell(configs, summaries, [*files, write_report(output)], as_json)


@app.command()
def train(
    data: DataName = "digits",
    model: ModelName = "logreg",
    optimizer: Annotated[
        str, typer.Option(help="sgd, sgdn, adam, sgd-hd, sgdn-hd, adam-hd, or another package's: prodigy, dog ...")
    ] = "sgd-hd",
    lr: Annotated[float | None, typer.Option(help="Initial learning rate α0.", show_default="1e-3; found, with --rule tuning-free")] = None,
    hypergrad_lr: Annotated[
        float | None, typer.Option(help="β of the -hd optimizers.", show_default="the authors': 1e-3, for adam-hd 1e-7; 1 of tuning-free")
    ] = None,
    momentum: Annotated[float, typer.Option(help="μ of sgdn and sgdn-hd.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Coupled L2 penalty.")] = 1e-4,
    batch_size: BatchSize = 128,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", show_default="10 for logreg, 50 for cnn, else 100")] = None,
    seed: Seed = 1,
    device: Device = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/DATA-MODEL-OPTIMIZER-seedN")] = None,
    rule: Annotated[str, typer.Option(help="Of the -hd optimizers: additive, multiplicative or tuning-free.")] = "additive",
    height: Annotated[int, typer.Option(help="Levels of adaptation of the -hd optimizers: 2 adapts β too, 3 the β of that, ...")] = 1,
    level: Annotated[str, typer.Option(help="Rule of the levels above the first: additive or multiplicative.")] = "additive",
    level_lr: LevelLr = None,
    adapt: Annotated[
        str,
        typer.Option(
            help="Other hyperparameters that move, NAME=RULE:β with commas: momentum=additive:0.01,weight_decay=multiplicative:0.02. "
            "sgd-hd has weight_decay, sgdn-hd momentum too, adam-hd beta1, beta2, eps, weight_decay.",
            show_default="none",
        ),
    ] = "",
    hypergrad_data: Annotated[
        str,
        typer.Option(
            help="What the -hd optimizers follow: train, the loss of the step, or validation, that of a minibatch from the last tenth of "
            "the training images, which are then not trained on. The validation loss stays that of images that nothing has seen."
        ),
    ] = "train",
    limit: Limit = None,
    hidden: Annotated[int, typer.Option(help="Width of mlp's two hidden layers.")] = 1000,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    tensorboard: Tensorboard = False,
    as_json: Json = False,
) -> None:
    """Train one model. The defaults are the paper's settings."""
    from ..pages.report import write as write_report
    from ..runs.config import HYPERGRAD_LR, PEERS, Config
    from ..runs.data import load
    from ..runs.engine import StoppedError, flush_denormals, split
    from ..runs.store import Folder
    from ..runs.train import train
    from ..sweeps.sweep import check

    flush_denormals()
    if lr is None:
        lr = 0.0 if optimizer in PEERS or (optimizer in HYPERGRAD_LR and rule == "tuning-free") else Config.lr
    config = Config(
        data,
        model,
        optimizer,
        lr,
        hypergrad_lr,
        momentum,
        weight_decay,
        batch_size,
        epochs,
        seed,
        device,
        rule,
        limit,
        hidden=hidden,
        height=height,
        level=level,
        level_lr=level_lr,
        adapt=adapt,
        hypergrad_data=hypergrad_data,
    )
    folder = Folder(output or Path("runs") / f"{Path(data).name}-{model.replace(':', '.')}-{optimizer}-seed{seed}")
    folder.check(config, resume=resume)
    with notes.status(f"Loading {data}"):  # seen on a terminal only
        loaded = load(data, device)
    check([config], loaded, "auto")
    images = len(split(config, loaded)[0].train_y)
    note(f"Training {model} with {optimizer} on {images:,} images for {config.epochs} epochs, into {folder.path}")
    if "weight_decay" in config.adapted and hypergrad_data == "train":
        note("Weight decay that follows the training loss drifts to its lower bound: --hypergrad-data validation lets it follow another")
    try:
        with progress() as bar:
            summary, _ = train(config, loaded, folder, resume=resume, events=events(folder.path, tensorboard), watch=follow(bar, config))
    except StoppedError as error:
        note(f"hypergradient: {error}; add --resume to go on with it")
        raise typer.Exit(130) from None
    names = ("status.json", "history.parquet", "epochs.parquet", "config.json")
    tell([config], [summary], [write_report(folder.path), *(folder.path / name for name in names)], as_json)


@app.command()
def heatmap(
    data: DataName = "ylecun/mnist",
    model: ModelName = "logreg",
    threshold: Annotated[float, typer.Option(help="The minibatch training loss to reach.")] = 0.29,
    cap: Annotated[int, typer.Option(help="Iterations after which a run is given up.")] = 25_000,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data after which a run is given up.", show_default="no limit")] = None,
    hidden: Annotated[int, typer.Option(help="Width of mlp's two hidden layers.")] = 1000,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 1; the figure shows their median.")] = 1,
    batch_size: BatchSize = 128,
    limit: Limit = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    address: Address = None,
    output: Annotated[Path, typer.Option(help="Folder of report, figure, table and runs.")] = Path("runs/heatmap"),
    tensorboard: Tensorboard = False,
    as_json: Json = False,
) -> None:
    """Iterations until a training loss is reached, over α0 × β in {1e-6 ... 1e-1}²: SGD, SGDN, Adam and their HD versions."""
    from ..experiments import heatmap as room
    from ..runs.config import Config
    from .experiment import run_experiment

    at_least_1(seeds=seeds, cap=cap)
    base = Config(
        data,
        model,
        "sgd",
        epochs=epochs or cap,
        batch_size=batch_size,
        device=device,
        limit=limit,
        iterations=cap,
        threshold=threshold,
        hidden=hidden,
    )
    run_experiment("heatmap", room.grid(base, seeds), room.write, output, engine, address, tensorboard, as_json, say=room.say)


@app.command()
def tower(
    data: Annotated[str | None, typer.Option(help="As for train.", show_default="ylecun/mnist; digits with --quick")] = None,
    model: ModelName = "logreg",
    optimizer: Annotated[str, typer.Option(help="sgd-hd, sgdn-hd or adam-hd.")] = "sgd-hd",
    heights: Annotated[
        str | None, typer.Option(help="With commas; 0 does not adapt, 1 adapts α, 2 β too ...", show_default="0,1,2,3,4")
    ] = None,
    lr: Annotated[
        str | None, typer.Option(help="The α0, with commas.", show_default="powers of ten, 1e-5 to 1; for adam-hd 1e-6 to 1e-1")
    ] = None,
    hypergrad_lr: Annotated[
        str | None, typer.Option(help="The β, with commas.", show_default="powers of ten, 1e-6 to 1e-2; for adam-hd 1e-9 to 1e-5")
    ] = None,
    level: Annotated[str, typer.Option(help="Rule of the levels above the first: additive, multiplicative, or both.")] = "both",
    level_lr: Annotated[
        str | None,
        typer.Option(
            help="β of every level above the first; additive=A,multiplicative=B gives each rule its own.",
            show_default="the first's for additive, 0.02 for multiplicative",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="10 for logreg, 50 for cnn, else 100; 20 with --quick")
    ] = None,
    hidden: Annotated[int, typer.Option(help="Width of mlp's two hidden layers.")] = 1000,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 1; the figures show their median.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="The digits that need no download, 20 epochs: under a minute.")] = False,
    batch_size: BatchSize = 128,
    limit: Limit = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    address: Address = None,
    output: Annotated[Path, typer.Option(help="Folder of report, figures, table and runs.")] = Path("runs/tower"),
    tensorboard: Tensorboard = False,
    as_json: Json = False,
) -> None:
    """The final training loss over α0 × β, from no adaptation to towers that adapt α, its β, the β of that, and so on."""
    from ..experiments import tower as room
    from .experiment import run_experiment

    at_least_1(seeds=seeds)
    base = room.base_of(
        optimizer,
        data=data or ("digits" if quick else "ylecun/mnist"),
        model=model,
        epochs=epochs or (20 if quick else None),
        batch_size=batch_size,
        limit=limit,
        device=device,
        hidden=hidden,
    )
    configs = room.grid(base, heights, lr, hypergrad_lr, level, level_lr, seeds)
    run_experiment("tower", configs, room.write, output, engine, address, tensorboard, as_json, say=room.say)


@app.command()
def sensitivity(
    data: DataNames = None,
    model: Models = "logreg,mlp",
    hypergrad_lr: Annotated[float, typer.Option(help="β of the HD versions.")] = 1e-4,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 50,
    seeds: Seeds = 1,
    limit: Limit = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    address: Address = None,
    output: Annotated[Path, typer.Option(help="Folder of report, figure, tables and runs.")] = Path("runs/sensitivity"),
    tensorboard: Tensorboard = False,
    as_json: Json = False,
) -> None:
    """Curves from α0 in {1e-1 ... 1e-6}: SGD and Adam, their HD versions, additive and multiplicative."""
    from ..experiments import curves
    from ..runs.config import Config
    from .experiment import run_experiment

    at_least_1(seeds=seeds)
    configs = curves.sensitivity(Config(epochs=epochs, device=device, limit=limit), curves.data_of(model, data), hypergrad_lr, seeds)
    run_experiment("sensitivity", configs, curves.write_sensitivity, output, engine, address, tensorboard, as_json)


@app.command()
def tuning(
    data: DataNames = None,
    model: Models = "logreg,mlp,vgg16",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="20 for logreg, 50 for cnn, 200 for vgg16, else 100")
    ] = None,
    seeds: Seeds = 1,
    limit: Limit = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    address: Address = None,
    output: Annotated[Path, typer.Option(help="Folder of report, figure, tables and runs.")] = Path("runs/tuning"),
    tensorboard: Tensorboard = False,
    as_json: Json = False,
) -> None:
    """Curves from α0 = 1e-3: SGD, SGDN, Adam and their HD versions, on MNIST and, for vgg16, on CIFAR-10."""
    from ..experiments import curves
    from ..runs.config import Config
    from .experiment import run_experiment

    at_least_1(seeds=seeds)
    configs = curves.tuning(Config(device=device, limit=limit), curves.data_of(model, data), epochs, seeds)
    run_experiment("tuning", configs, curves.write_tuning, output, engine, address, tensorboard, as_json)


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="A TOML file: each key an option of train, each value one or a list.", metavar="GRID.toml")],
    data: Annotated[str | None, typer.Option(help="Instead of the grid's.", show_default="the grid's, else digits")] = None,
    model: Annotated[str | None, typer.Option(help="Instead of the grid's.", show_default="the grid's, else logreg")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the grid's.", show_default="the grid's, else the model's")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds from 1, instead of the grid's.", show_default="the grid's, else 1")] = None,
    limit: Annotated[int | None, typer.Option(help="Instead of the grid's.", show_default="the grid's, else all")] = None,
    device: Annotated[str | None, typer.Option(help="Instead of the grid's.", show_default="the grid's, else cpu")] = None,
    engine: Engine = "auto",
    address: Address = None,
    output: Annotated[Path, typer.Option(help="Folder of report, table and runs.")] = Path("runs/sweep"),
    tensorboard: Tensorboard = False,
    as_json: Json = False,
) -> None:
    """Any grid over any option of train, with seeds as an axis."""
    from ..sweeps import grid as room
    from .experiment import run_experiment

    if seeds is not None:
        at_least_1(seeds=seeds)
    given = {"data": data, "model": model, "epochs": epochs, "limit": limit, "device": device, "seed": seeds and [*range(1, seeds + 1)]}
    configs = room.read(grid, {name: value for name, value in given.items() if value is not None})
    run_experiment("sweep", configs, room.write, output, engine, address, tensorboard, as_json)


@app.command()
def compare(
    workload: Annotated[
        str | None, typer.Option(help="Some of them, with commas: digits, gpt, drift ...", show_default="all; four with --quick")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Those of some families, with commas: image, games ...", show_default="all")] = None,
    judged: Annotated[
        bool | None,
        typer.Option("--judged/--made", help="Those that judge the rule, or those that it was made on.", show_default="both"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Four workloads without files, one seed, fewer given lr: under three minutes.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, from 1; losses are medians.", show_default="3; 1 with --quick")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="mnist=FOLDER,cifar10=FOLDER", show_default="ylecun/mnist, uoft-cs/cifar10"),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="How many runs are made at once, each on one core.", show_default="the number of CPUs")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of report, figures, tables and runs.")] = Path("runs/compare"),
    methods: Annotated[
        bool,
        typer.Option(
            "--methods",
            help="The published hypergradient methods, with their defaults, instead of Prodigy and so on: the paper's two rules, HDM, "
            "MetaOptimize, MARTHE, IDBD ..., beside the tuning-free one, on the workloads that it was made on.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Without a learning rate, on fifty workloads: beside tuned Adam, AdamW and SGD, with cosine decay too, Prodigy, DoG and others."""
    from ..errors import LabError
    from . import compare as room

    seeds = (1 if quick else 3) if seeds is None else seeds
    processes = os.cpu_count() or 1 if processes is None else processes
    at_least_1(seeds=seeds, processes=processes)
    if methods and judged:
        raise LabError("--methods runs on the workloads that the rule was made on, and --judged takes the others: leave one of them out")
    names, places = room.chosen(workload, family, False if methods else judged, quick), room.places_of(data)
    if methods:
        room.compare_methods(names, places, seeds, processes, output, as_json)
    else:
        room.compare(names, places, seeds, quick, processes, output, as_json)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Of an experiment or a run, finished or not.", metavar="DIR")]) -> None:
    """Write the report of an experiment again: one page, DIR/report.html, that needs no network."""
    from ..pages.report import write

    print(write(folder))


def events(root: Path, wanted: bool) -> Any:
    from ..loggers.tensorboard import Events

    return Events(root) if wanted else None


def at_least_1(**values: int) -> None:
    from ..errors import LabError

    for name, value in values.items():
        if value < 1:
            raise LabError(f"--{name} must be at least 1, got {value}")


def run() -> None:
    """Run the command line: an error the user can mend is one line on stderr and exit status 2."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        code = complain(f"{error.format_message()} (see hypergradient --help)")
    except Exception as error:
        from ..errors import LabError

        if not isinstance(error, LabError):
            raise
        code = complain(str(error))
    sys.exit(code if isinstance(code, int) else 0)
