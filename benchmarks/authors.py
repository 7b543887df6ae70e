"""Logistic regression on MNIST, compared with the authors' own results epoch by epoch.

    python -m benchmarks.authors --data ../shared/data/mnist --authors ../shared/reference/authors-epochs.csv

Trains the six optimizers with the authors' settings and ten seeds, and writes docs/results/mnist-logreg.csv (every epoch) and
docs/results/mnist-logreg.md (the table).
"""

from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]

from hypergradient.lab.runs.config import PAPER, Config, paper
from hypergradient.lab.runs.data import load

from .kept import histories
from .report import command, page, table, write

EPOCHS = 10
SEEDS = range(1, 11)

#: By title: our column and theirs, the epochs to average over, the number format, and the tolerance as a factor.
COMPARED = {
    "Training loss of epoch 10": ("train_loss", "train_loss_epoch_mean", [10], ".4f", 1.02),
    "Validation loss after epoch 10": ("valid_loss", "valid_loss", [10], ".4f", 1.03),
    "Mean α of epoch 1": ("alpha", "alpha_epoch_mean", [1], ".3g", 1.6),
    "Mean α of epoch 10": ("alpha", "alpha_epoch_mean", [10], ".3g", 1.6),
    "Mean α of epochs 6 to 10": ("alpha", "alpha_epoch_mean", range(6, 11), ".3g", 1.6),
}


def main(*, data: str, authors: Path, runs: Path = Path("runs/authors"), output: Path = Path("docs/results")) -> None:
    """
    Args:
        data: MNIST: a folder in the Hugging Face Parquet layout, or a Hub id
        authors: the authors' results by epoch (authors-epochs.csv)
        runs: folder of the runs
        output: folder for table and data
    """
    cells = [(title, seed) for title in PAPER for seed in SEEDS]
    configs = [Config(data, "logreg", paper(title), epochs=EPOCHS, seed=seed) for title, seed in cells]
    found = zip(cells, histories(configs, load(data), runs), strict=True)
    ours = pd.concat([pd.DataFrame({"optimizer": title.lower(), "seed": seed, **history.epochs}) for (title, seed), history in found])
    write(output / "mnist-logreg.csv", ours.to_csv(index=False))
    write(output / "mnist-logreg.md", text(ours, pd.read_csv(authors)))


def text(ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """The page: the authors' value, our median over the seeds, and their range."""
    theirs, tables = theirs[theirs.model == "logreg"], {}
    for title, (key, their_key, epochs, form, tolerance) in COMPARED.items():
        lines = []
        for name in PAPER:
            own = ours[(ours.optimizer == name.lower()) & ours.epoch.isin(epochs)].groupby("seed")[key].mean()
            reference = theirs[(theirs.method == name.lower().replace("-", "_")) & theirs.epoch.isin(epochs)][their_key].mean()
            middle = own.median()
            off = f"×{middle / reference:.2f}" if key == "alpha" else f"{middle / reference - 1:+.1%}"
            near = ((own / reference > 1 / tolerance) & (own / reference < tolerance)).sum()
            values = [format(x, form) for x in (reference, middle, own.iloc[0], own.min(), own.max())]
            lines.append([name, *values[:2], off, *values[2:], f"{near} of {len(own)}"])
        within = f"within ×{tolerance}" if key == "alpha" else f"within {tolerance - 1:.0%}"
        tables[title] = table(["optimizer", "authors", "ours, median", "difference", "ours, seed 1", "lowest", "highest", within], lines)
    return page("mnist-logreg.md", __doc__, epochs=EPOCHS, seeds=SEEDS, tables=tables)


if __name__ == "__main__":
    command(main)
