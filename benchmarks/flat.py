"""Final loss over six decades of learning rates: torch's Adam or AdamW, and ours, with and without a learning rate.

    python -m benchmarks.flat --cifar10 ../shared/data/cifar10

Trains one workload of ``hypergradient compare`` in each of six families, seed 1, and draws validation losses. Writes
docs/results/flat.json and docs/images/flat.png. Running it again completes missing runs.
"""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.figure import Figure

from hypergradient.lab.cli.compare import data_files
from hypergradient.lab.compare.runs import Job, run_job
from hypergradient.lab.experiments import charts, flat, plots
from hypergradient.lab.workloads import WORKLOADS

from .kept import answers
from .report import command, write

WORKS = {"cifar": "adam", "gpt": "adamw", "autoencoder": "adam", "tabular": "adam", "short-60": "adam", "batch-8": "adam"}

#: The learning rates, and how the methods are drawn: as ``hypergradient demo`` does.
LRS, METHODS = flat.LRS, {"constant": flat.FIXED["Adam"], "given": flat.GIVEN, "ours": flat.NONE}

#: The figure shows losses up to so many times the lowest.
BEYOND = 30.0


def validation(job: tuple[Job, Path | None]) -> float:
    return run_job(*job).valid


def figure(losses: dict[str, float]) -> Figure:
    lines = []
    for method, chip in METHODS.items():
        level = method == "ours"
        found = {work: np.array([losses[key(work, method, None if level else lr)] for lr in LRS]) for work in WORKS}
        values = {work: np.where(np.isfinite(y), y, math.inf) for work, y in found.items()}
        lines.append(charts.Line([], [chip], {"learning rate": np.array(LRS)} | values, level=level))
    titles = {work: f"{WORKLOADS[work].title}{' (AdamW)' if base == 'adamw' else ''}" for work, base in WORKS.items()}
    return plots.narrow([charts.Chart("Final validation loss", "learning rate", titles, lines, True, BEYOND)])


def key(work: str, method: str, lr: float | None) -> str:
    return f"{work} {method} {lr}"


def main(*, cifar10: str, mnist: str = "ylecun/mnist", output: Path = Path("docs"), processes: int = 2) -> None:
    """
    Args:
        cifar10: a folder in the Hugging Face Parquet layout, or a Hub id
        mnist: the same
        output: folder for results and images
        processes: how many runs at a time
    """
    with TemporaryDirectory() as side:
        files = data_files(WORKS, {"mnist": mnist, "cifar10": cifar10}, Path(side))
        kinds = [*(("constant", lr) for lr in LRS), *(("given", lr) for lr in LRS), ("ours", None)]
        jobs = [Job(work, base, method, lr, 1) for work, base in WORKS.items() for method, lr in kinds]
        works = {key(job.workload, job.method, job.lr): (job, files.get(WORKLOADS[job.workload].data or "")) for job in jobs}
        losses = answers(output / "results" / "flat.json", works, validation, processes)
    write(output / "images" / "flat.png", figure(losses))


if __name__ == "__main__":
    command(main)
