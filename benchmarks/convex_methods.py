"""The methods of benchmarks.convex, each an optimizer with ``step(closure)``; their settings and runs."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from hypergradient.lab.runs import calls

from .convex_problems import Problem
from .timing import optimizer

#: The stopping criteria of the authors' experiments: the largest coordinate of the gradient, and the number of gradient evaluations.
TOLERANCE, MOST = 1e-4, 1000

#: Interval in steps at which methods that average are evaluated.
EVERY = 10


class OverError(Exception):
    """A run has ended: solved, out of evaluations, or stopped by its method."""


class Accelerated:
    """Nesterov's accelerated gradient with steps of 1/L; ``w`` holds the point at which gradients are computed.

    The default momentum is that for convex functions that need not be strongly convex; it grows to 1.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float | None = None) -> None:
        (self.w,), self.lr, self.momentum = params, lr, momentum
        self.last, self.time = self.w.detach().clone(), 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> None:
        closure()
        assert self.w.grad is not None
        x = self.w - self.lr * self.w.grad
        time = (1 + (1 + 4 * self.time**2) ** 0.5) / 2
        momentum = (self.time - 1) / time if self.momentum is None else self.momentum
        self.w.copy_(x + momentum * (x - self.last))
        self.last, self.time = x, time


class SciPy:
    """SciPy's L-BFGS-B. One step is a whole run, which ends when a line search fails."""

    def __init__(self, params: Iterable[nn.Parameter], memory: int) -> None:
        (self.w,), self.memory = params, memory

    def step(self, closure: Callable[[], Any]) -> None:
        def both(x: Any) -> tuple[float, Any]:
            self.w.data.copy_(torch.from_numpy(x))
            loss, gradient = float(closure()), self.w.grad
            assert gradient is not None
            return loss, gradient.numpy()

        options = {"maxcor": self.memory, "ftol": 0.0, "gtol": 0.0, "maxiter": 10**6, "maxfun": 10**6}
        minimize(both, self.w.detach().numpy().copy(), jac=True, method="L-BFGS-B", options=options)
        raise OverError


OWN: dict[str, Any] = {"Accelerated": Accelerated, "SciPy": SciPy, "LBFGS": torch.optim.LBFGS}


def methods(problem: Problem) -> dict[str, dict[str, str]]:
    """By name, in the order of the tables: the settings to try, as constructor calls by their label on the page.

    Learning rates, momenta, η and η_β are the authors'; for scalar HDM eight of their twenty. The additive β are those for which the square
    of the first gradient adds c/L to 1/L.
    """
    unit, root, other = 1 / problem.smoothness, problem.smoothness**0.5, problem.convexity**0.5
    beta = unit / float(problem(problem.start())[1].square().sum())
    rates = {f"lr = {lr:g}": lr for lr in (1e-3, 1e-2, 0.1, 1.0, 10.0)} | {"lr = 1/L": unit}

    def hdm(*scales: float, etas: Iterable[float] = (1.0, 3.0, 5.0, 10.0), scope: str = "element") -> dict[str, str]:
        found = {(c, x): f"HDM(hypergrad_lr={c * unit!r}, momentum_lr={x}, monotone=True, scope={scope!r})" for c in scales for x in etas}
        return {f"η = {c:g}/L, η_β = {x:g}" if len(found) > 1 else "": call for (c, x), call in found.items()}

    return {
        "GD, 1/L": {"": f"SGD(lr={unit})"},
        "heavy ball, tuned": {f"momentum = {x:g}": f"SGD(lr={unit}, momentum={x})" for x in (0.1, 0.5, 0.9, 0.99)},
        "AGD, convex": {"": f"Accelerated(lr={unit})"},
        "AGD, strongly convex": {"": f"Accelerated(lr={unit}, momentum={(root - other) / (root + other)})"},
        "AdaGrad, tuned": {label: f"Adagrad(lr={lr}, eps=1e-8)" for label, lr in rates.items()},
        "Adam, tuned": {label: f"Adam(lr={lr}, eps=1e-8)" for label, lr in rates.items()},
        **{f"L-BFGS, memory {m}": {"": f"SciPy(memory={m})"} for m in (1, 3, 5, 10)},
        "L-BFGS of torch, memory 10": {
            "": "LBFGS(max_iter=1000000, tolerance_grad=0, tolerance_change=0, history_size=10, line_search_fn='strong_wolfe')"
        },
        "HDM, tuned": hdm(10, 1, 100, 0.1, etas=(1.0, 3.0, 5.0, 10.0, 100.0)),
        "HDM, untuned": hdm(10, etas=[1.0]),
        "HDM, untuned, not monotone": {"": f"HDM(hypergrad_lr={10 * unit}, momentum_lr=1.0, monotone=False)"},
        "HDM, η = 0.1": {"": "HDM(hypergrad_lr=0.1, momentum_lr=1.0, monotone=True)"},
        "HDM, scalar, tuned": hdm(10, 1, scope="group"),
        "HDM, scalar, untuned": hdm(10, etas=[1.0], scope="group"),
        "SGD-HD, additive, tuned": {f"β = {c:g}/(L‖g₀‖²)": f"SGDHD(lr={unit}, rule=Additive({c * beta}))" for c in (0.01, 0.1, 1, 10)},
        "SGD-HD, multiplicative, tuned": {f"β = {x:g}": f"SGDHD(lr={unit}, rule=Multiplicative({x}))" for x in (1e-3, 0.01, 0.1)},
        "SGDHD, tuning-free": {"": "SGDHD(momentum=0.9, nesterov=True)"},
        "AdamHD, tuning-free": {"": "AdamHD"},
    }


class Run:
    """The closure of one run. Every gradient evaluation counts, also in line searches and at rejected points.

    Args:
        problem: the problem to minimise.
        most: the maximal number of gradient evaluations.
        ends: whether to stop once solved.
    """

    def __init__(self, problem: Problem, most: int = MOST, ends: bool = False) -> None:
        self.problem, self.most, self.ends = problem, most, ends
        self.w = nn.Parameter(problem.start())
        self.losses: list[float] = []  # the lowest so far
        self.solved: int | None = None

    def __call__(self) -> Tensor:
        if len(self.losses) == self.most:
            raise OverError
        with torch.no_grad():
            loss, self.w.grad = self.problem(self.w)
        self.losses.append(math.inf)
        self.see(loss, self.w.grad)
        if not loss.isfinite():
            raise OverError
        return loss

    def see(self, loss: Tensor, gradient: Tensor) -> None:
        self.losses[-1] = min(*self.losses[-2:], float(loss))
        if self.solved is None and gradient.abs().max() < TOLERANCE:
            self.solved = len(self.losses)
        if self.solved and self.ends:
            raise OverError

    def by(self, text: str) -> "Run":
        """Run the optimizer of a constructor call, and return self."""
        call = calls.parse(text)
        opt = OWN[call.name]([self.w], **call.options) if call.name in OWN else optimizer(text, [self.w])
        averages = call.adapts and opt.setup.rule.averages
        try:
            while True:
                opt.step(self)
                if averages and len(self.losses) % EVERY == 0:
                    with opt.averaged(), torch.no_grad():
                        self.see(*self.problem(self.w))
        except OverError:
            return self


def best(settings: Mapping[str, str], problem: Problem) -> tuple[str, Run]:
    """The run at the setting that needs the fewest evaluations, or, if none solves the problem, ends lowest; and its label."""
    (label, call), *others = settings.items()
    if not others:
        return label, Run(problem).by(call)
    most, found = MOST, None
    for name, call in settings.items():
        tried = Run(problem, most, ends=True).by(call)
        if tried.solved:
            most, found, label = tried.solved - 1, tried, name  # a tie is no improvement
        elif most == MOST and (found is None or tried.losses[-1] < found.losses[-1]):
            found, label = tried, name
    assert found is not None
    return label, Run(problem).by(settings[label]) if found.solved else found
