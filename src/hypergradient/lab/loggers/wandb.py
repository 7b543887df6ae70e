"""Weights & Biases, offline. Upload with ``wandb sync OUTPUT/wandb/offline-run-*``."""

import os
import shutil
from pathlib import Path
from typing import Any

import wandb

from ..runs.config import Config
from .base import PROJECT, Log, label, options


class Run(Log):
    """One run, with a step axis for each of its tables."""

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__(folder, config)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)  # if it cannot be written, W&B falls back to a temporary folder
        self.check_room()
        for old in folder.glob(f"offline-run-*-{config.name}"):
            shutil.rmtree(old)
        os.environ["WANDB_CACHE_DIR"] = str(folder / "cache")  # where its process writes a log
        settings = wandb.Settings(
            console="off",
            silent=True,
            symlink=False,
            use_dot_wandb=False,
            disable_code=True,
            disable_git=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self.run = wandb.init(
            project=PROJECT,
            dir=folder.parent,
            id=config.name,
            name=label(config),
            config=options(config),
            mode="offline",
            reinit="create_new",
            settings=settings,
        )
        for table in self.written:
            self.run.define_metric(f"{table}/*", step_metric=table)

    def add(self, table: str, rows: list[tuple[int, dict[str, float]]]) -> None:
        for step, values in rows:
            self.run.log({table: step, **values})
        self.check_room()

    def end(self, summary: dict[str, Any] | None) -> None:
        self.run.summary.update(summary or {})
        self.run.finish(exit_code=0 if summary else 1)
        self.check_room()

    @staticmethod
    def shut_down() -> None:
        wandb.teardown()

    def check_room(self) -> None:
        """Raise OSError on a full disk: W&B writes in a process of its own, which does not report errors."""
        probe = self.folder / "probe"
        try:
            probe.write_bytes(bytes(2**16))
        finally:
            probe.unlink(missing_ok=True)
