"""What can be seen in a minute, on digits that need no download: the flat figure, and the paper's tuning example in small."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..runs.config import PAPER, Config, paper
from ..runs.engine import Summary
from ..runs.store import Folder
from . import curves, flat
from .run import runs_of

#: Enough for the learning rates to find their place, and a minute on two cores at most.
EPOCHS = 15

#: The learning rate that the paper's six optimizers start from.
LR = 1e-3


def configurations(seed: int, device: str) -> list[Config]:
    """The runs of the flat figure; and six optimizers from one learning rate on logistic regression, then on the ReLU network."""
    base = Config("digits", epochs=EPOCHS, seed=seed, device=device)
    six = [replace(base, model=model, optimizer=paper(title, LR)) for model in ("logreg", "mlp") for title in PAPER]
    return [*six, *flat.configurations(base)]


def write(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    """Both figures, and the tables behind them; returns the files."""
    runs = runs_of(folder, configs, summaries)
    return [*flat.write(folder, runs), *curves.write(folder, "demo", [run for run in runs if not flat.belongs(run)], runs)]
