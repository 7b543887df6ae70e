"""The base class of loggers: one run's history, in one package's format."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ..runs.config import Config, flat
from ..runs.engine import Snapshot

#: The project name under which the packages file the lab's runs.
PROJECT = "hypergradient"


class Log(ABC):
    """One run in a package's files.

    It replaces what earlier processes wrote about the run, so the log is complete and free of duplicates however often the run was
    stopped.

    Args:
        folder: the package's folder, absolute.
        config: the run's configuration.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.written = {"iteration": 0, "epoch": 0}

    def write(self, saved: Snapshot) -> None:
        """Log what is new in the run's history, and the summary of a finished run."""
        for table, columns in (("iteration", saved.history.iterations), ("epoch", saved.history.epochs)):
            self.add(table, rows(table, columns, self.written[table]))
            self.written[table] = len(columns[table])
        if saved.summary is not None:
            self.end(saved.summary.as_dict())

    @abstractmethod
    def add(self, table: str, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Write rows of the table "iteration" or "epoch": the step, and the values by name."""

    @abstractmethod
    def end(self, summary: dict[str, Any] | None) -> None:
        """Write the summary (None for a stopped run) and close the log."""

    @staticmethod  # noqa: B027
    def shut_down() -> None:
        """Stop what the package leaves running, once no run is open."""


def rows(table: str, columns: dict[str, list], since: int) -> list[tuple[int, dict[str, float]]]:
    """The rows of a table from index ``since``, without step columns and null values."""
    names = [name for name in columns if name not in ("iteration", "epoch")]
    values = zip(*(columns[name][since:] for name in (table, *names)), strict=True)
    titles = [f"{table}/{name}" for name in names]
    return [(step, {title: value for title, value in zip(titles, row, strict=True) if value is not None}) for step, *row in values]


def label(config: Config) -> str:
    """A unique, readable name of a run, valid as a folder name."""
    call = config.call
    options = [config.model.replace(":", "."), call.title]
    if isinstance(lr := call.options.get("lr"), int | float):
        options.append(f"lr{lr:g}")
    if call.adapts:
        options += [*([] if call.beta is None else [f"beta{call.beta:g}"]), call.style]
    return "-".join([*options, f"seed{config.seed}", config.name[:6]])


def options(config: Config) -> dict[str, Any]:
    """The configuration as flat options, with the optimizer's arguments and its call."""
    found = {**flat(config.as_dict()), "call": config.optimizer}
    return {name: value for name, value in found.items() if value is not None}
