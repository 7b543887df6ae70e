"""HDM (Chu, Gao, Ye, Udell 2025) and other methods on convex problems like its authors', by gradient evaluations.

    python -m benchmarks.convex

Minimises logistic losses and squared hinges on scikit-learn's and synthetic data, in float64, full batch, from a random point of norm 1,
until no coordinate of the gradient exceeds 1e-4. Takes about six minutes on one core. Writes docs/results/convex.json,
docs/results/convex.md and docs/images/convex.png; ``--quick`` runs only one problem, in seconds.
"""

import math
import warnings
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import scipy
import sklearn
import torch
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from .convex_methods import EVERY, MOST, TOLERANCE, best, methods
from .convex_problems import PROBLEMS, SEED, problem
from .report import command, machine, made, page, table, write

#: Gradient evaluations printed by the authors for a1a (readme.md of udellgroup/osgm-best-hypergrad). Its label for HDM is that of
#: exp_svm.py, so the loss is the squared hinge without a ridge. 1,000 and more are failures.
PRINTED = {
    **dict.fromkeys(("GD, 1/L", "heavy ball, tuned", "AGD, convex", "AGD, strongly convex"), 1000),
    **{"Adam, tuned": 566, "AdaGrad, tuned": 1000, "L-BFGS, memory 1": 1124, "L-BFGS, memory 3": 522, "L-BFGS, memory 5": 531},
    **{"L-BFGS, memory 10": 328, "HDM, tuned": 276},
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
    "AdamHD, tuning-free": ("#009E73", "-"),
}

#: The lowest gap in the figure, and the number of evaluations between two plotted points.
LOWEST, THIN = 1e-10, 10

#: Gaps below this are rounding errors of losses of several hundreds.
ROUNDING = 1e-11

#: By problem: its properties, and by method the setting, evaluations until solved or None, and the final gap; for some methods all gaps.
Results = dict[str, Any]


def solve(name: str) -> dict[str, Any]:
    """Run all methods on one problem."""
    this = problem(name)
    runs = {method: best(settings, this) for method, settings in methods(this).items()}
    least = min(this.least(), *(run.losses[-1] for _, run in runs.values()))
    found: dict[str, dict[str, Any]] = {}
    for method, (label, run) in runs.items():
        losses = run.losses + run.losses[-1:] * (MOST - len(run.losses))  # L-BFGS ends where its line search fails
        gaps = [float(f"{loss - least:.3g}") for loss in losses]
        found[method] = {"setting": label, "evaluations": run.solved, "gap": gaps[-1]}
        found[method] |= {"gaps": gaps[::THIN]} if method in LOOKS else {}
    rows, columns = this.rows.shape
    facts = {"rows": rows, "columns": columns, "ridge": this.ridge, "L": this.smoothness, "condition": this.condition, "least": least}
    return {**facts, "methods": found}


def cell(count: float | None) -> str:
    return "–" if count is None or count >= MOST else f"{count:,}"


def text(results: Results) -> str:
    """The page."""
    counts = pd.DataFrame({x: {y: row["evaluations"] or MOST for y, row in found["methods"].items()} for x, found in results.items()}).T
    names = [*counts]
    first_order, lbfgs, ours = names[:6], names[6:11], names[-4:]

    def solved(method: str, others: Sequence[str]) -> tuple[Any, Any]:
        """Its evaluations and the fewest of the others, on problems that it or one of them solves; failures as ``MOST``."""
        both = pd.DataFrame({"own": counts[method], "least": counts[others].min(axis=1)})
        both = both[both.min(axis=1) < MOST]
        return both.own, both.least

    def over(method: str, others: Sequence[str]) -> float:
        own, least = solved(method, others)
        return float(np.exp(np.log(own / least).mean()))

    def ahead(method: str, others: Sequence[str]) -> str:
        own, least = solved(method, others)
        return f"{(own < least).sum()} of {len(own)}"

    own, least = solved("HDM, tuned", first_order)
    behind = [f"{x} ({counts.loc[x, first_order].idxmin()}: {cell(least[x])}, HDM: {cell(own[x])})" for x in own.index[own >= least]]
    summary = []
    for name, own in counts.items():
        failed = "≥ " if ((own == MOST) & (counts.min(axis=1) < MOST)).any() else ""
        summary.append([name, str((own < MOST).sum()), cell(round(own.median())), f"{failed}{over(name, names):.2f}"])
    tables = {}
    for name, found in results.items():
        gaps = {x: f"{row['gap']:.1e}" if row["gap"] > ROUNDING else "0" for x, row in found["methods"].items()}
        rows = [[x, cell(row["evaluations"]), gaps[x], row["setting"]] for x, row in found["methods"].items()]
        tables[name] = table(["method", "evaluations", "final gap", "setting"], rows)
    beside = [[x, cell(count), cell(counts[x][LIKE_A1A])] for x, count in PRINTED.items() if LIKE_A1A in results]
    return page(
        "convex.md",
        __doc__,
        versions=f"scipy {scipy.__version__}, scikit-learn {sklearn.__version__}",
        **{"seed": SEED, "tolerance": TOLERANCE, "most": MOST, "every": EVERY, "rounding": ROUNDING, "first_order": first_order},
        **{"lbfgs": lbfgs, "behind": "; ".join(behind), "problems": results, "tables": tables, "ahead": ahead},
        over=lambda method, memory: f"{over(method, [f'L-BFGS, memory {memory}']):.2f}",
        ours=[f"{x}: {(counts[x] < MOST).sum()}" for x in ours],
        unsolved=counts.index[counts.min(axis=1) == MOST],
        summary=table(["method", "solved", "median", "ratio to the fewest"], summary),
        beside=beside and table(["method", "a1a (authors)", "synthetic (ours)"], beside),
    )


def figure(results: Results) -> Figure:
    """A panel per problem, a line per method, one legend on top."""
    names = [name for name in DRAWN if name in results] or [*results]
    rows = math.ceil(len(names) / 2)
    fig = Figure(figsize=(11, 1.2 + 3.4 * rows), layout="constrained")
    for axis, name in zip(fig.subplots(rows, 2, sharex=True, squeeze=False).flat, names, strict=False):
        for method, (colour, style) in LOOKS.items():
            found = results[name]["methods"][method]
            gaps = [*takewhile(lambda x: x > LOWEST, found["gaps"]), LOWEST][: len(found["gaps"])]
            at = [1 + THIN * i for i in range(len(gaps))]
            axis.plot(at, gaps, color=colour, linestyle=style, linewidth=2.2 if "HDM, " in method else 1.4, label=method)
            if found["evaluations"]:
                i = min((found["evaluations"] - 1) // THIN, len(gaps) - 1)
                axis.plot(at[i], gaps[i], "o", color=colour, markersize=6, clip_on=False, zorder=3)
        axis.set(yscale="log", xlim=(0, MOST))
        axis.set_ylim(bottom=LOWEST)
        axis.grid(alpha=0.3)
        axis.set_title(name, fontsize=10)
    fig.supxlabel("gradient evaluations", fontsize=10)
    fig.supylabel("loss − lowest loss", fontsize=10)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9)
    return fig


def main(*, quick: bool = False, docs: Path = Path("docs")) -> None:
    """
    Args:
        quick: run only one problem, as a check
        docs: folder for results and images
    """
    warnings.filterwarnings("ignore", message=".*skipped a step")  # rules whose learning rate diverges are part of the comparison
    torch.set_num_threads(1)
    results: Results = {}
    for name in ["logistic, rotated 1e2"] if quick else PROBLEMS:
        with threadpool_limits(1):  # small problems, on which SciPy's threads wait for each other
            results[name] = solve(name)
        print(f"{name}:", *(f"{x} {cell(row['evaluations'])};" for x, row in results[name]["methods"].items()), flush=True)
    about = {"command": made(__doc__), "machine": machine(), "seed": SEED}
    write(docs / "results" / "convex.json", {"made": about, "problems": results}, indent=None)
    write(docs / "results" / "convex.md", text(results))
    write(docs / "images" / "convex.png", figure(results))


if __name__ == "__main__":
    command(main)
