"""The page of ``hypergradient compare`` in the docs, from the folders of one or more comparisons.

    hypergradient compare --data mnist=../shared/data/mnist,cifar10=../shared/data/cifar10
    python -m benchmarks.compare runs/compare

docs/results/compare-runs.jsonl has the runs of all methods but HD: as runs/compare/runs.jsonl, the first command resumes from them.
Writes docs/results/compare.md, compare.csv and compare-rho.png, compare-lr.png, compare-alpha.png beside it.

    hypergradient compare --methods --data mnist=../shared/data/mnist,cifar10=../shared/data/cifar10
    python -m benchmarks.compare --methods runs/compare

writes docs/results/compare-methods.md, two tables and compare-methods-rho.png, in the same way.
"""

from pathlib import Path

from hypergradient.lab.cli.compare import draw_figures
from hypergradient.lab.compare import plots, table, verdict
from hypergradient.lab.compare.methods import PUBLISHED
from hypergradient.lab.compare.runs import read_results
from hypergradient.lab.runs.peers import PEER_CLASSES
from hypergradient.lab.runs.store import Folder

from .report import command, page, write


def main(*folders: Path, output: Path = Path("docs/results"), methods: bool = False) -> None:
    """
    Args:
        folders: the --output folders of comparisons
        output: folder for page and figures
        methods: write the page of compare --methods
    """
    results = [*{found.job: found for folder in folders for found in read_results(Folder(folder))}.values()]
    rows = table.rows(results)
    if methods:
        rows = verdict.published_rows(rows)
        lines = verdict.summarize(results, rows)
        write(output / "compare-methods.csv", verdict.comma_separated(lines))
        write(output / "compare-methods-pairs.csv", table.comma_separated(rows))
        write(output / "compare-methods-rho.png", plots.rho(rows))
        pairs = len({row.pair for row in rows})
        write(output / "compare-methods.md", page("compare-methods.md", __doc__, pairs=pairs, tables=verdict.page(lines, rows)))
        return
    rows = [row for row in rows if row.method not in PUBLISHED]
    write(output / "compare.csv", table.comma_separated(rows))
    for name, figure in draw_figures(results, rows).items():
        write(output / f"compare-{name}.png", figure)
    counts = {"runs": len(results), "workloads": len({row.workload for row in rows}), "seeds": max(found.job.seed for found in results)}
    once = ", ".join(
        table.TITLES[name] for name in PEER_CLASSES if {found.job.seed for found in results if found.job.method == name} == {1}
    )
    write(output / "compare.md", page("compare.md", __doc__, **counts, once=once, failed=table.FAILED_RHO, tables=table.page(rows)))


if __name__ == "__main__":
    command(main)
