"""Any grid over any option, from a TOML file: each key an option, each value one or a list; in the optimizer's calls too."""

import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import LabError, first_line, told
from ..runs.calls import count, expand
from ..runs.config import Config

OPTIONS = tuple(field.name for field in fields(Config) if not field.name.endswith("_digest"))

#: Runs up to which nobody is asked.
MANY = 10_000


def options_of(file: Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options that a TOML file gives, by their names; those that are given stand instead of the file's.

    Raises:
        LabError: the file is missing or no TOML, or a key is no option, or there twice.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        raise LabError(f"{file} cannot be read as TOML ({first_line(error)})") from None
    options: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in OPTIONS:
            raise LabError(f"{file}: there is no option {key[:100]}; options are {', '.join(OPTIONS)}")
        if name in options:
            raise LabError(f"{file}: {name} is there twice, with - and with _: leave one out")
        options[name] = value
    return options | dict(given or {})


def axes_of(file: Path, options: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each option."""
    axes = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    for name, values in axes.items():
        if not values:
            raise LabError(f"{file}: {name} has no values, so the grid is empty")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise LabError(f"{file}: {name} takes numbers, texts, and lists of them, got {str(value)[:100]}")
    return axes


def size(axes: Mapping[str, Sequence[Any]]) -> int:
    """How many runs a grid has at most: those that come twice are made once."""
    return math.prod(sum(map(count, map(str, values))) if name == "optimizer" else len(values) for name, values in axes.items())


def runs(file: Path, axes: Mapping[str, Sequence[Any]]) -> Iterator[Config]:
    """The runs of a grid, each once: optimizer by optimizer, in the order of the product of the other axes.

    Raises:
        LabError: a value has the wrong type or range.
    """
    others = {name: values for name, values in axes.items() if name != "optimizer"}
    seen = set[Config]()
    for text in map(str, axes.get("optimizer", [Config.optimizer])):
        for call in expand(text):
            for values in itertools.product(*others.values()):
                try:
                    config = Config(**dict(zip(others, values, strict=True)), optimizer=str(call))
                except ValidationError as error:
                    raise LabError(f"{file}: {told(error)}") from None
                if config not in seen:
                    seen.add(config)
                    yield config
