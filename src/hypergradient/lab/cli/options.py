"""Options that commands share, each with its type, its range and its words."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from ..errors import LabError, first_line
from ..loggers import NAMES, check
from ..runs.config import Count, Device, Hidden, Text, number
from ..sweeps.sweep import Engine


def folder_of(path: Path) -> Path:
    if path == Path():
        raise LabError("--output names no folder: give one, such as runs/mine")
    try:
        path.exists()
    except OSError as error:
        raise LabError(f"--output {path} cannot be a folder ({first_line(error)}): give another") from None
    return path


def named(log: str | None) -> str | None:
    """The loggers that are named, with commas."""
    if log is not None and not check([log]):
        raise LabError(f"--log {log} names none: leave it out, or give {', '.join(NAMES)}")
    return log


Output = Annotated[Path, AfterValidator(folder_of)]
Log = Annotated[str | None, AfterValidator(named)]
Flag = Annotated[bool, Parameter(show_default=False)]
Json = Annotated[bool, Parameter(name="--json", show_default=False)]
Seeds = Annotated[int, Field(ge=1, le=10_000), Parameter(converter=number)]


@Parameter(name="*")
@dataclass(frozen=True)
class Making:
    """How runs are made.

    Args:
        engine: auto; batched, runs that differ only in numbers as one program; sequential; or ray.
        address: Of a Ray cluster, or auto. Default: one is started here.
        log: Loggers, with commas: tensorboard, wandb (offline), mlflow (file store), trackio.
        yes: Make more than 10,000 runs without being asked.
        as_json: Print the summary as JSON, for machines, and nothing else on stdout.
    """

    engine: Engine = "auto"
    address: Text | None = None
    log: Log = None
    yes: Flag = False
    as_json: Json = False


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """What all runs of an experiment have in common.

    Args:
        batch_size: Images a step.
        limit: Train and validate on the first so many images. Default: all.
        device: Where torch computes: cpu, cuda, cuda:1, mps.
        hidden: Width of mlp's two hidden layers.
    """

    batch_size: Count = 128
    limit: Count | None = None
    device: Device = "cpu"
    hidden: Hidden = 1000


#: Their defaults.
MAKING, TRAINING = Making(), Training()

Level = Literal["additive", "multiplicative", "both"]
