"""The poster's heat maps: iterations until a minibatch's training loss first reaches a threshold, over α_0 × β."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..runs.config import Config, paper
from ..runs.engine import Summary
from ..runs.store import Folder
from .maps import Maps, Panel, panel, reached
from .run import Run, finite, runs_of, subject

VALUES = tuple(10.0**k for k in range(-6, 0))
FAMILIES = ("SGD", "SGDN", "Adam")


def grid(base: Config, seeds: int) -> list[Config]:
    """The runs: each baseline over α_0, each -HD optimizer over α_0 × β, for the seeds from 1.

    Args:
        base: all options except optimizer and seed.
        seeds: number of seeds.
    """
    return [
        replace(base, optimizer=call, seed=seed)
        for seed in range(1, seeds + 1)
        for family in FAMILIES
        for lr in VALUES
        for call in [paper(family, lr), *(paper(f"{family}-HD", lr, beta) for beta in VALUES)]
    ]


def say(configs: Sequence[Config], summaries: Sequence[Summary]) -> str:
    found = sum(summary.status == "reached" for summary in summaries)
    return f"{found} of {len(summaries)} runs reached a training loss of {configs[0].threshold:g}."


def write(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    """Write the table and the figure; returns the files.

    heatmap.csv has a row per run; beta is empty for a baseline, iterations if the threshold was not reached.
    """
    from . import plots

    runs = runs_of(folder, configs, summaries)
    rows = [
        {
            "method": run.call.title,
            "alpha_0": run.lr,
            "beta": run.beta,
            "seed": config.seed,
            "iterations": run.summary["iterations"] if run.status == "reached" else None,
            "status": run.status,
        }
        for run, config in zip(runs, configs, strict=True)
    ]
    return [plots.table(folder, "heatmap", rows), *plots.save(plots.maps(maps(runs)), folder, "heatmap")]


def iterations_needed(run: Run) -> float:
    return run.final("iterations", "reached")


def maps(runs: Sequence[Run]) -> Maps:
    """Baselines above their hypergradient versions; a red outline marks cells that need more iterations than their baseline."""
    rows: tuple[list[Panel], list[Panel]] = [], []
    for family in FAMILIES:
        adapting, plain = ([run for run in runs if run.call.title == title] for title in (f"{family}-HD", family))
        lrs = sorted({run.lr for run in (*adapting, *plain) if run.lr is not None})
        if not lrs:
            continue
        betas = sorted({run.beta for run in adapting if run.beta is not None})
        above = panel(family, lrs, [None], plain, iterations_needed)
        below = panel(f"{family}-HD", lrs, betas, [run for run in adapting if run.beta is not None], iterations_needed)
        below.worse.update(cell for cell, x in below.cells.items() if x > above.cells.get((cell[0], None), math.inf))
        for own, found in zip(rows, (above, below), strict=True):
            own.append(found)
    counts = reached([x for own in rows for found in own for x in found.cells.values()])
    cap, threshold = (finite(runs[0].options.get(name)) for name in ("iterations", "threshold"))
    beyond = "–" if cap is None else f"> {cap:,.0f}"
    ends = max(1, min(counts, default=1)), max([2, *counts])
    label = f"iterations until a minibatch loss ≤ {'a threshold' if threshold is None else f'{threshold:g}'}"
    return Maps(subject(runs), [("", own) for own in rows], ends, label, (beyond, "not reached"), lambda x: f"{x:,.0f}")
