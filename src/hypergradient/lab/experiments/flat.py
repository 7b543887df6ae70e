"""Does the learning rate that is given matter? Final losses over six decades of it, and where the adapted learning rates go.

Adam and SGD with Nesterov momentum keep the learning rate; AdamHD adapts it by the tuning-free rule, from each of them and from none. All
have the same epochs, batches and coupled L2 penalty. The network is a tenth as wide as the paper's, so that three seeds take seconds.
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

#: Width of the network's hidden layers, and how many seeds.
HIDDEN, SEEDS = 100, 3

#: How the methods are drawn and named.
FIXED = {"Adam": Chip("Adam", COLOURS["adam"], "dash"), "SGDN": Chip("SGD (Nesterov)", COLOURS["sgdn"], "dash")}
GIVEN = Chip("AdamHD from each learning rate", COLOURS["adamw"], "solid")
NONE = Chip("AdamHD without one", "", "dot")

#: The figures show losses up to so many times the lowest, and a learning rate by so many points.
BEYOND, POINTS = 1e4, 2000


def configurations(base: Config) -> list[Config]:
    """The runs, for seeds from that of ``base`` on."""
    fixed = [paper(title, lr) for title in FIXED for lr in LRS]
    ours = [str(Call("AdamHD", (), {**lr, "weight_decay": 1e-4})) for lr in (*({"lr": lr} for lr in LRS), {})]
    runs = [replace(base, model="mlp", hidden=HIDDEN, optimizer=call) for call in fixed + ours]
    return [replace(run, seed=base.seed + i) for i in range(SEEDS) for run in runs]


def belongs(run: Run) -> bool:
    """Whether the figure is made of this run, among others."""
    return run.options.get("hidden") == HIDDEN


def labelled(runs: Sequence[Run]) -> list[tuple[Chip, Run]]:
    """The runs of the figure, each with how it is drawn."""
    chips = (NONE if run.without_lr else GIVEN if run.tuning_free else FIXED.get(run.call.title) for run in runs)
    return [(chip, run) for chip, run in zip(chips, runs, strict=True) if chip and belongs(run)]


def losses(runs: Sequence[Run]) -> Chart | None:
    """Final losses over the learning rate that was given; None before there are two."""
    return final_losses(labelled(runs), len(runs), BEYOND)


def alphas(runs: Sequence[Run]) -> Chart:
    """The learning rates of AdamHD by step, from the one that was given, as step 0, on; medians where there are several seeds."""
    groups = grouped(((chip, run.lr), run) for chip, run in labelled(runs) if run.tuning_free)
    lines = []
    for (chip, lr), own in groups.items():
        found = line(own, [chip], {"optimizer", "lr", "seed"}, "history", ["iteration", "alpha"], POINTS)
        steps, alpha = ([start, *found.values[name]] for start, name in ((0, "iteration"), (lr, "alpha")))
        first = 0 if lr else 1
        lines.append(replace(found, values={"step": np.array(steps[first:]), "alpha": np.array(alpha[first:])}, bands={}))
    return Chart("Learning rates of AdamHD", "step", {"alpha": "Learning rate α of AdamHD"}, lines, True)


def verdict(runs: Sequence[Run]) -> str:
    """What the figure shows, in a sentence for each loss; empty before there are two learning rates."""
    chart = losses(runs)
    if chart is None:
        return ""
    seeds, lrs = {repr(run.options.get("seed")) for _, run in labelled(runs)}, {run.lr for _, run in labelled(runs)} - {None}
    of = f"from {len(lrs)} learning rates" + (f", median of {len(seeds)} seeds" if len(seeds) > 1 else "")
    sentences = (f"{title} {of}: {', '.join(span(own, chart.x, name) for own in chart.lines)}." for name, title in FINAL.items())
    return "\n".join(reversed([*sentences]))


def span(own: Line, x: str, name: str) -> str:
    """The lowest loss of a line and the highest; of those that keep their learning rate with the best one."""
    low, high = (f"{loss:.4g}" if math.isfinite(loss) else "diverged" for loss in (own.values[name].min(), own.values[name].max()))
    label = own.chips[0].label
    return f"{label} {low}" if own.level else f"{label} {low} (at {own.values[x][own.values[name].argmin()]:g}) to {high}"


def write(folder: Folder, runs: Sequence[Run]) -> list[Path]:
    """flat.csv, a row a run, and the figure; returns the files."""
    from . import plots

    ended = ("status", "train_loss", "valid_loss", "valid_accuracy", "alpha")
    rows = [
        {"method": chip.label, "lr": run.lr, "seed": run.options["seed"], **{name: run.summary[name] for name in ended}}
        for chip, run in labelled(runs)
    ]
    charts = [chart for chart in (losses(runs), alphas(runs)) if chart]
    return [*plots.save(plots.narrow(charts), folder, "flat"), plots.table(folder, "flat", rows)]
