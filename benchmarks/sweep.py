"""The speedup of training runs together instead of one after the other, and of ``train`` over the usual DataLoader loop.

    python -m benchmarks.sweep --data ../shared/data/mnist

Both sides of each ratio are timed in turns in one process; the table has the median, lowest and highest ratio. Writes
docs/results/sweep-speed.md and docs/results/sweep-speed.json.
"""

import statistics
import warnings
from collections.abc import Iterable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from hypergradient.lab.experiments.heatmap import VALUES
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.data import Data, load
from hypergradient.lab.runs.engine import shuffled
from hypergradient.lab.runs.ensemble import Ensemble
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import Run, train

from .report import command, page, table, write
from .timing import Step, interleaved


class Pictures(Dataset[Any]):
    """MNIST as the usual loop reads it: one PIL image per sample, converted to a tensor and normalised in Python."""

    def __init__(self, data: Data) -> None:
        self.pictures = ((data.train_x[:, 0] * 0.3081 + 0.1307).clamp(0, 1) * 255).byte().numpy()
        self.labels = data.train_y.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        tensor = torch.from_numpy(np.array(Image.fromarray(self.pictures[index]))).unsqueeze(0).float().div(255)
        return (tensor - 0.1307) / 0.3081, self.labels[index]


def epoch(batches: Iterable[Any], pixels: int) -> None:
    """The minimal training loop."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, 10))
    opt = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=1e-4)
    for x, y in batches:
        opt.zero_grad()
        cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        opt.step()


def ratios(slow: Step, fast: Step, turns: int) -> list[float]:
    """The ratio of both times in each turn."""
    seconds = interleaved({"slow": slow, "fast": fast}, turns, warm=0)
    return [a / b for a, b in zip(*seconds.values(), strict=True)]


def together(data: Data, model: str, hidden: int, steps: int) -> tuple[Step, Step]:
    """The 36 cells of the SGD-HD heat map, trained one after the other, and as one ensemble."""
    configs = [Config("MNIST", model, paper("SGD-HD", lr, beta), hidden=hidden, epochs=1) for lr in VALUES for beta in VALUES]
    ensemble = Ensemble(configs, data.train_x.shape[1:], data.classes)
    singles = [Run(config, data) for config in configs]
    batches = torch.split(shuffled(len(data.train_y), 1, 0), 128)[:steps]
    return (
        lambda: [run.step(indices) for run in singles for indices in batches],
        lambda: [ensemble.step(*data.batch(indices)) for indices in batches],
    )


def main(*, data: str, turns: int = 9, output: Path = Path("docs/results")) -> None:
    """
    Args:
        data: MNIST: a folder in the Hugging Face Parquet layout, or a Hub id
        turns: number of turns
        output: folder for table and data
    """
    warnings.filterwarnings("ignore", message=".*skipped a step")  # diverged cells take as long as others
    own = load(data)
    pixels, loader = own.train_x[0].numel(), DataLoader(Pictures(own), batch_size=128, shuffle=True)
    usual, config = lambda: epoch(loader, pixels), Config(data, "logreg", paper("SGD"), epochs=1)
    order = torch.split(shuffled(len(own.train_y), 1, 0), 128)
    cells = "36 cells of the SGD-HD heat map"
    rows = {
        f"{cells}, logistic regression: sequential / batched": ratios(*together(own, "logreg", 1000, 20), turns),
        f"{cells}, 784-100-100-10 network: sequential / batched": ratios(*together(own, "mlp", 100, 10), turns),
        "one epoch of logistic regression: loop over a DataLoader / train": ratios(
            usual, lambda: train(config, own, Folder(Path(mkdtemp()))), turns
        ),
        "the same: loop over a DataLoader / minimal loop over tensors": ratios(usual, lambda: epoch(map(own.batch, order), pixels), turns),
    }
    lines = [[name, *(f"{kind(found):.1f}" for kind in (statistics.median, min, max))] for name, found in rows.items()]
    text = page("sweep-speed.md", __doc__, table=table(["", "ratio, median", "lowest", "highest"], lines))
    write(output / "sweep-speed.json", rows)
    write(output / "sweep-speed.md", text)
    print(text)


if __name__ == "__main__":
    command(main)
