"""Hypergradients of every hyperparameter, and towers of any order, against autograd through the unrolled update in float64."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jvp
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from cases import Problem, flat, pairs, turns
from hypergradient import SGDHD, AdamHD, AdamWHD, Adapted, Additive, Multiplicative

# The updates as torch's optimizers make them: parameters and state before a step, and hyperparameters, to those after it.


def sgd(theta, grad, state, *, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    g = grad + weight_decay * theta
    v = momentum * state.get("v", torch.zeros_like(g)) + g
    return theta - lr * (g + momentum * v if nesterov else v), {"v": v}


def adam(theta, grad, state, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, decoupled=False):
    t = state.get("t", torch.zeros((), dtype=torch.float64)) + 1
    g = grad if decoupled else grad + weight_decay * theta
    m = beta1 * state.get("m", torch.zeros_like(g)) + (1 - beta1) * g
    s = beta2 * state.get("s", torch.zeros_like(g)) + (1 - beta2) * g * g
    d = m / (1 - beta1**t) / (torch.sqrt(s / (1 - beta2**t)) + eps)
    return theta - lr * d - (lr * weight_decay * theta if decoupled else 0), {"t": t, "m": m, "s": s}


def adamw(*args, **options):
    return adam(*args, decoupled=True, **options)


UPDATES = {SGDHD: sgd, AdamHD: adam, AdamWHD: adamw}


class Tower:
    """One hyperparameter and the rules above it: x, β, β', ..., of which each is moved by the next; x is its coordinate."""

    def __init__(self, name: str, value: float, rule: Any) -> None:
        self.unit, self.log = name in ("momentum", "beta1", "beta2"), name != "lr" and isinstance(rule, Additive)
        scale = value / (1 - value) if self.unit else value
        self.factors, values = [], [math.log(scale) if self.log else scale]
        while True:
            self.factors.append(isinstance(rule, Multiplicative))
            if not isinstance(rule.beta, Adapted):
                break
            values.append(rule.beta.value)
            rule = rule.beta.rule
        self.top = torch.tensor(rule.beta, dtype=torch.float64)
        self.levels = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in values]
        self.start = values[0]
        self.reach: list[Tensor] = [torch.zeros((), dtype=torch.float64)] * len(values)

    @property
    def value(self) -> Tensor:
        return self.of(self.levels[0])

    def of(self, x: Tensor) -> Tensor:
        scale = x.exp() if self.log else x
        return scale / (1 + scale) if self.unit else scale

    def move(self, slopes: list[Tensor], bound: Tensor) -> None:
        """Each level by the derivative of the loss by it, as autograd has it; the new levels are functions of those above them."""
        speeds, bounds = [], [bound]
        for x, h, reach, factor in zip(self.levels, slopes, self.reach, self.factors, strict=True):
            cosine = (h / bounds[-1]).clamp(-1, 1) if bounds[-1] > 0 else torch.zeros(())
            speeds.append(x.detach() * cosine if factor else h)
            bounds.append(bounds[-1] * reach)
        self.reach = [x.detach().abs() if f else b for x, f, b in zip(self.levels, self.factors, bounds, strict=False)]
        above = self.top
        for k in reversed(range(len(self.levels))):
            above = self.levels[k] = (self.levels[k].detach() - above * speeds[k]).requires_grad_()


def unrolled(ours: Any, options: dict[str, Any], adapt: dict[str, Any], held_out: bool) -> Iterator[tuple[Tensor, dict[str, Tower], dict]]:
    """θ_t, the hyperparameters of step t, and ∂f/∂φ of those before it, step by step."""
    problem = Problem()
    names = [name for name, _ in problem.model.named_parameters()]
    shapes = [p.shape for p in problem.parameters()]

    def loss(theta: Tensor, t: int) -> Tensor:
        parts = theta.split([shape.numel() for shape in shapes])
        params = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return cross_entropy(functional_call(problem.model, params, problem.x[t % 25]), problem.y[t % 25])

    options = dict(options)
    rules = dict(adapt)
    for i, rule in enumerate(rules.pop("betas", ())):
        if rule is not None:
            rules[f"beta{i + 1}"] = rule
    starts = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8} | options
    towers = {name: Tower(name, starts[name], rule) for name, rule in rules.items()}
    fixed = {name: value for name, value in options.items() if name not in towers}
    theta, state = flat(problem.parameters()), {}
    last: Any = None
    applied, values = {}, {}
    for t in range(1_000):
        leaf = theta.detach().requires_grad_()
        grad = torch.autograd.grad(loss(leaf, t), leaf)[0]
        slopes = {}
        if last is not None:
            training = loss(theta, t)
            decay = towers["weight_decay"].value.detach() if "weight_decay" in towers else fixed.get("weight_decay", 0.0)
            penalty = 0.0 if ours is AdamWHD else decay / 2 * (theta**2).sum()
            for name, tower in towers.items():
                quantity = loss(theta, t + 7) if held_out else training if name == "weight_decay" else training + penalty
                phi, *found = torch.autograd.grad(
                    quantity, [applied[name], *tower.levels], retain_graph=True, allow_unused=True, materialize_grads=True
                )
                slopes[name] = phi
                column = jvp(partial(last, values, name), tower.levels[0].detach(), torch.ones_like(phi))[1]
                g = torch.autograd.grad(quantity, theta, retain_graph=True)[0]
                first = column.norm() < 1e-12  # the betas have no part in Adam's first step, but for rounding
                tower.move([h * (not first) for h in found], g.norm() * column.norm() * (not first))
        applied = {name: tower.value for name, tower in towers.items()}
        values = {name: x.detach() for name, x in applied.items()}
        frozen = theta.detach(), grad, {key: x.detach() for key, x in state.items()}

        def last(values: dict, name: str, x: Tensor, frozen: Any = frozen) -> Tensor:
            """θ_t as a function of one hyperparameter's coordinate."""
            return UPDATES[ours](*frozen, **fixed, **{**values, name: towers[name].of(x)})[0]

        theta, state = UPDATES[ours](*frozen, **fixed, **applied)
        yield theta.detach(), towers, slopes


NESTEROV = {"momentum": 0.9, "nesterov": True}
SMALL = (Additive(0.1), Additive(1.0))
FACTORS = (Multiplicative(0.1), Multiplicative(0.1))
SINGLE = [
    (SGDHD, {}, {"lr": Additive(1e-2)}),
    (SGDHD, {"momentum": 0.9}, {"lr": Additive(1e-3), "momentum": Additive(0.5)}),
    (SGDHD, NESTEROV, {"lr": Additive(1e-3), "momentum": Additive(0.5)}),
    (SGDHD, {"weight_decay": 0.05}, {"weight_decay": Additive(0.5)}),
    (SGDHD, {"weight_decay": 0.05, "momentum": 0.8}, {"momentum": Additive(0.5), "weight_decay": Additive(0.5)}),
    (SGDHD, {"weight_decay": 0.05, **NESTEROV}, {"lr": Additive(1e-3), "momentum": Additive(0.5), "weight_decay": Additive(0.5)}),
    (SGDHD, {"weight_decay": 0.05, **NESTEROV}, {"momentum": Multiplicative(0.1), "weight_decay": Multiplicative(0.1)}),
    (AdamHD, {"eps": 1e-3}, {"lr": Additive(1e-5), "betas": SMALL, "eps": Additive(1.0)}),
    (AdamHD, {"eps": 1e-3}, {"betas": (Additive(1.0), None), "eps": Additive(10.0)}),
    (AdamHD, {"weight_decay": 0.05}, {"lr": Additive(1e-5), "weight_decay": Additive(0.5), "betas": (None, Additive(1.0))}),
    (AdamHD, {"weight_decay": 0.05}, {"weight_decay": Multiplicative(0.1), "betas": FACTORS}),
    (
        AdamWHD,
        {"weight_decay": 0.1, "eps": 1e-5},
        {"lr": Additive(1e-5), "weight_decay": Additive(0.5), "betas": SMALL, "eps": Additive(1e3)},
    ),
    (AdamWHD, {"weight_decay": 0.1, "eps": 1e-2}, {"weight_decay": Multiplicative(0.1), "eps": Multiplicative(0.1)}),
]


def towers(beta: float) -> list[Any]:
    """Two and three levels above the hyperparameter, of both rules."""
    above = Adapted(beta, Additive(beta / 10))
    return [
        Additive(above),
        Additive(Adapted(beta, Additive(Adapted(beta / 10, Additive(beta / 100))))),
        Additive(Adapted(beta, Multiplicative(0.05))),
        Additive(Adapted(beta, Multiplicative(Adapted(0.05, Additive(0.01))))),
        Multiplicative(Adapted(0.05, Multiplicative(Adapted(0.05, Multiplicative(0.02))))),
        Multiplicative(Adapted(0.05, Additive(0.01))),
    ]


BELOW = [
    (ours, options, name, beta)
    for ours, options, betas in [
        (SGDHD, {"momentum": 0.9, "weight_decay": 0.05}, {"lr": 1e-3, "momentum": 0.3, "weight_decay": 0.3}),
        (SGDHD, {"weight_decay": 0.05, **NESTEROV}, {"lr": 1e-3, "momentum": 0.3, "weight_decay": 0.3}),
        (AdamHD, {"weight_decay": 0.05, "eps": 1e-3}, {"lr": 1e-5, "betas": 1.0, "eps": 1.0, "weight_decay": 0.3}),
        (AdamWHD, {"weight_decay": 0.1, "eps": 1e-3}, {"lr": 1e-5, "betas": 1.0, "eps": 1.0, "weight_decay": 0.3}),
    ]
    for name, beta in betas.items()
]
STACKED = [  # above each of them half of the towers, which take turns
    (ours, options, {name: (tower, tower) if name == "betas" else tower})
    for i, (ours, options, name, beta) in enumerate(BELOW)
    for tower in (2 * towers(beta))[i % 6 :][:3]
]


class Row(NamedTuple):
    ours: Any
    options: dict[str, Any]
    adapt: dict[str, Any]


def rows(table: list) -> list:
    return [
        pytest.param(Row(ours, {"lr": 1e-2, **options}, adapt), id=f"{ours.__name__}-{'-'.join(options)}-{adapt}")
        for ours, options, adapt in table
    ]


HELD_OUT = [pytest.param(False, id="training loss"), pytest.param(True, id="another quantity")]


def read(opt: Any, name: str) -> float:
    group = opt.param_groups[0]
    return group["betas"][int(name[-1]) - 1] if name.startswith("beta") else group[name]


@pytest.mark.filterwarnings("ignore:weight_decay is adapted on the training loss")  # that is what is held to autograd
@pytest.mark.parametrize(("row", "held_out"), pairs(rows(SINGLE), HELD_OUT) + turns(rows(STACKED), HELD_OUT))
def test_agrees_with_autograd_through_the_unrolled_update(row: Row, held_out: bool) -> None:
    problem = Problem()
    opt = row.ours(problem.parameters(), **row.options, adapt=row.adapt)
    for t, (theta, expected, slopes) in enumerate(islice(unrolled(*row, held_out), 20)):
        if held_out:
            opt.adapt(problem.loss(t + 7))
        problem.train(opt, 1, start=t)
        for name, slope in slopes.items():
            found = opt.hypergradients[0] if name == "lr" else opt.other_hypergradients[0][name]
            assert found == pytest.approx(slope.item(), rel=1e-9, abs=1e-12), (t, name)
        for name, tower in expected.items():
            assert read(opt, name) == pytest.approx(tower.value.item(), rel=1e-12), (t, name)
        torch.testing.assert_close(flat(problem.parameters()), theta, rtol=0, atol=1e-12)
    for name, tower in expected.items():
        assert abs(tower.levels[0].item() - tower.start) > 1e-4 * abs(tower.start), f"{name} hardly moved: the test shows nothing"


KAPPA, ABOVE = 1e-6, 1e-3  # of the learning rate, and of what adapts its β; those of the betas are a million times larger
LOGIT = 4  # their coordinate is half the log-odds, so that their β is a quarter of ours


def their_adam(gdtuo: Any, upper: Any) -> Any:
    return gdtuo.Adam(1e-3, log_eps=-16.0, optimizer=upper)


@pytest.mark.filterwarnings("ignore:Using backward")  # they keep the graph on purpose
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param(
            lambda gdtuo: gdtuo.SGD(0.05, optimizer=gdtuo.SGD(1e-2)),
            lambda params: SGDHD(params, 0.05, hypergrad_lr=1e-2),
            id="SGD/SGD",
        ),
        pytest.param(
            lambda gdtuo: gdtuo.SGD(0.05, optimizer=gdtuo.SGD(1e-2, optimizer=gdtuo.SGD(1e-2))),
            lambda params: SGDHD(params, 0.05, rule=Additive(Adapted(1e-2, Additive(1e-2)))),
            id="SGD/SGD/SGD",
        ),
        pytest.param(
            lambda gdtuo: gdtuo.AdamBaydin(1e-3, log_eps=-16.0, optimizer=gdtuo.SGD(KAPPA, optimizer=gdtuo.SGD(1e-12))),
            lambda params: AdamHD(params, 1e-3, eps=1e-16, rule=Additive(Adapted(KAPPA, Additive(1e-12)))),
            id="AdamBaydin/SGD/SGD",
        ),
        pytest.param(
            lambda gdtuo: their_adam(gdtuo, gdtuo.SGD(1e-5)),
            lambda params: AdamHD(
                params, 1e-3, eps=1e-16, adapt={"lr": Additive(1e-5), "betas": (Additive(LOGIT * 1e-5), Additive(LOGIT * 1e-5))}
            ),
            id="Adam/SGD",
        ),
        pytest.param(
            lambda gdtuo: their_adam(
                gdtuo, gdtuo.SGDPerParam([("alpha", 1e-6), ("beta1", 1.0), ("beta2", 1.0)], optimizer=gdtuo.SGD(1e-12))
            ),
            lambda params: AdamHD(
                params,
                1e-3,
                eps=1e-16,
                adapt={
                    "lr": Additive(Adapted(1e-6, Additive(1e-12))),
                    "betas": (Additive(Adapted(LOGIT, Additive(LOGIT**2 * 1e-12))),) * 2,
                },
            ),
            id="Adam/SGD/SGD",
        ),
    ],
)
def test_agrees_with_gradient_descent_the_ultimate_optimizer(theirs: Any, ours: Any) -> None:
    """Chandra et al. 2022, on PyPI: the same towers by a graph that is kept alive. Theirs of Adam/SGD/SGD with a β a hyperparameter."""
    gdtuo = pytest.importorskip("gradient_descent_the_ultimate_optimizer.gdtuo")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        one, other = Problem(), Problem()
        optimizer = theirs(gdtuo)
        wrapper = gdtuo.ModuleWrapper(other.model, optimizer=optimizer)
        wrapper.initialize()
        opt = ours(one.parameters())
        for t in range(100):
            loss = one.train(opt, 1, start=t)
            wrapper.begin()
            their_loss = other.loss(t)
            wrapper.zero_grad()
            their_loss.backward(create_graph=True)
            wrapper.step()
            assert loss == pytest.approx([their_loss.item()], rel=1e-5), t
            torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-5)
    finally:
        torch.set_default_dtype(before)
    group, params = opt.param_groups[0], optimizer.parameters
    assert group["lr"] == pytest.approx(params["alpha"].item(), rel=1e-5)
    assert abs(group["lr"] / opt.defaults["lr"] - 1) > 0.05
    if "beta1" in params:
        moved = [optimizer.__class__.clamp(params[name]).item() for name in ("beta1", "beta2")]
        assert group["betas"] == pytest.approx(moved, rel=1e-6) != pytest.approx((0.9, 0.999), rel=1e-6)
