"""The page of ``hypergradient compare`` in the docs, from the folders of one or more comparisons.

    hypergradient compare --data mnist=../shared/data/mnist,cifar10=../shared/data/cifar10
    python -m benchmarks.compare runs/compare

docs/results/compare-runs.jsonl has the runs of all methods but HD: as runs/compare/runs.jsonl, the first command goes on from them.
Writes docs/results/compare.md, compare.csv and compare-rho.png, compare-lr.png, compare-alpha.png beside it.

    hypergradient compare --methods --data mnist=../shared/data/mnist,cifar10=../shared/data/cifar10
    python -m benchmarks.compare --methods runs/compare

writes docs/results/compare-methods.md, two tables and compare-methods-rho.png, in the same manner.
"""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hypergradient.lab.cli.compare import drawn
from hypergradient.lab.compare import plots, table, verdict
from hypergradient.lab.compare.methods import FIELD
from hypergradient.lab.compare.runs import Result, results_of
from hypergradient.lab.runs.config import PEERS
from hypergradient.lab.runs.store import Folder

from .report import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="--output of a comparison")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="where page and figures are written")
    parser.add_argument("--methods", action="store_true", help="the page of compare --methods")
    options = parser.parse_args()
    results = [*{found.job: found for folder in options.folders for found in results_of(Folder(folder))}.values()]
    rows = table.rows(results)
    if options.methods:
        write_methods(options.output, results, verdict.of_field(rows))
        return
    rows = [row for row in rows if row.method not in FIELD]
    (options.output / "compare.csv").write_text(table.comma_separated(rows))
    for name, figure in drawn(results, rows).items():
        figure.savefig(options.output / f"compare-{name}.png", dpi=110)
    (options.output / "compare.md").write_text(page(results, rows))


def write_methods(output: Path, results: Sequence[Result], rows: Sequence[table.Row]) -> None:
    """The page of the published methods, with what it is drawn from."""
    assert __doc__
    lines = verdict.standings(results, rows)
    (output / "compare-methods.csv").write_text(verdict.comma_separated(lines))
    (output / "compare-methods-pairs.csv").write_text(table.comma_separated(rows))
    plots.rho(rows).savefig(output / "compare-methods-rho.png", dpi=110)
    commands = textwrap.dedent(__doc__.split("\n\n")[3]).replace("\n", "\n    ")
    text = f"""# Published hypergradient methods, untuned

    {commands}

[What runs on what](../lab.md#hypergradient-compare); {len({row.pair for row in rows})} pairs of workload and base on which the tuning-free
rule ("HD, no lr") was made, so that it has had that advantage over the others. {machine()}

![ρ of each method on each workload](compare-methods-rho.png)

{verdict.page(lines, rows)}"""
    (output / "compare-methods.md").write_text(text)


def page(results: Sequence[Result], rows: Sequence[table.Row]) -> str:
    assert __doc__
    commands = textwrap.dedent(__doc__.split("\n\n")[1]).replace("\n", "\n    ")
    seeds = max(found.job.seed for found in results)
    once = ", ".join(name for method, name in PEERS.items() if {x.job.seed for x in results if x.job.method == method} == {1})
    return f"""# Without a learning rate, beside tuned ones and the optimizers of others

    {commands}

{len(results):,} runs on {len({row.workload for row in rows})} workloads, in two sets: those that the rule was *made on*, and those that
*judge* it, on which no part of it was chosen. `compare-runs.jsonl` has those of all methods but HD: as `runs/compare/runs.jsonl`, the first
command goes on from them. [What the workloads are](../lab.md#hypergradient-compare). Final training / validation
loss, once, at the end, in evaluation mode; medians of the seeds 1 to {seeds}{f", but of seed 1 alone for {once}" if once else ""}.

- **Tuned**: the base, torch's Adam, AdamW or SGD with Nesterov momentum of 0.9, with the best of learning rates that lie three a decade,
  a constant one (ρ is over its loss) and one with 5 % warm-up and cosine decay to zero (ρ_cos). The best is found for each loss by itself:
  with seed 1, on and on until it has worse ones on both sides, then with all seeds.
- **HD**: `AdamHD`, `AdamWHD` or `SGDHD` without a learning rate; "budget known" with the same warm-up and cosine decay as a factor.
  "Worst ρ, lr given" is that of runs from lr = 1e-6, ..., 1e-1, seed 1.
- **Others** run with the defaults of their packages, once on a workload: those like SGD (D-Adaptation SGD, DoG, DoWG) beside SGD where
  the workload has it, else beside Adam or AdamW; all others beside Adam or AdamW, and not on the workloads that have SGD alone. DoG is
  averaged. Weight decay is the workload's beside AdamW, and 0 elsewhere.

A line of a summary is over the pairs of workload and base on which the method ran: medians of ρ and ρ_cos, the geometric mean of the
validation ρ_cos, the worst validation ρ, bytes of the optimizer's state per trained parameter, on how many pairs it failed (a run diverged
or broke, or validation ρ > {table.FAILED}), and on how many of them HD without a learning rate ends below it, training / validation.
{machine()}

![ρ of each method on each workload](compare-rho.png)

![Final loss over the learning rate, each workload](compare-lr.png)

![α over time without a learning rate, each workload](compare-alpha.png)

{table.page(rows)}"""


if __name__ == "__main__":
    main()
