"""Ablation: the tuning-free rule with one part removed or changed, relative to the whole rule.

    python -m benchmarks.ablation --mnist ../shared/data/mnist --cifar10 ../shared/data/cifar10

Trains the development workloads of ``hypergradient compare`` without a learning rate, with seeds 1 to 3, and divides the means of final
losses by those of the whole rule. Writes docs/results/ablation.json and docs/images/ablation.png. Running it again completes missing runs.
"""

import math
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pandas as pd  # type: ignore[import-untyped]
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hypergradient import TuningFree
from hypergradient.directions import SGD, Adam
from hypergradient.lab.cli.compare import data_files
from hypergradient.lab.compare.runs import Job, run_job
from hypergradient.lab.compare.table import BASES
from hypergradient.lab.experiments import plots
from hypergradient.lab.workloads import WORKLOADS
from hypergradient.optimizer import HypergradientOptimizer

from .kept import answers
from .report import command, write

#: Losses are averaged over these seeds.
SEEDS = (1, 2, 3)


def without_room(rule: TuningFree, s: Any, _: Any, *rest: Any) -> Any:
    return CHANGE(rule, s, 0.0, *rest)


#: What is changed: of the rule, but for ``eval`` of the optimizer and ``without_momentum`` of its direction.
CHANGE, WHOLE = TuningFree._change, "the whole rule"
PARTS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "the parameters are evaluated, not their average": {"eval": lambda _: None},
    "gradients at the iterate, with classical momentum": {"without_momentum": lambda direction: direction},
    "signal alone: q = s": {"_change": without_room},
    "window of 10 steps": {"AVERAGE_FRACTION": 0.0},
    "no return from sudden gradients": {"SUDDEN_GRADIENT": math.inf},
    "no steps shortened": {"SHORTENED_FROM": math.inf},
    "first step of 1e-3": {"FIRST_STEP": (1e-3, 0.03)},
}
OWNERS = {"eval": (HypergradientOptimizer,), "without_momentum": (SGD, Adam)}
DEVELOPMENT = [name for name, workload in WORKLOADS.items() if not workload.held_out]


def losses(work: tuple[str, Job, Path | None]) -> list[float]:
    """Final training and validation loss of one run."""
    part, job, file = work
    with ExitStack() as stack:
        for attribute, value in PARTS[part].items():
            for owner in OWNERS.get(attribute, (TuningFree,)):
                stack.enter_context(patch.object(owner, attribute, value))
        found = run_job(job, file)
    return [found.train, found.valid]


def ratios(found: dict[str, list[float]]) -> dict[str, pd.DataFrame]:
    """By part: for each workload and base, mean losses relative to the whole rule, clipped to the plotted range."""
    rows = pd.DataFrame([[*key.split(" | ")[:3], *pair] for key, pair in found.items()], columns=["part", "work", "base", "train", "valid"])
    means = rows.groupby(["part", "work", "base"], sort=False).mean()
    whole = means.loc[WHOLE].replace(math.inf, math.nan)
    return {part: (means.loc[part] / whole).clip(0.2, 10) for part in PARTS}


def figure(over: dict[str, pd.DataFrame]) -> Figure:
    """A row per part, a dot per workload and base, a bar at the median; training loss left, validation loss right."""
    fig = Figure(figsize=(12, 0.4 * len(PARTS) + 1.6), layout="constrained")
    axes, parts = fig.subplots(1, 2, sharey=True), [*PARTS][:0:-1]
    for axis, column, loss in zip(axes, ("train", "valid"), ("training loss", "validation loss"), strict=True):
        axis.set(xscale="log", xlim=(0.18, 11), xlabel=f"{loss}, relative to the whole rule")
        axis.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
        axis.minorticks_off()
        axis.axvline(1, color="black", linewidth=1)
        axis.grid(alpha=0.3)
        for y, part in enumerate(parts):
            own = over[part][column]
            axis.scatter(own, [y] * len(own), 16, color=[plots.COLOURS[base] for _, base in own.index], alpha=0.6, zorder=2)
            axis.plot([own.median()] * 2, [y - 0.38, y + 0.38], color="black", linewidth=2.5)
    axes[0].set_yticks(range(len(parts)), parts)
    marks = [Line2D([], [], color=plots.COLOURS[base], marker="o", linestyle="none") for base in BASES]
    fig.legend(marks, BASES.values(), loc="outside lower center", ncols=3)
    return fig


def main(*, mnist: str, cifar10: str, output: Path = Path("docs"), processes: int = 2) -> None:
    """
    Args:
        mnist: a folder in the Hugging Face Parquet layout, or a Hub id
        cifar10: the same
        output: folder for results and images
        processes: how many runs at a time
    """
    with TemporaryDirectory() as side:
        files = data_files(DEVELOPMENT, {"mnist": mnist, "cifar10": cifar10}, Path(side))
        jobs = [Job(name, base, "ours", None, seed) for name in DEVELOPMENT for base in WORKLOADS[name].bases for seed in SEEDS]
        works = {
            f"{part} | {job.workload} | {job.base} | {job.seed}": (part, job, files.get(WORKLOADS[job.workload].data or ""))
            for part in PARTS
            for job in jobs
        }
        over = ratios(answers(output / "results" / "ablation.json", works, losses, processes))
    write(output / "images" / "ablation.png", figure(over))
    print(pd.DataFrame({part: own.median() for part, own in over.items()}).T.round(2))


if __name__ == "__main__":
    command(main)
