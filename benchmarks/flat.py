"""Final loss over the learning rate that is given, six decades of it: torch's Adam or AdamW, and ours, with and without one.

    python -m benchmarks.flat --cifar10 ../shared/data/cifar10

Trains one workload of ``hypergradient compare`` in each of six families, seed 1, and draws validation losses. Writes
docs/results/flat.json and docs/images/flat.png; a second start does what is missing.
"""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.figure import Figure

from hypergradient.lab.cli.compare import data_files
from hypergradient.lab.compare.runs import Job, run_job
from hypergradient.lab.experiments import plots
from hypergradient.lab.workloads import WORKLOADS

from .kept import answers
from .report import command, write

WORKS = {"cifar": "adam", "gpt": "adamw", "autoencoder": "adam", "tabular": "adam", "short-60": "adam", "batch-8": "adam"}

#: Two a decade, from 1e-6 to 1.
LRS = [float(f"{10 ** (k / 2):.3g}") for k in range(-12, 1)]
METHODS = {"constant": ("Adam, a constant learning rate", "#D55E00"), "given": ("AdamHD, from it", "#0072B2")}


def validation(job: tuple[Job, Path | None]) -> float:
    return run_job(*job).valid


def figure(losses: dict[str, float]) -> Figure:
    fig = Figure(figsize=(11, 5.6), layout="constrained")
    for axis, (work, base) in zip(fig.subplots(2, 3, sharex=True).flat, WORKS.items(), strict=False):
        constant, given = ([losses[key(work, method, lr)] for lr in LRS] for method in METHODS)
        for values, (title, colour) in zip((constant, given), METHODS.values(), strict=True):
            shown = [y if math.isfinite(y) else math.nan for y in values]
            axis.plot(LRS, shown, "o-", color=colour, markersize=3, label=title)
        none, finite = losses[key(work, "ours", None)], [*filter(math.isfinite, constant)]
        axis.axhline(none, color="black", linestyle=plots.DASHED, linewidth=1, label="AdamHD, no learning rate")
        lowest = min(none, *finite, *given)
        highest = min(max(finite), 30 * lowest)
        axis.set(xscale="log", yscale="log" if highest > 3 * lowest else "linear", ylim=(lowest / 1.1, highest * 1.2))
        plots.fix_ticks(axis)
        axis.grid(alpha=0.3)
        axis.set_title(f"{WORKLOADS[work].title}{' (AdamW)' if base == 'adamw' else ''}", fontsize=10)
    fig.supxlabel("learning rate given", fontsize=10)
    fig.supylabel("final validation loss", fontsize=10)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def key(work: str, method: str, lr: float | None) -> str:
    return f"{work} {method} {lr}"


def main(*, cifar10: str, mnist: str = "ylecun/mnist", output: Path = Path("docs"), processes: int = 2) -> None:
    """
    Args:
        cifar10: a folder in the Hugging Face Parquet layout, or a Hub id
        mnist: the same
        output: where results and images are written
        processes: runs at a time
    """
    with TemporaryDirectory() as side:
        files = data_files(WORKS, {"mnist": mnist, "cifar10": cifar10}, Path(side))
        kinds = [*((method, lr) for method in METHODS for lr in LRS), ("ours", None)]
        jobs = [Job(work, base, method, lr, 1) for work, base in WORKS.items() for method, lr in kinds]
        works = {key(job.workload, job.method, job.lr): (job, files.get(WORKLOADS[job.workload].data or "")) for job in jobs}
        losses = answers(output / "results" / "flat.json", works, validation, processes)
    write(output / "images" / "flat.png", figure(losses))


if __name__ == "__main__":
    command(main)
