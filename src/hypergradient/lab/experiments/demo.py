"""The paper's tuning example in small: six optimizers on two models, on digits that need no download."""

from collections.abc import Sequence
from pathlib import Path

from ..runs.config import PAPER, Config, paper
from ..runs.store import Folder
from .curves import write
from .run import run_of

#: Enough for the learning rates to find their place, and a minute on two cores at most.
EPOCHS = 15


def configurations(seed: int, device: str) -> list[Config]:
    """Six optimizers from α_0 = 1e-3 on logistic regression, then on the ReLU network."""
    models = ("logreg", "mlp")
    return [Config("digits", model, paper(title), epochs=EPOCHS, seed=seed, device=device) for model in models for title in PAPER]


def folder_of(root: Path, config: Config) -> Folder:
    """Where a run of the demo lies."""
    return Folder(root / f"{config.model}-{config.call.title.lower()}")


def draw(folder: Folder, configs: Sequence[Config]) -> list[Path]:
    """The figure of them all, and the tables behind it; returns the files."""
    places = [(config, folder_of(folder.path, config)) for config in configs]
    return write(folder, "demo", [run_of(config.as_dict(), own.path, own.summary()) for config, own in places])
