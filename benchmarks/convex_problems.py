"""The convex problems of benchmarks.convex: logistic regression and the squared hinge, summed over all rows, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

#: For starting points and synthetic data.
SEED = 20250128

#: Number of values of the 14 attributes of a1a, copied by the sparse binary data: 123 columns.
LEVELS = (5, 8, 5, 16, 5, 7, 14, 6, 5, 2, 2, 2, 5, 41)

ROWS, COLUMNS = 1000, 50


@dataclass(frozen=True)
class Problem:
    """f(w) = Σ loss(aᵢ·w) + ½ ridge ‖w‖², where row aᵢ is the i-th example with a 1 appended, times its label, 1 or −1."""

    kind: str
    rows: Tensor
    ridge: float

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The value and gradient of f."""
        margin = self.rows @ w
        if self.kind == "logistic":
            loss, slope = softplus(-margin).sum(), torch.sigmoid(-margin)
        else:
            slope = (1 - margin).clamp(min=0)
            loss = slope.square().sum() / 2
        return loss + self.ridge / 2 * (w @ w), self.ridge * w - slope @ self.rows

    @property
    def smoothness(self) -> float:
        """The authors' L: the largest singular value squared, also for logistic regression, for which a fourth would suffice."""
        return float(torch.linalg.matrix_norm(self.rows, 2)) ** 2 + self.ridge

    @property
    def convexity(self) -> float:
        """The modulus of strong convexity given to accelerated gradient: the ridge, or 1e-4 without one, as in the authors' code."""
        return self.ridge or 1e-4

    @property
    def condition(self) -> float | None:
        """The condition number of AᵀA + ridge for the rows A, which is the Hessian if all examples have equal weight. None if singular."""
        curves = torch.linalg.eigvalsh(self.rows.T @ self.rows) + self.ridge
        return float(curves[-1] / curves[0]) if curves[0] > 1e-12 * curves[-1] else None

    def start(self) -> Tensor:
        """A random vector of norm 1."""
        w = torch.randn(self.rows.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
        return w.div_(w.norm())

    def least(self) -> float:
        """The infimum of f, by Newton's method, to float64 accuracy; for separable rows it is approached at infinity."""
        w = torch.zeros(self.rows.shape[1], dtype=torch.float64)
        f, g = self(w)
        for _ in range(200):
            way = torch.linalg.lstsq(self.hessian(w), g[:, None], driver="gelsd").solution[:, 0]
            steps = [w - way / 2**k for k in range(30)]
            better = next((step for step in steps if self(step)[0] < f), None)
            if better is None:
                break
            w = better
            f, g = self(w)
        return float(f)

    def hessian(self, w: Tensor) -> Tensor:
        margin = self.rows @ w
        curve = torch.sigmoid(margin) * torch.sigmoid(-margin) if self.kind == "logistic" else (margin < 1).double()
        return self.rows.T @ (curve[:, None] * self.rows) + self.ridge * torch.eye(len(w), dtype=torch.float64)


def shipped(name: str, positive: Callable[[Any], Any]) -> tuple[Tensor, Tensor]:
    """One of scikit-learn's data sets, with columns scaled to [-1, 1] and binary labels."""
    from sklearn import datasets

    features, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = torch.tensor(features, dtype=torch.float64)
    low, high = x.amin(0), x.amax(0)
    some = high > low
    return ((x - low) / (high - low) * 2 - 1)[:, some], torch.tensor(positive(labels))


def spectrum(condition: float, rotated: bool) -> tuple[Tensor, Tensor]:
    """Normal columns whose Gram matrix has eigenvalues that fall geometrically from ``ROWS`` to ``ROWS/condition``.

    They are aligned with the axes, so that one learning rate per coordinate can precondition them, or rotated. Labels follow a logistic
    model.
    """
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    scales = condition ** (-torch.linspace(0, 0.5, COLUMNS, dtype=torch.float64))
    x = ROWS**0.5 * torch.linalg.qr(normal(ROWS, COLUMNS)).Q * scales
    if rotated:
        x = x @ torch.linalg.qr(normal(COLUMNS, COLUMNS)).Q
    logits = x @ normal(COLUMNS)
    return x, torch.rand(ROWS, dtype=torch.float64, generator=generator) < torch.sigmoid(2 * logits / logits.std())


def binary() -> tuple[Tensor, Tensor]:
    """1,605 rows like those of a1a: 14 correlated attributes of ``LEVELS`` values, one column per value; a quarter is positive."""
    generator = torch.Generator().manual_seed(SEED)
    hidden = torch.randn(1605, 3, dtype=torch.float64, generator=generator)
    columns = []
    for levels in LEVELS:
        mixed = hidden @ torch.randn(3, dtype=torch.float64, generator=generator)
        place = (mixed + torch.randn(1605, dtype=torch.float64, generator=generator)).argsort().argsort() / 1605
        shares = torch.rand(levels, dtype=torch.float64, generator=generator) ** 4 + 1e-3  # some values are rare, like countries of birth
        columns.append(torch.nn.functional.one_hot(torch.bucketize(place, (shares / shares.sum()).cumsum(0)[:-1]), levels))
    x = torch.cat(columns, 1).double()
    logits = x @ torch.randn(x.shape[1], dtype=torch.float64, generator=generator)
    logits += torch.logit(torch.rand(1605, dtype=torch.float64, generator=generator))  # so that labels follow a logistic model
    return x, logits > logits.quantile(0.75)


#: The data by name, and the ridge with which the problem has about the chosen condition number; 1 is scikit-learn's default, C = 1.
DATA: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], float]] = {
    "cancer": (lambda: shipped("breast_cancer", lambda y: y == 1), 1.0),
    "digits": (lambda: shipped("digits", lambda y: y % 2 == 0), 1.0),
    "wine": (lambda: shipped("wine", lambda y: y == 1), 1.0),
    "iris": (lambda: shipped("iris", lambda y: y == 1), 1.0),
    "binary": (binary, 1.0),
    **{f"rotated 1e{k}": (partial(spectrum, 10.0**k, True), ROWS / 10**k) for k in (2, 4, 6)},
    **{f"axes 1e{k}": (partial(spectrum, 10.0**k, False), ROWS / 10**k) for k in (2, 4, 6)},
}

#: The problems: loss, data, and whether there is no ridge.
PROBLEMS = [
    *(f"logistic, {data}" for data in ("cancer", "cancer, no ridge", "digits", "wine, no ridge", "iris, no ridge", "binary")),
    *(f"logistic, {data}" for data in ("binary, no ridge", "rotated 1e2", "rotated 1e4", "rotated 1e6", "axes 1e4")),
    *(f"svm, {data}" for data in ("cancer", "digits", "iris", "binary, no ridge", "rotated 1e4", "axes 1e6")),
]


@cache
def problem(name: str) -> Problem:
    kind, data, *without = name.split(", ")
    make, ridge = DATA[data]
    x, positive = make()
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1) * torch.where(positive, 1.0, -1.0)[:, None]
    return Problem(kind, rows, 0.0 if without else ridge)
