"""A minute on digits, without download: the figure of ``flat``, and a small version of the paper's tuning example."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..runs.config import PAPER, Config, paper
from ..runs.engine import Summary
from ..runs.store import Folder
from . import curves, flat
from .run import runs_of

#: Enough for the learning rates to settle, and under a minute on one core.
EPOCHS = 15

#: The initial learning rate of the paper's six optimizers.
LR = 1e-3


def configurations(seed: int, device: str) -> list[Config]:
    """Six optimizers from one learning rate, on logistic regression and on the ReLU network; and the runs of ``flat``."""
    base = Config("digits", epochs=EPOCHS, seed=seed, device=device)
    six = [replace(base, model=model, optimizer=paper(title, LR)) for model in ("logreg", "mlp") for title in PAPER]
    return [*six, *flat.configurations(base)]


def write(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    """Write both figures and their tables; returns the files."""
    runs = runs_of(folder, configs, summaries)
    return [*flat.write(folder, runs), *curves.write(folder, "demo", [run for run in runs if not flat.belongs(run)], runs)]
