"""HDM (Chu, Gao, Ye, Udell 2025) and others on convex problems like its authors', by gradient evaluations.

    python -m benchmarks.convex

Minimises logistic losses and squared hinges over data that scikit-learn ships and data that are made, in float64, all rows at once, from a
random point of norm 1, until no coordinate of the gradient exceeds 1e-4. Takes about six minutes of one core. Writes
docs/results/convex.json, docs/results/convex.md and docs/images/convex.png; with ``--quick`` for one of the problems, in seconds.
"""

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import scipy
import sklearn
import torch
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from .convex_methods import EVERY, METHODS, MOST, TOLERANCE, best
from .convex_problems import PROBLEMS, SEED, problem
from .report import machine, sentence

QUICK = [("logistic", "rotated 1e2", True)]

#: Gradient evaluations that the authors print for a1a (readme.md of udellgroup/osgm-best-hypergrad). Their own label of HDM there is that
#: of exp_svm.py, so it is the squared hinge without a ridge. 1,000 and more are failures.
PRINTED = {
    "GD, 1/L": 1000,
    "heavy ball, tuned": 1000,
    "AGD, convex": 1000,
    "AGD, strongly convex": 1000,
    "Adam, tuned": 566,
    "AdaGrad, tuned": 1000,
    "L-BFGS, memory 1": 1124,
    "L-BFGS, memory 3": 522,
    "L-BFGS, memory 5": 531,
    "L-BFGS, memory 10": 328,
    "HDM, tuned": 276,
}
LIKE_A1A = "svm, binary, no ridge"

#: The problems and methods of the figure; the palette is Okabe and Ito's.
DRAWN = (LIKE_A1A, "logistic, cancer", "logistic, rotated 1e4", "svm, digits")
LOOKS: dict[str, tuple[str, Any]] = {
    "GD, 1/L": ("#999999", "-"),
    "AGD, strongly convex": ("#999999", (0, (4, 2))),
    "AdaGrad, tuned": ("#E69F00", (0, (4, 2))),
    "Adam, tuned": ("#E69F00", "-"),
    "L-BFGS, memory 1": ("#000000", (0, (4, 2))),
    "L-BFGS, memory 10": ("#000000", "-"),
    "HDM, untuned": ("#0072B2", (0, (4, 2))),
    "HDM, tuned": ("#0072B2", "-"),
    "AdamHD, no lr": ("#009E73", "-"),
}

#: The gap that the figure ends at, and how many evaluations lie between two that it shows.
LOWEST, THIN = 1e-10, 10

#: What a loss of some hundreds cannot tell from 0.
ROUNDING = 1e-11

ABOUT = f"""Logistic losses and squared hinges (svm) are summed over all rows, with a column of ones, in float64; a ridge adds ½ ridge ‖w‖².
Of scikit-learn are cancer (breast_cancer), digits (even or odd), wine and iris (the second class or not), columns scaled to [-1, 1]; made
are binary (like a1a: 14 attributes a row, each value a column of zeros and ones) and normal columns whose Gram matrix has a geometric
spectrum of condition 1e2, 1e4 or 1e6, on the axes or rotated away from them. Starts are random points of norm 1. L is the largest singular
value squared plus the ridge, as in the authors' code; for logistic losses that is four times what would do.

A problem is solved where no coordinate of a gradient exceeds {TOLERANCE:g}, within {MOST:,} gradients; all that are taken count, in line
searches and at rejected points too. What averages (no lr) is evaluated at its average every {EVERY} steps, which does not count. What is
tuned is tried with all of the authors' settings on each problem (scalar HDM with eight of their twenty, SGD-HD with ours), and the one with
the fewest evaluations is shown; those of the others do not count. Untuned HDM has η = 10/L and η_β = 1, as the authors' code where nothing
is given, and η = 0.1 is what the library has then. HDM rejects points that do not lower the loss, if not said otherwise. The authors' guess
of L in the midst of a run, and the decay of η before it, are left out. Rounding alone moves some counts of HDM by several per cent."""

PRINTED_ABOUT = """Gradient evaluations as the authors' readme prints them for a1a (1,605 rows, 119 binary columns), and ours on the squared
hinge without a ridge on data made like it. The readme calls HDM HDM-Best, as only exp_svm.py does: so it is the squared hinge too."""

#: By problem, then by method: the setting, evaluations until solved or None, and the gap of the loss at the end, for some all along.
Results = dict[str, Any]


def solve(key: tuple[str, str, bool]) -> dict[str, Any]:
    """One problem by all methods."""
    this = problem(*key)
    runs = {name: best(method, this) for name, method in METHODS.items()}
    least = min(this.least(), *(found.losses[-1] for found in runs.values()))
    methods: dict[str, dict[str, Any]] = {}
    for name, found in runs.items():
        losses = found.losses + found.losses[-1:] * (MOST - len(found.losses))  # L-BFGS ends where its line search fails
        gaps = [float(f"{loss - least:.3g}") for loss in losses]
        methods[name] = {"setting": found.label, "evaluations": found.solved, "gap": gaps[-1]}
        if name in LOOKS:
            methods[name]["gaps"] = gaps[::THIN]
    rows, columns = this.rows.shape
    facts = {"rows": rows, "columns": columns, "ridge": this.ridge, "L": this.smoothness, "condition": this.condition, "least": least}
    return {**facts, "methods": methods}


def counts(results: Results, method: str) -> dict[str, int]:
    """Evaluations by problem, failures as ``MOST``."""
    return {name: found["methods"][method]["evaluations"] or MOST for name, found in results.items()}


def of_kind(kind: str) -> list[str]:
    return [name for name, method in METHODS.items() if method.kind == kind]


def fewest(results: Results, methods: Sequence[str]) -> dict[str, int]:
    return {name: min(counts(results, method)[name] for method in methods) for name in results}


def over(results: Results, method: str, others: Sequence[str]) -> float:
    """Geometric mean of evaluations over the fewest of others, of the problems that one of them solves; failures as ``MOST``."""
    mine, theirs = counts(results, method), fewest(results, others)
    return statistics.geometric_mean(mine[name] / theirs[name] for name in results if min(mine[name], theirs[name]) < MOST)


def cell(count: int | None) -> str:
    return "–" if count is None or count >= MOST else f"{count:,}"


def gap(x: float) -> str:
    return f"{x:.1e}" if x > ROUNDING else "0"


def summary(results: Results) -> list[str]:
    """A row a method: problems solved, the median, and the mean ratio to the best."""
    lines = ["| method | solved | median | over the fewest |", "|---|---|---|---|"]
    for name in METHODS:
        own = counts(results, name)
        solved = sum(count < MOST for count in own.values())
        failed = "≥ " if any(own[x] == MOST > fewest(results, [*METHODS])[x] for x in own) else ""
        median = statistics.median(own.values())
        lines.append(f"| {name} | {solved} | {cell(round(median))} | {failed}{over(results, name, [*METHODS]):.2f} |")
    return lines


def beside(methods: dict[str, Any]) -> list[str]:
    """The authors' evaluations on a1a, and ours on data like it."""
    lines = ["## Beside the authors' table", "", PRINTED_ABOUT, "", "| method | a1a, the authors' | made like a1a |", "|---|---|---|"]
    return [*lines, *(f"| {name} | {cell(count)} | {cell(methods[name]['evaluations'])} |" for name, count in PRINTED.items()), ""]


def one(name: str, found: dict[str, Any]) -> list[str]:
    """The table of a problem."""
    condition = f"condition {found['condition']:.2g}" if found["condition"] else "singular"
    shape = f"{found['rows']:,} × {found['columns']}"
    least = found["least"] if found["least"] > ROUNDING else 0
    lines = [
        f"### {name}",
        "",
        f"{shape}, {condition}, L = {found['L']:.3g}, ridge {found['ridge']:g}, least loss {least:.6g}.",
        "",
        "| method | evaluations | gap at the end | setting |",
        "|---|---|---|---|",
    ]
    rows = found["methods"].items()
    return [*lines, *(f"| {x} | {cell(row['evaluations'])} | {gap(row['gap'])} | {row['setting']} |" for x, row in rows), ""]


def ahead(results: Results, method: str, others: Sequence[str]) -> tuple[str, str]:
    """On how many of the problems that it or one of the others solves it needs fewest, and on which it does not, in words."""
    mine, theirs = counts(results, method), fewest(results, others)
    solved = [name for name in results if min(mine[name], theirs[name]) < MOST]
    behind = []
    for name in solved:
        if mine[name] >= theirs[name]:
            winner = min(others, key=lambda other: counts(results, other)[name])
            behind.append(f"{name} ({winner}: {cell(theirs[name])}, HDM: {cell(mine[name])})")
    return f"{len(solved) - len(behind)} of {len(solved)}", "; ".join(behind) or "none"


def verdict(results: Results) -> str:
    tuned, behind = ahead(results, "HDM, tuned", of_kind("first-order"))
    scalar, plain = (ahead(results, f"HDM, {x}", of_kind("first-order"))[0] for x in ("scalar, tuned", "untuned"))
    small, large, small_plain, large_plain = (
        f"{over(results, f'HDM, {x}', [f'L-BFGS, memory {memory}']):.2f}" for x in ("tuned", "untuned") for memory in (1, 10)
    )
    solved = {x: sum(count < MOST for count in counts(results, x).values()) for x in of_kind("ours")}
    return (
        "The authors' order is HDM before every first-order method, and near L-BFGS. The first half holds here on "
        f"{tuned} problems that HDM, tuned, or a first-order method solves; not on: {behind}. With one learning rate for all coordinates "
        f"it holds on {scalar}, and untuned, against others that are tuned, on {plain}.\n\n"
        f"HDM needs {small} times the evaluations of L-BFGS with memory 1 and {large} times those with memory 10 (geometric means, "
        f"failures as {MOST:,}), untuned {small_plain} and {large_plain}; fewer than each of the five L-BFGS on "
        f"{ahead(results, 'HDM, tuned', of_kind('L-BFGS'))[0]}. Of all {len(results)} the rules of Baydin et al. and TuningFree solve few: "
        f"{', '.join(f'{x}: {count}' for x, count in solved.items())}."
    )


def page(results: Results) -> str:
    unsolved = [name for name, count in fewest(results, [*METHODS]).items() if count == MOST]
    versions = f"scipy {scipy.__version__}, scikit-learn {sklearn.__version__}"
    lines = [
        "# HDM on convex problems, beside first-order methods and L-BFGS",
        "",
        sentence(__doc__),
        "",
        f"{machine()[:-1]}, {versions}; seed {SEED} for starts and for data that are made.",
        "",
        ABOUT,
        "",
        verdict(results),
        "",
        "![The gap of the loss over gradient evaluations](../images/convex.png)",
        "",
        f"*Lowest gap so far on four of the problems; a dot is where the gradient falls below {TOLERANCE:g}.*",
        "",
        "## All problems",
        "",
        f"{len(results)} problems. No method solves: {'; '.join(unsolved) or 'none'}. The last column is the geometric mean of evaluations",
        f"over the fewest that any method needs; failures count as {MOST:,}, so it is at least that.",
        "",
        *summary(results),
        "",
        *(beside(results[LIKE_A1A]["methods"]) if LIKE_A1A in results else []),
        "## Each problem",
        "",
    ]
    for name, found in results.items():
        lines += one(name, found)
    return "\n".join(lines)


def figure(results: Results) -> Figure:
    """A panel a problem, a line a method; the one legend stands above."""
    names = [name for name in DRAWN if name in results] or [*results]
    fig = Figure(figsize=(11, 1.2 + 3.4 * math.ceil(len(names) / 2)), layout="constrained")
    axes = fig.subplots(math.ceil(len(names) / 2), 2, sharex=True, squeeze=False).flat
    for axis, name in zip(axes, names, strict=False):
        for method, (colour, style) in LOOKS.items():
            found = results[name]["methods"][method]
            gaps = [*takewhile(lambda x: x > LOWEST, found["gaps"]), LOWEST][: len(found["gaps"])]
            at = [1 + THIN * i for i in range(len(gaps))]
            axis.plot(at, gaps, color=colour, linestyle=style, linewidth=2.2 if "HDM, " in method else 1.4, label=method)
            if found["evaluations"]:
                i = min((found["evaluations"] - 1) // THIN, len(gaps) - 1)
                axis.plot(at[i], gaps[i], "o", color=colour, markersize=6, clip_on=False, zorder=3)
        axis.set_yscale("log")
        axis.set_ylim(bottom=LOWEST)
        axis.set_xlim(0, MOST)
        axis.grid(alpha=0.3)
        axis.set_title(name, fontsize=10)
    fig.supxlabel("gradient evaluations", fontsize=10)
    fig.supylabel("loss − least loss", fontsize=10)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9)
    return fig


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one problem only, to see that all runs")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where results and images are written")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message=".*skipped a step")  # rules that let the learning rate run away are part of the comparison
    torch.set_num_threads(1)
    results: Results = {}
    for key in QUICK if options.quick else PROBLEMS:
        name = problem(*key).name
        with threadpool_limits(1):  # the problems are small, and SciPy's threads wait for each other
            results[name] = solve(key)
        print(f"{name}:", *(f"{x} {cell(row['evaluations'])};" for x, row in results[name]["methods"].items()), flush=True)
    for folder in ("results", "images"):
        (options.docs / folder).mkdir(parents=True, exist_ok=True)
    made = {"command": sentence(__doc__), "machine": machine(), "seed": SEED}
    (options.docs / "results" / "convex.json").write_text(json.dumps({"made": made, "problems": results}, ensure_ascii=False) + "\n")
    (options.docs / "results" / "convex.md").write_text(page(results))
    figure(results).savefig(options.docs / "images" / "convex.png", dpi=130)


if __name__ == "__main__":
    main()
