"""What a step would launch on an accelerator, and hold for a time: counted on the "meta" device, which computes nothing.

    python -m benchmarks.launches

Counted are the operations that torch dispatches in one ``opt.step()`` in the middle of a run, without those that launch nothing: views,
metadata and allocations. A ``torch._foreach_*`` operation counts as one: on a CUDA device it is one launch, or one for each few
hundred tensors; where each tensor has a number of its own (scope="tensor") it is one a tensor. "held" is the most bytes that the step holds
at a time beyond what was there before. Writes docs/results/launches.json and the table in docs/performance.md.
"""

import argparse
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hypergradient import (
    HDM,
    SGDHD,
    AdaGradRule,
    AdamHD,
    AdamRule,
    AdamWHD,
    Additive,
    Autostep,
    Delayed,
    Hypergradient,
    LionRule,
    Marthe,
    Multiplicative,
    Signal,
)

from .report import machine, sentence
from .timing import fill

Make = Callable[[list[Any]], Any]

#: Operations that launch nothing, beside views.
FREE = {
    *("detach", "alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "set_"),
    *("_unsafe_view", "profiler::_record_function_enter_new", "profiler::_record_function_exit", "promote_types"),
    "_local_scalar_dense",  # of a number on the host: one on the device would be an error
}

A = Additive(0.01)
BOTH = (Multiplicative(0.01), Multiplicative(0.01))

#: A row's name, what it may launch at most for 24 tensors, and its optimizer.
ROWS: list[tuple[str, int | None, Make]] = [
    ("torch Adam foreach", None, lambda params: torch.optim.Adam(params, foreach=True, capturable=False)),
    ("AdamHD, additive", 60, lambda params: AdamHD(params, lr=1e-3, hypergrad_lr=1e-8)),
    ("AdamHD, multiplicative", 70, lambda params: AdamHD(params, lr=1e-3, rule=Multiplicative(0.02))),
    ("AdamHD, no lr", 140, AdamHD),
    ('AdamWHD, no lr, scope="tensor"', 160, lambda params: AdamWHD(params, scope="tensor")),
    ("SGDHD, additive", 50, lambda params: SGDHD(params, lr=0.1, hypergrad_lr=1e-3)),
    ("SGDHD Nesterov, no lr", 140, lambda params: SGDHD(params, momentum=0.9, nesterov=True)),
    (
        "Hypergradient(Adam(foreach=True)), additive",
        100,
        lambda params: Hypergradient(torch.optim.Adam(params, foreach=True), hypergrad_lr=1e-8),
    ),
    (
        "AdamWHD, lr, betas and weight decay",
        160,
        lambda params: AdamWHD(params, lr=1e-3, adapt={"lr": Multiplicative(0.02), "betas": BOTH, "weight_decay": Multiplicative(0.02)}),
    ),
]

ELEMENTS: dict[str, Any] = {"lr": 1e-3, "scope": "element", "signal": Signal(1.0, curvature="squares")}

#: Methods since 2018, each after the additive rule that moves the same things, of which it may launch 20 more.
ROWS += [
    ("AdamHD, AdaGrad, normalized", 79, lambda params: AdamHD(params, lr=1e-3, rule=AdaGradRule(0.1), signal=Signal(normalized=True))),
    ("AdamHD, Adam", 79, lambda params: AdamHD(params, lr=1e-3, rule=AdamRule(1e-3, log=True))),
    ("AdamWHD, additive", None, lambda params: AdamWHD(params, lr=1e-3, hypergrad_lr=1e-8)),
    ("AdamWHD, MetaOptimize", 90, lambda params: AdamWHD(params, lr=1e-3, rule=Delayed(LionRule(1e-3, log=True)), signal=Signal(0.9999))),
    ("SGDHD, MARTHE, automatic μ", 55, lambda params: SGDHD(params, lr=1e-3, momentum=0.9, rule=Marthe(auto=True))),
    ("SGDHD, additive, momentum too", None, lambda params: SGDHD(params, lr=1e-3, momentum=0.9, adapt={"lr": A, "momentum": A})),
    ('HDM, scope="group"', 108, lambda params: HDM(params, scope="group")),
    ('SGDHD, additive, scope="element"', None, lambda params: SGDHD(params, lr=1e-3, hypergrad_lr=1e-8, scope="element")),
    ("SGDHD, IDBD", 91, lambda params: SGDHD(params, rule=Additive(0.01, log=True), **ELEMENTS)),
    ("SGDHD, Autostep", 91, lambda params: SGDHD(params, rule=Autostep(), **ELEMENTS)),
]

#: What 240 tensors may launch for each launch of 24 of as many elements.
MORE = 1.2

#: Bytes that a step may hold at a time.
HELD = 256 << 20


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations, and the bytes that are alive of what they made."""

    def __init__(self, there: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.there = {x.untyped_storage()._cdata for x in there}
        self.operations: Counter[str] = Counter()
        self.bytes = self.held = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0]
        if not func.is_view and name not in FREE:
            self.operations[name] += 1
        for x in out if isinstance(out, list | tuple) else [out]:
            if isinstance(x, torch.Tensor):
                self._hold(x.untyped_storage())
        return out

    def _hold(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._storages or key in self.there:
            return
        self._storages.add(key)
        size = storage.nbytes()
        self.bytes += size
        self.held = max(self.held, self.bytes)

        def freed() -> None:
            self._storages.discard(key)
            self.bytes -= size

        weakref.finalize(storage, freed)


def counted(make: Make, shapes: Sequence[tuple[int, ...]], steps: int = 5) -> Count:
    """The operations of one step, after some that make buffers and find a start."""
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    opt = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.empty_like(p)
        opt.step()
    kept = [x for own in opt.state.values() for x in own.values() if isinstance(x, torch.Tensor)]
    count = Count([*params, *[p.grad for p in params if p.grad is not None], *kept])
    with count:
        opt.step()
    return count


def shapes_of(tensors: int, parameters: int = 5_000_000) -> list[tuple[int, ...]]:
    return [(parameters // tensors // 100, 100)] * tensors


#: GPT-2's 124 M and a model of 1.5 billion, by their tensors.
LARGE = {
    "124 M": [(50_257, 768), (1024, 768), *[(768, 2304), (768, 768), (768, 3072), (3072, 768), (768,), (768,), (2304,), (3072,)] * 12],
    "1.5 B": [(50_257, 1600), (1024, 1600), *[(1600, 4800), (1600, 1600), (1600, 6400), (6400, 1600), (1600,), (1600,)] * 48],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where table and data are written")
    parser.add_argument("--operations", action="store_true", help="print what is launched, too")
    options = parser.parse_args()
    models = {"24": shapes_of(24), "240": shapes_of(240), **LARGE}
    found = {}
    for name, most, make in ROWS:
        counts = {model: counted(make, shapes) for model, shapes in models.items()}
        found[name] = {"most": most} | {model: [count.operations.total(), count.held] for model, count in counts.items()}
        if options.operations:
            print(name, dict(counts["24"].operations.most_common()))
    lines = [sentence(__doc__), machine(), ""]
    lines += ["| launches of a step | aim | 24 tensors, 5 M | 240, 5 M | 124 M in 98 | held | 1.5 B in 290 | held |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, row in found.items():
        launches: list[Any] = [row[model][0] for model in models]  # type: ignore[index]
        held = [f"{row[model][1] / 2**20:.0f} MiB" for model in LARGE]  # type: ignore[index]
        lines.append(
            f"| {name} | {row['most'] or ''} | {launches[0]} | {launches[1]} | {launches[2]} | {held[0]} | {launches[3]} | {held[1]} |"
        )
    print("\n".join(lines))
    (options.docs / "results" / "launches.json").write_text(json.dumps({"machine": machine(), "rows": found}, indent=1) + "\n")
    fill(options.docs / "performance.md", "launches", lines)


if __name__ == "__main__":
    main()
