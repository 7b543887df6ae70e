"""The tuning-free rule with one of its parts left out or changed, over the whole rule.

    python -m benchmarks.ablation --mnist ../shared/data/mnist --cifar10 ../shared/data/cifar10

Trains the smaller workloads of ``hypergradient compare`` without a learning rate, with Adam and with SGD and Nesterov momentum, seed 1, and
divides final losses by those of the whole rule. Writes docs/results/ablation.json and docs/images/ablation.png; a second start does
what is missing.
"""

import argparse
import json
import math
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import patch

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from hypergradient import TuningFree
from hypergradient.lab import compare
from hypergradient.lab.data import Data, load
from hypergradient.lab.engine import flush_denormals
from hypergradient.lab.train import Run, evaluate

#: What is changed: constants of the rule.
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
WORKLOADS = ("digits", "quadratic", "regression", "logreg", "mnist", "mnist-16", "mnist-1024", "cifar")


def losses(name: str, base: str, part: str, place: str, data: Data) -> list[float]:
    """Final training and validation loss of one run."""
    configs = compare.configs_of(compare.WORKLOADS[name], {compare.WORKLOADS[name].data: place}, 1, False, "cpu")
    config = next(config for config in configs if config.optimizer == f"{base}-hd" and config.rule == "tuning-free" and config.lr == 0)
    with patch.multiple(TuningFree, **PARTS[part]) if PARTS[part] else patch.dict({}):
        run = Run(config, data)
        *_, last = run.go(Event(), math.inf)
    if part == "the iterate is evaluated, not the average":
        return [evaluate(run.model, x, y)[0] for x, y in ((run.data.train_x, run.data.train_y), (run.data.valid_x, run.data.valid_y))]
    summary = last.runs[0].summary
    assert summary is not None
    return [math.inf if x is None or math.isnan(x) else x for x in (summary.final_train_loss, summary.valid_loss)]


def figure(results: dict[str, dict[str, list[float]]]) -> Figure:
    """A row a part, a dot a workload and optimizer, the geometric mean as a bar; training loss, then validation loss."""
    fig = Figure(figsize=(12, 0.4 * len(PARTS) + 1.6), layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    parts = [*PARTS][1:]
    works = [*results["the whole rule"]]
    for i, (axis, loss) in enumerate(zip(axes, ("training loss", "validation loss"), strict=True)):
        axis.set_xscale("log")
        axis.set_xlim(0.18, 11)
        axis.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
        axis.minorticks_off()
        axis.axvline(1, color="black", linewidth=1)
        axis.grid(alpha=0.3)
        axis.set_xlabel(f"{loss}, over that of the whole rule")
        for y, part in enumerate(reversed(parts)):
            ratios = [results[part][work][i] / results["the whole rule"][work][i] for work in works]
            for work, x in zip(works, ratios, strict=True):
                name, base = work.split(" | ")
                colour = colormaps["viridis"](0.95 * WORKLOADS.index(name) / (len(WORKLOADS) - 1))
                label = compare.WORKLOADS[name].title if y == 0 and base == "adam" else None
                inside = min(max(x, 0.2), 10)
                axis.plot(
                    inside, y + (0.12 if base == "adam" else -0.12), "o" if base == "adam" else "D", color=colour, markersize=5, label=label
                )
            mean = min(max(compare.geometric_mean(ratios), 0.2), 10)
            axis.plot([mean, mean], [y - 0.38, y + 0.38], color="#CC3311", linewidth=2.5)
    axes[0].set_yticks(range(len(parts)), list(reversed(parts)))
    fig.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=9,
        title="Adam round, SGD with Nesterov momentum square",
    )
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
    results: dict[str, dict[str, list[float]]] = json.loads(file.read_text()) if file.exists() else {}
    for name in WORKLOADS:
        place = {"mnist": options.mnist, "cifar10": options.cifar10}.get(compare.WORKLOADS[name].data, compare.WORKLOADS[name].data)
        data = load(place)
        for part in PARTS:
            for base in compare.BASES:
                own, key = results.setdefault(part, {}), f"{name} | {base}"
                if key not in own:
                    own[key] = losses(name, base, part, place, data)
                    file.write_text(json.dumps(results, indent=1) + "\n")
                    print(part, key, *own[key], flush=True)
    figure(results).savefig(options.output / "images" / "ablation.png", dpi=130)
    for part, own in results.items():
        means = [compare.geometric_mean(own[work][i] / results["the whole rule"][work][i] for work in own) for i in (0, 1)]
        print(f"{part}: {means[0]:.2f} / {means[1]:.2f}")


if __name__ == "__main__":
    main()
