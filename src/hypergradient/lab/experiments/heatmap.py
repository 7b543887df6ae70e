"""The poster's heat maps: iterations until the minibatch training loss first reaches a threshold, over α_0 × β."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..runs.config import TITLES, Config
from ..runs.engine import Summary
from ..runs.store import Folder
from . import plots

VALUES = tuple(10.0**k for k in range(-6, 0))
FAMILIES = ("sgd", "sgdn", "adam")
COLUMNS = ("method", "alpha_0", "beta", "seed", "iterations", "status")


@dataclass(frozen=True)
class Row:
    """One run: ``iterations`` is None where the threshold was not reached."""

    method: str
    alpha_0: float
    beta: float | None
    seed: int
    iterations: int | None
    status: str


def grid(base: Config, seeds: int) -> list[Config]:
    """The runs: each baseline over α_0, each -hd optimizer over α_0 × β, for the seeds from 1.

    Args:
        base: everything but optimizer, lr, hypergrad_lr and seed.
        seeds: how many.
    """
    options = base.as_dict()
    configs = []
    for seed in range(1, seeds + 1):
        for family in FAMILIES:
            for lr in VALUES:
                for optimizer, beta in [(family, None), *((f"{family}-hd", beta) for beta in VALUES)]:
                    configs.append(Config(**(options | {"optimizer": optimizer, "lr": lr, "hypergrad_lr": beta, "seed": seed})))
    return configs


def rows(configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Row]:
    return [
        Row(c.optimizer, c.lr, c.hypergrad_lr, c.seed, s.iterations if s.status == "reached" else None, s.status)
        for c, s in zip(configs, summaries, strict=True)
    ]


def say(configs: Sequence[Config], summaries: Sequence[Summary]) -> str:
    reached = sum(summary.status == "reached" for summary in summaries)
    return f"{reached} of {len(summaries)} runs reached {configs[0].threshold:g}."


def write(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    """The table and the figure; returns the files."""
    table = rows(configs, summaries)
    return [write_csv(folder, table), *plots.save(figure(table, configs[0]), folder, "heatmap")]


def write_csv(folder: Folder, table: Sequence[Row]) -> Path:
    """heatmap.csv: one row a run; beta is empty for a baseline, iterations where the threshold was not reached."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if value is None else value for value in (getattr(row, name) for name in COLUMNS)] for row in table)
    folder.write("heatmap.csv", lambda file: file.write_text(text.getvalue()))
    return folder.path / "heatmap.csv"


def cells(table: Sequence[Row], method: str) -> dict[tuple[float, float | None], float]:
    """(α_0, β) → the median of the seeds; infinite where half of them or more did not reach the threshold."""
    found: dict[tuple[float, float | None], list[float]] = {}
    for row in table:
        if row.method == method:
            found.setdefault((row.alpha_0, row.beta), []).append(math.inf if row.iterations is None else row.iterations)
    return {key: statistics.median_high(values) for key, values in found.items()}


def figure(table: Sequence[Row], base: Config) -> Figure:
    """Six panels, baselines above their hypergradient versions: α_0 from left to right, β upwards.

    Numbers are iterations, grey cells did not reach the threshold within the cap, and a red line goes round the cells where the
    hypergradient version needs more iterations than its baseline from the same α_0.
    """
    fig = Figure(figsize=(15, 7), layout="constrained")
    axes = fig.subplots(2, len(FAMILIES), sharex=True, height_ratios=[1, 6])
    all_cells = {method: cells(table, method) for family in FAMILIES for method in (family, f"{family}-hd")}
    reached = [x for panel in all_cells.values() for x in panel.values() if math.isfinite(x)]
    norm = LogNorm(max(1, min(reached, default=1)), max(reached, default=10))
    for column, family in enumerate(FAMILIES):
        for axis, method in zip(axes[:, column], (family, f"{family}-hd"), strict=True):
            panel = all_cells[method]
            betas = sorted({beta for _, beta in panel}, key=lambda beta: beta or 0.0)
            lrs = sorted({lr for lr, _ in panel})
            values = [[panel[lr, beta] for lr in lrs] for beta in betas]
            shown = [[x if math.isfinite(x) else math.nan for x in line] for line in values]
            axis.set_facecolor("#cccccc")
            image = axis.imshow(shown, norm=norm, cmap="viridis_r", origin="lower", aspect="auto")
            for y, line in enumerate(values):
                for x, value in enumerate(line):
                    text = f"{value:,.0f}" if math.isfinite(value) else f"> {base.iterations:,}"
                    dark = math.isfinite(value) and norm(value) > 0.6
                    axis.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
            axis.set_yticks(range(len(betas)), ["" if beta is None else f"$10^{{{math.log10(beta):.0f}}}$" for beta in betas])
            axis.set_xticks(range(len(lrs)), [f"$10^{{{math.log10(lr):.0f}}}$" for lr in lrs])
            axis.set_title(TITLES[method])
            axis.tick_params(length=0)
            if method != family:
                worse = [[value > all_cells[family][lr, None] for lr, value in zip(lrs, line, strict=True)] for line in values]
                outline(axis, worse)
                axis.set_xlabel("α$_0$")
                if column == 0:
                    axis.set_ylabel("β")
    fig.colorbar(image, ax=axes, label=f"iterations until a minibatch loss ≤ {base.threshold:g}", shrink=0.8)
    fig.suptitle(f"{base.title} on {base.data_title}")
    return fig


def outline(axis: object, marked: Sequence[Sequence[bool]]) -> None:
    """A red line round the marked cells."""
    height, width = len(marked), len(marked[0])

    def at(y: int, x: int) -> bool:
        return 0 <= y < height and 0 <= x < width and marked[y][x]

    for y in range(height):
        for x in range(width):
            if not marked[y][x]:
                continue
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                if not at(y + dy, x + dx):
                    xs = (x + dx / 2, x + dx / 2) if dx else (x - 0.5, x + 0.5)
                    ys = (y + dy / 2, y + dy / 2) if dy else (y - 0.5, y + 0.5)
                    axis.plot(xs, ys, color="#D00000", linewidth=2.5, clip_on=False, solid_capstyle="projecting")  # type: ignore[attr-defined]
