"""Final loss over the learning rate that is given, six decades of it: torch's Adam or AdamW, and ours, with and without one.

    python -m benchmarks.flat --cifar10 ../shared/data/cifar10

Trains one workload of ``hypergradient compare`` in each of six families, seed 1, and draws validation losses. Writes
docs/results/flat.json and docs/images/flat.png; a second start does what is missing.
"""

import argparse
import json
import math
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.figure import Figure

from hypergradient.lab.cli.compare import data_files
from hypergradient.lab.compare.runs import Job, attempt
from hypergradient.lab.experiments import plots
from hypergradient.lab.workloads import WORKLOADS

from .ablation import begin

WORKS = {"cifar": "adam", "gpt": "adamw", "autoencoder": "adam", "tabular": "adam", "short-60": "adam", "batch-8": "adam"}

#: Two a decade, from 1e-6 to 1.
LRS = [float(f"{10 ** (k / 2):.3g}") for k in range(-12, 1)]
METHODS = {"constant": ("Adam, a constant learning rate", "#D55E00"), "given": ("AdamHD, from it", "#0072B2")}


def validation(job: tuple[Job, Path | None]) -> float:
    return attempt(*job).valid


def figure(losses: dict[str, float]) -> Figure:
    fig = Figure(figsize=(11, 5.6), layout="constrained")
    axes = fig.subplots(2, 3, sharex=True).flat
    for axis, (work, base) in zip(axes, WORKS.items(), strict=True):
        for method, (title, colour) in METHODS.items():
            found = [losses[key(work, method, lr)] for lr in LRS]
            axis.plot(LRS, [y if math.isfinite(y) else math.nan for y in found], "o-", color=colour, markersize=3, label=title)
        none = losses[key(work, "ours", None)]
        axis.axhline(none, color="black", linestyle=plots.DASHED, linewidth=1, label="AdamHD, no learning rate")
        axis.set_xscale("log")
        finite = [losses[key(work, "constant", lr)] for lr in LRS if math.isfinite(losses[key(work, "constant", lr)])]
        lowest = min(none, *finite, *(losses[key(work, "given", lr)] for lr in LRS))
        highest = min(max(finite), 30 * lowest)
        axis.set_yscale("log" if highest > 3 * lowest else "linear")
        axis.set_ylim(lowest / 1.1, highest * 1.2)
        plots.fix_ticks(axis)
        axis.grid(alpha=0.3)
        axis.set_title(f"{WORKLOADS[work].title}{' (AdamW)' if base == 'adamw' else ''}", fontsize=10)
    fig.supxlabel("learning rate given", fontsize=10)
    fig.supylabel("final validation loss", fontsize=10)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def key(work: str, method: str, lr: float | None) -> str:
    return f"{work} {method} {lr}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, help="a folder in the Hugging Face Parquet layout, or a Hub id")
    parser.add_argument("--mnist", default="ylecun/mnist", help="the same")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="where results and images are written")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    file = options.output / "results" / "flat.json"
    losses: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    with TemporaryDirectory() as side, get_context("spawn").Pool(options.processes, begin) as pool:
        files = data_files(WORKS, {"mnist": options.mnist, "cifar10": options.cifar10}, Path(side))
        rows = [(work, method, lr) for work in WORKS for method, lr in [*((m, lr) for m in METHODS for lr in LRS), ("ours", None)]]
        missing = [row for row in rows if key(*row) not in losses]
        jobs = [(Job(work, WORKS[work], method, lr, 1), files.get(WORKLOADS[work].data or "")) for work, method, lr in missing]
        for row, loss in zip(missing, pool.imap(validation, jobs), strict=True):
            losses[key(*row)] = loss
            file.write_text(json.dumps(losses, indent=1) + "\n")
    figure(losses).savefig(options.output / "images" / "flat.png", dpi=130)


if __name__ == "__main__":
    main()
