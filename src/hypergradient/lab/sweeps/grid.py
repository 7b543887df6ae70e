"""Any grid over any option, from a TOML file: each key an option, each value a number or text, or a list of them."""

import csv
import io
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import LabError, first_line
from ..runs.config import HYPERGRAD_LR, Config
from ..runs.engine import Summary
from ..runs.store import Folder

#: Options that have no meaning for a baseline, and without levels above the first.
LEVELLED = ("level", "level_lr")
ADAPTING = ("hypergrad_lr", "rule", "height", "adapt", "hypergrad_data", *LEVELLED)

OPTIONS = {field.name: field for field in fields(Config)}


def read(file: Path, given: Mapping[str, Any]) -> list[Config]:
    """The runs of a grid, in the order of its product. Options without a meaning for a run, such as a baseline's hypergrad_lr, are left out
    of it, so that it is trained once.

    Args:
        file: the grid.
        given: options that stand instead of the grid's.

    Raises:
        LabError: the file is missing or no TOML, a key is no option, a list is empty, or a value has the wrong type or range.
    """
    try:
        table = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LabError(f"{file} cannot be read as TOML ({first_line(error)})") from None
    options = {name.replace("-", "_"): value for name, value in table.items()} | dict(given)
    axes = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    for name, values in axes.items():
        if name not in OPTIONS:
            raise LabError(f"{file}: there is no option {name}; options are {', '.join(OPTIONS)}")
        if not values:
            raise LabError(f"{file}: {name} has no values, so the grid is empty")
        for value in values:
            check_type(file, name, value)
    configs = [config_of(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    return list(dict.fromkeys(configs))


def check_type(file: Path, name: str, value: Any) -> None:
    """Raise LabError where a value is not of the option's type; whole numbers serve as numbers."""
    allowed = str(OPTIONS[name].type)
    if allowed == "bool" and isinstance(value, bool):
        return
    kinds = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
    accepted = next(kind for word, kind in kinds.items() if word in allowed)
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise LabError(f"{file}: {name} takes {accepted[-1].__name__} values, got {value!r}")


def config_of(options: dict[str, Any]) -> Config:
    idle: tuple[str, ...] = ()
    if options.get("optimizer", Config.optimizer) not in HYPERGRAD_LR:
        idle = ADAPTING
    elif options.get("height", Config.height) == 1:
        idle = LEVELLED
    return Config(**{name: value for name, value in options.items() if name not in idle})


def write(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    return [write_csv(folder, configs, summaries)]


def write_csv(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> Path:
    """sweep.csv: one row a run, its options and how it ended."""
    text = io.StringIO()
    rows = [config.as_dict() | summary.as_dict() | {"epochs": config.epochs} for config, summary in zip(configs, summaries, strict=True)]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    folder.write("sweep.csv", lambda file: file.write_text(text.getvalue()))
    return folder.path / "sweep.csv"
