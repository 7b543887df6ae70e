"""Does the initial learning rate matter to SGD-HD? Logistic regression on MNIST from five of them, one of which is 0.

    python -m benchmarks.initial_lr --data ../shared/data/mnist

Writes docs/results/initial-lr.csv (every epoch) and docs/results/initial-lr.md (the table).
"""

from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]

from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.data import load

from .kept import histories
from .report import command, page, table, write

LRS = (1e-3, 1e-4, 1e-5, 1e-6, 0.0)
EPOCHS = 10
BETA = 1e-4


def main(*, data: str, runs: Path = Path("runs/initial-lr"), output: Path = Path("docs/results")) -> None:
    """
    Args:
        data: MNIST: a folder in the Hugging Face Parquet layout, or a Hub id
        runs: folder of the runs
        output: folder for table and data
    """
    cells = [(title, lr) for title in ("SGD", "SGD-HD") for lr in LRS]
    configs = [Config(data, "logreg", paper(title, lr, BETA), epochs=EPOCHS) for title, lr in cells]
    found = zip(cells, histories(configs, load(data), runs), strict=True)
    rows = pd.concat([pd.DataFrame({"optimizer": title.lower(), "lr": lr, **history.epochs}) for (title, lr), history in found])
    write(output / "initial-lr.csv", rows.to_csv(index=False))
    write(output / "initial-lr.md", text(rows))


def text(rows: pd.DataFrame) -> str:
    """The page."""
    last = rows[rows.epoch == EPOCHS].set_index(["optimizer", "lr"])
    sgd, hd = last.loc["sgd"], last.loc["sgd-hd"]
    lines = [
        [f"{lr:g}", *(f"{own[name][lr]:.4f}" for own in (sgd, hd) for name in ("train_loss", "valid_loss")), f"{hd.alpha[lr]:.4g}"]
        for lr in LRS
    ]
    heads = ["α0", "SGD: training loss", "SGD: validation loss", "SGD-HD: training loss", "SGD-HD: validation loss", "SGD-HD: mean α"]
    apart = hd.train_loss.max() / hd.train_loss.min() - 1
    return page("initial-lr.md", __doc__, beta=BETA, epochs=EPOCHS, apart=apart, table=table(heads, lines))


if __name__ == "__main__":
    command(main)
