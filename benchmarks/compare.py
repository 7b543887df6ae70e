"""The page of ``hypergradient compare`` in the docs, from the folders of one or more comparisons.

    hypergradient compare --workload digits,quadratic,regression,logreg,mnist,mnist-16,mnist-1024,cifar \\
        --data mnist=../shared/data/mnist,cifar10=../shared/data/cifar10
    hypergradient compare --workload cifar-cnn,text,mnist-long --seeds 1 --output runs/compare-long \\
        --data mnist=../shared/data/mnist,cifar10=../shared/data/cifar10
    python -m benchmarks.compare runs/compare runs/compare-long

Writes docs/results/compare.md, compare.csv and compare-rho.png, compare-lr.png, compare-alpha.png beside it.
"""

import argparse
import textwrap
from pathlib import Path
from typing import Any

from hypergradient.lab import compare, compare_plots
from hypergradient.lab.figures import compared
from hypergradient.lab.store import Folder, History
from hypergradient.lab.stored import read

from .report import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="--output of a comparison")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="where page and figures are written")
    options = parser.parse_args()
    ended = [(run, result) for folder in options.folders for run, result in compared(read(folder)[2])]
    costs: dict[str, Any] = {}
    for folder in options.folders:
        costs |= compare.costs_of(Folder(folder))
    table = compare.rows((result for _, result in ended), costs)
    seeds: dict[str, int] = {}
    curves, alphas = {}, {}
    for work in dict.fromkeys(row.workload for row in table):
        own = [(run, result) for run, result in ended if result.workload == work]
        seeds[work] = len({result.seed for _, result in own})
        curves[work] = compare.over_lr([result for _, result in own])
        alphas[work] = [(result.base, history(run.path)) for run, result in own if result.kind == "ours" and run.path]
    compare.write_tables(Folder(options.output), table)
    figures = {"rho": compare_plots.rho(table), "lr": compare_plots.loss_over_lr(curves), "alpha": compare_plots.alpha_over_time(alphas)}
    for name, figure in figures.items():
        figure.savefig(options.output / f"compare-{name}.png", dpi=110)
    (options.output / "compare.md").write_text(page(table, seeds))


def history(path: Path) -> History:
    return Folder(path).history()


def page(table: list[compare.Row], seeds: dict[str, int]) -> str:
    assert __doc__
    commands = textwrap.dedent(__doc__.split("\n\n")[1]).replace("\n", "\n    ")
    once = ", ".join(work for work, n in seeds.items() if n == 1)
    return f"""# Without a learning rate, beside tuned ones and the optimizers of others

    {commands}

Final loss on the whole training set / on validation, in evaluation mode, once, at the end; medians of the seeds 1 to {max(seeds.values())}
{f"(seed 1 alone: {once})" if once else ""}. ρ is a loss over the lowest that the base optimizer, Adam or SGD with Nesterov
momentum, reaches with a constant learning rate of {{1e-6, 3e-6, ..., 1}}, ρ_cos over the lowest with cosine decay to zero over the same
grid; both are chosen with hindsight for each loss. Below 1 the run without a choice is better. "Worst ρ" is that of six runs of the
tuning-free rule from lr = 1e-6, ..., 1e-1. Time is a training step's over that with torch's Adam, in turns, median; bytes are the
optimizer's state per parameter. No weight decay. Others run with the defaults of their packages.
[What the workloads are](../lab.md#hypergradient-compare). {machine()}

![ρ of each method on each workload](compare-rho.png)

![Final loss over the learning rate, each workload](compare-lr.png)

![α over time without a learning rate, each workload](compare-alpha.png)

## All workloads: geometric means

{compare.page(table)}"""


if __name__ == "__main__":
    main()
