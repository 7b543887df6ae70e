"""trackio, locally. View it with ``TRACKIO_DIR=OUTPUT/trackio trackio show``."""

from pathlib import Path
from typing import Any

from trackio import sqlite_storage, utils
from trackio.sqlite_storage import SQLiteStorage

from ..runs.config import Config
from .base import PROJECT, Log, label, options


class Run(Log):
    """One run in trackio's database.

    It is written in this thread: ``trackio.init`` starts a thread of its own, whose errors are warnings, and checks for a login.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__(folder, config)
        self.folder, self.name, self.label, self.options = folder, config.name, label(config), options(config)
        folder.mkdir(parents=True, exist_ok=True)
        self.enter()
        SQLiteStorage.delete_run(PROJECT, self.label, run_id=self.name)
        if SQLiteStorage.get_log_count(PROJECT, self.label, run_id=self.name):
            raise OSError("the run of an earlier process cannot be removed")

    def add(self, table: str, rows: list[tuple[int, dict[str, float]]]) -> None:
        self.enter()
        steps, values = [step for step, _ in rows], [values for _, values in rows]
        SQLiteStorage.bulk_log(PROJECT, self.label, values, steps, config=self.options, run_id=self.name)

    def end(self, summary: dict[str, Any] | None) -> None:
        if summary is not None:
            numbers = {f"summary/{name}": value for name, value in summary.items() if isinstance(value, int | float)}
            self.options |= numbers | {"status": summary["status"]}
            self.add("summary", [(summary["iterations"], numbers)])

    def enter(self) -> None:
        """Point trackio at this folder: it has one per process, set at import."""
        sqlite_storage.TRACKIO_DIR = utils.TRACKIO_DIR = self.folder  # type: ignore[attr-defined]
