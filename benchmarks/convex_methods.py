"""The methods of benchmarks.convex, each an optimizer with ``step(closure)``, what is tried of each, and their runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from scipy.optimize import minimize
from torch import Tensor

from hypergradient import HDM, SGDHD, AdamHD, Additive, Multiplicative

from .convex_problems import Problem

#: What the authors' experiments stop at: the largest coordinate of the gradient, and the number of gradients.
TOLERANCE, MOST = 1e-4, 1000

#: Methods that average are evaluated every so many steps.
EVERY = 10

Closure = Callable[[], Any]

#: What is tried of a method: its arguments by what the page calls them.
Settings = Mapping[str, tuple[float, ...]]


class OverError(Exception):
    """A run has come to its end: solved, out of evaluations, or given up by its method."""


class Accelerated:
    """Nesterov's accelerated gradient with steps of 1/L; ``w`` holds the point that gradients are taken at.

    Without ``momentum`` it is that of functions that are convex and no more, which grows to 1.
    """

    def __init__(self, w: Tensor, lr: float, momentum: float | None = None) -> None:
        self.w, self.lr, self.momentum = w, lr, momentum
        self.last, self.time = w.detach().clone(), 1.0

    @torch.no_grad()
    def step(self, closure: Closure) -> None:
        closure()
        assert self.w.grad is not None
        x = self.w - self.lr * self.w.grad
        time = (1 + (1 + 4 * self.time**2) ** 0.5) / 2
        momentum = (self.time - 1) / time if self.momentum is None else self.momentum
        self.w.copy_(x + momentum * (x - self.last))
        self.last, self.time = x, time


class LBFGS:
    """SciPy's L-BFGS-B. A step is a whole run, which ends where a line search fails."""

    def __init__(self, w: Tensor, memory: int) -> None:
        self.w, self.memory = w, memory

    def step(self, closure: Closure) -> None:
        def both(x: Any) -> tuple[float, Any]:
            with torch.no_grad():
                self.w.copy_(torch.from_numpy(x))
            loss = float(closure())
            assert self.w.grad is not None
            return loss, self.w.grad.numpy()

        never = {"ftol": 0.0, "gtol": 0.0, "maxiter": 10**6, "maxfun": 10**6}
        minimize(both, self.w.detach().numpy().copy(), jac=True, method="L-BFGS-B", options={"maxcor": self.memory, **never})
        raise OverError


@dataclass(frozen=True)
class Method:
    """``make(w, problem, *arguments)`` for each of ``settings(problem)``.

    ``kind`` is "first-order" or "L-BFGS" for what HDM is held to, else "HDM" or "ours". ``averages``: its point is an average, which
    ``opt.averaged()`` shows.
    """

    kind: str
    make: Callable[..., Any]
    settings: Callable[[Problem], Settings] = lambda _: {"": ()}
    averages: bool = False


def rates(problem: Problem) -> Settings:
    """The authors' learning rates for Adam and AdaGrad."""
    return {f"lr = {lr:g}": (lr,) for lr in (1e-3, 1e-2, 0.1, 1.0, 10.0)} | {"lr = 1/L": (1 / problem.smoothness,)}


def balls(_: Problem) -> Settings:
    """Their momenta for the heavy ball."""
    return {f"momentum = {x:g}": (x,) for x in (0.1, 0.5, 0.9, 0.99)}


def pairs(problem: Problem) -> Settings:
    """Their η and η_β for HDM."""
    return {f"η = {c:g}/L, η_β = {x:g}": (c / problem.smoothness, x) for c in (10, 1, 100, 0.1) for x in (1.0, 3.0, 5.0, 10.0, 100.0)}


def fewer(problem: Problem) -> Settings:
    """Eight of them."""
    return {f"η = {c:g}/L, η_β = {x:g}": (c / problem.smoothness, x) for c in (10, 1) for x in (1.0, 3.0, 5.0, 10.0)}


def additive(problem: Problem) -> Settings:
    """β with which the square of the first gradient would add c/L to 1/L."""
    unit = 1 / problem.smoothness / float(problem(problem.start())[1].square().sum())
    return {f"β = {c:g}/(L‖g₀‖²)": (c * unit,) for c in (0.01, 0.1, 1, 10)}


def multiplicative(_: Problem) -> Settings:
    return {f"β = {x:g}": (x,) for x in (1e-3, 0.01, 0.1)}


def sgd(w: Tensor, problem: Problem, momentum: float = 0.0) -> Any:
    return torch.optim.SGD([w], lr=1 / problem.smoothness, momentum=momentum)


def accelerated(w: Tensor, problem: Problem) -> Any:
    return Accelerated(w, 1 / problem.smoothness)


def strongly(w: Tensor, problem: Problem) -> Any:
    root, other = problem.smoothness**0.5, problem.convexity**0.5
    return Accelerated(w, 1 / problem.smoothness, (root - other) / (root + other))


def of_torch(w: Tensor, _: Problem) -> Any:
    return torch.optim.LBFGS([w], max_iter=10**6, tolerance_grad=0, tolerance_change=0, history_size=10, line_search_fn="strong_wolfe")


def hdm(w: Tensor, problem: Problem, eta: float | None = None, eta_beta: float = 1.0, **options: Any) -> Any:
    """With η = 10/L and η_β = 1 where nothing is given, as in the authors' code."""
    eta = 10 / problem.smoothness if eta is None else eta
    return HDM([w], hypergrad_lr=eta, momentum_lr=eta_beta, **{"monotone": True, **options})


def hd(rule: type[Additive] | type[Multiplicative], w: Tensor, problem: Problem, beta: float) -> Any:
    return SGDHD([w], lr=1 / problem.smoothness, rule=rule(beta))


def tuned(name: str) -> Callable[..., Any]:
    """One of torch's optimizers, eps as in the authors' code."""
    return lambda w, _, lr: getattr(torch.optim, name)([w], lr=lr, eps=1e-8)


#: By name, in the order of the tables.
METHODS = {
    "GD, 1/L": Method("first-order", sgd),
    "heavy ball, tuned": Method("first-order", sgd, balls),
    "AGD, convex": Method("first-order", accelerated),
    "AGD, strongly convex": Method("first-order", strongly),
    "AdaGrad, tuned": Method("first-order", tuned("Adagrad"), rates),
    "Adam, tuned": Method("first-order", tuned("Adam"), rates),
    **{f"L-BFGS, memory {m}": Method("L-BFGS", lambda w, _, m=m: LBFGS(w, m)) for m in (1, 3, 5, 10)},
    "L-BFGS of torch, memory 10": Method("L-BFGS", of_torch),
    "HDM, tuned": Method("HDM", hdm, pairs),
    "HDM, untuned": Method("HDM", hdm),
    "HDM, untuned, not monotone": Method("HDM", partial(hdm, monotone=False)),
    "HDM, η = 0.1": Method("HDM", partial(hdm, eta=0.1)),
    "HDM, scalar, tuned": Method("HDM", partial(hdm, scope="group"), fewer),
    "HDM, scalar, untuned": Method("HDM", partial(hdm, scope="group")),
    "SGD-HD, additive, tuned": Method("ours", partial(hd, Additive), additive),
    "SGD-HD, multiplicative, tuned": Method("ours", partial(hd, Multiplicative), multiplicative),
    "SGDHD, no lr": Method("ours", lambda w, _: SGDHD([w], momentum=0.9, nesterov=True), averages=True),
    "AdamHD, no lr": Method("ours", lambda w, _: AdamHD([w]), averages=True),
}


class Run:
    """The closure of one run. Every gradient that is taken counts, in line searches and at points that are rejected too.

    Args:
        problem: what is minimised.
        most: how many gradients there are.
        ends: whether it ends where it is solved.
    """

    def __init__(self, problem: Problem, most: int, ends: bool) -> None:
        self.problem, self.most, self.ends = problem, most, ends
        self.w = torch.nn.Parameter(problem.start())
        self.losses: list[float] = []  # the lowest so far
        self.solved: int | None = None
        self.label = ""

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


def run(method: Method, arguments: Sequence[float], problem: Problem, most: int, ends: bool) -> Run:
    closure = Run(problem, most, ends)
    opt = method.make(closure.w, problem, *arguments)
    try:
        while True:
            opt.step(closure)
            if method.averages and len(closure.losses) % EVERY == 0:
                with opt.averaged(), torch.no_grad():
                    closure.see(*problem(closure.w))
    except OverError:
        return closure


def best(method: Method, problem: Problem) -> Run:
    """All evaluations with the setting that solves it with the fewest, or, where none does, ends lowest; it is in ``label``."""
    settings = method.settings(problem)
    most, found = MOST, None
    for name, arguments in settings.items():
        tried = run(method, arguments, problem, most, len(settings) > 1)
        tried.label = name
        if tried.solved:
            most, found = tried.solved - 1, tried  # who needs as many is no better
        elif most == MOST and (found is None or tried.losses[-1] < found.losses[-1]):
            found = tried
    assert found is not None
    if found.solved and found.ends:
        label = found.label
        found = run(method, settings[label], problem, MOST, False)
        found.label = label
    return found
