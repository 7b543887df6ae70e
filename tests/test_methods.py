"""The published methods since 2018 against their literal text in methods.py: alone, combined, resumed, on the device, refused."""

import copy
import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy import ndarray
from torch import Tensor, nn
from torch.autograd import grad

import methods
from cases import Problem, flat, joined, pairs, turns
from hypergradient import (
    HDM,
    SGDHD,
    AdaGradRule,
    AdamHD,
    AdamRule,
    AdamWHD,
    Adapted,
    Additive,
    Autostep,
    Delayed,
    Hypergradient,
    LionRule,
    Marthe,
    Multiplicative,
    Signal,
    TuningFree,
)
from methods import Adam, Online, Sgd, composed

pytestmark = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")  # on purpose; zero_grad() ends the cycle

STEPS = 100
AHEAD = 7  # so many steps ahead is the held-out minibatch
small = partial(Problem, sizes=(5, 6, 3))


class Whole(Problem):
    """The loss is that of all data at each step: a deterministic f."""

    def loss(self, t: int = 0) -> Tensor:
        return nn.functional.cross_entropy(self.model(self.x.flatten(0, 1)), self.y.flatten())


whole = partial(Whole, sizes=(5, 6, 3))


class Twin:
    """What a problem's losses are as functions of one flat θ, for the references; ``sign`` −1 where they are maximised."""

    def __init__(self, problem: Problem, sign: float = 1.0) -> None:
        self.problem, self.sign, self.start = problem, sign, flat(problem.parameters()).numpy()

    def loss(self, theta: ndarray, t: int) -> Tensor:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), self.problem.parameters())
        return self.sign * self.problem.loss(t)

    def gradient(self, theta: ndarray, t: int) -> ndarray:
        return flat(list(grad(self.loss(theta, t - 1), self.problem.parameters()))).numpy()

    def held_out(self, theta: ndarray, t: int) -> ndarray:
        return self.gradient(theta, t + AHEAD)

    def product(self, parts: ndarray) -> methods.Product:
        """∇²f z where each learning rate has a trace of its own parameters alone: a block of the Hessian for each."""
        shares = torch.from_numpy((parts != 0).astype(float))

        def product(theta: ndarray, t: int, z: ndarray) -> ndarray:
            params = self.problem.parameters()
            g = torch.cat([x.reshape(-1) for x in grad(self.loss(theta, t - 1), params, create_graph=True)])
            z = torch.from_numpy(z)
            return sum(share * flat(list(grad(g @ (share * z), params, retain_graph=True))) for share in shares).numpy()

        return product

    def evaluate(self, theta: ndarray, t: int) -> tuple[float, ndarray]:
        loss = self.loss(theta, t)
        return loss.item(), flat(list(grad(loss, self.problem.parameters()))).numpy()


# Loops as they are written, a step of each.


def on_training(opt: Any, problem: Any, t: int, graph: bool = False) -> None:
    opt.zero_grad()
    problem.loss(t).backward(create_graph=graph)
    opt.step()


def on_held_out(opt: Any, problem: Any, t: int, graph: bool = False) -> None:
    on_training(opt, problem, t, graph)
    opt.adapt(problem.loss(t + AHEAD))


def by_closure(opt: Any, problem: Any, t: int) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = problem.loss(t)
        loss.backward()
        return loss

    opt.step(closure)


with_graph, held_out_with_graph = partial(on_training, graph=True), partial(on_held_out, graph=True)

SCOPES = ["group", "tensor", "global"]
EVERY_SCOPE = [*SCOPES, "element"]
GROUPS = [
    pytest.param(lambda problem: [{"params": problem.parameters()}], id="one group"),
    pytest.param(lambda problem: problem.groups(), id="two groups"),
]


def masks(groups: list[dict], scope: str) -> tuple[ndarray, ndarray, ndarray]:
    """The references' parts of a scope, weighted by the ratios of the groups' lr where it is global, those of the groups, and α_0."""
    sizes = [[p.numel() for p in group["params"]] for group in groups]
    of_groups = np.repeat(np.eye(len(sizes)), [sum(own) for own in sizes], axis=1)
    lrs = np.array([float(group["lr"]) for group in groups]) @ of_groups
    lengths = [n for own in sizes for n in own]
    parts = {
        "group": of_groups,
        "global": (lrs / lrs.max() if lrs.max() else np.ones_like(lrs))[None],
        "tensor": np.repeat(np.eye(len(lengths)), lengths, axis=1),
        "element": np.eye(len(lrs)),
    }[scope]
    return parts, of_groups, lrs[parts.argmax(1)]


def rates(opt: Any, scope: str) -> ndarray:
    """The learning rate of each number."""
    found = []
    for group in opt.param_groups:
        for p in group["params"]:
            lr = torch.as_tensor(opt.state[p]["lr"] if scope in ("tensor", "element") else group["lr"], dtype=torch.float64)
            found.append(lr.reshape(-1).expand(p.numel()))
    return torch.cat(found).numpy()


def agree(mine: Any, theirs: Any, what: str, atol: float = 1e-12) -> None:
    mine, theirs = np.asarray(mine, dtype=float), np.asarray(theirs, dtype=float)
    if not (np.abs(mine - theirs) <= atol + 1e-10 * np.abs(theirs)).all():  # assert_allclose takes a tenth of a millisecond to pass
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=atol, err_msg=what)


def follow(opt: Any, problem: Any, way: Any, reference: Iterator, parts: ndarray, scope: str, steps: int = STEPS) -> Iterator[tuple]:
    """Both, step by step: parameters and learning rates agree; what else the reference has is left to the caller."""
    seen = []
    for t, (theta, alpha, *more) in enumerate(islice(reference, steps)):
        way(opt, problem, t)
        agree(flat(problem.parameters()), theta, f"θ of step {t + 1}", atol=1e-10 * np.abs(theta).max())
        agree(rates(opt, scope), alpha @ parts, f"α of step {t + 1}")
        seen.append(alpha @ parts)
        yield t, alpha, *more
    spread = np.ptp(seen, axis=0) / np.abs(seen).max(axis=0)
    assert spread.max() > 0.005, "the learning rate hardly moved: the test shows nothing"


def compare(*args: Any, **options: Any) -> None:
    for _ in follow(*args, **options):
        pass


# The references themselves, without ours: against autograd, closed forms, and each other.


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_reference_of_rtho_is_autograd_through_all_steps(momentum: float, weight_decay: float) -> None:
    problem = small()
    names, shapes = zip(*((name, p.shape) for name, p in problem.model.named_parameters()), strict=True)

    def loss(theta: Tensor, t: int) -> Tensor:
        pieces = theta.split([shape.numel() for shape in shapes])
        params = {name: piece.reshape(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        outputs = torch.func.functional_call(problem.model, params, problem.x[t % 25])
        return nn.functional.cross_entropy(outputs, problem.y[t % 25])

    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)  # of the learning rates of all steps
    theta, v, alpha, beta, twin = flat(problem.parameters()), 0.0, 0.05, 0.01, Twin(problem)
    one = np.ones((1, len(theta)))
    reference = methods.marthe(
        twin.start, twin.gradient, twin.product(one), twin.held_out, np.array([alpha]), one,
        beta=beta, momentum=momentum, weight_decay=weight_decay,
    )  # fmt: skip
    for t in range(12):
        leaf = theta if theta.requires_grad else theta.clone().requires_grad_()
        v = momentum * v + grad(loss(leaf, t), leaf, create_graph=True)[0] + weight_decay * theta
        theta = theta - (alpha + shift) * v
        h = grad(loss(theta, t + AHEAD), shift, retain_graph=True)[0].item()
        alpha = alpha - beta * h
        theirs = next(reference)
        assert (theirs[1][0], theirs[4][0]) == pytest.approx((alpha, h), rel=1e-9)


def test_reference_of_idbd_in_one_dimension() -> None:
    """Of a constant input x = 1 with target 1 the error shrinks by 1 − α a step, and h_t is ∂w_t/∂log α, while α stays."""
    steps = list(islice(methods.idbd(np.zeros(1), lambda t: (np.ones(1), 1.0), np.array([0.2]), theta=1e-9), 10))
    assert [w[0] for w, _ in steps] == pytest.approx([1 - 0.8**t for t in range(1, 11)], rel=1e-6)
    moves = np.diff(np.log([alpha[0] for _, alpha in steps])) / 1e-9
    #  log α moves by δ_{t+1} h_t, where δ_{t+1} = 0.8^t and h_t = ∂w_t/∂log α = α t (1 − α)^(t−1)
    assert list(moves) == pytest.approx([0.8**t * 0.2 * t * 0.8 ** (t - 1) for t in range(1, 10)], rel=1e-4)


def test_reference_of_autostep_is_that_of_idbd_over_the_maximum() -> None:
    """Two steps by hand: before the first there is no trace, at the second the maximum is the product itself, so that it is μ."""
    data = [(np.array([1.0, -0.5]), 1.0), (np.array([0.5, 2.0]), -1.0)]
    (w1, a1), (_, a2) = islice(methods.autostep(np.zeros(2), lambda t: data[t - 1], np.array([0.1, 0.1])), 2)
    assert list(w1) == pytest.approx([0.1, -0.05])
    assert list(a1) == [0.1, 0.1]
    delta = -1 - (0.5 * 0.1 - 2 * 0.05)
    signs = np.sign([delta * 0.5 * 0.1, delta * 2 * -0.05])
    assert list(a2) == pytest.approx(list(0.1 * np.exp(0.01 * signs)), rel=1e-12)


def ours_of(reference: str, twin: Twin, parts: ndarray) -> tuple[Iterator, Iterator]:
    """A published reference and the same as a composition."""
    theta, a = twin.start, np.full(len(parts), 0.02)
    meta: dict[str, Any] = {"log": True, "discount": 0.99, "delayed": True}
    held = {"held_out": twin.held_out, "discount": 0.9}
    x = np.cos(np.arange(len(theta)))

    def of_squares(w: ndarray, t: int) -> ndarray:
        return -(t % 3 - w @ x) * x

    table: dict[str, Callable[[], tuple[Iterator, Iterator]]] = {
        "rtho": lambda: (
            methods.marthe(
                theta, twin.gradient, twin.product(parts), twin.held_out, a, parts, beta=1e-3, mu=0.9, momentum=0.9, weight_decay=0.1
            ),
            composed(
                theta, twin.gradient, a, parts, Sgd(0.9, weight_decay=0.1), Online(lambda h: h, 1e-3), product=twin.product(parts), **held
            ),
        ),
        "metaoptimize": lambda: (
            methods.metaoptimize(
                theta, twin.gradient, a, parts, Adam(weight_decay=0.1, decoupled=True), Online(methods.lion(), 0.02),
                gamma=0.99, weight_decay=0.1,
            ),
            composed(theta, twin.gradient, a, parts, Adam(weight_decay=0.1, decoupled=True), Online(methods.lion(), 0.02), **meta),
        ),
        "metaoptimize_class": lambda: (
            methods.metaoptimize_class(theta, twin.gradient, a, parts, meta_stepsize=0.02, gamma=0.99),
            composed(theta, twin.gradient, a, parts, Adam(), Online(methods.lion(0.891), 0.02), **meta, instant=True),
        ),
        "idbd": lambda: (
            methods.idbd(theta, lambda t: (x, t % 3), np.full(len(x), 0.02), theta=0.1),
            composed(
                theta, of_squares, np.full(len(x), 0.02), np.eye(len(x)), Sgd(), Online(lambda h: h, 0.1),
                log=True, discount=1.0, diagonal=lambda t: x**2,
            ),
        ),
    }  # fmt: skip
    return table[reference]()


@pytest.mark.parametrize("reference", ["rtho", "metaoptimize", "metaoptimize_class", "idbd"])
def test_references_are_compositions(reference: str) -> None:
    twin, parts = Twin(small()), np.repeat(np.eye(2), [30, 27], axis=1)
    published, composition = ours_of(reference, Twin(small()), parts)
    for (theta, alpha, *_), (same, rate, *_) in islice(zip(published, composition, strict=True), 30):
        agree(theta, same, "θ")
        agree(alpha, rate, "α")
    assert not np.allclose(theta, twin.start, rtol=1e-2)


# HDM.

HDMS = [
    pytest.param({"hypergrad_lr": 0.1}, {"eta": 0.1}, id="defaults"),
    pytest.param(
        {"hypergrad_lr": 1.0, "momentum": 0.9, "momentum_lr": 2.0, "lr": 0.01},
        {"eta": 1.0, "beta": 0.9, "eta_beta": 2.0, "start": 0.01},
        id="bold",
    ),
    pytest.param({"lr_bounds": (None, None), "momentum": 0.9}, {"low": -np.inf, "beta": 0.9}, id="free"),
]


@pytest.mark.parametrize(("options", "theirs", "scope", "monotone", "grouped"), pairs(HDMS, EVERY_SCOPE, [False, True], GROUPS))
def test_hdm(options: dict, theirs: dict, scope: str, monotone: bool, grouped: Any) -> None:
    problem = whole() if monotone else small()
    twin = Twin(copy.deepcopy(problem))
    opt = HDM(grouped(problem), scope=scope, monotone=monotone, **options)
    parts, groups, _ = masks(opt.param_groups, scope)
    norms = np.ones_like(groups[:1]) if scope == "global" else groups
    reference = methods.hdm(twin.start, twin.evaluate, parts, groups, norms, monotone=monotone, **theirs)
    momenta = []
    for _, _, beta in follow(opt, problem, by_closure, reference, parts, scope):
        agree([group["momentum"] for group in opt.param_groups], beta, "β", atol=1e-11)
        momenta.append(beta)
    assert np.ptp(momenta, axis=0).max() > 0.02


def test_hdm_goes_back_where_it_has_not_descended() -> None:
    """So some of the trial points above are higher than the last, and not only the first, which is where it starts."""
    problem, losses = whole(), []
    opt = HDM(problem.parameters(), hypergrad_lr=1.0, monotone=True)
    for t in range(60):
        losses.append(problem.loss().item())
        by_closure(opt, problem, t)
    assert losses[1] == losses[0]
    assert (np.diff(losses) > 0).sum() >= 3
    assert min(losses[-10:]) < losses[0] - 0.2


UPHILL = [
    pytest.param({"maximize": True, "weight_decay": 0.1}, {"weight_decay": 0.1, "monotone": False}, -1.0, id="with decay"),
    pytest.param({"maximize": True, "monotone": True}, {}, -1.0, id="monotone"),
]


@pytest.mark.parametrize(("options", "theirs", "sign"), UPHILL)
def test_hdm_uphill(options: dict, theirs: dict, sign: float) -> None:
    """λθ is part of g; under maximize a null step is one that has not climbed."""
    problem, twin = whole(), Twin(whole(), sign)
    opt = HDM(problem.parameters(), hypergrad_lr=0.05, scope="group", **options)
    parts, groups, _ = masks(opt.param_groups, "group")
    reference = methods.hdm(twin.start, twin.evaluate, parts, groups, groups, eta=0.05, **theirs)
    compare(opt, problem, by_closure, reference, parts, "group", steps=15)


# MetaOptimize.

MO_BASES = [
    pytest.param(SGDHD, {}, Sgd, {}, 0.02, id="sgd"),
    pytest.param(SGDHD, {"momentum": 0.9}, partial(Sgd, 0.9), {}, 0.01, id="momentum"),
    pytest.param(AdamWHD, {"weight_decay": 0.1}, partial(Adam, weight_decay=0.1, decoupled=True), {"weight_decay": 0.1}, 1e-3, id="adamw"),
    pytest.param(
        lambda groups, lr, **more: Hypergradient(torch.optim.SGD(groups, lr, 0.9), **more), {}, partial(Sgd, 0.9), {}, 0.01, id="around sgd"
    ),
    pytest.param(
        lambda groups, lr, **more: Hypergradient(torch.optim.AdamW(groups, lr, weight_decay=0.0), **more), {}, Adam, {}, 1e-3,
        id="around adamw",
    ),
]  # fmt: skip
METAS = [
    pytest.param(LionRule, methods.lion, id="lion"),
    pytest.param(AdamRule, methods.adam, id="adam"),
]


@pytest.mark.parametrize(
    ("ours", "options", "base", "decay", "lr", "rule", "speed", "gamma", "scope", "grouped"),
    pairs(MO_BASES, METAS, [0.9999, 1.0, 0.9], SCOPES, GROUPS),
)
def test_metaoptimize(ours, options: dict, base, decay: dict, lr: float, rule, speed, gamma: float, scope: str, grouped) -> None:
    problem, twin = small(), Twin(small())
    opt = ours(grouped(problem), lr=lr, rule=Delayed(rule(0.01, log=True)), signal=Signal(gamma), scope=scope, **options)
    parts, _, alpha0 = masks(opt.param_groups, scope)
    reference = methods.metaoptimize(twin.start, twin.gradient, alpha0, parts, base(), Online(speed(), 0.01), gamma=gamma, **decay)
    compare(opt, problem, on_training, reference, parts, scope)


@pytest.mark.parametrize(("decay", "gamma", "scope", "grouped"), pairs([0.0, 0.1], [0.9999, 1.0], SCOPES, GROUPS))
def test_metaoptimize_of_the_package(decay: float, gamma: float, scope: str, grouped: Any) -> None:
    problem, twin = small(), Twin(small())
    rule, signal = Delayed(LionRule(0.01, betas=(0.891, 0.99), log=True)), Signal(gamma, part="gradient")
    opt = AdamWHD(grouped(problem), lr=1e-3, weight_decay=decay, rule=rule, signal=signal, scope=scope)
    parts, _, alpha0 = masks(opt.param_groups, scope)
    reference = methods.metaoptimize_class(twin.start, twin.gradient, alpha0, parts, meta_stepsize=0.01, gamma=gamma, weight_decay=decay)
    compare(opt, problem, on_training, reference, parts, scope)


# RTHO and MARTHE.


class Held(NamedTuple):
    """A rule, its discount, and what the reference calls them; ``curved`` is with the Hessian."""

    rule: Any
    discount: float
    theirs: dict[str, Any]
    curved: bool


def held(rule: Any, discount: float, curved: bool = True, **theirs: Any) -> Any:
    name = f"{rule!r}, {discount}{'' if curved else ', first order'}"
    return pytest.param(Held(rule, discount, {"mu": discount, **theirs}, curved), id=name)


MARTHES = [
    held(Additive(0.01), 1.0, beta=0.01),
    held(Marthe(1e-3, rate=0.05), 0.99, beta=1e-3, rate=0.05),
    held(Marthe(1e-3, rate=0.05, auto=True), 0.0, beta=1e-3, rate=0.05, automatic=True),
]
FLAT = [
    held(Additive(0.01), 0.0, curved=False, beta=0.01),
    held(Marthe(1e-3, rate=0.05), 0.9, curved=False, beta=1e-3, rate=0.05),
    held(Marthe(1e-2, rate=0.0, auto=True), 0.5, curved=False, beta=1e-2, automatic=True),
]
HEAVY = [pytest.param({}, id="sgd"), pytest.param({"momentum": 0.9}, id="momentum")]
DECAYED = [*HEAVY, pytest.param({"weight_decay": 0.05}, id="decay"), pytest.param({"momentum": 0.8, "weight_decay": 0.05}, id="both")]


@pytest.mark.parametrize(
    ("held", "options", "scope", "grouped"),
    pairs(MARTHES, DECAYED, SCOPES, GROUPS) + pairs(FLAT, HEAVY, SCOPES, GROUPS),
)
def test_marthe(held: Held, options: dict, scope: str, grouped: Any) -> None:
    problem, twin = small(), Twin(small())
    signal = Signal(held.discount, curvature="hessian" if held.curved else None)
    opt = SGDHD(grouped(problem), lr=0.02, rule=held.rule, signal=signal, scope=scope, **options)
    parts, _, alpha0 = masks(opt.param_groups, scope)
    reference = methods.marthe(
        twin.start, twin.gradient, twin.product(parts) if held.curved else None, twin.held_out, alpha0, parts,
        **options, **held.theirs,
    )  # fmt: skip
    way = held_out_with_graph if held.curved else on_held_out
    for _, _, beta, mu, h in follow(opt, problem, way, reference, parts, scope):
        agree(opt.hypergradients, h, "h", atol=1e-11)
        agree(found_in(opt, scope, "hypergrad_lr"), beta, "β")
        if isinstance(held.rule, Marthe) and held.rule.auto:
            agree(found_in(opt, scope, "discount"), mu, "μ")


def found_in(opt: Any, scope: str, name: str) -> list[float]:
    """A number that is kept of each dial: of param groups, of tensors, or of the first group where it is of all."""
    groups = opt.param_groups[:1] if scope == "global" else opt.param_groups
    if scope == "tensor" and name == "hypergrad_lr":
        return [opt.state[p].get(name, group[name]) for group in groups for p in group["params"]]
    if scope == "tensor":
        return [opt.state[p][f"memory_{name}"] for group in groups for p in group["params"]]
    return [{**group, **group.get("memory", {})}[name] for group in groups]


# IDBD and Autostep: linear prediction, one sample a step.


class Linear:
    """y ≈ w · x, of which a part of the inputs says nothing; the weights in some tensors."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        self.shapes, n = shapes, sum(map(math.prod, shapes))
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(STEPS + 1, n, generator=generator, dtype=torch.float64)
        self.w = torch.where(torch.arange(n) % 2 == 0, torch.randn(n, generator=generator, dtype=torch.float64), 0.0)
        self.y = self.x @ self.w + 0.1 * torch.randn(STEPS + 1, generator=generator, dtype=torch.float64)
        self.params = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
        self.t = 0

    def parameters(self) -> list[nn.Parameter]:
        return self.params

    def inputs(self, p: Tensor) -> Tensor:
        """Those of a parameter at the step that is under way."""
        i = next(i for i, own in enumerate(self.params) if own is p)
        start = sum(map(math.prod, self.shapes[:i]))
        return self.x[self.t, start : start + p.numel()].view(p.shape)

    def squares(self, p: Tensor) -> Tensor:
        return self.inputs(p) ** 2

    def loss(self, t: int) -> Tensor:
        self.t = t
        return 0.5 * (self.y[t] - sum((p * self.inputs(p)).sum() for p in self.params)) ** 2

    def sample(self, t: int) -> tuple[ndarray, float]:
        return self.x[t - 1].numpy(), self.y[t - 1].item()


SHAPES = [pytest.param([(8,)], id="one tensor"), pytest.param([(2, 3), (2,)], id="two tensors")]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("alpha0", [0.02, 0.3])
def test_idbd(shapes: list, alpha0: float) -> None:
    """0.3 is so much that the trace of an element is cut to 0 now and then."""
    problem = Linear(*shapes)
    signal = Signal(1.0, curvature=problem.squares)
    opt = SGDHD(problem.parameters(), lr=alpha0, rule=Additive(0.02, log=True), signal=signal, scope="element")
    reference = methods.idbd(np.zeros(8), problem.sample, np.full(8, alpha0), theta=0.02)
    compare(opt, problem, on_training, reference, np.eye(8), "element", steps=STEPS if alpha0 < 0.1 else 20)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize(("mu", "tau"), [(0.01, 1e4), (0.1, 20.0)])
@pytest.mark.parametrize("alpha0", [0.02, 0.5])
def test_autostep(shapes: list, mu: float, tau: float, alpha0: float) -> None:
    """0.5 is so much that a step would go too far."""
    problem = Linear(*shapes)
    signal = Signal(1.0, curvature=problem.squares)
    opt = SGDHD(problem.parameters(), lr=alpha0, rule=Autostep(mu, tau=tau), signal=signal, scope="element")
    reference = methods.autostep(np.zeros(8), problem.sample, np.full(8, alpha0), mu=mu, tau=tau)
    compare(opt, problem, on_training, reference, np.eye(8), "element")


# What nobody has published: each learner on each signal around each base.


class Learner(NamedTuple):
    """A rule and its literal speed; ``share`` is what a step moves, of the learning rate or of its logarithm."""

    rule: Any
    speed: Any
    log: bool
    share: float

    def rule_at(self, lr: float) -> Any:
        return self.rule(self.beta_at(lr), log=True if self.log else None)

    def beta_at(self, lr: float) -> float:
        if self.rule is Additive and self.log:  # whose hypergradient is by the logarithm, too
            return self.share / lr
        return self.share if self.log else self.share * lr


RULES = [
    ("gradient", Additive, 0.02, 0.02),
    ("adagrad", AdaGradRule, 0.05, 0.05),
    ("adam", AdamRule, 0.02, 0.02),
    ("lion", LionRule, 0.01, 0.01),
]
LEARNERS = [
    pytest.param(Learner(rule, methods.SPEEDS[name], log, share), id=f"{name}{' of log' * log}")
    for name, rule, *shares in RULES
    for log, share in zip([False, True], shares, strict=True)
]


class Source(NamedTuple):
    """A signal, what the reference calls it, and the loop that it is used in."""

    ours: Callable[[], Signal]
    theirs: dict[str, Any]
    normalized: bool = False
    held_out: bool = False
    curved: bool = False

    @property
    def way(self) -> Any:
        return partial(on_held_out if self.held_out else on_training, graph=self.curved)


def half(p: Tensor) -> Tensor:
    """A curvature that is known."""
    return torch.full_like(p, 0.5)


def source(name: str, theirs: dict | None = None, normalized: bool = False, held_out: bool = False, **options: Any) -> Any:
    curved = options.get("curvature") == "hessian"
    own = partial(Signal, normalized=normalized, **options)
    return pytest.param(Source(own, {"discount": options.get("discount", 0.0), **(theirs or {})}, normalized, held_out, curved), id=name)


SOURCES = [
    source("one step"),
    source("trace", discount=0.9),
    source("normalized", normalized=True),
    source("held-out", held_out=True),
    source("held-out trace", held_out=True, discount=0.9),
    source("held-out normalized", held_out=True, discount=0.9, normalized=True),
    source("normalized trace", normalized=True, discount=0.5),
    source("all steps", discount=1.0),
    source("squares", {"squares": True}, discount=0.95, curvature="squares"),
    source("function", {"diagonal": lambda t: 0.5}, discount=0.95, curvature=half),
    source("gradient", {"instant": True}, discount=0.9, part="gradient"),
    source("gradient held-out", {"instant": True}, discount=0.9, part="gradient", held_out=True),
]
HESSIANS = [
    source("hessian", discount=0.9, curvature="hessian"),
    source("hessian held-out", discount=1.0, curvature="hessian", held_out=True),
    source("hessian normalized", discount=0.9, curvature="hessian", normalized=True),
]


class Base(NamedTuple):
    """An optimizer and its literal direction."""

    ours: Any
    options: dict[str, Any]
    theirs: Any
    lr: float


def around(torchs: Any, groups: Any, lr: float, maximize: bool = False, **options: Any) -> Hypergradient:
    """Hypergradient around one of torch.optim, whose own options are named ``base_...``."""
    own = {name.removeprefix("base_"): options.pop(name) for name in list(options) if name.startswith("base_")}
    return Hypergradient(torchs(groups, lr, maximize=maximize, **own), **options)


BASES = [
    pytest.param(Base(SGDHD, {}, Sgd, 0.02), id="sgd"),
    pytest.param(Base(SGDHD, {"weight_decay": 0.1}, partial(Sgd, weight_decay=0.1), 0.02), id="sgd-decay"),
    pytest.param(Base(SGDHD, {"momentum": 0.9, "nesterov": True}, partial(Sgd, 0.9, True), 0.01), id="nesterov"),
    pytest.param(Base(AdamHD, {"weight_decay": 0.1}, partial(Adam, weight_decay=0.1), 1e-3), id="adam"),
    pytest.param(Base(AdamWHD, {"weight_decay": 0.1}, partial(Adam, weight_decay=0.1, decoupled=True), 1e-3), id="adamw"),
    pytest.param(Base(partial(around, torch.optim.Adam), {}, Adam, 1e-3), id="around adam"),
    pytest.param(
        Base(partial(around, torch.optim.SGD), {"base_momentum": 0.9, "base_nesterov": True}, partial(Sgd, 0.9, True), 0.01),
        id="around nesterov",
    ),
]
HEAVY_BALL = Base(SGDHD, {"momentum": 0.9}, partial(Sgd, 0.9), 0.01)
HESSIAN_BASES = [
    *BASES[:2],
    pytest.param(HEAVY_BALL, id="momentum"),
    pytest.param(Base(SGDHD, {"momentum": 0.8, "weight_decay": 0.1}, partial(Sgd, 0.8, weight_decay=0.1), 0.01), id="momentum-decay"),
]
SIGNS = [pytest.param(1.0, id="min"), pytest.param(-1.0, id="max")]


@pytest.mark.parametrize(
    ("learner", "source", "base", "scope", "grouped", "sign"),
    pairs(LEARNERS, SOURCES[:5], BASES, EVERY_SCOPE, GROUPS, SIGNS)
    + pairs(LEARNERS[1::2], SOURCES[5:], BASES[:5], EVERY_SCOPE, GROUPS, SIGNS)
    + pairs(LEARNERS[::3], HESSIANS, HESSIAN_BASES, SCOPES, GROUPS, SIGNS),
)
def test_composition(learner: Learner, source: Source, base: Base, scope: str, grouped: Any, sign: float) -> None:
    problem, twin = small(), Twin(small(), sign)
    groups = grouped(problem)
    groups[-1]["lr"] = base.lr / 2
    options = base.options | {"maximize": sign < 0}
    opt = base.ours(groups, lr=base.lr, rule=learner.rule_at(base.lr), signal=source.ours(), scope=scope, **options)
    parts, of_groups, start = masks(opt.param_groups, scope)
    theirs = dict(source.theirs)
    theirs |= {"held_out": twin.held_out} if source.held_out else {}
    theirs |= {"product": twin.product(parts)} if source.curved else {}
    theirs |= {"norms": np.ones_like(of_groups[:1]) if scope == "global" else of_groups} if source.normalized else {}
    move = Online(learner.speed(), learner.beta_at(base.lr))
    reference = composed(twin.start, twin.gradient, start, parts, base.theirs(), move, log=learner.log, **theirs)
    compare(opt, problem, source.way, reference, parts, scope, steps=15)


# Other hyperparameters by the new learners.


class Other(NamedTuple):
    """A hyperparameter, what has it, and its range; ``itself`` is the learning rate of a gradient rule on the value as it is."""

    base: Base
    name: str
    option: Callable[[Any], dict]
    start: float
    bounds: tuple[float, float]
    scale: float


NESTEROV, ADAM, ADAMW = (row.values[0] for row in BASES[2:5])
UNIT = (1e-3, 0.9999)
OTHERS = [
    pytest.param(Other(HEAVY_BALL, "momentum", lambda rule: {"momentum": rule}, 0.9, UNIT, 0.01), id="momentum"),
    pytest.param(Other(NESTEROV, "momentum", lambda rule: {"momentum": rule}, 0.9, UNIT, 0.01), id="nesterov"),
    pytest.param(Other(ADAM, "beta1", lambda rule: {"betas": (rule, None)}, 0.9, UNIT, 0.01), id="beta1"),
    pytest.param(Other(ADAMW, "beta2", lambda rule: {"betas": (None, rule)}, 0.999, (1e-3, 0.999999), 1e-5), id="beta2"),
]
COORDINATES = [pytest.param(None, id="logit"), pytest.param(False, id="itself")]


def value_of(group: dict, name: str) -> float:
    return float(group["betas"][name == "beta2"] if name.startswith("beta") else group[name])


@pytest.mark.parametrize(
    ("other", "rule", "log", "source", "scope", "grouped"),
    pairs(OTHERS, [pytest.param(row, id=row[0]) for row in RULES], COORDINATES, SOURCES[:5], EVERY_SCOPE, GROUPS),
)
def test_others_by_the_learners(other: Other, rule: tuple, log: bool | None, source: Source, scope: str, grouped: Any) -> None:
    problem, twin = small(), Twin(small())
    name, make, *_ = rule
    beta = (other.scale if log is False else 0.05) * (400 if make is Additive else 1)
    adapt = {"lr": AdaGradRule(0.02, log=True), **other.option(make(beta, log=log))}
    opt = other.base.ours(grouped(problem), lr=other.base.lr, adapt=adapt, signal=source.ours(), scope=scope, **other.base.options)
    parts, groups, alpha0 = masks(opt.param_groups, scope)
    moves = Online(methods.SPEEDS[name](), beta)
    theirs = {"discount": source.theirs["discount"], "groups": groups, "held_out": twin.held_out if source.held_out else None}
    theirs["norms"] = None if not source.normalized else np.ones_like(groups[:1]) if scope == "global" else groups
    theirs["others"] = {other.name: (np.full(len(groups), other.start), moves, log is None, other.bounds)}
    reference = composed(twin.start, twin.gradient, alpha0, parts, other.base.theirs(), Online(methods.adagrad(), 0.02), log=True, **theirs)
    seen = []
    for _, _, phi in follow(opt, problem, source.way, reference, parts, scope, steps=15):
        agree([value_of(group, other.name) for group in opt.param_groups], phi[other.name], other.name)
        seen.append(phi[other.name])
    assert np.ptp(np.array(seen) / (1 - np.array(seen)), axis=0).max() > 0.02 * other.start / (1 - other.start)


# Towers of the learners.

TOWERS = [
    (Additive(Adapted(2e-4, LionRule(1e-5))), lambda: Online(lambda h: h, 2e-4, Online(methods.lion(), 1e-5))),
    (Additive(Adapted(2e-4, LionRule(0.1, log=True))), lambda: Online(lambda h: h, 2e-4, Online(methods.lion(), 0.1), log=True)),
    (AdaGradRule(Adapted(1e-3, AdamRule(1e-4))), lambda: Online(methods.adagrad(), 1e-3, Online(methods.adam(), 1e-4))),
    (
        AdamRule(Adapted(0.02, Additive(300.0, log=True)), log=True),
        lambda: Online(methods.adam(), 0.02, Online(lambda h: h, 300.0), log=True),
    ),
    (
        LionRule(Adapted(0.02, AdaGradRule(Adapted(0.05, LionRule(0.02)), log=True)), log=True),
        lambda: Online(methods.lion(), 0.02, Online(methods.adagrad(), 0.05, Online(methods.lion(), 0.02)), log=True),
    ),
    (
        Additive(Adapted(1.0, AdamRule(Adapted(0.1, LionRule(0.05, log=True)), log=True)), log=True),
        lambda: Online(lambda h: h, 1.0, Online(methods.adam(), 0.1, Online(methods.lion(), 0.05), log=True), log=True),
    ),
]


@pytest.mark.parametrize(
    ("rule", "move", "source", "scope", "grouped"),
    pairs([pytest.param(*row, id=f"{row[0]!r}") for row in TOWERS], SOURCES[1:5], SCOPES, GROUPS),
)
def test_towers_of_the_learners(rule: Any, move: Any, source: Source, scope: str, grouped: Any) -> None:
    problem, twin = small(), Twin(small())
    opt = SGDHD(grouped(problem), 0.02, rule=rule, signal=source.ours(), scope=scope)
    parts, groups, alpha0 = masks(opt.param_groups, scope)
    theirs = {"discount": source.theirs["discount"], "held_out": twin.held_out if source.held_out else None}
    theirs["norms"] = None if not source.normalized else np.ones_like(groups[:1]) if scope == "global" else groups
    online, betas = move(), []
    reference = composed(twin.start, twin.gradient, alpha0, parts, Sgd(), online, log=rule.log is True, **theirs)
    for _ in follow(opt, problem, source.way, reference, parts, scope, steps=24):
        betas.append(online.beta + np.zeros(len(parts)))
        agree(found_in(opt, scope, "hypergrad_lr"), betas[-1], "β")
    assert np.ptp(betas, axis=0).max() > 0.02 * np.abs(betas).max()


# Stopped and resumed, and on the device: whatever has memory of its own.


class Run(NamedTuple):
    """An optimizer's make, its options, and the loop that it is used in."""

    ours: Any
    options: dict[str, Any]
    way: Any = on_training
    problem: Any = small

    def start(self, scope: str, **more: Any) -> tuple[Problem, Any]:
        problem = self.problem()
        return problem, self.ours(problem.groups(), scope=scope, **self.options, **more)


def run(name: str, scopes: list[str], *args: Any, **options: Any) -> list[Any]:
    """Rows of a run under some scopes."""
    rest = options.pop("way", on_training), options.pop("problem", small)
    return [pytest.param(Run(*args, options, *rest), scope, id=f"{name}-{scope}") for scope in scopes]


MOMENTUM = {"lr": 0.01, "momentum": 0.9}
HESSIAN = Signal(0.9, curvature="hessian")
RUNS = [
    *run("adagrad", ["group", "element"], SGDHD, lr=0.02, rule=AdaGradRule(1e-3)),
    *run("adam", ["tensor", "element"], AdamHD, lr=1e-3, rule=AdamRule(0.02, log=True), signal=Signal(0.9)),
    *run("lion", ["global", "element"], AdamWHD, lr=1e-3, rule=LionRule(0.02, log=True), signal=Signal(normalized=True)),
    *run("log", ["tensor", "global"], SGDHD, lr=0.02, rule=Additive(0.05, log=True), signal=Signal(0.9, normalized=True)),
    *run("delayed", SCOPES, AdamWHD, lr=1e-3, rule=Delayed(LionRule(0.02, log=True)), signal=Signal(0.9999)),
    *run("delayed factor", ["group"], SGDHD, lr=0.02, rule=Delayed(Multiplicative(0.02))),
    *run("part", ["group", "element"], AdamWHD, lr=1e-3, rule=LionRule(0.02, log=True), signal=Signal(1.0, part="gradient")),
    *run("marthe", ["group", "tensor"], SGDHD, **MOMENTUM, rule=Marthe(1e-3, rate=0.05), signal=HESSIAN, way=held_out_with_graph),
    *run("marthe auto", SCOPES, SGDHD, **MOMENTUM, rule=Marthe(1e-3, auto=True), signal=HESSIAN, way=held_out_with_graph),
    *run("marthe first order", ["group"], SGDHD, lr=0.02, rule=Marthe(1e-3, auto=True), way=on_held_out),
    *run("hessian", ["group", "global"], SGDHD, **MOMENTUM, rule=AdaGradRule(0.02, log=True), signal=HESSIAN, way=with_graph),
    *run("squares", ["element"], SGDHD, lr=0.02, rule=Additive(0.05, log=True), signal=Signal(1.0, curvature="squares")),
    *run("autostep", ["element"], SGDHD, lr=0.02, rule=Autostep(0.05), signal=Signal(1.0, curvature="squares")),
    *run("tower", SCOPES, SGDHD, lr=0.02, rule=TOWERS[5][0], signal=Signal(0.5)),
    *run("momentum", ["group", "element"], SGDHD, **MOMENTUM, adapt={"lr": LionRule(1e-3), "momentum": AdaGradRule(0.02, log=False)}),
    *run("betas", ["tensor"], AdamHD, lr=1e-3, adapt={"betas": (AdamRule(0.02), LionRule(0.02))}, signal=Signal(normalized=True)),
    *run("around", ["global", "element"], partial(around, torch.optim.RMSprop), lr=1e-3, rule=AdamRule(1e-4), signal=Signal(0.9)),
    *run("hdm", ["element", "group"], HDM, hypergrad_lr=0.1),
    *run("monotone", ["element", "tensor", "global"], HDM, hypergrad_lr=1.0, monotone=True, way=by_closure, problem=whole),
]
#: On the host all of them, on the device the first of each.
STOPPED = turns(RUNS, [pytest.param({}, id="host")]) + [
    joined(row, pytest.param({"capturable": True}, id="device"))
    for before, row in pairwise([None, *RUNS])
    if before is None or before.values[0].options is not row.values[0].options
]


def numbers_of(opt: Any) -> list[Any]:
    """What adapts, and what is kept for it, as numbers."""
    names = ("lr", "momentum", "betas", "hypergrad_lr", "adapted", "memory")
    return [float(x) for group in opt.param_groups for name in names if name in group for x in _leaves(group[name])]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list | tuple):
        for x in value:
            yield from _leaves(x)
    elif isinstance(value, Tensor):
        yield from value.reshape(-1)
    else:
        yield value


@pytest.mark.parametrize(("run", "scope", "more"), STOPPED)
def test_resumed_equals_never_stopped(run: Run, scope: str, more: dict) -> None:
    problem, opt = run.start(scope, **more)
    for t in range(7):
        run.way(opt, problem, t)
    file = io.BytesIO()
    torch.save({"model": problem.model.state_dict(), "opt": opt.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    other, twin = run.start(scope, **more)
    other.model.load_state_dict(checkpoint["model"])
    twin.load_state_dict(checkpoint["opt"])
    for t in range(7, 14):
        run.way(opt, problem, t)
        run.way(twin, other, t)
    assert torch.equal(flat(other.parameters()), flat(problem.parameters()))
    assert numbers_of(twin) == numbers_of(opt)
    assert [float(h) for h in twin.hypergradients] == [float(h) for h in opt.hypergradients]
    torch.testing.assert_close(twin.state_dict()["state"], opt.state_dict()["state"], rtol=0, atol=0)


@pytest.mark.parametrize(("run", "scope"), RUNS)
def test_device_equals_the_host(run: Run, scope: str) -> None:
    problem, host = run.start(scope)
    other, opt = run.start(scope, capturable=True)
    for t in range(10):
        run.way(host, problem, t)
        run.way(opt, other, t)
        agree(flat(other.parameters()), flat(problem.parameters()), f"θ of step {t + 1}")
        agree(rates(opt, scope), rates(host, scope), f"α of step {t + 1}")
    assert numbers_of(opt) == pytest.approx(numbers_of(host), rel=1e-9, abs=1e-12)
    assert float(opt.skipped) == host.skipped == 0


# What is refused.


def make(ours: Any = SGDHD, **options: Any) -> Any:
    return lambda: ours(small().parameters(), **{"lr": 0.01, **options})


SQUARES = Signal(1.0, curvature="squares")
NO_MARTHE = r'scope="element"'
REFUSED = [
    (lambda: Signal(discount=1.5), ValueError, r"discount must lie in \[0, 1\]"),
    (lambda: Signal(discount=-0.1), ValueError, r"discount must lie in \[0, 1\]"),
    (lambda: Signal(math.nan), ValueError, "discount must"),
    (lambda: Signal(curvature="newton"), ValueError, "curvature must be"),
    (lambda: Signal(part="whole"), ValueError, "part must be"),
    (make(hypergrad_lr=1e-3, horizon=5, signal=Signal(0.9)), ValueError, "give horizon or signal, not both"),
    (make(signal=Signal(0.9)), (ValueError, TypeError), "TuningFree"),
    (make(lr=0, rule=Additive(0.1, log=True)), ValueError, "can never leave lr=0"),
    (make(lr=0, rule=LionRule(0.1, log=True)), ValueError, "can never leave lr=0"),
    (make(lr=0, rule=Delayed(LionRule(0.1, log=True))), ValueError, "can never leave lr=0"),
    (make(rule=Autostep(), signal=SQUARES), ValueError, "Autostep"),
    (make(rule=Autostep(), signal=Signal(1.0), scope="element"), ValueError, "Autostep"),
    (make(rule=Autostep(), scope="element"), ValueError, "Autostep"),
    (make(AdamHD, hypergrad_lr=1e-3, signal=HESSIAN), ValueError, "hessian"),
    (make(hypergrad_lr=1e-3, momentum=0.9, nesterov=True, signal=HESSIAN), ValueError, "hessian"),
    (make(rule=Marthe(), signal=HESSIAN, scope="element"), ValueError, NO_MARTHE),
    (make(rule=Delayed(LionRule(0.1)), signal=Signal(0.9), scope="element"), ValueError, NO_MARTHE),
    (
        lambda: Hypergradient(torch.optim.SGD(small().parameters(), 0.01), hypergrad_lr=1e-3, signal=Signal(0.9, part="gradient")),
        ValueError,
        "part",
    ),
    (make(HDM, hypergrad_lr=-1.0), ValueError, "hypergrad_lr must be a finite number >= 0"),
    (make(HDM, momentum_lr=-1.0), ValueError, "momentum_lr must be a finite number >= 0"),
    (make(HDM, rule=TuningFree(), scope="group", signal=None), ValueError, "HDM takes a rule that does not average"),
    (lambda: Additive(Adapted(0.0, LionRule(1e-3, log=True))), ValueError, "can never leave 0"),
]


@pytest.mark.parametrize(("call", "exception", "message"), [pytest.param(*row, id=f"{row[2]}-{i}") for i, row in enumerate(REFUSED)])
def test_refused(call: Any, exception: Any, message: str) -> None:
    with pytest.raises(exception, match=message):
        call()


REFUSED_AT_STEP = [
    pytest.param(SGDHD, {"lr": 0.01, "hypergrad_lr": 1e-3, "signal": HESSIAN}, 1, RuntimeError, r"create_graph=True", id="no graph"),
    pytest.param(
        SGDHD,
        {"lr": 0.01, "hypergrad_lr": 1e-3, "signal": Signal(0.9, curvature=lambda p: torch.ones(7))},
        0,
        ValueError,
        r"parameter's shape .* got \(7,\)",
        id="curvature of another shape",
    ),
    pytest.param(HDM, {"monotone": True}, 0, (TypeError, ValueError, RuntimeError), "closure", id="no closure"),
]


@pytest.mark.parametrize(("ours", "options", "first", "exception", "message"), REFUSED_AT_STEP)
def test_refused_at_step(ours: Any, options: dict, first: int, exception: Any, message: str) -> None:
    """Nothing has moved; before the first step there is no trace, and so no need of a graph."""
    problem = small()
    opt = ours(problem.parameters(), **options)
    problem.train(opt, first)
    before = copy.deepcopy((flat(problem.parameters()), opt.state_dict()))
    with pytest.raises(exception, match=message):
        on_training(opt, problem, first)
    torch.testing.assert_close((flat(problem.parameters()), opt.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("capturable", [False, True])
def test_hdm_without_lr_has_a_schedule_multiply(capturable: bool) -> None:
    """α starts from 0, which no factor can leave: lr reads 1 before the first step, and the schedule is a factor on α."""
    problem = small()
    opt = HDM(problem.parameters(), scope="group", capturable=capturable)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.5)
    for t in range(4):
        problem.train(opt, 1, t)
        scheduler.step()
    (group,) = opt.param_groups
    assert float(group["adapted_lr"]) > 0
    torch.testing.assert_close(float(group["alpha"]), 0.5 * float(group["adapted_lr"]))
    alone = HDM(problem.parameters(), scope="group", capturable=capturable)
    assert alone.param_groups[0]["lr"] == 1
    problem.train(alone, 1)
    assert alone.param_groups[0]["lr"] == 0
