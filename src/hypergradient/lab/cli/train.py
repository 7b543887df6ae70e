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
from .options import Flag, Json, Log, Output
from .report import write_report
from .talk import follow, note, notes, progress, tell

#: The files of a run that are worth a look.
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
    """Train one model. The defaults are the paper's settings.

    Args:
        config: A TOML file of the options above; those that are given stand instead of the file's.
        output: Folder of the run. Default: runs/DATA-MODEL-OPTIMIZER-seedN.
        resume: Go on with the run in the output folder.
        log: Loggers, with commas: tensorboard, wandb (offline), mlflow (file store), trackio.
        as_json: Print the summary as JSON, for machines, and nothing else on stdout.
    """
    flush_denormals()
    kind = options.call.title.lower()
    folder = Folder(output or Path("runs") / f"{options.data_title}-{options.model.replace(':', '.')}-{kind}-seed{options.seed}")
    folder.check(options, resume=resume)
    with notes.status(f"Loading {options.data}"):  # seen on a terminal only
        data = load(options.data, options.device)
    options = identified(options, data)
    check([options], data, "auto")
    if resume and folder.config() is None:
        raise LabError(f"{folder.path} holds no run to resume: leave --resume out, or give the --output of one")
    images = len(split(options, data)[0].train_y)
    with folder.lock(), Loggers([log or ""], folder.path) as logs:
        note(f"Training {options.model} with {options.optimizer} on {images:,} images for {options.epochs} epochs, into {folder.path}")
        if "weight_decay" in options.call.options.get("adapt", {}) and options.hypergrad_data == "train":
            note("Weight decay that follows the training loss drifts to its lower bound: add --hypergrad-data validation")
        try:
            with progress() as bar:
                summary, _ = run_of(options, data, folder, resume=resume, log=logs.write, watch=follow(bar, options))
        except StoppedError as error:
            note(f"hypergradient: {error}; add --resume to go on with it")
            return 130
        tell([options], [summary], [write_report(folder.path), *(folder.path / name for name in FILES)], as_json)
    return 0
