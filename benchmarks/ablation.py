"""The tuning-free rule with one of its parts left out or changed, over the whole rule.

    python -m benchmarks.ablation --mnist ../shared/data/mnist --cifar10 ../shared/data/cifar10

Trains the workloads of ``hypergradient compare`` that the rule was made on without a learning rate, seed 1, and divides final losses by
those of the whole rule. Writes docs/results/ablation.json and docs/images/ablation.png; a second start does what is missing.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hypergradient import TuningFree
from hypergradient.lab import plots
from hypergradient.lab.compare.command import data_files
from hypergradient.lab.compare.runs import Job, attempt
from hypergradient.lab.compare.table import BASES
from hypergradient.lab.engine import flush_denormals
from hypergradient.lab.workloads import WORKLOADS
from hypergradient.optimizer import HypergradientOptimizer

#: What is changed: constants of the rule; for the second part, opt.eval().
PARTS: dict[str, dict[str, Any]] = {
    "the whole rule": {},
    "the iterate is evaluated, not the average": {},
    "average from the start (window t)": {"SHARE": 1.0},
    "window of 10 steps": {"SHARE": 0.0},
    "no bias: q = s": {"BIAS": 0.0},
    "α rises as slowly as it falls": {"RISE": 1.0},
    "climb by doubling": {"CLIMB": 0.7},
    "no return from sudden gradients": {"SUDDEN": (math.inf, math.inf)},
    "first step of 1e-4": {"FIRST": (1e-4, 0.03)},
    "first step of 1e-2": {"FIRST": (1e-2, 0.03)},
}
MADE = [name for name, workload in WORKLOADS.items() if not workload.judged]

#: By part, then by workload and base: final training and validation loss.
Losses = dict[str, dict[str, list[float]]]


def losses(name: str, base: str, part: str, data: Path | None) -> list[float]:
    """Final training and validation loss of one run."""
    iterate = part == "the iterate is evaluated, not the average"
    change = patch.object(HypergradientOptimizer, "eval", lambda _: None) if iterate else patch.dict({})
    with patch.multiple(TuningFree, **PARTS[part]) if PARTS[part] else change:
        found = attempt(Job(name, base, "ours", None, 1), data)
    return [found.train, found.valid]


def ratios(results: Losses, part: str, i: int) -> dict[str, float]:
    """Losses over those of the whole rule, inside of what is drawn."""
    whole = results["the whole rule"]
    return {work: min(max(pair[i] / whole[work][i], 0.2), 10.0) for work, pair in results[part].items() if math.isfinite(whole[work][i])}


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
    options = parser.parse_args()
    flush_denormals()
    torch.set_num_threads(1)
    file = options.output / "results" / "ablation.json"
    works = [(name, base) for name in MADE for base in WORKLOADS[name].bases]
    before: Losses = json.loads(file.read_text()) if file.exists() else {}
    results: Losses = {part: {f"{name}, {base}": [] for name, base in works} for part in PARTS}
    with TemporaryDirectory() as side:
        files = data_files(MADE, {"mnist": options.mnist, "cifar10": options.cifar10}, Path(side))
        for name, base in works:
            for part, own in results.items():
                key = f"{name}, {base}"
                own[key] = before.get(part, {}).get(key) or losses(name, base, part, files.get(WORKLOADS[name].data or ""))
                known = {part: {key: pair for key, pair in own.items() if pair} for part, own in results.items()}
                file.write_text(json.dumps(known, indent=1) + "\n")
                print(part, key, *own[key], flush=True)
    figure(results).savefig(options.output / "images" / "ablation.png", dpi=130)
    for part in PARTS:
        print(f"{part}: {' / '.join(f'{statistics.median(ratios(results, part, i).values()):.2f}' for i in (0, 1))}")


if __name__ == "__main__":
    main()
