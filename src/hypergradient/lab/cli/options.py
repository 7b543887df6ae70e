"""Options shared by several commands, with their types, ranges and help texts."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from ..errors import LabError, first_line
from ..loggers import NAMES, check
from ..runs.config import Count, Device, Hidden, Text, number
from ..sweeps.sweep import Engine


def output_folder(path: Path) -> Path:
    if path == Path():
        raise LabError("--output is empty: give a folder, such as runs/mine")
    try:
        path.exists()
    except OSError as error:
        raise LabError(f"--output {path} cannot be used as a folder ({first_line(error)}): choose another") from None
    return path


def logger_names(log: str | None) -> str | None:
    """The value of ``--log``, once its names are checked."""
    if log is not None and not check([log]):
        raise LabError(f"--log {log} names no logger: choose from {', '.join(NAMES)}, or leave it out")
    return log


Output = Annotated[Path, AfterValidator(output_folder)]
Log = Annotated[str | None, AfterValidator(logger_names)]
Flag = Annotated[bool, Parameter(show_default=False)]
Json = Annotated[bool, Parameter(name="--json", show_default=False)]
Seeds = Annotated[int, Field(ge=1, le=10_000), Parameter(converter=number)]


@Parameter(name="*")
@dataclass(frozen=True)
class Making:
    """How the runs are executed.

    Args:
        engine: auto; batched: train runs that differ only in hyperparameters as one program; sequential; or ray.
        address: Address of a Ray cluster, or auto. Default: start one on this machine.
        log: Loggers, comma-separated: tensorboard, wandb (offline), mlflow (file store), trackio.
        yes: Start even if there are more than 10,000 runs.
        as_json: Print the results as JSON to stdout, and nothing else there.
    """

    engine: Engine = "auto"
    address: Text | None = None
    log: Log = None
    yes: Flag = False
    as_json: Json = False


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """Training options common to all runs of an experiment.

    Args:
        batch_size: Minibatch size.
        limit: Use only the first N training and the first N validation images. Default: all.
        device: Torch device: cpu, cuda, cuda:1, mps.
        hidden: Width of the two hidden layers of mlp.
    """

    batch_size: Count = 128
    limit: Count | None = None
    device: Device = "cpu"
    hidden: Hidden = 1000


#: The default values.
MAKING, TRAINING = Making(), Training()

Level = Literal["additive", "multiplicative", "both"]
