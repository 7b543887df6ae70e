"""``hypergradient train``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import LabError
from ..loggers import Loggers
from ..runs.config import Config
from ..runs.data import load
from ..runs.engine import StoppedError, flush_denormals, split
from ..runs.models import identified
from ..runs.store import Folder
from ..runs.train import train as run_of
from ..sweeps.sweep import check
from .console import note, print_results, progress, run_progress, stderr
from .options import Flag, Json, Log, Output
from .report import write_report

#: The files of a run that are listed at its end.
FILES = ("status.json", "history.parquet", "epochs.parquet", "config.json")


def train(
    *,
    options: Annotated[Config, Parameter(name="*")] = Config(),  # noqa: B008
    config: Path | None = None,
    output: Output | None = None,
    resume: Flag = False,
    log: Log = None,
    as_json: Json = False,
) -> int:
    """Train one model with any optimizer. The defaults are the paper's settings.

    Args:
        config: TOML file with any of these options; the command line takes precedence.
        output: Folder for the run. Default: runs/DATA-MODEL-OPTIMIZER-seedN.
        resume: Resume the run in the output folder.
        log: Loggers, comma-separated: tensorboard, wandb (offline), mlflow (file store), trackio.
        as_json: Print the results as JSON to stdout, and nothing else there.
    """
    flush_denormals()
    kind = options.call.title.lower()
    folder = Folder(output or Path("runs") / f"{options.data_title}-{options.model.replace(':', '.')}-{kind}-seed{options.seed}")
    folder.check(options, resume=resume)
    with stderr.status(f"Loading {options.data}"):  # shown on terminals only
        data = load(options.data, options.device)
    options = identified(options, data)
    check([options], data, "auto")
    if resume and folder.config() is None:
        raise LabError(f"{folder.path} contains no run to resume: leave out --resume, or give that run's folder as --output")
    images = len(split(options, data)[0].train_y)
    with folder.lock(), Loggers([log or ""], folder.path) as logs:
        note(f"Training {options.model} on {images:,} images with {options.optimizer}; epochs: {options.epochs}; output: {folder.path}")
        if "weight_decay" in options.call.options.get("adapt", {}) and options.hypergrad_data == "train":
            note("Warning: weight decay adapted on the training loss drifts to its lower bound: add --hypergrad-data validation")
        try:
            with progress() as bar:
                summary, _ = run_of(options, data, folder, resume=resume, log=logs.write, watch=run_progress(bar, options))
        except StoppedError as error:
            note(f"hypergradient: {error}; add --resume to continue")
            return 130
        print_results([options], [summary], [write_report(folder.path), *(folder.path / name for name in FILES)], as_json)
    return 0
