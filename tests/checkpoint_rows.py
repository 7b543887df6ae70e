"""The runs whose checkpoints are stored in tests/data: how each is made, trained, saved and resumed, by public names alone.

Both the script that wrote the checkpoints and the test that reads them take the rows from here, so they cannot differ in what they run.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cases import Problem, flat
from hypergradient import SGDHD, AdamHD, AdamWHD, Adapted, Additive, Decay, Hypergradient, Multiplicative, Transition, TuningFree

SAVED, END = 7, 12  # after how many steps the checkpoint was written, and where the run ends


class Row(NamedTuple):
    """A run: the optimizer of param groups, its step, whether it is saved under ``eval()``, and whether its numbers stay on the device."""

    make: Callable[[list[dict[str, Any]]], Any]
    step: Callable[[Problem, Any, int], None]
    dtype: torch.dtype = torch.float64
    evaluates: bool = False
    capturable: bool = False

    def start(self) -> tuple[Problem, Any]:
        problem = Problem(self.dtype)
        return problem, self.make(problem.groups())

    def train(self, problem: Problem, opt: Any, start: int, end: int) -> None:
        for t in range(start, end):
            opt.zero_grad()
            problem.loss(t).backward()
            self.step(problem, opt, t)

    def save(self, problem: Problem, opt: Any) -> dict[str, Any]:
        if self.evaluates:
            opt.eval()
        saved = copied({"model": dict(problem.model.state_dict()), "optimizer": opt.state_dict()})
        if self.evaluates:
            opt.train()
        return saved

    def load(self, saved: dict[str, Any]) -> tuple[Problem, Any]:
        problem, opt = self.start()
        saved = copied(saved)  # torch takes over the tensors of a state as they are, and steps write to them
        problem.model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["optimizer"])
        if self.evaluates:
            opt.train()
        return problem, opt


def reached(problem: Problem, opt: Any) -> dict[str, Any]:
    """Where a run stands, as far as users see it."""
    names = ("lr", "hypergrad_lr", "momentum", "betas", "eps", "weight_decay")
    return copied(
        {
            "parameters": flat(problem.parameters()),
            "groups": [{name: group[name] for name in names if name in group} for group in opt.param_groups],
            "hypergradients": opt.hypergradients,
            "other_hypergradients": opt.other_hypergradients,
            "skipped": opt.skipped,
        }
    )


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """Plain data with each tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: mapped(value, change) for key, value in tree.items()}
    return type(tree)(mapped(value, change) for value in tree) if isinstance(tree, list | tuple) else tree


def copied(tree: Any) -> Any:
    """Plain data whose tensors own their memory: those of the file share it, and how a sum is rounded may depend on where they lie."""
    return mapped(tree, lambda x: x.detach().clone())


def arithmetic() -> Tensor:
    """How this machine rounds, without a line of ours: what torch.optim.Adam reaches, its sum and its dot product.

    The order of the additions in a sum or a product of matrices is chosen by what the processor has, so bits are those of alike machines.
    """
    found = []
    for dtype in (torch.float32, torch.float64):
        problem = Problem(dtype)
        problem.train(torch.optim.Adam(problem.parameters(), lr=0.01), END)
        x = flat(problem.parameters())
        found.append(torch.cat([x, x.sum().view(1), x.dot(x).view(1)]).double())
    return torch.cat(found)


def plain(problem: Problem, opt: Any, t: int) -> None:
    opt.step()


def held_out(problem: Problem, opt: Any, t: int) -> None:
    opt.step()
    opt.adapt(problem.loss(24 - t))


def frozen(problem: Problem, opt: Any, t: int) -> None:
    """Each tensor lacks a gradient now and then, one of them until after the checkpoint."""
    for i, p in enumerate(problem.parameters()):
        if (t + i) % 4 == 0 or (i == 2 and t <= SAVED):
            p.grad = None
    opt.step()


def failing(problem: Problem, opt: Any, t: int) -> None:
    """A gradient is not finite, once before the checkpoint and once after."""
    if t in (4, 9):
        gradient = problem.parameters()[-1].grad
        assert gradient is not None
        gradient[1] = math.nan
    opt.step()


def row(ours: Callable[..., Any], *, step: Any = plain, dtype: torch.dtype = torch.float64, evaluates: bool = False, **options: Any) -> Row:
    return Row(partial(ours, **options), step, dtype, evaluates, bool(options.get("capturable")))


def around(base: Callable[..., Any], own: dict[str, Any], *, step: Any = plain, **options: Any) -> Row:
    return Row(lambda groups: Hypergradient(base(groups, **own), **options), step)


def two_lrs(groups: list[dict[str, Any]]) -> AdamWHD:
    for group, lr in zip(groups, (2e-3, 1e-3), strict=True):
        group["lr"] = lr
    return AdamWHD(groups, weight_decay=0.1, hypergrad_lr=1e-5, scope="global")


def tensor_lr(groups: list[dict[str, Any]]) -> SGDHD:
    return SGDHD(groups, lr=torch.tensor(0.02, dtype=torch.float64), hypergrad_lr=1e-2)


SGD, NESTEROV = partial(SGDHD, lr=0.02, hypergrad_lr=2e-2), partial(SGDHD, momentum=0.9, nesterov=True)
ADAM = partial(AdamHD, lr=1e-3, hypergrad_lr=1e-5)
TOWER = Additive(Adapted(1e-5, Multiplicative(0.1)))
BASES = {
    "SGD": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}, 1e-3),
    "RMSprop": (torch.optim.RMSprop, {"lr": 1e-3}, 1e-5),
    "Adam": (torch.optim.Adam, {"lr": 1e-3}, 1e-5),
}

ROWS: dict[str, Row] = {
    "sgd": row(SGD),
    "sgd-decay": row(SGD, weight_decay=0.01),
    "momentum": row(SGD, momentum=0.9),
    "nesterov-decay": row(NESTEROV, lr=0.02, hypergrad_lr=1e-2, weight_decay=0.01),
    "adam": row(ADAM),
    "adam-decay": row(ADAM, weight_decay=0.1),
    "adamw": row(AdamWHD, lr=1e-3, hypergrad_lr=1e-5, weight_decay=0.1),
    "sgd-float32": row(SGD, momentum=0.9, dtype=torch.float32),
    "adam-float32": row(ADAM, dtype=torch.float32),
    "tuning-float32": row(AdamHD, dtype=torch.float32),
    "multiplicative": row(SGDHD, lr=0.02, rule=Multiplicative(0.02)),
    "tower-tensor": row(AdamHD, lr=1e-3, rule=TOWER, scope="tensor"),
    "tuning": row(NESTEROV),
    "tuning-too-large": row(AdamWHD, lr=100.0, scope="tensor"),
    "transition": row(NESTEROV, lr=0.02, rule=Transition(Multiplicative(0.02), alpha_inf=0.03)),
    "decay": row(AdamHD, rule=Decay(TuningFree(), total_steps=15, share=0.8)),
    "horizon-bounds": row(AdamHD, lr=1e-3, hypergrad_lr=1e-5, horizon=5, lr_bounds=(5e-4, 1.02e-3)),
    "lr-tensor": Row(tensor_lr, plain),
    "global": Row(two_lrs, plain),
    "tensor": row(SGD, scope="tensor"),
    "element": row(AdamHD, lr=1e-3, rule=Multiplicative(0.02), scope="element"),
    "adapt-momentum": row(NESTEROV, lr=0.02, adapt={"lr": Additive(1e-2), "momentum": Multiplicative(0.05)}),
    "adapt-adamw": row(
        AdamWHD,
        lr=1e-3,
        weight_decay=0.1,
        adapt={
            "betas": (Multiplicative(0.05), Additive(10.0)),
            "eps": Multiplicative(0.05),
            "weight_decay": Additive(Adapted(10.0, Multiplicative(0.1))),
        },
    ),
    "held-out": row(SGD, step=held_out, weight_decay=0.01, hypergrad_lr=None, adapt={"lr": TOWER, "weight_decay": Multiplicative(0.02)}),
    "eval": row(AdamHD, evaluates=True),
    "frozen": row(SGD, momentum=0.9, step=frozen),
    "frozen-tuning": row(AdamHD, step=frozen, scope="tensor"),
    "nan": row(ADAM, step=failing),
    "nan-tuning": row(NESTEROV, step=failing),
    **{f"{name}-additive": around(base, own, hypergrad_lr=beta) for name, (base, own, beta) in BASES.items()},
    **{f"{name}-tuning": around(base, own) for name, (base, own, _) in BASES.items()},
    "capturable": row(ADAM, capturable=True),
    "capturable-tuning": row(NESTEROV, capturable=True),
    "capturable-tensor": row(SGDHD, lr=0.02, momentum=0.9, rule=TOWER, scope="tensor", step=failing, capturable=True),
}
