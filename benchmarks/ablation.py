"""The tuning-free rule with one of its parts left out or changed, over the whole rule.

    python -m benchmarks.ablation --mnist ../shared/data/mnist --cifar10 ../shared/data/cifar10

Trains the workloads of ``hypergradient compare`` that the rule was made on without a learning rate, with seeds 1 to 3, and divides the
means of final losses by those of the whole rule. Writes docs/results/ablation.json and docs/images/ablation.png; a second start does what
is missing.
"""

import argparse
import json
import math
import statistics
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hypergradient import TuningFree
from hypergradient.directions import SGD, Adam
from hypergradient.lab.cli.compare import data_files
from hypergradient.lab.compare.runs import Job, attempt
from hypergradient.lab.compare.table import BASES
from hypergradient.lab.experiments import plots
from hypergradient.lab.runs.engine import flush_denormals
from hypergradient.lab.workloads import WORKLOADS
from hypergradient.optimizer import HypergradientOptimizer

#: The seeds, of whose losses the mean is taken.
SEEDS = (1, 2, 3)


def without_room(rule: TuningFree, s: Any, _: Any, *rest: Any) -> Any:
    return CHANGE(rule, s, 0.0, *rest)


#: What is changed: of the rule, but for ``eval`` of the optimizer and ``left_to_average`` of its direction.
CHANGE = TuningFree._change
PARTS: dict[str, dict[str, Any]] = {
    "the whole rule": {},
    "the parameters are evaluated, not their average": {"eval": lambda _: None},
    "gradients at the iterate, with classical momentum": {"left_to_average": lambda direction: direction},
    "signal alone: q = s": {"_change": without_room},
    "window of 10 steps": {"SHARE": 0.0},
    "no return from sudden gradients": {"SUDDEN": math.inf},
    "no steps shortened": {"SPIKE": math.inf},
    "first step of 1e-3": {"FIRST": (1e-3, 0.03)},
}
OWNERS = {"eval": (HypergradientOptimizer,), "left_to_average": (SGD, Adam)}
MADE = [name for name, workload in WORKLOADS.items() if not workload.judged]

#: By part, then by workload and base, then by seed: final training and validation loss.
Losses = dict[str, dict[str, dict[str, list[float]]]]


def losses(work: tuple[str, str, str, int, Path | None]) -> list[float]:
    """Final training and validation loss of one run: of a part, workload, base and seed."""
    part, name, base, seed, data = work
    with ExitStack() as stack:
        for attribute, value in PARTS[part].items():
            for owner in OWNERS.get(attribute, (TuningFree,)):
                stack.enter_context(patch.object(owner, attribute, value))
        found = attempt(Job(name, base, "ours", None, seed), data)
    return [found.train, found.valid]


def begin() -> None:
    flush_denormals()
    torch.set_num_threads(1)


def mean(results: Losses, part: str, work: str, i: int) -> float:
    return statistics.fmean(pair[i] for pair in results[part][work].values())


def ratios(results: Losses, part: str, i: int) -> dict[str, float]:
    """Losses over those of the whole rule, inside of what is drawn."""
    whole = {work: mean(results, "the whole rule", work, i) for work in results[part]}
    return {work: min(max(mean(results, part, work, i) / x, 0.2), 10.0) for work, x in whole.items() if math.isfinite(x)}


def figure(results: Losses) -> Figure:
    """A row a part, a dot a workload and base, the median as a bar; training loss, then validation loss."""
    fig = Figure(figsize=(12, 0.4 * len(PARTS) + 1.6), layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    parts = [*PARTS][:0:-1]
    for i, (axis, loss) in enumerate(zip(axes, ("training loss", "validation loss"), strict=True)):
        axis.set_xscale("log")
        axis.set_xlim(0.18, 11)
        axis.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
        axis.minorticks_off()
        axis.axvline(1, color="black", linewidth=1)
        axis.grid(alpha=0.3)
        axis.set_xlabel(f"{loss}, over that of the whole rule")
        for y, part in enumerate(parts):
            own = ratios(results, part, i)
            for work, x in own.items():
                axis.plot(x, y, "o", color=plots.COLOURS[work.split(", ")[1]], markersize=4, alpha=0.6)
            axis.plot([statistics.median(own.values())] * 2, [y - 0.38, y + 0.38], color="black", linewidth=2.5)
    axes[0].set_yticks(range(len(parts)), parts)
    marks = [Line2D([], [], color=plots.COLOURS[base], marker="o", linestyle="none") for base in BASES]
    fig.legend(marks, BASES.values(), loc="outside lower center", ncols=3)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="a folder in the Hugging Face Parquet layout, or a Hub id")
    parser.add_argument("--cifar10", required=True, help="the same")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="where results and images are written")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    file = options.output / "results" / "ablation.json"
    results: Losses = json.loads(file.read_text()) if file.exists() else {}
    with TemporaryDirectory() as side, get_context("spawn").Pool(options.processes, begin) as pool:
        files = data_files(MADE, {"mnist": options.mnist, "cifar10": options.cifar10}, Path(side))
        works = [
            (part, name, base, seed, files.get(WORKLOADS[name].data or ""))
            for part in PARTS
            for name in MADE
            for base in WORKLOADS[name].bases
            for seed in SEEDS
            if str(seed) not in results.setdefault(part, {}).setdefault(f"{name}, {base}", {})
        ]
        for (part, name, base, seed, _), found in zip(works, pool.imap(losses, works), strict=True):
            results[part][f"{name}, {base}"][str(seed)] = found
            file.write_text(json.dumps(results, indent=1) + "\n")
            print(part, name, base, seed, *found, flush=True)
    figure(results).savefig(options.output / "images" / "ablation.png", dpi=130)
    for part in PARTS:
        print(f"{part}: {' / '.join(f'{statistics.median(ratios(results, part, i).values()):.2f}' for i in (0, 1))}")


if __name__ == "__main__":
    main()
