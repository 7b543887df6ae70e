"""Event files for TensorBoard: ``tensorboard --logdir DIR``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Config

if TYPE_CHECKING:
    from .train import Saved


class Events:
    """Writes the histories of runs as scalars, each run in a folder of its own under ``root/tensorboard``, named by its options.

    A run's events are written anew in each process, so they are whole however often it was stopped.
    """

    def __init__(self, root: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second, so not before it is asked for

        self.open = SummaryWriter
        self.root = root / "tensorboard"
        self.writers: dict[str, SummaryWriter] = {}
        self.written: dict[str, tuple[int, int]] = {}

    def write(self, saved: "Saved") -> None:
        """Add what is new in the run's history."""
        name = saved.config.name
        if name not in self.writers:
            folder = self.root / label(saved.config)
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            self.writers[name] = self.open(str(folder))
            self.writers[name].add_text("configuration", f"```\n{json.dumps(saved.config.as_dict(), indent=2)}\n```")
            self.written[name] = (0, 0)
        writer, (iterations, epochs) = self.writers[name], self.written[name]
        for columns, since, x in ((saved.history.iterations, iterations, "iteration"), (saved.history.epochs, epochs, "epoch")):
            for column, values in columns.items():
                if column in ("iteration", "epoch"):
                    continue
                for step, value in zip(columns[x][since:], values[since:], strict=True):
                    if value is not None:
                        writer.add_scalar(f"{x}/{column}", value, step)
        self.written[name] = (len(saved.history.iterations["loss"]), len(saved.history.epochs["epoch"]))
        writer.flush()
        if saved.summary is not None:
            writer.close()


def label(config: Config) -> str:
    """A folder's name that tells a run's options, and is no other run's."""
    options = [config.model.replace(":", "."), config.optimizer, f"lr{config.lr:g}"]
    if config.adapts:
        options += [f"beta{config.hypergrad_lr:g}", config.rule]
    return "-".join([*options, f"seed{config.seed}", config.name[:6]])
