"""MLflow's file store. View it with ``MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri OUTPUT/mlflow`` (needs full MLflow)."""

import shutil
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from ..runs.config import Config
from .base import PROJECT, Log, label, options

#: The tag with a run's name; MLflow chooses ids itself.
TAG = "hypergradient.run"


class Run(Log):
    """One run, with the configuration as its parameters and the summary as tags."""

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__(folder, config)
        for tag in folder.glob(f"*/*/tags/{TAG}"):  # MLflow's search reads every value of every run, and its delete keeps the files
            if tag.read_text() == config.name:
                shutil.rmtree(tag.parents[1])
        self.client = MlflowClient(folder.as_uri())
        experiment = self.client.get_experiment_by_name(PROJECT)
        place = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        self.run = self.client.create_run(place, run_name=label(config), tags={TAG: config.name}).info.run_id
        self.client.log_batch(self.run, params=[Param(name, str(value)) for name, value in options(config).items()])

    def add(self, table: str, rows: list[tuple[int, dict[str, float]]]) -> None:
        now = time.time_ns() // 1_000_000
        self.client.log_batch(self.run, [Metric(name, value, now, step) for step, values in rows for name, value in values.items()])

    def end(self, summary: dict[str, Any] | None) -> None:
        self.client.log_batch(self.run, tags=[RunTag(name, str(value)) for name, value in (summary or {}).items()])
        self.client.set_terminated(self.run, "FINISHED" if summary else "KILLED")
