"""How much faster runs go together than one after the other, and than the usual loop over a DataLoader.

    python -m benchmarks.sweep --data ../shared/data/mnist

Both sides of each ratio are timed in turns, in one process; printed are medians of the turns, and their lowest and highest. Writes
docs/results/sweep-speed.md and docs/results/sweep-speed.json.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from hypergradient.lab.experiments.heatmap import VALUES
from hypergradient.lab.runs.config import Config
from hypergradient.lab.runs.data import Data, load
from hypergradient.lab.runs.engine import shuffled
from hypergradient.lab.runs.ensemble import Ensemble
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import Run, train

from .report import machine, sentence


class Pictures(Dataset[Any]):
    """MNIST as the usual loop reads it: a PIL image a sample, made a tensor and normalised in Python."""

    def __init__(self, data: Data) -> None:
        self.pictures = ((data.train_x[:, 0] * 0.3081 + 0.1307).clamp(0, 1) * 255).byte().numpy()
        self.labels = data.train_y.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = Image.fromarray(self.pictures[index])
        tensor = torch.from_numpy(np.array(picture)).unsqueeze(0).float().div(255)
        return (tensor - 0.1307) / 0.3081, self.labels[index]


def usual_epoch(data: Data) -> None:
    epoch_over(DataLoader(Pictures(data), batch_size=128, shuffle=True))


def barest_epoch(data: Data) -> None:
    """The same epoch as a loop over tensors that does nothing but train: what bounds ours."""
    epoch_over(map(data.batch, torch.split(shuffled(len(data.train_y), 1, 0), 128)))


def epoch_over(batches: Iterable[Any]) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    opt = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=1e-4)
    for x, y in batches:
        opt.zero_grad()
        cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        opt.step()


def cells(model: str, hidden: int) -> list[Config]:
    """The 36 cells of the SGD-HD heat map."""
    base = Config("MNIST", model, "sgd-hd", hidden=hidden, epochs=1)
    return [replace(base, lr=lr, hypergrad_lr=beta) for lr in VALUES for beta in VALUES]


def turns(pairs: list[tuple[Callable[[], None], Callable[[], None]]], repeats: int) -> list[float]:
    """slow / fast, of each turn."""
    ratios = []
    for _ in range(repeats):
        for slow, fast in pairs:
            seconds = []
            for work in (slow, fast):
                begun = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - begun)
            ratios.append(seconds[0] / seconds[1])
    return ratios


def together(data: Data, model: str, hidden: int, steps: int, repeats: int) -> list[float]:
    """Time of 36 runs one after the other over that of one ensemble of them."""
    configs = cells(model, hidden)
    ensemble = Ensemble(configs, data.train_x.shape[1:], data.classes)
    singles = [Run(config, data) for config in configs]
    order = shuffled(len(data.train_y), 1, 0)
    batches = [order[i * 128 : (i + 1) * 128] for i in range(steps)]

    warnings.filterwarnings("ignore", message=".*skipped a step")  # cells that diverge cost what others cost

    def one_by_one() -> None:
        for run in singles:
            for indices in batches:
                run.step(indices)

    def at_once() -> None:
        for indices in batches:
            ensemble.step(*data.batch(indices))

    return turns([(one_by_one, at_once)], repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="MNIST: a folder in the Hugging Face Parquet layout, or a Hub id")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="where table and data are written")
    options = parser.parse_args()
    data = load(options.data)

    def our_epoch() -> None:
        train(Config("MNIST", "logreg", "sgd", epochs=1), data, Folder(Path(mkdtemp())))

    rows = {
        "36 cells of the SGD-HD heat map, logistic regression: sequential / batched": together(data, "logreg", 1000, 20, 9),
        "36 cells of the SGD-HD heat map, 784-100-100-10 network: sequential / batched": together(data, "mlp", 100, 10, 9),
        "one epoch of logistic regression: loop over a DataLoader / train": turns([(lambda: usual_epoch(data), our_epoch)], 7),
        "the same: loop over a DataLoader / barest loop over tensors": turns([(lambda: usual_epoch(data), lambda: barest_epoch(data))], 7),
    }
    (options.output / "sweep-speed.json").write_text(json.dumps(rows, indent=2) + "\n")
    lines = ["# Speed of sweeps", "", sentence(__doc__), machine(), "", "| | ratio, median | lowest | highest |", "|---|---|---|---|"]
    for name, ratios in rows.items():
        lines.append(f"| {name} | {statistics.median(ratios):.1f} | {min(ratios):.1f} | {max(ratios):.1f} |")
    lines += [
        "",
        "`train` also validates, keeps loss and α of every iteration, and writes the run; the barest loop is what torch itself takes for",
        "469 steps this small, so it bounds the ratio. An earlier run on a busier machine gave 20.3 (16.8 to 27.0) for `train`.",
    ]
    (options.output / "sweep-speed.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
