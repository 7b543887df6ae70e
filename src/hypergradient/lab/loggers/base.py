"""What every logger is: one run's history, as one package keeps it."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ..runs.config import Config, flat
from ..runs.engine import Saved

#: What the packages call all runs of the lab together.
PROJECT = "hypergradient"


class Log(ABC):
    """One run in a package's files.

    It takes the place of what earlier processes wrote of that run: so the log is whole, and holds nothing twice, however often the run was
    stopped.

    Args:
        folder: the package's own, absolute.
        config: of the run.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.written = {"iteration": 0, "epoch": 0}

    def write(self, saved: Saved) -> None:
        """Add what is new in the run's history, and its summary where it has ended."""
        for table, columns in (("iteration", saved.history.iterations), ("epoch", saved.history.epochs)):
            self.add(table, rows(table, columns, self.written[table]))
            self.written[table] = len(columns[table])
        if saved.summary is not None:
            self.end(saved.summary.as_dict())

    @abstractmethod
    def add(self, table: str, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Write rows of a table, "iteration" or "epoch": the number that counts, and the values by their names."""

    @abstractmethod
    def end(self, summary: dict[str, Any] | None) -> None:
        """Write how the run ended, None where it was stopped, and close what is open."""

    @staticmethod  # noqa: B027
    def leave() -> None:
        """End what the package has left running, now that no run is open."""


def rows(table: str, columns: dict[str, list], since: int) -> list[tuple[int, dict[str, float]]]:
    """The rows of a table from the one numbered ``since``, without columns that count and values that are null."""
    names = [name for name in columns if name not in ("iteration", "epoch")]
    values = zip(*(columns[name][since:] for name in (table, *names)), strict=True)
    titles = [f"{table}/{name}" for name in names]
    return [(step, {title: value for title, value in zip(titles, row, strict=True) if value is not None}) for step, *row in values]


def label(config: Config) -> str:
    """A name that tells a run's options, can be a folder's, and is no other run's."""
    call = config.call
    options = [config.model.replace(":", "."), call.title]
    if isinstance(lr := call.options.get("lr"), int | float):
        options.append(f"lr{lr:g}")
    if call.adapts:
        options += [*([] if call.beta is None else [f"beta{call.beta:g}"]), call.style]
    return "-".join([*options, f"seed{config.seed}", config.name[:6]])


def options(config: Config) -> dict[str, Any]:
    """The configuration as columns of a table of runs, the optimizer's own options among them, and its call."""
    found = {**flat(config.as_dict()), "call": config.optimizer}
    return {name: value for name, value in found.items() if value is not None}
