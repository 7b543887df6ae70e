"""The paper's tuning example in small: six optimizers on two models, on digits that need no download."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..runs.config import TITLES, Config
from ..runs.data import load
from ..runs.engine import Summary
from ..runs.store import Folder
from ..runs.train import Watch, train
from .curves import model_and_data, write
from .plots import by_optimizer

#: Enough for the learning rates to find their place, and a minute on two cores at most.
DEMO_EPOCHS = 15


def configurations(seed: int, device: str) -> list[Config]:
    """Six optimizers from α_0 = 1e-3 on logistic regression, then on the ReLU network."""
    return [
        Config("digits", model, optimizer, epochs=DEMO_EPOCHS, seed=seed, device=device)
        for model in ("logreg", "mlp")
        for optimizer in TITLES
    ]


def demo(output: Path, configs: list[Config], watch: Callable[[Config], Watch], *, done: Callable[[Summary], None]) -> list[Path]:
    """Train every configuration, each in a folder of its own under ``output``, and draw the figure of them all.

    Args:
        output: where figure, tables and runs lie; what an earlier demo left there is replaced.
        configs: the runs.
        watch: gives each run the function that follows it.
        done: called with each run's summary.

    Returns:
        The files to look at: figure as PNG and PDF, the two tables, the provenance.
    """
    # Networks this small gain a fifth from a second thread, and lose tenfold where another program holds its core.
    torch.set_num_threads(1)
    runs = []
    Folder(output).start_experiment("demo", configs)
    for config in configs:
        folder = Folder(output / f"{config.model}-{config.optimizer}")
        folder.clear()
        summary, history = train(config, load(config.data, config.device), folder, watch=watch(config))
        runs.append((config, history))
        done(summary)
    return write(Folder(output), "demo", runs, column=model_and_data, look=by_optimizer)
