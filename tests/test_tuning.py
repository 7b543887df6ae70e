"""The tuning-free rule: its equations, its invariances, the average that is evaluated, and its results."""

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cases import Problem, flat, pairs
from hypergradient import SGDHD, AdamHD, AdamWHD, Additive, Multiplicative, TuningFree

OURS = [
    pytest.param(SGDHD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}, id="sgdn"),
    pytest.param(SGDHD, {}, id="sgd"),
    pytest.param(AdamHD, {}, id="adam"),
    pytest.param(AdamWHD, {"weight_decay": 0.1}, id="adamw"),
]


def transcription(gradient: Any, theta: np.ndarray, steps: int, lr: float, b: float) -> Any:
    """docs/tuning-free.md for SGD, with iterate and average kept as such: yields θ, θ̄ and α of each step."""
    iterate, average, alpha, m, v, usual = theta.copy(), theta.copy(), lr, 0.0, 0.0, 0.0
    signals, turned, sudden, most = 0, 0, False, 0.0
    for t in range(steps):
        theta = (1 - b) * iterate + b * average
        g = gradient(theta, t)
        g_norm, way = np.linalg.norm(g), average - iterate
        change, away, ends = 0.0, False, False
        if t == 0:
            whole = (1 + np.linalg.norm(theta)) / g_norm
            alpha = min(max(alpha, 1e-2 * whole), 0.03 * whole)
        elif np.linalg.norm(way) > 0:
            signals += 1
            c = g @ way / g_norm / np.linalg.norm(way)
            m, v = 0.9 * m + 0.1 * c, 0.99 * v + 0.01 * c**2
            s = m / (1 - 0.9**signals) / (math.sqrt(v / (1 - 0.99**signals)) + 1e-8)
            before, sudden = sudden, c < 0 and g_norm > 4 * math.sqrt(usual)
            away = (sudden and (not turned or t < turned + 50 or before)) or m < -0.9
            far, long = 0.25 * (1 + np.linalg.norm(theta)), np.linalg.norm(way)
            ends = not turned and ((m < 0 and t > 10) or (long > far and g_norm > 3 * math.sqrt(usual)))
            room = (far - long) / (far + long)
            q = min(1, max(-1, s + room))
            change = (q if q > 0 else 2 * q) / max(10, t) if turned else min(0.15, 0.7 / math.sqrt(t)) * (s + min(0, room))
            most = max(most, math.sqrt(usual))
            change *= min(1, g_norm / (0.01 * most)) if change > 0 else 1
        if away or ends:
            alpha, m, turned = alpha / 2, 0.0, turned or t
        else:
            alpha *= math.exp(change)
        if away:
            iterate = average.copy()
        else:
            iterate = iterate - (min(1, 1.5 * math.sqrt(usual) / g_norm) if t else 1) * alpha * g
            usual += max(0.01, 1 / (t + 1)) * (g_norm**2 - usual)
            average = average + (iterate - average) / max(10, 0.2 * (t + 1))
        yield (1 - b) * iterate + b * average, average, alpha


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("lr", [None, 0.01, 3.0], ids=["none", "middle", "far too large"])
def test_agrees_with_its_equations(lr: float | None, momentum: float) -> None:
    problem, twin = Problem(), Problem()
    opt = SGDHD(problem.parameters(), lr=lr, momentum=momentum)

    def gradient(theta: np.ndarray, t: int) -> np.ndarray:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), twin.parameters())
        return flat(list(torch.autograd.grad(twin.loss(t), twin.parameters()))).numpy()

    alphas = []
    for t, (theta, average, alpha) in enumerate(transcription(gradient, flat(twin.parameters()).numpy(), 150, lr or 0.0, momentum)):
        problem.train(opt, 1, start=t)
        alphas.append(opt.param_groups[0]["lr"])
        assert alphas[-1] == pytest.approx(alpha, rel=1e-8), t
        np.testing.assert_allclose(flat(problem.parameters()).numpy(), theta, rtol=0, atol=1e-9)
        opt.eval()
        np.testing.assert_allclose(flat(problem.parameters()).numpy(), average, rtol=0, atol=1e-9)
        opt.train()
    assert opt.summary()[0]["climbing"] == 0, "the climb did not end: the test shows half of the rule"
    assert max(alphas) > 1.5 * min(alphas)


@pytest.mark.parametrize(("ours", "options"), OURS)
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20], ids=["1e-6", "1e6"])
def test_does_not_see_the_scale_of_the_loss(ours: Any, options: dict, scale: float) -> None:
    """Exact for powers of two. Adam's ε and coupled weight decay have the scale of the gradient."""
    options = options | ({} if ours is SGDHD else {"eps": 0.0}) | ({"weight_decay": 0.0} if ours is SGDHD else {})
    one, other = Problem(), Problem()
    opt, twin = ours(one.parameters(), **options), ours(other.parameters(), **options)
    for t in range(60):
        for problem, optimizer, factor in ((one, opt, 1.0), (other, twin, scale)):
            optimizer.zero_grad()
            (problem.loss(t) * factor).backward()
            optimizer.step()
    assert torch.equal(flat(one.parameters()), flat(other.parameters()))
    assert twin.param_groups[0]["lr"] == pytest.approx(opt.param_groups[0]["lr"] / (scale if ours is SGDHD else 1), rel=1e-12)


@pytest.mark.parametrize(("ours", "options"), OURS)
def test_evaluation_leaves_no_trace(ours: Any, options: dict) -> None:
    one, other = Problem(torch.float32), Problem(torch.float32)
    opt, twin = ours(one.groups(), **options), ours(other.groups(), **options)
    for t in range(30):
        one.train(opt, 1, start=t)
        other.train(twin, 1, start=t)
        iterate = flat(one.parameters()).clone()
        opt.eval()
        opt.eval()  # a second call changes nothing
        assert not torch.equal(flat(one.parameters()), iterate)
        with pytest.raises(RuntimeError, match=r"call opt.train\(\) before the next step"):
            opt.step()
        opt.train()
        opt.train()
        assert torch.equal(flat(one.parameters()), iterate)
    assert torch.equal(flat(one.parameters()), flat(other.parameters()))
    assert opt.state_dict()["param_groups"] == twin.state_dict()["param_groups"]


def test_saved_in_evaluation_goes_on_in_training() -> None:
    whole, first, second = Problem(), Problem(), Problem()
    opt, opt_first, opt_second = (AdamHD(problem.parameters()) for problem in (whole, first, second))
    whole.train(opt, 30)
    first.train(opt_first, 20)
    opt_first.eval()
    saved = copy.deepcopy((first.model.state_dict(), opt_first.state_dict()))
    second.model.load_state_dict(saved[0])
    opt_second.load_state_dict(saved[1])
    opt_second.train()
    second.train(opt_second, 10, start=20)
    assert torch.equal(flat(second.parameters()), flat(whole.parameters()))


@pytest.mark.parametrize("rule", [Additive(1e-4), Multiplicative(0.01)], ids=["additive", "multiplicative"])
def test_rules_without_an_average_ignore_evaluation(rule: Any) -> None:
    problem = Problem()
    opt = SGDHD(problem.parameters(), lr=0.1, rule=rule, horizon=5)
    problem.train(opt, 5)
    before = flat(problem.parameters()).clone()
    opt.eval()
    assert torch.equal(flat(problem.parameters()), before)
    opt.step()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("ours", [SGDHD, AdamHD])
def test_a_run_of_gradients_that_are_not_finite(ours: Any, capturable: bool, bad: float) -> None:
    """The first is passed over; with the second θ goes to θ̄, and α is halved, once; that comes back with the next that is finite."""
    problem = Problem()
    opt = ours(problem.groups(), capturable=capturable, **({"momentum": 0.9} if ours is SGDHD else {}))
    problem.train(opt, 40)
    before, lrs = flat(problem.parameters()).clone(), [float(group["lr"]) for group in opt.param_groups]
    with opt.averaged():
        average = flat(problem.parameters()).clone()

    def step(t: int) -> list[float]:
        opt.zero_grad()
        problem.loss(40).backward()
        problem.parameters()[0].grad[0] = bad
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            opt.step()
        return [float(group["lr"]) for group in opt.param_groups]

    assert step(40) == lrs
    assert torch.equal(flat(problem.parameters()), before)
    for t in range(41, 45):
        assert step(t) == pytest.approx([lr / 2 for lr in lrs], rel=1e-12)
        torch.testing.assert_close(flat(problem.parameters()), average, rtol=0, atol=1e-15)
    problem.train(opt, 1, start=45)
    assert [float(group["lr"]) for group in opt.param_groups] == pytest.approx(lrs, rel=1e-12)  # no signal yet, where z is 0
    problem.train(opt, 200, start=46)
    assert opt.skipped == 5
    assert problem.loss().item() < Problem().loss().item()


@pytest.mark.parametrize("every", [20, 50])
@pytest.mark.parametrize("ours", [SGDHD, AdamHD])
def test_batches_without_a_finite_gradient_cost_little(ours: Any, every: int) -> None:
    """One in 20 or 50 over 1,500 steps, beside skipping them by hand."""
    losses = []
    for by_hand in (True, False):
        problem = Problem()
        opt = ours(problem.groups(), **({"momentum": 0.9} if ours is SGDHD else {}))
        for t in range(1_500):
            opt.zero_grad()
            problem.loss(t).backward()
            if t % every == every - 1:
                if by_hand:
                    continue
                problem.parameters()[0].grad.fill_(math.nan)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                opt.step()
        with opt.averaged():
            losses.append(sum(problem.loss(t).item() for t in range(25)))
    assert losses[1] < 1.01 * losses[0]


@pytest.mark.parametrize("capturable", [False, True])
def test_frozen_tensors_lie_still_and_their_average_arrives(capturable: bool) -> None:
    problem = Problem()
    opt = AdamHD(problem.parameters(), capturable=capturable)
    problem.train(opt, 30)
    frozen = problem.parameters()[0].requires_grad_(False)
    frozen.grad = None
    where = frozen.detach().clone()
    way = float(opt.state[frozen]["trace"].norm())
    assert way > 0
    for t in range(30, 130):
        problem.train(opt, 1, start=t)
        frozen.grad = None
    for _ in range(3):  # the others go back
        opt.zero_grad()
        problem.loss(0).backward()
        problem.parameters()[-1].grad.fill_(math.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            opt.step()
    assert torch.equal(frozen, where)
    with opt.averaged():
        assert float((frozen - where).norm()) < 0.02 * way


def test_learning_rate_that_is_far_too_large_is_undone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    x = torch.randn(512, 20)
    y = (x[:, :3].sum(1) > 0).long()
    opt = AdamHD(model.parameters(), lr=1.0)
    for t in range(200):
        opt.zero_grad()
        rows = torch.arange(64 * t, 64 * (t + 1)) % 512
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step()
    opt.eval()
    assert nn.functional.cross_entropy(model(x), y).item() < 1e-3  # torch.optim.Adam with this learning rate ends above 0.1
    assert opt.param_groups[0]["lr"] < 0.5


def noisy_quadratic(opt: torch.optim.Optimizer, w: nn.Parameter, steps: int) -> None:
    """f(w) = ½ Σ k_i w_i², condition 1,000, with the noise of a regression's gradients."""
    generator = torch.Generator().manual_seed(1)
    k = torch.logspace(0, -3, 50, dtype=torch.float64)
    for _ in range(steps):
        w.grad = (k * w + 0.3 * k.sqrt() * torch.randn(50, generator=generator, dtype=torch.float64)).detach()
        opt.step()


@pytest.mark.parametrize(
    ("ours", "base", "options", "most"),
    [
        pytest.param(SGDHD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, 1.0, id="sgdn"),
        pytest.param(AdamHD, torch.optim.Adam, {}, 1.6, id="adam"),  # where it loses: docs/tuning-free.md
    ],
)
@pytest.mark.parametrize("steps", [300, 3_000])
def test_beside_the_best_constant_learning_rate_on_a_noisy_quadratic(ours: Any, base: Any, options: dict, most: float, steps: int) -> None:
    k = torch.logspace(0, -3, 50, dtype=torch.float64)

    def final(make: Any) -> float:
        w = nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        opt = make([w])
        noisy_quadratic(opt, w, steps)
        if hasattr(opt, "eval"):
            opt.eval()
        return float((k * w.detach() ** 2).sum() / 2)

    constants = [final(lambda w, lr=lr: base(w, lr=lr, **options)) for lr in (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)]
    assert final(lambda w: ours(w, **options)) < most * min(constants)


@pytest.mark.parametrize("scope", ["group", "global", "tensor"])
def test_every_scope_learns(scope: Any) -> None:
    problem = Problem()
    opt = AdamHD(problem.groups(), scope=scope)
    problem.train(opt, 300)
    opt.eval()
    assert sum(problem.loss(t).item() for t in range(25)) / 25 < 1.06  # 1.42 at the start; the best constant learning rate ends at 1.01
    rows = opt.summary()
    assert len(rows) == {"group": 2, "global": 1, "tensor": 6}[scope]
    for row in rows:
        assert set(row) == {"lr", "hypergradient", "signal", "noise", "horizon", "climbing"}
        assert -1 <= row["signal"] <= 1
        assert row["horizon"] == pytest.approx(60, abs=1)


def test_bounds_hold() -> None:
    problem = Problem()
    opt = SGDHD(problem.parameters(), lr_bounds=(1e-3, 1e-2))
    for t in range(80):
        problem.train(opt, 1, start=t)
        assert 1e-3 <= opt.param_groups[0]["lr"] <= 1e-2


@pytest.mark.parametrize(
    ("options", "lr", "rule"),
    [
        pytest.param({}, 1.0, TuningFree(), id="nothing"),
        pytest.param({"lr": 0.1}, 0.1, TuningFree(), id="lr"),
        pytest.param({"hypergrad_lr": 1e-4}, 1e-3, Additive(1e-4), id="hypergrad_lr"),
        pytest.param({"rule": Multiplicative(0.1)}, 1e-3, Multiplicative(0.1), id="rule"),
        pytest.param({"rule": TuningFree(0.5)}, 1.0, TuningFree(0.5), id="tuning-free"),
        pytest.param({"lr": 0.1, "hypergrad_lr": 1e-4}, 0.1, Additive(1e-4), id="both"),
    ],
)
@pytest.mark.parametrize("ours", [SGDHD, AdamHD, AdamWHD])
def test_defaults(ours: Any, options: dict, lr: float, rule: Any) -> None:
    opt = ours([nn.Parameter(torch.ones(1))], **options)
    assert (opt.param_groups[0]["lr"], opt.setup.rule) == (lr, rule)


def test_hypergrad_lr_of_a_group_is_enough() -> None:
    opt = SGDHD([{"params": [nn.Parameter(torch.ones(1))], "hypergrad_lr": 1e-3}, {"params": [nn.Parameter(torch.ones(1))]}])
    assert [group["hypergrad_lr"] for group in opt.param_groups] == [1e-3, 1e-6]


SHARES = [pytest.param(None, 1e-2, id="none"), pytest.param(1e-9, 1e-2, id="small"), pytest.param(1e9, 0.03, id="large")]


@pytest.mark.parametrize(("ours", "options", "scope", "lr", "share"), pairs(OURS, ["group", "global", "tensor"], SHARES))
def test_first_step_is_safe(ours: Any, options: dict, scope: Any, lr: float | None, share: float) -> None:
    """The iterate of each scope moves by 1e-2 (1 + ‖θ_0‖); with a large lr given by 0.03 (1 + ‖θ_0‖), where its bounds let it."""
    problem = Problem()
    groups = [{**group, "lr": lr} for group in problem.groups()] if lr else problem.groups()
    opt = ours(groups, scope=scope, **options)
    before = [p.detach().clone() for p in problem.parameters()]
    problem.train(opt, 1)
    b = opt.setup.direction.interpolation(opt.param_groups[0])
    iterates = [p.detach() - b / (1 - b) * opt.state[p]["trace"] for p in problem.parameters()]
    moved = [(p - q, q) for p, q in zip(iterates, before, strict=True)]
    for part in {"group": [moved[:3], moved[3:]], "global": [moved], "tensor": [[pair] for pair in moved]}[scope]:
        step, start = (flat(list(column)).norm().item() for column in zip(*part, strict=True))
        assert step == pytest.approx(share * (1 + start), rel=1e-9)


@pytest.mark.parametrize("gradient", [0.0, None, math.nan])
def test_without_gradient_it_does_not_start(gradient: float | None) -> None:
    w = nn.Parameter(torch.ones(2))
    w.grad = None if gradient is None else torch.full((2,), gradient)
    opt = SGDHD([w], weight_decay=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        opt.step()
    assert (opt.param_groups[0]["lr"], opt.param_groups[0]["alpha"]) == (1, 0)
    assert torch.equal(w.detach(), torch.ones(2))
    w.grad = torch.ones(2)
    opt.step()
    assert opt.param_groups[0]["lr"] > 0


@pytest.mark.parametrize("horizon", [1, 2, 7.5])
@pytest.mark.parametrize(
    ("ours", "options"),
    [pytest.param(SGDHD, {"momentum": 0.9, "nesterov": True}, id="sgdn"), pytest.param(AdamHD, {"weight_decay": 0.01}, id="adam")],
)
def test_horizon_is_a_trace_of_directions(ours: Any, options: dict, horizon: float) -> None:
    """h_t = −g_t · z_{t-1} with z_t = (1 − 1/n) z_{t-1} + d_t; the directions are read off a twin's steps."""
    problem, decay = Problem(), options.get("weight_decay", 0.0)
    opt = ours(problem.parameters(), lr=0.01, hypergrad_lr=1e-6, horizon=horizon, **options)
    z = torch.zeros_like(flat(problem.parameters()))
    for t in range(12):
        before = flat(problem.parameters()).clone()
        g = flat(list(torch.autograd.grad(problem.loss(t), problem.parameters()))) + decay * before
        problem.train(opt, 1, start=t)
        assert opt.hypergradients == pytest.approx([-float(g @ z)], rel=1e-8, abs=1e-14)
        z = (1 - 1 / horizon) * z + (before - flat(problem.parameters())) / opt.param_groups[0]["lr"]
    assert ("trace" in opt.state[problem.parameters()[0]]) == (horizon > 1)


@pytest.mark.parametrize(
    ("ours", "options"), [pytest.param(SGDHD, {"momentum": 0.9, "nesterov": True}, id="sgdn"), pytest.param(AdamHD, {}, id="adam")]
)
@pytest.mark.parametrize(("condition", "steps"), [(1e2, 300), (1e3, 300), (1e4, 300), (1e3, 3_000)])
def test_does_not_run_away_where_there_is_no_noise(ours: Any, options: dict, condition: float, steps: int) -> None:
    """The learning rate rises until the steepest direction, which is not seen before, runs away; it has to be caught there."""
    turn, _ = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x = torch.logspace(0, -math.log10(condition) / 2, 50, dtype=torch.float64)[:, None] * turn
    w = nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    opt, begun = ours([w], **options), ((x @ w) ** 2).sum().item()
    for _ in range(steps):
        opt.zero_grad()
        loss = ((x @ w) ** 2).sum()
        assert loss < 100 * begun
        loss.backward()
        opt.step()
    opt.eval()
    assert ((x @ w) ** 2).sum().item() < 0.01 * begun


def test_a_slow_runaway_halves_the_learning_rate() -> None:
    """Each gradient points back to the average, and is a twentieth larger than the last: never suddenly large."""
    rule, alpha = TuningFree(), 1.0
    memory = rule.initial_memory() | {"steps": 1_000.0, "turned": 100.0, "usual": 1.0}
    back = []
    for t in range(40):
        move = rule.update(memory | {"size": 1.0}, alpha, rule.beta, h=(g := 1.05**t), g_norm=g, d_norm=1.0)
        back.append(move.reset)
        if move.reset:
            assert move.alpha == alpha / 2
        alpha, memory = move.alpha, move.memory
    assert back.index(True) == 21, "the mean of 22 cosines of -1 is the first below -0.9"


def test_one_odd_minibatch_changes_nothing() -> None:
    """A gradient ten times the usual that points back to the average: once it is let be, twice in succession it is a runaway."""
    rule, size = TuningFree(), {"size": 1.0}
    memory = rule.initial_memory() | {"steps": 1_000.0, "turned": 100.0, "usual": 1.0, "signals": 500.0, "power": 0.01}
    once = rule.update(memory | size, 1.0, rule.beta, h=2.0, g_norm=10.0, d_norm=1.0)
    assert not once.reset
    calm = rule.update(once.memory | size, once.alpha, rule.beta, h=0.2, g_norm=1.0, d_norm=1.0)
    assert not rule.update(calm.memory | size, calm.alpha, rule.beta, h=2.0, g_norm=10.0, d_norm=1.0).reset
    assert rule.update(once.memory | size, once.alpha, rule.beta, h=2.0, g_norm=10.0, d_norm=1.0).reset
    soon = memory | size | {"steps": 120.0}
    assert rule.update(soon, 1.0, rule.beta, h=2.0, g_norm=10.0, d_norm=1.0).reset, "soon after the climb once is enough"
