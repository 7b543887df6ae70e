"""The optimizers' configurations and the small problems that the tests run them on."""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, pairwise, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import reference
from hypergradient import SGDHD, AdamHD, AdamWHD, Hypergradient

#: Under torch 2.9 some kernels are not compiled, since Inductor wants tensors of at most 2**20 elements there (docs/supported.md).
compiles = pytest.mark.xfail(torch.__version__.startswith("2.9."), reason="Inductor of torch 2.9 limits the size", strict=False)


class Case(NamedTuple):
    """One configuration: our class, torch's, the paper's algorithm, and options that all three understand."""

    ours: Callable[..., Any]
    base: Callable[..., Any]
    paper: Callable[..., Iterator]
    options: dict[str, Any]
    paper_options: dict[str, Any]
    lr: float
    beta: float  # large enough that the learning rate moves, small enough that it stays sane


def case(ours: Any, base: Any, paper: Any, lr: float, beta: float, paper_options: dict | None = None, **options: Any) -> Any:
    name = "-".join([ours.__name__, *(f"{k}={v}" for k, v in options.items())])
    return pytest.param(Case(ours, base, paper, options, options if paper_options is None else paper_options, lr, beta), id=name)


SGD = partial(case, SGDHD, torch.optim.SGD, lr=0.02, beta=2e-2)
ADAM = partial(case, AdamHD, torch.optim.Adam, reference.adam, lr=1e-3, beta=1e-5)
ADAMW = partial(case, AdamWHD, torch.optim.AdamW, partial(reference.adam, decoupled=True), lr=1e-3, beta=1e-5)

CASES = [
    SGD(reference.sgd),
    SGD(reference.sgd, weight_decay=0.01),
    SGD(partial(reference.sgdn, mu=0.9, nesterov=False), paper_options={}, momentum=0.9),
    SGD(partial(reference.sgdn, mu=0.9), paper_options={}, momentum=0.9, nesterov=True),
    SGD(partial(reference.sgdn, mu=0.9), paper_options={"weight_decay": 0.01}, momentum=0.9, nesterov=True, weight_decay=0.01),
    ADAM(),
    ADAM(weight_decay=0.01),
    ADAM(betas=(0.8, 0.99), eps=1e-6),
    ADAMW(weight_decay=0.0),
    ADAMW(weight_decay=0.1),
]


#: Classes and scopes without a learning rate.
TUNING_FREE = [
    pytest.param(SGDHD, id="SGDHD"),
    pytest.param(partial(SGDHD, momentum=0.9, scope="global"), id="SGDHD-momentum-global"),
    pytest.param(AdamHD, id="AdamHD"),
    pytest.param(partial(AdamWHD, scope="tensor"), id="AdamWHD-tensor"),
    pytest.param(lambda params: Hypergradient(torch.optim.Adam(params)), id="Hypergradient"),
]

PARAM = type(pytest.param())


def joined(*cells: Any) -> Any:
    """One row of several, each of them a pytest.param or a value."""
    parts = [cell if isinstance(cell, PARAM) else pytest.param(cell, id=getattr(cell, "__name__", str(cell))) for cell in cells]
    return pytest.param(*(value for part in parts for value in part.values), id="-".join(str(part.id) for part in parts))


def pairs(*tables: Sequence[Any], unless: Callable[..., bool] = lambda *values: False) -> list[Any]:
    """Of the product of some tables so many rows that each two cells of different tables meet."""
    rows, sizes = {}, [range(len(table)) for table in tables]
    for place in product(*sizes):
        row = joined(*(table[i] for table, i in zip(tables, place, strict=True)))
        if not unless(*row.values):
            rows[place] = row, set(combinations(enumerate(place), 2))
    left, found = set().union(*(meetings for _, meetings in rows.values())), []
    while left:
        row, meetings = max(rows.values(), key=lambda of: len(of[1] & left))
        left -= meetings
        found.append(row)
    return found


def turns(table: Sequence[Any], others: Sequence[Any], times: int = 1) -> list[Any]:
    """Each row of a table beside so many of another, which take turns."""
    return [joined(row, others[(i + k) % len(others)]) for i, row in enumerate(table) for k in range(times)]


class Problem:
    """A small network and a minibatch a step: ``loss(t)`` of step t, with the parameters that ``model`` has now."""

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0, sizes: tuple[int, ...] = (6, 8, 4, 3)) -> None:
        generator = torch.Generator().manual_seed(seed)
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())]
        self.model = nn.Sequential(*layers[:-1])
        for p in self.model.parameters():
            p.data = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.4 * (6 / sizes[0]) ** 0.5).to(dtype)
        self.x = torch.randn(25, 10, sizes[0], generator=generator, dtype=torch.float64).to(dtype)
        self.y = torch.randint(3, (25, 10), generator=generator)

    def loss(self, t: int = 0) -> Tensor:
        return nn.functional.cross_entropy(self.model(self.x[t % 25]), self.y[t % 25])

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def groups(self) -> list[dict[str, Any]]:
        """Two param groups, unlike in shape."""
        ps = self.parameters()
        return [{"params": ps[:3]}, {"params": ps[3:]}]

    def train(self, opt: torch.optim.Optimizer, steps: int, start: int = 0) -> list[float]:
        """The losses of some steps."""
        losses = []
        for t in range(start, start + steps):
            opt.zero_grad()
            loss = self.loss(t)
            loss.backward()
            opt.step()
            losses.append(loss.item())
        return losses


def flat(tensors: list[Tensor] | list[nn.Parameter]) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors])


def resumed(start: Callable[[], tuple[Problem, Any]]) -> tuple[Problem, Any, Problem, Any]:
    """A run of 20 steps, and one stopped after 11, saved as plain data and resumed with the same losses: what is left of both."""
    whole, opt = start()
    losses = whole.train(opt, 20)
    first, opt_first = start()
    first.train(opt_first, 11)
    file = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "opt": opt_first.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    second, opt_second = start()
    second.model.load_state_dict(checkpoint["model"])
    opt_second.load_state_dict(checkpoint["opt"])
    assert second.train(opt_second, 9, start=11) == losses[11:]
    return whole, opt, second, opt_second
