"""What bounds a fused step: the time of kernels that read and write so many tensors and do little else, over torch's fused Adam.

    python -m benchmarks.step_bounds

28 million float32 in 40 tensors; the kernels are torch.compile's, all interleaved in one run, medians over the turns and the middle half.
Writes docs/results/step-bounds.json and a table in docs/performance.md.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypergradient.execute import Runner

from .report import machine, sentence
from .step_time import ADAM, LR, MODELS
from .timing import fill, interleaved, ratio

Pieces = dict[str, Tensor]


def product(names: str) -> Callable[[Pieces, dict[str, Any]], list[Tensor]]:
    """The sum over the products of some tensors."""

    def work(x: Pieces, numbers: dict[str, Any]) -> list[Tensor]:
        found = x[names[0]]
        for name in names[1:]:
            found = found * x[name]
        return [found.sum()]

    return work


def meet(x: Pieces, numbers: dict[str, Any]) -> list[Tensor]:
    return [(x["g"] * (x["m"] / (x["s"].sqrt() * 0.9 + 1e-8))).sum()]


def moments(x: Pieces, numbers: dict[str, Any]) -> list[Tensor]:
    x["m"].add_((x["g"] - x["m"]) * 0.1)
    x["s"].mul_(0.999).add_(x["g"] * x["g"] * 0.001)
    return []


def meet_and_moments(x: Pieces, numbers: dict[str, Any]) -> list[Tensor]:
    found = meet(x, numbers)
    moments(x, numbers)
    return found


def parameters(x: Pieces, numbers: dict[str, Any]) -> list[Tensor]:
    x["p"].sub_(1e-9 * (x["m"] / (x["s"].sqrt() * 0.9 + 1e-8)))
    return []


def update(x: Pieces, numbers: dict[str, Any]) -> list[Tensor]:
    moments(x, numbers)
    return parameters(x, numbers)


#: Name, tensors read and written, and the passes, each with whether it writes.
ROWS: list[tuple[str, str, int, list[tuple[Any, bool]]]] = [
    ("sum over a product of two tensors", "2", 0, [(product("gm"), False)]),
    ("of three", "3", 0, [(product("gms"), False)]),
    ("of four", "4", 0, [(product("gmsp"), False)]),
    ("the dot product of Adam-HD", "3", 0, [(meet, False)]),
    ("the update of Adam-HD", "4", 3, [(update, True)]),
    ("both", "7", 3, [(meet, False), (update, True)]),
    ("dot product and moments, then the parameters", "6", 3, [(meet_and_moments, True), (parameters, True)]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=25, help="how many times each takes its turn")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where table and data are written")
    options = parser.parse_args()
    shapes = next(iter(MODELS.values()))
    params = [nn.Parameter(torch.randn(shape) * 0.01) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    opt = torch.optim.Adam(params, lr=LR, fused=True)
    opt.step()
    columns = {
        "p": [p.detach() for p in params],
        "g": [p.grad for p in params],
        "m": [opt.state[p]["exp_avg"].clone() for p in params],
        "s": [opt.state[p]["exp_avg_sq"].clone() for p in params],
    }
    run: Any = Runner(fused=True)

    def passes(works: list[tuple[Any, bool]]) -> Callable[[], None]:
        def step() -> None:
            for work, writes in works:
                run(work, columns, {"one": 1.0}, writes=writes)

        return step

    steps: dict[str, Callable[[], Any]] = {ADAM: opt.step} | {name: passes(works) for name, _, _, works in ROWS}
    with torch.no_grad():
        seconds = interleaved(steps, options.turns)
    assert run.fused
    found = {name: ratio(times, seconds[ADAM]) for name, times in seconds.items()}
    lines = [sentence(__doc__), machine(), "", "| | tensors read | written | over torch's fused Adam |", "|---|---|---|---|"]
    for name, read, written in [(ADAM, "4", 3), *((name, read, written) for name, read, written, _ in ROWS)]:
        lines.append(f"| {name} | {read} | {written} | " + "{:.2f} ({:.2f} to {:.2f}) |".format(*found[name]))
    print("\n".join(lines))
    (options.docs / "results" / "step-bounds.json").write_text(json.dumps({"machine": machine(), "rows": found}, indent=1) + "\n")
    fill(options.docs / "performance.md", "step_bounds", lines)


if __name__ == "__main__":
    main()
