"""The published methods since 2018, literally, in float64 on one flat parameter vector. Imports nothing of this library.

Each published method is the text of its paper, in the order of operations of its authors' code, with its own names; ``composed`` is the
loop for unpublished combinations of the same parts. As in reference.py ``parts`` has a mask per learning rate, [P, n], so that θ moves with
Σ_p α_p parts_p: ones for a scalar, one row per tensor, the identity for a diagonal. ``groups`` is the same for hyperparameters of param
groups.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy import ndarray

Gradient = Callable[[ndarray, int], ndarray]  # (θ_{t-1}, t) -> g_t
Product = Callable[[ndarray, int, ndarray], ndarray]  # (θ_{t-1}, t, z) -> ∇²f_t z
Speed = Callable[[Any], Any]  # h_t -> s_t
Moves = Callable[[Any, Any], Any]  # (y_{t-1}, h_t) -> y_t

# Online learners: y_t = y_{t-1} − β s_t.


def gradient_descent() -> Speed:
    return lambda h: h


def adagrad(eps: float = 1e-12) -> Speed:
    G = 0.0  # noqa: N806

    def speed(h: Any) -> Any:
        nonlocal G
        G = G + h**2  # noqa: N806
        return h / (np.sqrt(G) + eps)

    return speed


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Speed:
    m = v = 0.0
    t = 0

    def speed(h: Any) -> Any:
        nonlocal m, v, t
        t += 1
        m = b1 * m + (1 - b1) * h
        v = b2 * v + (1 - b2) * h**2
        return (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    return speed


def lion(b1: float = 0.9, b2: float = 0.99) -> Speed:
    m = 0.0

    def speed(h: Any) -> Any:
        nonlocal m
        s = np.sign(b1 * m + (1 - b1) * h)
        m = b2 * m + (1 - b2) * h
        return s

    return speed


class Online:
    """y ← y − β s; with a learner ``above`` β moves too, by H = −h s_{t-1}; where that moves log β, its hypergradient is β H."""

    def __init__(self, speed: Speed, beta: Any, above: "Online | None" = None, log: bool = False) -> None:
        self.speed, self.beta, self.above, self.log, self.last = speed, beta, above, log, 0.0

    def __call__(self, y: Any, h: Any) -> Any:
        s = self.speed(h)
        H = -h * self.last  # noqa: N806
        if self.above is not None:
            self.beta = np.exp(self.above(np.log(self.beta), self.beta * H)) if self.log else self.above(self.beta, H)
        self.last = s
        return y - self.beta * s


# Bases: d_t of θ_t = θ_{t-1} − α_t d_t, as torch.optim has it at learning rate 1.


class Sgd:
    def __init__(self, momentum: Any = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> None:
        self.momentum, self.nesterov, self.weight_decay, self.decay, self.v = momentum, nesterov, weight_decay, weight_decay, 0.0

    def objective(self, g: ndarray, theta: ndarray) -> ndarray:
        """The gradient of what is minimised."""
        return g + self.weight_decay * theta

    def direction(self, g: ndarray, theta: ndarray) -> ndarray:
        before = self.v
        self.instant = g
        self.v = self.momentum * before + g
        self.by_momentum = self.v + self.momentum * before if self.nesterov else before + 0 * g
        return g + self.momentum * self.v if self.nesterov else self.v


class Adam:
    """With decoupled=True AdamW."""

    def __init__(self, beta1: Any = 0.9, beta2: Any = 0.999, eps: float = 1e-8, weight_decay: float = 0.0, decoupled: bool = False) -> None:
        self.beta1, self.beta2, self.eps, self.weight_decay, self.decoupled = beta1, beta2, eps, weight_decay, decoupled
        self.m, self.v, self.t, self.decay = 0.0, 0.0, 0, weight_decay if decoupled else 0.0

    def objective(self, g: ndarray, theta: ndarray) -> ndarray:
        return g if self.decoupled else g + self.weight_decay * theta

    def direction(self, g: ndarray, theta: ndarray) -> ndarray:
        self.t += 1
        t, b1, b2, m, v = self.t, self.beta1, self.beta2, self.m, self.v
        self.m, self.v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        c1, c2 = 1 - b1**t, 1 - b2**t
        root = np.sqrt(self.v / c2)
        d = self.m / c1 / (root + self.eps)
        self.instant = g / (root + self.eps)
        later = t > 1  # bias correction takes the betas out of the first step
        self.by_beta1 = later * ((m - g) / c1 + self.m * t * b1 ** (t - 1) / c1**2) / (root + self.eps)
        self.by_beta2 = -later * d / (root + self.eps) * ((v - g * g) / c2 + self.v * t * b2 ** (t - 1) / c2**2) / (2 * root)
        return d + self.decay * theta


def logit(x: Any) -> Any:
    return np.log(x / (1 - x))


def composed(  # type: ignore[no-untyped-def]
    theta, gradient, alpha, parts, base, move, *,
    log=False, discount=0.0, squares=False, diagonal=None, product=None, instant=False,
    norms=None, held_out=None, delayed=False, others=None, groups=None,
) -> Iterator:  # fmt: skip
    """Any learner on any signal around any base.

    Z_t = γ [(1 − α λ) Z_{t-1} − α C Z_{t-1}] + w d_t, h_t = −g_t · Z_{t-1}, over N where ``norms`` says of which entries. ``others`` are
    the base's hyperparameters by name, each (φ_0 a group, learner, log, bounds): h = −g_t · α_{t-1} ∂d_{t-1}/∂φ. A ``delayed`` step is
    taken with the learning rate of before.
    """
    others, shares = others or {}, (parts != 0).astype(float)
    Z = Z1 = np.zeros_like(theta)  # noqa: N806
    norm, used, t, others_h = np.ones_like(theta), alpha, 0, {}
    phi = {name: value for name, (value, *_) in others.items()}
    columns = {name: np.zeros_like(theta) for name in others}

    def adapt(g: ndarray) -> None:
        nonlocal alpha
        h = -shares @ (g * Z / norm)
        alpha = np.exp(move(np.log(alpha), h)) if log else move(alpha, h)
        for name, (_, moves, in_logs, bounds) in others.items():
            others_h[name] = -groups @ (g * columns[name] / norm)
            x = phi[name]
            y = 1 / (1 + np.exp(-moves(logit(x), others_h[name] * x * (1 - x)))) if in_logs else moves(x, others_h[name])
            phi[name] = np.clip(y, *bounds)

    while True:
        t += 1
        g, before = base.objective(gradient(theta, t), theta), alpha
        if held_out is None or t == 1:
            adapt(g)
        used = before if delayed else alpha
        for name in others:
            setattr(base, name, phi[name] @ groups)
        a, d = used @ parts, base.direction(g, theta)
        columns = {name: a * getattr(base, f"by_{name}") for name in others}
        w, towards = (a if log else parts.sum(0)), (base.instant if instant else d)
        if product is not None:  # ∂v/∂α of heavy ball is Z1
            W = product(theta, t, Z) + base.decay * Z + base.momentum * Z1  # noqa: N806
            Z, Z1 = discount * (Z - a * W) + w * towards, discount * W  # noqa: N806
        elif squares or diagonal is not None:
            c = g * g if squares else diagonal(t)
            Z = discount * np.maximum(1 - a * base.decay - a * c, 0) * Z + w * towards  # noqa: N806
        else:
            Z = discount * (1 - a * base.decay) * Z + w * towards  # noqa: N806
        theta = theta - a * d
        if norms is not None:
            norm = (norms @ (g * g) + 1e-12) @ norms
        if held_out is not None:
            adapt(held_out(theta, t))
        yield theta, (used if delayed else alpha), phi


# The published methods.


def hdm(  # type: ignore[no-untyped-def]
    x, evaluate, parts, groups, norms, *,
    start=0.0, eta=0.1, beta=0.95, eta_beta=1.0, ends=(0.0, 0.9995), low=0.0, monotone=True, weight_decay=0.0,
) -> Iterator:  # fmt: skip
    """HDM-Best with L unknown (Gao et al., ICML 2025; hdm.py of udellgroup): the trial point of each iteration, P and β."""
    P, G = np.full(len(parts), start), np.zeros(len(parts))  # noqa: N806
    beta, Gm = np.full(len(groups), beta), np.zeros(len(groups))  # noqa: N806
    i, x_old = 0, x
    fx, gx = evaluate(x, i)
    gx = gx + weight_decay * x
    while True:
        i += 1
        xtmp = x - (P @ parts) * gx + (beta @ groups) * (x - x_old)
        yield xtmp, P, beta
        ftmp, gtmp = evaluate(xtmp, i)
        gtmp = gtmp + weight_decay * xtmp
        norm = (norms @ (gx * gx) + 1e-12) @ norms
        gr = -parts @ (gtmp * gx / norm)
        G = G + gr**2  # noqa: N806
        P = np.maximum(P - eta * gr / (np.sqrt(G) + 1e-12), low)  # noqa: N806
        gm = groups @ (gtmp * (x - x_old) / norm)
        Gm = Gm + gm**2  # noqa: N806
        beta = np.clip(beta - eta_beta * gm / (np.sqrt(Gm) + 1e-12), *ends)
        x_old = x
        if ftmp < fx or not monotone:
            x, fx, gx = xtmp, ftmp, gtmp


def metaoptimize(theta, gradient, alpha0, parts, base, meta, *, gamma=0.9999, weight_decay=0.0) -> Iterator:  # type: ignore[no-untyped-def]
    """MetaOptimize as its experiments have it (Sharifnassab et al., ICML 2025; HF.py): H takes the whole applied step."""
    beta, H, t = np.log(alpha0), np.zeros_like(theta), 0  # noqa: N806
    while True:
        t += 1
        g = gradient(theta, t)
        rates = np.exp(beta)
        alpha = rates @ parts
        HtT_gradft = parts @ (H * g)  # noqa: N806
        delta = alpha * base.direction(g, theta)
        theta = theta - delta
        H = gamma * (1 - weight_decay * alpha) * H - delta  # noqa: N806
        beta = meta(beta, HtT_gradft)
        yield theta, rates


def metaoptimize_class(  # type: ignore[no-untyped-def]
    theta, gradient, alpha0, parts, *, meta_stepsize=1e-3, gamma=0.9999, b1=0.9, b2=0.999, meta_b1=0.99, meta_c1=0.9, weight_decay=0.0
) -> Iterator:
    """MetaOptimize as its package has it (MetaOptimize_AdamW_Lion_hg.py): H takes this step's gradient alone, Lion its new momentum."""
    beta, h, m, v, meta_momentum, t = np.log(alpha0), np.zeros_like(theta), 0.0, 0.0, 0.0, 0
    while True:
        t += 1
        g = gradient(theta, t)
        rates = np.exp(beta)
        alpha = rates @ parts
        _b1_, _b2_ = (1 - b1) / (1 - b1**t), (1 - b2) / (1 - b2**t)
        m = (1 - _b1_) * m + _b1_ * g
        v = (1 - _b2_) * v + _b2_ * g**2
        theta = theta - alpha * weight_decay * theta
        theta = theta - alpha * m / (np.sqrt(v) + 1e-8)
        meta_grad = parts @ (h * g)
        h = gamma * (1 - alpha * weight_decay) * h + alpha * g / (np.sqrt(v) + 1e-8)
        meta_momentum = meta_b1 * meta_momentum + (1 - meta_b1) * meta_grad
        beta = beta + meta_stepsize * np.sign(meta_c1 * meta_momentum + (1 - meta_c1) * meta_grad)
        yield theta, rates


def marthe(  # type: ignore[no-untyped-def]
    theta, gradient, product, validation, alpha, parts, *, beta, rate=0.0, mu=1.0, automatic=False, momentum=0.0, weight_decay=0.0
) -> Iterator:
    """RTHO (Franceschi et al. 2017; μ = 1, rate = 0) and MARTHE (Donini et al. 2019; adatune): z is ∂θ/∂α, z1 that of the buffer.

    Without a ``product`` the Hessian is that of the decay; μ = 0 is the first-order form.
    """
    z0 = z1 = v = np.zeros_like(theta)
    c, t, beta = np.zeros_like(alpha), 0, np.full_like(alpha, beta)
    mu = np.zeros_like(alpha) if automatic else np.full_like(alpha, mu)
    while True:
        t += 1
        lr, g = alpha @ parts, gradient(theta, t) + weight_decay * theta
        hvp = (product(theta, t, z0) if product else 0.0) + weight_decay * z0
        z0, z1 = (
            (mu @ parts) * (z0 - lr * hvp - lr * momentum * z1) - (momentum * v + g),
            (mu @ parts) * (hvp + momentum * z1),
        )
        v = momentum * v + g
        theta = theta - lr * v
        g_val = validation(theta, t)
        h = parts @ (g_val * z0)
        alpha = alpha - beta * h
        beta = np.maximum(beta + rate * h * alpha, 0)
        if automatic:
            along = parts @ (g_val * g)
            q = np.where(along > 0, np.clip(alpha / np.where(along > 0, along, 1), 0, 1), 0)
            c = c * np.sign(mu) + mu
            mu = q ** (1 / (c + 1))
        yield theta, alpha, beta, mu, h


def idbd(w, sample, alpha, *, theta=0.01) -> Iterator:  # type: ignore[no-untyped-def]
    """IDBD (Sutton, AAAI 1992), Figure 2: linear prediction of y by w·x, one example a step."""
    beta, h, t = np.log(alpha), np.zeros_like(w), 0
    while True:
        t += 1
        x, y = sample(t)
        delta = y - w @ x
        beta = beta + theta * delta * x * h
        alpha = np.exp(beta)
        w = w + alpha * delta * x
        h = h * np.maximum(1 - alpha * x**2, 0) + alpha * delta * x
        yield w, alpha


def autostep(w, sample, alpha, *, mu=0.01, tau=1e4) -> Iterator:  # type: ignore[no-untyped-def]
    """Autostep (Mahmood et al., ICASSP 2012), Table 1."""
    h, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        t += 1
        x, y = sample(t)
        delta = y - w @ x
        u = abs(delta * x * h)
        v = np.maximum(u, v + alpha * x**2 * (u - v) / tau)
        alpha = np.where(v > 0, alpha * np.exp(mu * delta * x * h / np.where(v > 0, v, 1)), alpha)
        alpha = alpha / max((alpha * x**2).sum(), 1)
        w = w + alpha * delta * x
        h = h * (1 - alpha * x**2) + alpha * delta * x
        yield w, alpha


SPEEDS: Mapping[str, Callable[..., Speed]] = {"gradient": gradient_descent, "adagrad": adagrad, "adam": adam, "lion": lion}
