"""Lower bounds of a fused step: the time of kernels that do little but read and write, relative to torch's fused Adam.

    python -m benchmarks.step_bounds

28 million float32 in 40 tensors; the kernels are torch.compile's, all interleaved in one run; medians over the turns, and quartiles.
Writes docs/results/step-bounds.json and a table in docs/performance.md.
"""

from collections.abc import Callable
from functools import reduce
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypergradient.runner import Runner

from .report import command, publish, table
from .step_time import ADAM, MODELS, ROWS
from .timing import Step, interleaved, optimizer, ratio, told

Work = Callable[[dict[str, Tensor], Any], list[Tensor]]


def product(names: str) -> Work:
    """The sum over the elementwise product of some tensors."""
    return lambda x, _: [reduce(mul, (x[name] for name in names)).sum()]


def meet(x: dict[str, Tensor], _: Any) -> list[Tensor]:
    return [(x["g"] * (x["m"] / (x["s"].sqrt() * 0.9 + 1e-8))).sum()]


def moments(x: dict[str, Tensor], _: Any) -> list[Tensor]:
    x["m"].add_((x["g"] - x["m"]) * 0.1)
    x["s"].mul_(0.999).add_(x["g"] * x["g"] * 0.001)
    return []


def parameters(x: dict[str, Tensor], _: Any) -> list[Tensor]:
    x["p"].sub_(1e-9 * (x["m"] / (x["s"].sqrt() * 0.9 + 1e-8)))
    return []


def update(x: dict[str, Tensor], _: Any) -> list[Tensor]:
    return moments(x, _) + parameters(x, _)


def meet_and_moments(x: dict[str, Tensor], _: Any) -> list[Tensor]:
    return meet(x, _) + moments(x, _)


#: By name: the numbers of tensors read and written, and the passes over memory.
WORKS: dict[str, tuple[int, int, list[Work]]] = {
    ADAM: (4, 3, []),
    "sum over a product of two tensors": (2, 0, [product("gm")]),
    "sum over a product of three tensors": (3, 0, [product("gms")]),
    "sum over a product of four tensors": (4, 0, [product("gmsp")]),
    "dot product of Adam-HD": (3, 0, [meet]),
    "update of Adam-HD": (4, 3, [update]),
    "both passes": (7, 3, [meet, update]),
    "dot product and moments in one pass, then the parameters": (6, 3, [meet_and_moments, parameters]),
}
WRITING = (update, meet_and_moments, parameters)


def main(*, turns: int = 25, docs: Path = Path("docs")) -> None:
    """
    Args:
        turns: number of turns
        docs: folder for table and data
    """
    p = [nn.Parameter(torch.randn(shape) * 0.01) for shape in next(iter(MODELS.values()))[0]]
    for x in p:
        x.grad = torch.randn_like(x) * 1e-3
    opt = optimizer(ROWS[ADAM][1], p)
    opt.step()
    columns: Any = {"p": [x.detach() for x in p], "g": [x.grad for x in p]}
    columns |= {name: [opt.state[x][key].clone() for x in p] for name, key in (("m", "exp_avg"), ("s", "exp_avg_sq"))}
    run: Any = Runner(fused=True)

    def passes(works: list[Work]) -> Step:
        return lambda: [run(work, columns, {"one": 1.0}, writes=work in WRITING) for work in works]

    steps = {name: passes(works) for name, (_, _, works) in WORKS.items()} | {ADAM: opt.step}
    with torch.no_grad():
        seconds = interleaved(steps, turns)
    assert run.fused
    found = {name: ratio(times, seconds[ADAM]) for name, times in seconds.items()}
    publish(docs, "step-bounds", __doc__, {"rows": found}, text(found))


def text(found: dict[str, Any]) -> str:
    lines = [[name, str(read), str(written), told(found[name])] for name, (read, written, _) in WORKS.items()]
    return table(["", "tensors read", "tensors written", "time / torch's fused Adam"], lines)


if __name__ == "__main__":
    command(main)
