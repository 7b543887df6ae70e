"""The code blocks of docs/coming-from/, run as they stand on three seeds.

    python -m benchmarks.coming_from

Writes docs/results/coming-from.json, and each page's table between its comments ``<!-- runs -->`` and ``<!-- /runs -->``.
It takes about a minute and needs no download: the data are scikit-learn's digits.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.engine import shuffled
from hypergradient.lab.runs.models import make_model
from hypergradient.lab.runs.train import evaluate

from .report import command, fill, machine, made, table, write


# What the blocks find there, as index.md shows it.
# --8<-- [start:setup]
def setup(seed: int = 1, epochs: int = 10) -> dict[str, Any]:
    """What the blocks use: ``batches``, ``steps``, ``net()`` and ``validate(model)``."""
    data = load("digits")  # 1,437 images for training, 360 for validation
    rows = [part for epoch in range(epochs) for part in torch.split(shuffled(len(data.train_y), seed, epoch), 64)]

    def net() -> torch.nn.Module:  # 64-100-100-10, ReLU; always the same initial weights
        return make_model("mlp", data.train_x.shape[1:], data.classes, seed, hidden=100)

    def loss_on(part: str) -> Callable[[torch.nn.Module], float]:
        return lambda model: evaluate(model, getattr(data, f"{part}_x"), getattr(data, f"{part}_y"))[0]

    batches = [data.batch(part) for part in rows]
    return {"batches": batches, "steps": len(batches), "net": net, "validate": loss_on("valid"), "training": loss_on("train")}


# --8<-- [end:setup]


class Row(NamedTuple):
    """A row of a table: a block of the page, by its place among the page's Python blocks, with some of its text replaced."""

    block: int
    changes: Mapping[str, str] = {}


UNSCHEDULED = {"    schedule.step()\n": ""}

#: The rows of each page.
PAGES: dict[str, dict[str, Row]] = {
    "adam-cosine": {f"AdamW, cosine, lr={lr}": Row(0, {"lr=1e-3": f"lr={lr}"}) for lr in ("1e-4", "1e-3", "1e-2", "1e-1")}
    | {"AdamWHD": Row(1), "AdamWHD, the schedule kept": Row(2), "AdamWHD, Decay, no average": Row(3)},
    "prodigy": {"Prodigy": Row(0, UNSCHEDULED), "Prodigy, cosine": Row(0), "AdamWHD": Row(1), "AdamWHD, Decay, no average": Row(2)},
    "d-adaptation": {
        "DAdaptAdam": Row(0, UNSCHEDULED),
        "DAdaptAdam, cosine": Row(0),
        "AdamWHD": Row(1),
        "AdamWHD, Decay, no average": Row(2),
    },
    "schedule-free": {f"AdamWScheduleFree, lr={lr}": Row(0, {"lr=0.0025": f"lr={lr}"}) for lr in ("0.00025", "0.0025", "0.025", "0.25")}
    | {"AdamWHD": Row(1)},
    "authors": {"SGDHD, lr and hypergrad_lr": Row(0), "SGDHD": Row(1)},
    "gdtuo": {"gdtuo.Adam / gdtuo.SGD": Row(0), "AdamHD, lr and betas adapted": Row(1), "AdamHD": Row(2)},
}

SEEDS = (1, 2, 3)


def main(*, docs: Path = Path("docs")) -> None:
    """
    Args:
        docs: where the pages lie, and results/
    """
    torch.set_num_threads(1)  # faster, for so small a network
    found: dict[str, Any] = {}
    for page, rows in PAGES.items():
        file = docs / "coming-from" / f"{page}.md"
        source = file.read_text()
        found[page] = {name: [run(block(source, row), seed) for seed in SEEDS] for name, row in rows.items()}
        fill(file, "runs", f"{made(__doc__)}\n{machine()}\n\n{text(found[page])}")
        print(page, text(found[page]), sep="\n\n", end="\n\n", flush=True)
    write(docs / "results" / "coming-from.json", {"machine": machine(), "seeds": SEEDS, "pages": found})


def block(page: str, row: Row) -> str:
    """The code of a row, after the imports of all blocks of the page.

    Raises:
        ValueError: the block does not hold what is to be replaced.
    """
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    code = blocks[row.block]
    for old, new in row.changes.items():
        if old not in code:
            raise ValueError(f"{old!r} is not in\n{code}")
        code = code.replace(old, new)
    return "\n".join([*re.findall(r"^(?:from|import) .*$", "".join(blocks), re.MULTILINE), code])


def run(code: str, seed: int) -> dict[str, float]:
    """Losses of the model as the code leaves it, and the largest and the last learning rate of its steps."""
    names, path = setup(seed), list[float]()

    def watched(batches: list[Any]) -> Iterator[Any]:
        for batch in batches:
            yield batch
            path.append(applied(names["opt"]))

    names["batches"] = watched(names["batches"])
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        exec(code, names)
    model = names["model"]
    return {"train": names["training"](model), "valid": names["validate"](model), "highest": max(path), "last": path[-1]}


def applied(opt: Any) -> float:
    """The learning rate of a step: d * lr in Prodigy and D-Adaptation, and what gdtuo has as a parameter."""
    if not isinstance(opt, torch.optim.Optimizer):
        return float(opt.parameters["alpha"])
    group = opt.param_groups[0]
    return float(group.get("alpha", group.get("scheduled_lr", group["lr"])) * group.get("d", 1.0))


def text(rows: Mapping[str, list[dict[str, float]]]) -> str:
    """The table of a page: medians over the seeds."""
    lines = [
        [name, *(f"{median(one[key] for one in runs):.3g}" for key in ("train", "valid", "highest", "last"))] for name, runs in rows.items()
    ]
    return table(["", "training loss", "validation loss", "highest α", "last α"], lines)


if __name__ == "__main__":
    command(main)
