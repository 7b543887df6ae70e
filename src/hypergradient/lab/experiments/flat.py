"""Does the initial learning rate matter? Final losses over six decades of it, and how AdamHD adapts it.

Adam and SGD with Nesterov momentum keep the learning rate constant; AdamHD adapts it by the tuning-free rule, from each of them and without
one. All share epochs, batch size and coupled L2 penalty. The network is a tenth as wide as the paper's, so that three seeds take seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..runs.calls import Call
from ..runs.config import Config, paper
from ..runs.store import Folder
from .charts import COLOURS, FINAL, Chart, Chip, Line, final_losses, line
from .run import Run, grouped

#: Two a decade, from 1e-6 to 1.
LRS = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(-12, 1))

#: Width of the network's hidden layers, and number of seeds.
HIDDEN, SEEDS = 100, 3

#: How the methods are drawn and named.
FIXED = {"Adam": Chip("Adam", COLOURS["adam"], "dash"), "SGDN": Chip("SGD (Nesterov)", COLOURS["sgdn"], "dash")}
GIVEN = Chip("AdamHD from each learning rate", COLOURS["adamw"], "solid")
NONE = Chip("AdamHD without one", "", "dot")

#: The largest loss drawn, relative to the lowest; and the most points of a learning-rate curve.
BEYOND, POINTS = 1e4, 2000


def configurations(base: Config) -> list[Config]:
    """The runs, for SEEDS seeds starting at that of ``base``."""
    fixed = [paper(title, lr) for title in FIXED for lr in LRS]
    ours = [str(Call("AdamHD", (), {**lr, "weight_decay": 1e-4})) for lr in (*({"lr": lr} for lr in LRS), {})]
    runs = [replace(base, model="mlp", hidden=HIDDEN, optimizer=call) for call in fixed + ours]
    return [replace(run, seed=base.seed + i) for i in range(SEEDS) for run in runs]


def belongs(run: Run) -> bool:
    """Whether a run is one of this figure's."""
    return run.options.get("hidden") == HIDDEN


def labelled(runs: Sequence[Run]) -> list[tuple[Chip, Run]]:
    """The runs of the figure, each with its label."""
    chips = (NONE if run.without_lr else GIVEN if run.tuning_free else FIXED.get(run.call.title) for run in runs)
    return [(chip, run) for chip, run in zip(chips, runs, strict=True) if chip and belongs(run)]


def losses(runs: Sequence[Run]) -> Chart | None:
    """Final losses over the initial learning rate; None with fewer than two learning rates."""
    return final_losses(labelled(runs), len(runs), BEYOND)


def alphas(runs: Sequence[Run]) -> Chart:
    """The learning rates of AdamHD by step, the initial one as step 0; medians over the seeds."""
    groups = grouped(((chip, run.lr), run) for chip, run in labelled(runs) if run.tuning_free)
    lines = []
    for (chip, lr), own in groups.items():
        found = line(own, [chip], {"optimizer", "lr", "seed"}, "history", ["iteration", "alpha"], POINTS)
        steps, alpha = ([start, *found.values[name]] for start, name in ((0, "iteration"), (lr, "alpha")))
        first = 0 if lr else 1
        lines.append(replace(found, values={"step": np.array(steps[first:]), "alpha": np.array(alpha[first:])}, bands={}))
    return Chart("Learning rates of AdamHD", "step", {"alpha": "Learning rate α of AdamHD"}, lines, True)


def verdict(runs: Sequence[Run]) -> str:
    """What the figure shows, one sentence for each loss; empty with fewer than two learning rates."""
    chart = losses(runs)
    if chart is None:
        return ""
    seeds, lrs = {repr(run.options.get("seed")) for _, run in labelled(runs)}, {run.lr for _, run in labelled(runs)} - {None}
    of = f"from {len(lrs)} learning rates" + (f", median of {len(seeds)} seeds" if len(seeds) > 1 else "")
    sentences = (f"{title} {of}: {', '.join(span(own, chart.x, name) for own in chart.lines)}." for name, title in FINAL.items())
    return "\n".join(reversed([*sentences]))


def span(own: Line, x: str, name: str) -> str:
    """The lowest and highest loss of a line, and the best learning rate of those that keep it constant."""
    low, high = (f"{loss:.4g}" if math.isfinite(loss) else "diverged" for loss in (own.values[name].min(), own.values[name].max()))
    best = "" if own.chips[0] == GIVEN else f" (at {own.values[x][own.values[name].argmin()]:g})"
    return f"{own.chips[0].label} {low}" + ("" if own.level else f"{best} to {high}")


def write(folder: Folder, runs: Sequence[Run]) -> list[Path]:
    """Write the figure and flat.csv, one row per run; returns the files."""
    from . import plots

    ended = ("status", "train_loss", "valid_loss", "valid_accuracy", "alpha")
    rows = [
        {"method": chip.label, "lr": run.lr, "seed": run.options["seed"], **{name: run.summary[name] for name in ended}}
        for chip, run in labelled(runs)
    ]
    charts = [chart for chart in (losses(runs), alphas(runs)) if chart]
    return [*plots.save(plots.narrow(charts), folder, "flat"), plots.table(folder, "flat", rows)]
