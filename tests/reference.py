"""Algorithms 1 to 6 of the paper, literally, in float64 on one flat parameter vector. Imports nothing of this library.

Baydin et al., Online Learning Rate Adaptation with Hypergradient Descent, ICLR 2018. The names are the paper's: u is the update,
θ_t = θ_{t-1} + u_t, and grad_u its derivative ∇αu.

A learning rate per part of θ (a param group, a tensor) is the same algorithm with one entry of α per part: ``parts`` has a 0/1 or weighted
mask per part, [P, n], so that θ moves with Σ_p α_p parts_p. One part of ones is the paper.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy import ndarray

Gradient = Callable[[ndarray, int], ndarray]  # (θ_{t-1}, t) -> g_t
AdaptRule = Callable[[float, float, float, float], float]  # (α_{t-1}, h_t, ‖g_t‖, ‖∇αu_{t-1}‖) -> α_t


def additive(beta: float) -> AdaptRule:
    return lambda alpha, h, g_norm, u_norm: alpha - beta * h


def multiplicative(beta: float) -> AdaptRule:
    return lambda alpha, h, g_norm, u_norm: alpha * (1 - beta * h / (g_norm * u_norm)) if g_norm * u_norm else alpha


def constant() -> AdaptRule:
    """Algorithms 1 to 3: the learning rate stays."""
    return lambda alpha, h, g_norm, u_norm: alpha


def adapt(alpha: ndarray, g: ndarray, grad_u: ndarray, parts: ndarray, rule: AdaptRule) -> tuple[ndarray, ndarray]:
    """h_t = g_t · ∇αu_{t-1} and α_t, for each part."""
    h = np.array([g @ (part * grad_u) for part in parts])
    norms = [(np.linalg.norm(g[part != 0]), np.linalg.norm(part * grad_u)) for part in parts]
    return np.array([rule(a, h_p, *norm) for a, h_p, norm in zip(alpha, h, norms, strict=True)]), h


def sgd(theta, gradient, alpha, parts, rule, *, weight_decay=0.0) -> Iterator:  # type: ignore[no-untyped-def]
    """Algorithms 1 and 4: SGD, SGD-HD."""
    grad_u = np.zeros_like(theta)
    t = 0
    while True:
        t += 1
        g = gradient(theta, t) + weight_decay * theta
        alpha, h = adapt(alpha, g, grad_u, parts, rule)
        u = -(alpha @ parts) * g
        grad_u = -g
        theta = theta + u
        yield theta, alpha, h


def sgdn(theta, gradient, alpha, parts, rule, *, mu, nesterov=True, weight_decay=0.0) -> Iterator:  # type: ignore[no-untyped-def]
    """Algorithms 2 and 5: SGD with Nesterov momentum, SGDN-HD; with nesterov=False plain momentum."""
    grad_u = np.zeros_like(theta)
    v = np.zeros_like(theta)
    t = 0
    while True:
        t += 1
        g = gradient(theta, t) + weight_decay * theta
        alpha, h = adapt(alpha, g, grad_u, parts, rule)
        v = mu * v + g
        step = g + mu * v if nesterov else v
        u = -(alpha @ parts) * step
        grad_u = -step
        theta = theta + u
        yield theta, alpha, h


def adam(  # type: ignore[no-untyped-def]
    theta, gradient, alpha, parts, rule, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False
) -> Iterator:
    """Algorithms 3 and 6: Adam, Adam-HD; decoupled=True decays θ itself, as AdamW."""
    grad_u = np.zeros_like(theta)
    m = np.zeros_like(theta)
    v = np.zeros_like(theta)
    t = 0
    while True:
        t += 1
        g = gradient(theta, t) + (0 if decoupled else weight_decay * theta)
        alpha, h = adapt(alpha, g, grad_u, parts, rule)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat = m / (1 - betas[0] ** t)
        v_hat = v / (1 - betas[1] ** t)
        step = m_hat / (np.sqrt(v_hat) + eps) + (weight_decay * theta if decoupled else 0)
        u = -(alpha @ parts) * step
        grad_u = -step
        theta = theta + u
        yield theta, alpha, h
