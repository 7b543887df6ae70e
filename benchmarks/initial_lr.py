"""Does the initial learning rate matter to SGD-HD? Logistic regression on MNIST from five of them, one of them 0.

    python -m benchmarks.initial_lr --data ../shared/data/mnist

Writes docs/results/initial-lr.csv (every epoch) and docs/results/initial-lr.md (the table).
"""

import argparse
import csv
from pathlib import Path

from hypergradient.lab.runs.config import Config
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import train

from .report import machine, sentence

LRS = (1e-3, 1e-4, 1e-5, 1e-6, 0.0)
EPOCHS = 10
BETA = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="MNIST: a folder in the Hugging Face Parquet layout, or a Hub id")
    parser.add_argument("--runs", type=Path, default=Path("runs/initial-lr"), help="where the runs lie")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="where table and data are written")
    options = parser.parse_args()

    data = load(options.data)
    rows, final = [], {}
    for optimizer in ("sgd", "sgd-hd"):
        for lr in LRS:
            beta = BETA if optimizer == "sgd-hd" else None
            config = Config("MNIST", "logreg", optimizer, lr, beta, epochs=EPOCHS)
            _, history = train(config, data, Folder(options.runs / f"{optimizer}-{lr:g}"), resume=True)
            columns = history.epochs
            rows += [(optimizer, lr, *row) for row in zip(*columns.values(), strict=True)]
            final[optimizer, lr] = (columns["train_loss"][-1], columns["valid_loss"][-1], columns["alpha"][-1])
            print(optimizer, lr, final[optimizer, lr])

    with (options.output / "initial-lr.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("optimizer", "lr", *columns), *rows])
    losses = [final["sgd-hd", lr][0] for lr in LRS]
    lines = [
        "# SGD-HD from five initial learning rates",
        "",
        sentence(__doc__),
        "",
        f"Logistic regression on MNIST, batch 128, L2 1e-4, β = {BETA:g}, {EPOCHS} epochs, seed 1; training loss and α are means over the",
        f"last epoch. {machine()}",
        "",
        "| α0 | SGD: train loss | valid loss | SGD-HD: train loss | valid loss | mean α |",
        "|---|---|---|---|---|---|",
    ]
    for lr in LRS:
        sgd, hd = final["sgd", lr], final["sgd-hd", lr]
        lines.append(f"| {lr:g} | {sgd[0]:.4f} | {sgd[1]:.4f} | {hd[0]:.4f} | {hd[1]:.4f} | {hd[2]:.4g} |")
    lines += ["", f"The final training losses of SGD-HD lie within {max(losses) / min(losses) - 1:.3%} of each other.", ""]
    (options.output / "initial-lr.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
