"""Kernel launches and temporary memory of a step on an accelerator, counted on the "meta" device, which computes nothing.

    python -m benchmarks.launches

Counts the operations that torch dispatches in one ``opt.step()`` in the middle of a run, except those that launch no kernel: views,
metadata and allocations. A ``torch._foreach_*`` operation counts as one: on a CUDA device it is one launch per few hundred tensors, or one
per tensor if each has a different scalar (scope="tensor"). "Temporary" is the peak memory that the step allocates beyond what was there
before. Writes docs/results/launches.json and the table in docs/performance.md.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .report import command, publish, table
from .timing import optimizer

#: Operations besides views that launch no kernel.
FREE = {
    *("detach", "alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "set_"),
    *("_unsafe_view", "profiler::_record_function_enter_new", "profiler::_record_function_exit", "promote_types"),
    "_local_scalar_dense",  # of a scalar on the host; of one on the device it would be an error
}

M = "Multiplicative(0.02)"
BOTH = "(Multiplicative(0.01), Multiplicative(0.01))"
ELEMENTS = "scope='element', signal=Signal(1.0, curvature='squares')"

#: By name: the target for 24 tensors, and the optimizer.
ROWS: dict[str, tuple[int | None, str]] = {
    "torch Adam foreach": (None, "Adam(foreach=True, capturable=False)"),
    "AdamHD, additive": (60, "AdamHD(lr=1e-3, hypergrad_lr=1e-8)"),
    "AdamHD, multiplicative": (70, f"AdamHD(lr=1e-3, rule={M})"),
    "AdamHD, tuning-free": (140, "AdamHD"),
    'AdamWHD, tuning-free, scope="tensor"': (160, "AdamWHD(scope='tensor')"),
    "SGDHD, additive": (50, "SGDHD(lr=0.1, hypergrad_lr=1e-3)"),
    "SGDHD Nesterov, tuning-free": (140, "SGDHD(momentum=0.9, nesterov=True)"),
    "Hypergradient(Adam(foreach=True)), additive": (100, "Hypergradient(Adam(foreach=True), hypergrad_lr=1e-8)"),
    "AdamWHD, lr, betas and weight decay": (160, f"AdamWHD(lr=1e-3, adapt={{'lr': {M}, 'betas': {BOTH}, 'weight_decay': {M}}})"),
    # Methods since 2018: the target is 20 launches more than the additive rule that adapts the same hyperparameters.
    "AdamHD, AdaGrad, normalized": (79, "AdamHD(lr=1e-3, rule=AdaGradRule(0.1), signal=Signal(normalized=True))"),
    "AdamHD, Adam": (79, "AdamHD(lr=1e-3, rule=AdamRule(1e-3, log=True))"),
    "AdamWHD, additive": (None, "AdamWHD(lr=1e-3, hypergrad_lr=1e-8)"),
    "AdamWHD, MetaOptimize": (90, "AdamWHD(lr=1e-3, rule=Delayed(LionRule(1e-3, log=True)), signal=Signal(0.9999))"),
    "SGDHD, MARTHE, automatic μ": (55, "SGDHD(lr=1e-3, momentum=0.9, rule=Marthe(auto=True))"),
    "SGDHD, additive, momentum too": (None, "SGDHD(lr=1e-3, momentum=0.9, adapt={'lr': Additive(0.01), 'momentum': Additive(0.01)})"),
    'HDM, scope="group"': (108, "HDM(scope='group')"),
    'SGDHD, additive, scope="element"': (None, "SGDHD(lr=1e-3, hypergrad_lr=1e-8, scope='element')"),
    "SGDHD, IDBD": (91, f"SGDHD(lr=1e-3, rule=Additive(0.01, log=True), {ELEMENTS})"),
    "SGDHD, Autostep": (91, f"SGDHD(lr=1e-3, rule=Autostep(), {ELEMENTS})"),
}

#: Launches for 240 tensors may be this many times those for 24 tensors with as many elements in total.
MORE = 1.2

#: Bytes of temporary memory that a step may use.
HELD = 256 << 20

#: The tensors of GPT-2 with 124 M parameters and of a model with 1.5 billion.
LARGE = {
    "124 M": [(50_257, 768), (1024, 768), *[(768, 2304), (768, 768), (768, 3072), (3072, 768), (768,), (768,), (2304,), (3072,)] * 12],
    "1.5 B": [(50_257, 1600), (1024, 1600), *[(1600, 4800), (1600, 1600), (1600, 6400), (6400, 1600), (1600,), (1600,)] * 48],
}


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and the bytes of their results that are alive."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {x.untyped_storage()._cdata for x in there}
        self.operations: Counter[str] = Counter()
        self.bytes = self.held = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0]
        self.operations[name] += not func.is_view and name not in FREE
        for storage in [x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor)]:
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.bytes += storage.nbytes()
                self.held = max(self.held, self.bytes)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return out

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def counted(call: str, shapes: Sequence[tuple[int, ...]], steps: int = 5) -> Count:
    """The operations of one step, after some steps that create buffers and find a first learning rate."""
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    opt = optimizer(call, params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.empty_like(p)
        opt.step()
    kept = [x for own in opt.state.values() for x in own.values() if isinstance(x, Tensor)]
    count = Count([*params, *(p.grad for p in params if p.grad is not None), *kept])
    with count:
        opt.step()
    return count


def shapes_of(tensors: int, parameters: int = 5_000_000) -> list[tuple[int, ...]]:
    return [(parameters // tensors // 100, 100)] * tensors


def main(*, docs: Path = Path("docs"), operations: bool = False) -> None:
    """
    Args:
        docs: folder for table and data
        operations: also print the operations by name
    """
    found: dict[str, Any] = {}
    for name, (most, call) in ROWS.items():
        counts = {model: counted(call, shapes) for model, shapes in ({"24": shapes_of(24), "240": shapes_of(240)} | LARGE).items()}
        found[name] = {"most": most} | {model: [count.operations.total(), count.held] for model, count in counts.items()}
        if operations:
            print(name, dict(counts["24"].operations.most_common()))
    publish(docs, "launches", __doc__, {"rows": found}, text(found))


def text(found: dict[str, Any]) -> str:
    lines = []
    for name, row in found.items():
        large = [cell for model in LARGE for cell in (str(row[model][0]), f"{row[model][1] / 2**20:.0f} MiB")]
        lines.append([name, str(row["most"] or ""), str(row["24"][0]), str(row["240"][0]), *large])
    return table(
        ["kernel launches per step", "target", "24 tensors, 5 M", "240, 5 M", "124 M in 98", "temporary", "1.5 B in 290", "temporary"],
        lines,
    )


if __name__ == "__main__":
    command(main)
