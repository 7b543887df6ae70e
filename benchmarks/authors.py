"""Compare logistic regression on MNIST with the authors' own results, epoch by epoch.

    python -m benchmarks.authors --data ../shared/data/mnist --authors ../shared/reference/authors-epochs.csv

Trains the six optimizers at the authors' settings, for ten seeds, and writes docs/results/mnist-logreg.csv (every epoch) and
docs/results/mnist-logreg.md (the table).
"""

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

from hypergradient.lab.runs.config import TITLES, Config
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import train

from .report import machine, sentence

EPOCHS = 10
SEEDS = range(1, 11)
COLUMNS = ["optimizer", "seed", "epoch", "train_loss", "valid_loss", "valid_accuracy", "alpha"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="MNIST: a folder in the Hugging Face Parquet layout, or a Hub id")
    parser.add_argument("--authors", required=True, type=Path, help="the authors' results by epoch (authors-epochs.csv)")
    parser.add_argument("--runs", type=Path, default=Path("runs/authors"), help="where the runs lie")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="where table and data are written")
    options = parser.parse_args()

    data = load(options.data)
    ours: list[dict[str, Any]] = []
    for optimizer in TITLES:
        for seed in SEEDS:
            folder = Folder(options.runs / f"{optimizer}-{seed}")
            config = Config("MNIST", "logreg", optimizer, epochs=EPOCHS, seed=seed)
            _, history = train(config, data, folder, resume=True)
            rows = [dict(zip(history.epochs, row, strict=True)) for row in zip(*history.epochs.values(), strict=True)]
            ours += [{"optimizer": optimizer, "seed": seed, **row} for row in rows]
            print(optimizer, seed, rows[-1])

    with (options.output / "mnist-logreg.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(ours)
    with options.authors.open() as file:
        theirs = [row for row in csv.DictReader(file) if row["model"] == "logreg"]
    (options.output / "mnist-logreg.md").write_text(page(ours, theirs))


def page(ours: list[dict[str, Any]], theirs: list[dict[str, str]]) -> str:
    """The tables: the authors' figure, then ours as the median of the seeds (lowest to highest)."""
    introduction = f"""# Logistic regression on MNIST, beside the authors' results

{sentence(__doc__)}
{machine()}

Authors' settings: batch 128, α0 = 1e-3, coupled L2 1e-4, μ = 0.9, β = 1e-3 (Adam-HD: 1e-7), {EPOCHS} epochs. Training loss and α
are means over an epoch. The authors ran one seed; ours are the median of the seeds {SEEDS[0]} to {SEEDS[-1]}, and how far it is from
theirs, then seed 1 alone, the lowest and highest of all seeds, and how many seeds lie within the tolerance.

Losses and the rise of α agree. The α of a single late epoch is mostly noise, in the authors' run too (theirs for SGD-HD goes from 0.0039
in epoch 6 to 0.0007 in epoch 7 and 0.0037 in epoch 9): seeds differ by more than any factor that one run could be held to."""
    parts = [introduction]
    for title, key, their_key, epochs, form, tolerance in (
        (f"Training loss of epoch {EPOCHS}", "train_loss", "train_loss_epoch_mean", [EPOCHS], ".4f", 1.02),
        (f"Validation loss after epoch {EPOCHS}", "valid_loss", "valid_loss", [EPOCHS], ".4f", 1.03),
        ("Mean α of epoch 1", "alpha", "alpha_epoch_mean", [1], ".3g", 1.6),
        (f"Mean α of epoch {EPOCHS}", "alpha", "alpha_epoch_mean", [EPOCHS], ".3g", 1.6),
        ("Mean α of epochs 6 to 10", "alpha", "alpha_epoch_mean", range(6, 11), ".3g", 1.6),
    ):
        within = f"within x {tolerance}" if key == "alpha" else f"within {tolerance - 1:.0%}"
        head = f"| optimizer | authors | ours, median | | seed 1 | lowest | highest | {within} |"
        lines = [f"## {title}\n", head, "|---|---|---|---|---|---|---|---|"]
        for optimizer, name in TITLES.items():
            method = optimizer.replace("-", "_")
            reference = statistics.mean(float(row[their_key]) for row in theirs if row["method"] == method and int(row["epoch"]) in epochs)
            seeds = [
                statistics.mean(row[key] for row in ours if (row["optimizer"], row["seed"]) == (optimizer, seed) and row["epoch"] in epochs)
                for seed in SEEDS
            ]
            middle = statistics.median(seeds)
            off = f"x {middle / reference:.2f}" if key == "alpha" else f"{middle / reference - 1:+.1%}"
            values = (format(x, form) for x in (seeds[0], min(seeds), max(seeds)))
            near = sum(1 / tolerance < x / reference < tolerance for x in seeds)
            lines.append(f"| {name} | {reference:{form}} | {middle:{form}} | {off} | {' | '.join(values)} | {near} of {len(seeds)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
