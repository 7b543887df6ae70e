"""Grids over any options, from a TOML file: each key is an option, each value a single value or a list; lists in calls are axes too."""

import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import LabError, first_line, validation_message
from ..runs.calls import count, expand
from ..runs.config import Config

OPTIONS = tuple(field.name for field in fields(Config) if not field.name.endswith("_digest"))

#: Larger grids need --yes.
MANY = 10_000


def options_of(file: Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options in a TOML file, by name; ``given`` takes precedence.

    Raises:
        LabError: the file is missing or not TOML, or a key is not an option, or is given twice.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        raise LabError(f"{file} cannot be read as TOML ({first_line(error)})") from None
    options: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in OPTIONS:
            raise LabError(f"{file}: unknown option {key[:100]}; the options are {', '.join(OPTIONS)}")
        if name in options:
            raise LabError(f"{file}: {name} is given twice, with - and with _: remove one")
        options[name] = value
    return options | dict(given or {})


def axes_of(file: Path, options: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each option."""
    axes = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    for name, values in axes.items():
        if not values:
            raise LabError(f"{file}: {name} is an empty list, so the grid is empty")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise LabError(f"{file}: {name} takes numbers, strings, and lists of them, got {str(value)[:100]}")
    return axes


def size(axes: Mapping[str, Sequence[Any]]) -> int:
    """The number of runs in a grid, counting duplicates, which are run once."""
    return math.prod(sum(map(count, map(str, values))) if name == "optimizer" else len(values) for name, values in axes.items())


def runs(file: Path, axes: Mapping[str, Sequence[Any]]) -> Iterator[Config]:
    """The runs of a grid without duplicates: optimizer by optimizer, in the order of the product of the other axes.

    Raises:
        LabError: a value has the wrong type or is out of range.
    """
    others = {name: values for name, values in axes.items() if name != "optimizer"}
    seen = set[Config]()
    for text in map(str, axes.get("optimizer", [Config.optimizer])):
        for call in expand(text):
            for values in itertools.product(*others.values()):
                try:
                    config = Config(**dict(zip(others, values, strict=True)), optimizer=str(call))
                except ValidationError as error:
                    raise LabError(f"{file}: {validation_message(error)}") from None
                if config not in seen:
                    seen.add(config)
                    yield config
