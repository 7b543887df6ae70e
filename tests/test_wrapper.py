"""Hypergradient(base): equal to the closed forms, and an optimizer like any other around every base it supports."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import lr_scheduler

from cases import Problem, flat, pairs, turns
from hypergradient import SGDHD, AdamHD, AdamWHD, Adapted, Additive, Decay, Hypergradient, Multiplicative, Transition, TuningFree


class Base(NamedTuple):
    """A base: what makes it, whether it adds λθ to the gradient, whether it takes matrices alone, and what it is made for."""

    make: Callable[..., torch.optim.Optimizer]
    coupled: bool = False
    matrices: bool = False
    dtype: torch.dtype = torch.float64

    def of(self, problem: Problem, **options: Any) -> torch.optim.Optimizer:
        params = problem.parameters()
        return self.make([p for p in params if p.ndim == 2] if self.matrices else params, **{"lr": 0.01, **options})


def of_package(name: str, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    def make(params: Any, **more: Any) -> Any:
        return getattr(pytest.importorskip("pytorch_optimizer"), name)(params, **options, **more)

    return make


def muon(params: Any, **options: Any) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    return torch.optim.Muon(params, **options)


TORCH = {
    "SGD": Base(torch.optim.SGD, True),
    "SGD-decay": Base(partial(torch.optim.SGD, weight_decay=0.1), True),
    "SGD-dampening": Base(partial(torch.optim.SGD, momentum=0.9, dampening=0.5), True),
    "SGD-nesterov": Base(partial(torch.optim.SGD, momentum=0.9, nesterov=True, maximize=True, foreach=True), True),
    "Adam": Base(partial(torch.optim.Adam, weight_decay=0.1), True),
    "Adam-amsgrad": Base(partial(torch.optim.Adam, amsgrad=True), True),
    "Adam-foreach": Base(partial(torch.optim.Adam, foreach=True), True),
    "Adam-fused": Base(partial(torch.optim.Adam, fused=True), True),
    "AdamW": Base(partial(torch.optim.AdamW, weight_decay=0.1)),
    "NAdam": Base(partial(torch.optim.NAdam, weight_decay=0.1), True),
    "NAdam-decoupled": Base(partial(torch.optim.NAdam, weight_decay=0.1, decoupled_weight_decay=True)),
    "RAdam": Base(torch.optim.RAdam, True),
    "RMSprop": Base(partial(torch.optim.RMSprop, momentum=0.9, weight_decay=0.1), True),
    "RMSprop-centered": Base(partial(torch.optim.RMSprop, centered=True), True),
    "Adagrad": Base(partial(torch.optim.Adagrad, lr_decay=0.1, weight_decay=0.1), True),
    "Adadelta": Base(partial(torch.optim.Adadelta, weight_decay=0.1), True),
    "Adamax": Base(partial(torch.optim.Adamax, maximize=True), True),
    "Muon": Base(partial(muon, weight_decay=0.1), matrices=True),
}
PACKAGE = {
    "Lion": Base(of_package("Lion", weight_decay=0.1)),
    "AdaBelief": Base(of_package("AdaBelief", weight_decay=0.1)),
    "Lamb": Base(of_package("Lamb")),
}
BASES = [pytest.param(base, id=name) for name, base in (TORCH | PACKAGE).items()]
FEW = [pytest.param((TORCH | PACKAGE)[name], id=name) for name in ("SGD-nesterov", "Adam", "RMSprop", "Adagrad", "Muon", "Lion")]

CLOSED = [
    pytest.param(ours, base, options, id=f"{ours.__name__}-{'-'.join(options)}")
    for ours, base, options in [
        (SGDHD, torch.optim.SGD, {}),
        (SGDHD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
        (SGDHD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (SGDHD, torch.optim.SGD, {"weight_decay": 0.1, "maximize": True}),
        (AdamHD, torch.optim.Adam, {}),
        (AdamHD, torch.optim.Adam, {"weight_decay": 0.1}),
        (AdamWHD, torch.optim.AdamW, {"weight_decay": 0.1}),
    ]
]
TOWER = Additive(Adapted(1e-5, Multiplicative(0.05)))
RUNS = [
    pytest.param({"rule": rule, "scope": scope, **more}, id="-".join([name, scope, *more]))
    for name, rule, scope, more in [
        ("additive", Additive(1e-5), "group", {}),
        ("additive", Additive(1e-5), "global", {}),
        ("additive", Additive(1e-5), "tensor", {"lr_bounds": (0, None)}),
        ("additive", Additive(1e-5), "element", {}),
        ("multiplicative", Multiplicative(0.02), "global", {}),
        ("multiplicative", Multiplicative(0.02), "element", {"horizon": 5}),
        ("tower", TOWER, "group", {}),
        ("tower", TOWER, "tensor", {}),
        ("additive", Additive(1e-6), "group", {"horizon": 10}),
        ("tuning", TuningFree(), "group", {}),
        ("tuning", TuningFree(), "tensor", {}),
        ("decay of tuning", Decay(TuningFree(), total_steps=60), "global", {}),
        ("decay", Decay(Multiplicative(0.02), total_steps=60), "tensor", {}),
        ("transition", Transition(Additive(1e-5), alpha_inf=1e-3), "group", {}),
    ]
]
SAVED = [RUNS[i] for i in (0, 3, 5, 7, 9, 10, 12)]
SCOPES = ["group", "global", "tensor", "element"]
COPIES = [pytest.param(copy.deepcopy, id="deepcopy"), pytest.param(lambda run: pickle.loads(pickle.dumps(run)), id="pickle")]


def lrs(opt: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in opt.param_groups]


def shared(opt: Hypergradient) -> bool:
    """Whether the base steps what the wrapper does."""
    groups = zip(opt.param_groups, opt.base.param_groups, strict=True)
    one_list = opt.param_groups is opt.base.param_groups and opt.state is opt.base.state
    return one_list and all(one is other for one, other in groups) and opt.setup.direction.base is opt.base


def same(one: Problem, opt: Any, other: Problem, twin: Any) -> bool:
    """Whether two runs stand at the same point, bitwise."""
    return torch.equal(flat(one.parameters()), flat(other.parameters())) and (lrs(opt), opt.hypergradients) == (
        lrs(twin),
        twin.hypergradients,
    )


DOUBLE = [pytest.param(run.values[0], torch.float64, 25, 1e-12, id=f"{run.id}-float64") for run in RUNS]
SINGLE = [pytest.param(RUNS[i].values[0], torch.float32, 60, 4e-6, id=f"{RUNS[i].id}-float32") for i in (0, 3, 5, 6)]


@pytest.mark.parametrize(("ours", "base", "options", "run", "dtype", "steps", "tolerance"), turns(CLOSED, DOUBLE + SINGLE, 11))
def test_is_the_closed_form(ours, base, options: dict, run: dict, dtype: torch.dtype, steps: int, tolerance: float) -> None:
    one, other = Problem(dtype), Problem(dtype)
    lr = 1e-3 if ours is not SGDHD else 0.01
    opt = Hypergradient(base(one.groups(), lr=lr, **options), **run)
    betas = {} if ours is SGDHD else {"betas": (0.9, 0.999)}  # as the base has them
    twin = ours(other.groups(), lr=lr, **run, **betas, **options)
    one.train(opt, steps)
    other.train(twin, steps)
    torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=tolerance, atol=tolerance)
    assert lrs(opt) == pytest.approx(lrs(twin), rel=1e3 * tolerance)
    assert opt.hypergradients == pytest.approx(twin.hypergradients, rel=1e4 * tolerance, abs=1e3 * tolerance)
    assert lrs(opt) != pytest.approx([lr, lr], rel=1e-6)
    assert shared(opt)


@pytest.mark.parametrize(("beta", "stepped", "left"), [(None, 0.0, 0.9), (1e-3, 0.9, 0.8)], ids=["no-lr", "additive"])
def test_momentum_of_a_base(beta: float | None, stepped: float, left: float) -> None:
    """Left to the average it is 0 inside the base's step and itself outside; else it is the base's own, also where that moves it."""
    seen = []

    class Moving(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(self.param_groups[0]["momentum"])
            self.param_groups[0]["momentum"] = 0.8
            return super().step(closure)

    problem = Problem()
    opt = Hypergradient(Moving(problem.parameters(), lr=0.01, momentum=0.9), hypergrad_lr=beta)
    problem.train(opt, 1)
    assert seen[0] == stepped
    assert opt.param_groups[0]["momentum"] == left


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("scope", ["group", "element"])
def test_constant_learning_rate_is_the_base(base: Base, scope: Any) -> None:
    one, other = Problem(), Problem()
    opt, twin = Hypergradient(base.of(one), hypergrad_lr=0, scope=scope), base.of(other)
    assert one.train(opt, 25) == pytest.approx(other.train(twin, 25), rel=1e-11)
    torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-11)
    assert lrs(opt) == pytest.approx([0.01], rel=1e-15)


@pytest.mark.parametrize(("base", "rule"), turns(BASES, [Additive(1e-6), Multiplicative(0.02)]))
def test_hypergradient_is_of_the_base_stepped_at_two_learning_rates(base: Base, rule: Any) -> None:
    """h_t = −g_t · d_{t-1}, where d is the slope of the base's own step by its learning rate."""
    problem = Problem()
    opt = Hypergradient(base.of(problem), rule=rule)
    last: Tensor | None = None
    for t in range(8):
        opt.zero_grad()
        problem.loss(t).backward()
        (group,) = opt.param_groups
        decay = group["weight_decay"] if base.coupled else 0.0
        params = group["params"]
        g = flat([(-p.grad if group.get("maximize") else p.grad) + decay * p.detach() for p in params])
        ends = [self_step(base, problem, opt, lr) for lr in (0.5, 2.5)]
        opt.step()
        if last is not None:
            assert opt.hypergradients == pytest.approx([-(g @ last).item()], rel=1e-8, abs=1e-12)
            assert opt.hypergradients != [0.0]
        last = (ends[0] - ends[1]) / 2
    assert lrs(opt) != [0.01]


@pytest.mark.parametrize("base", [TORCH["Adamax"].make.func, of_package("Lion")], ids=["Adamax", "Lion"])
def test_maximize_is_minimizing_the_negative(base) -> None:
    """pytorch_optimizer keeps it as an attribute, torch in the param groups; it holds for late groups and after a checkpoint too."""
    one, other = Problem(), Problem()
    up, down = (Hypergradient(base(p.parameters()[:3], lr=0.01, maximize=m), hypergrad_lr=1e-5) for p, m in ((one, True), (other, False)))
    for t in range(9):
        if t == 3:
            up.add_param_group({"params": one.parameters()[3:]})
            down.add_param_group({"params": other.parameters()[3:]})
        if t == 6 and hasattr(up.base, "maximize"):
            checkpoint = up.state_dict()
            for group in checkpoint["param_groups"]:
                del group["maximize"]  # as in a checkpoint of the base alone
            up.load_state_dict(checkpoint)
        for problem, opt, sign in ((one, up, -1), (other, down, 1)):
            opt.zero_grad()
            (sign * problem.loss(t)).backward()
            opt.step()
        assert lrs(up) == lrs(down)
        assert up.hypergradients == down.hypergradients
    up.adapt(-one.loss(9))
    down.adapt(other.loss(9))
    assert lrs(up) == lrs(down) != [0.01, 0.01]


def self_step(base: Base, problem: Problem, opt: Hypergradient, lr: float) -> Tensor:
    """The parameters after a step of a bare base that stands where the wrapped one does."""
    twin = Problem()
    bare = base.of(twin)
    twin.model.load_state_dict(problem.model.state_dict())
    bare.load_state_dict(copy.deepcopy(opt.state_dict()))
    for p, q in zip(problem.parameters(), twin.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    bare.param_groups[0]["lr"] = lr
    bare.step()
    return flat(bare.param_groups[0]["params"])


# What a training loop does around the step; each is given optimizer and problem, and returns what makes step t.


def plain(opt: Any, problem: Problem) -> Callable[[int], Any]:
    return lambda t: problem.train(opt, 1, start=t)


def scheduled(make: Callable[[Any], Any]) -> Callable[..., Callable[[int], Any]]:
    def loop(opt: Any, problem: Problem) -> Callable[[int], Any]:
        scheduler = make(opt)
        return lambda t: (problem.train(opt, 1, start=t), scheduler.step())

    return loop


def clipped(opt: Any, problem: Problem) -> Callable[[int], Any]:
    return stepping(opt, problem, lambda t: nn.utils.clip_grad_norm_(problem.parameters(), 0.1))


def stepping(opt: Any, problem: Problem, change: Callable[[int], Any]) -> Callable[[int], Any]:
    def step(t: int) -> None:
        opt.zero_grad(set_to_none=t % 2 == 0)
        problem.loss(t).backward()
        change(t)
        opt.step()

    return step


def without(missing: Callable[[int, int], bool]) -> Callable[..., Callable[[int], Any]]:
    def loop(opt: Any, problem: Problem) -> Callable[[int], Any]:
        def change(t: int) -> None:
            for i, p in enumerate(problem.parameters()):
                if missing(t, i):
                    p.grad = None

        return stepping(opt, problem, change)

    return loop


def closures(opt: Any, problem: Problem) -> Callable[[int], Any]:
    calls = []

    def step(t: int) -> None:
        def closure() -> Tensor:
            calls.append(t)
            opt.zero_grad()
            loss = problem.loss(t)
            loss.backward()
            return loss

        assert math.isfinite(opt.step(closure).item())
        assert calls == list(range(t + 1))

    return step


def scaled(opt: Any, problem: Problem) -> Callable[[int], Any]:
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)

    def step(t: int) -> None:
        opt.zero_grad()
        scaler.scale(problem.loss(t) * (math.inf if t == 3 else 1.0)).backward()
        scaler.step(opt)
        scaler.update()

    return step


def tensor_lr(opt: Any, problem: Problem) -> Callable[[int], Any]:
    opt.param_groups[0]["lr"] = torch.tensor(0.02, dtype=torch.float64)
    return plain(opt, problem)


LOOPS = {
    "StepLR": scheduled(lambda opt: lr_scheduler.StepLR(opt, 3, gamma=0.5)),
    "OneCycleLR": scheduled(lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.02, total_steps=20, cycle_momentum=False)),
    "CosineAnnealingLR": scheduled(lambda opt: lr_scheduler.CosineAnnealingLR(opt, 10)),
    "clip_grad_norm_": clipped,
    "missing gradients": without(lambda t, i: (t + i) % 3 == 0),
    "late gradients": without(lambda t, i: t < 2 * i),
    "closure": closures,
    "GradScaler": scaled,
    "tensor lr": tensor_lr,
}


@pytest.mark.parametrize(
    ("base", "loop", "scope"), pairs(FEW, [pytest.param(loop, id=name) for name, loop in LOOPS.items()], ["group", "tensor"])
)
def test_loops_as_the_base(base: Base, loop: Any, scope: Any) -> None:
    """Whatever a loop does comes to the base, and a learning rate that moves has moved after it."""
    one, other, third = Problem(), Problem(), Problem()
    opt, twin = Hypergradient(base.of(one), hypergrad_lr=0, scope=scope), base.of(other)
    moving = Hypergradient(base.of(third), rule=Multiplicative(0.02), scope=scope)
    steps = [loop(opt, one), loop(twin, other), loop(moving, third)]
    for t in range(12):
        for step in steps:
            step(t)
        torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-11)
        assert lrs(opt) == pytest.approx(lrs(twin), rel=1e-12)
    assert not torch.allclose(flat(third.parameters()), flat(other.parameters()), rtol=1e-6, atol=0)
    assert shared(moving)


@pytest.mark.parametrize("scope", ["group", "tensor", "element"])
def test_cycled_momentum_comes_to_the_base(scope: Any) -> None:
    """OneCycleLR writes momentum to the wrapper's param groups."""
    one, other = Problem(), Problem()
    run = {"rule": Multiplicative(0.02), "scope": scope}
    opt = Hypergradient(torch.optim.SGD(one.groups(), 0.01, 0.9), **run)
    twin = SGDHD(other.groups(), 0.01, 0.9, **run)
    cycle = scheduled(lambda opt: lr_scheduler.OneCycleLR(opt, 0.02, total_steps=20, base_momentum=0.5, max_momentum=0.9))
    steps = [cycle(opt, one), cycle(twin, other)]
    for t in range(15):
        for step in steps:
            step(t)
    torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-12)
    assert lrs(opt) == pytest.approx(lrs(twin), rel=1e-9)
    assert opt.param_groups[0]["momentum"] == twin.param_groups[0]["momentum"] != 0.9


@pytest.mark.parametrize("named", [False, True], ids=["tensors", "named"])
def test_late_group_is_shared_with_the_base(named: bool) -> None:
    one, other = Problem(), Problem()

    def build(make: Callable[[Any], Any], problem: Problem) -> tuple:
        params = list(problem.model.named_parameters()) if named else problem.parameters()
        return make(params[:3]), {"params": params[3:], "lr": 0.02}

    opt, late = build(lambda ps: Hypergradient(torch.optim.Adam(ps, lr=0.01), rule=Multiplicative(0.02)), one)
    twin, their_late = build(lambda ps: AdamHD(ps, lr=0.01, rule=Multiplicative(0.02)), other)
    one.train(opt, 4)
    other.train(twin, 4)
    opt.add_param_group(late)
    twin.add_param_group(their_late)
    one.train(opt, 6, start=4)
    other.train(twin, 6, start=4)
    torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-12)
    assert lrs(opt) == pytest.approx(lrs(twin), rel=1e-9)
    assert lrs(opt)[1] != 0.02
    assert shared(opt)
    names = [name for name, _ in one.model.named_parameters()]
    assert [group.get("param_names") for group in opt.param_groups] == ([names[:3], names[3:]] if named else [None, None])


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize("run", [RUNS[i] for i in (0, 3, 9)])
def test_complex_parameters_are_pairs_of_real_ones(base, run: dict) -> None:
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z, xy = (nn.Parameter(x) for x in (torch.view_as_complex(start.clone()), start.clone()))
    opt, twin = Hypergradient(base([z], lr=0.01), **run), Hypergradient(base([xy], lr=0.01), **run)
    for t in range(8):
        for w, optimizer in [(z, opt), (torch.view_as_complex(xy), twin)]:
            optimizer.zero_grad()
            ((w * (1 + t * 1j) + 2).abs() ** 2).sum().backward()
            optimizer.step()
        torch.testing.assert_close(torch.view_as_real(z), xy, rtol=0, atol=1e-12)
        assert opt.hypergradients == pytest.approx(twin.hypergradients, rel=1e-9)
    assert lrs(opt) != [0.01]


@pytest.mark.parametrize(("base", "run", "first"), pairs(FEW, [RUNS[i] for i in (0, 3, 6)], [0, 3]))
def test_step_without_finite_gradient_leaves_no_trace(base: Base, run: dict, first: int) -> None:
    problem, other = Problem(), Problem()
    opt, twin = Hypergradient(base.of(problem), **run), Hypergradient(base.of(other), **run)
    problem.train(opt, first)
    before = copy.deepcopy((opt.state_dict(), opt.hypergradients))
    opt.zero_grad()
    problem.loss(4).backward()
    problem.parameters()[2].grad[0, 1] = math.nan
    with pytest.warns(UserWarning, match="Hypergradient skipped a step"):
        opt.step()
    torch.testing.assert_close((opt.state_dict(), opt.hypergradients), before, rtol=0, atol=0)
    problem.train(opt, 4, start=first)
    other.train(twin, first + 4)
    assert same(problem, opt, other, twin)
    assert opt.skipped == 1


def through_a_file(checkpoint: Any) -> Any:
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("base", "run"), turns(BASES, SAVED, 3))
def test_resumed_equals_never_stopped(base: Base, run: dict) -> None:
    """Bit for bit, with one list of param groups and one state for wrapper and base before and after."""
    dtype = torch.float32  # NAdam and AdaBelief keep some numbers in it, and a checkpoint casts those to the parameters' dtype
    one, other = Problem(dtype), Problem(dtype)
    opt = Hypergradient(base.of(one), **run)
    one.train(opt, 6)
    saved = through_a_file({"model": one.model.state_dict(), "opt": opt.state_dict()})
    twin = Hypergradient(base.of(other, lr=0.5), **run)
    other.model.load_state_dict(saved["model"])
    twin.load_state_dict(saved["opt"])
    assert shared(twin)
    assert one.train(opt, 6, start=6) == other.train(twin, 6, start=6)
    assert same(one, opt, other, twin)
    assert shared(twin)


@pytest.mark.parametrize(("base", "run", "copied"), turns(BASES[: len(TORCH)], pairs(SAVED, COPIES), 3))
def test_copy_goes_on_as_the_original(base: Base, run: dict, copied) -> None:
    problem = Problem()
    opt = Hypergradient(base.of(problem), **run)
    problem.train(opt, 3)
    other, twin = copied((problem, opt))
    assert shared(twin)
    assert twin.base is not opt.base
    problem.train(opt, 3, start=3)
    assert not torch.equal(flat(problem.parameters()), flat(other.parameters()))
    other.train(twin, 3, start=3)
    assert same(problem, opt, other, twin)
    assert shared(twin)


@pytest.mark.parametrize(("base", "scope", "where"), turns(BASES, pairs(SCOPES, ["file", "as it stands"]), 3))
def test_goes_on_from_the_base_alone(base: Base, scope: Any, where: str) -> None:
    """The first step leaves the learning rate alone, the next adapts it; the base counts its own steps on."""
    one, other = Problem(), Problem()
    bare, started = base.of(one), base.of(other)
    one.train(bare, 5)
    if where == "file":
        opt = Hypergradient(base.of(other, lr=0.5), rule=Multiplicative(0.02), scope=scope)
        other.model.load_state_dict(one.model.state_dict())
        opt.load_state_dict(through_a_file(bare.state_dict()))
    else:
        other.train(started, 5)
        opt = Hypergradient(started, rule=Multiplicative(0.02), scope=scope)
    assert shared(opt)
    one.train(bare, 1, start=5)
    other.train(opt, 1, start=5)
    torch.testing.assert_close(flat(other.parameters()), flat(one.parameters()), rtol=0, atol=1e-8)
    assert lrs(opt) == pytest.approx([0.01], rel=1e-12)
    for p, q in zip(bare.param_groups[0]["params"], opt.param_groups[0]["params"], strict=True):
        assert bare.state.get(p, {}).get("step") == opt.state[q].get("step")
    other.train(opt, 1, start=6)
    assert lrs(opt) != pytest.approx([0.01], rel=1e-6)


@pytest.mark.parametrize(("ours", "base", "options"), CLOSED)
@pytest.mark.parametrize("horizon", [1, 5])
def test_checkpoints_of_the_closed_form_and_of_the_wrapper_go_on_in_the_other(ours, base, options: dict, horizon: int) -> None:
    one, other, third = Problem(), Problem(), Problem()
    run = {"rule": Multiplicative(0.02), "horizon": horizon}
    closed, opt = ours(one.groups(), lr=1e-3, **run, **options), Hypergradient(base(other.groups(), lr=0.5), **run)
    one.train(closed, 5)
    other.model.load_state_dict(one.model.state_dict())
    opt.load_state_dict(copy.deepcopy(closed.state_dict()))
    lr = lrs(closed)
    one.train(closed, 1, start=5)
    other.train(opt, 1, start=5)
    assert lrs(opt) == pytest.approx(lr, rel=0.03)
    back = ours(third.groups(), lr=0.5, **run)
    third.model.load_state_dict(other.model.state_dict())
    back.load_state_dict(copy.deepcopy(opt.state_dict()))
    other.train(opt, 3, start=6)
    third.train(back, 3, start=6)
    torch.testing.assert_close(flat(third.parameters()), flat(other.parameters()), rtol=0, atol=1e-4)
    assert opt.skipped == back.skipped == 0


FORMS = [pytest.param(False, id="nested"), pytest.param(True, id="flat")]


def is_not_primed(base: Base, run: dict, flatten: bool) -> bool:
    """Adagrad has a state before its first step, so that torch does not prime it, and looks for no more than there is."""
    return flatten and base is TORCH["Adagrad"]


@pytest.mark.parametrize(
    ("base", "run", "flatten"),
    pairs([row for row in FEW if row.id not in ("Muon", "Lion")], SAVED, FORMS, unless=is_not_primed),
)
def test_distributed_checkpoint(base: Base, run: dict, flatten: bool) -> None:
    problem, other = Problem(), Problem()
    opt, twin = Hypergradient(base.of(problem), **run), Hypergradient(base.of(other), **run)
    flags = StateDictOptions(flatten_optimizer_state_dict=flatten)
    problem.train(opt, 5)
    saved = copy.deepcopy(get_optimizer_state_dict(problem.model, opt, options=flags))
    set_optimizer_state_dict(other.model, twin, saved, options=flags)
    assert torch.equal(flat(other.parameters()), flat(Problem().parameters()))
    other.model.load_state_dict(problem.model.state_dict())
    assert problem.train(opt, 5, start=5) == other.train(twin, 5, start=5)
    assert same(problem, opt, other, twin)
    assert shared(twin)


@pytest.mark.parametrize("base", [row for row in BASES if row.id != "Muon"])
def test_distributed_checkpoint_before_the_first_step(base: Base) -> None:
    problem = Problem()
    opt = Hypergradient(base.of(problem), hypergrad_lr=1e-6)
    get_optimizer_state_dict(problem.model, opt)
    assert torch.equal(flat(problem.parameters()), flat(Problem().parameters()))
    assert lrs(opt) == [0.01]
    problem.train(opt, 3)
    assert (opt.skipped, set(map(math.isfinite, opt.hypergradients))) == (0, {True})


def test_hooks() -> None:
    """Those of the wrapper run once around its step and its checkpoints, those of the base's step around the step of the base."""
    problem = Problem()
    opt = Hypergradient(torch.optim.Adam(problem.parameters(), lr=0.01), hypergrad_lr=1e-6)
    seen: list[tuple[str, float]] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: seen.append((name, lrs(opt)[0]))

    for name in ("step_pre", "step_post", "state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
        getattr(opt, f"register_{name}_hook")(hook(name))
        getattr(opt.base, f"register_{name}_hook")(hook(f"base {name}"))
    problem.train(opt, 1)
    assert seen == [("step_pre", 0.01), ("base step_pre", 1.0), ("base step_post", 1.0), ("step_post", 0.01)]
    del seen[:]
    opt.load_state_dict(opt.state_dict())
    assert [name for name, _ in seen] == ["state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"]


def test_base_is_whole_in_the_hooks_of_load_state_dict() -> None:
    problem = Problem()
    opt = Hypergradient(torch.optim.Adam(problem.parameters()), hypergrad_lr=1e-6)
    problem.train(opt, 2)
    seen = []
    opt.register_load_state_dict_post_hook(lambda opt: seen.append(shared(opt)))
    opt.load_state_dict(opt.state_dict())
    assert seen == [True]


@pytest.mark.parametrize(("base", "rule"), turns(BASES, [TuningFree(), Decay(TuningFree(), total_steps=100)]))
def test_average_around_any_base(base: Base, rule: Any) -> None:
    """eval() and train() go to the average and back; the search of a first step leaves base, hooks and schedulers alone."""
    problem = Problem()
    opt = Hypergradient(base.of(problem), rule=rule)
    calls: list[int] = []
    opt.base.register_step_post_hook(lambda *_: calls.append(1))
    problem.train(opt, 4)
    assert len(calls) == 4
    here = flat(problem.parameters())
    opt.eval()
    assert not torch.equal(here, flat(problem.parameters()))
    with pytest.raises(RuntimeError, match=r"opt\.train\(\)"):
        opt.step()
    opt.train()
    assert torch.equal(here, flat(problem.parameters()))
    before = sum(problem.loss(t).item() for t in range(25))
    problem.train(opt, 60, start=4)
    up = opt.param_groups[0].get("maximize", False)
    assert (sum(problem.loss(t).item() for t in range(25)) > before) == up
    assert opt.skipped == 0


class Spending(torch.optim.SGD):
    """One that leaves nothing of its gradients."""

    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.zero_()


def test_search_for_a_first_step_reads_the_gradients_only() -> None:
    problem, other = Problem(), Problem()
    problem.train(Hypergradient(Spending(problem.parameters(), lr=0.01)), 1)
    other.train(Hypergradient(torch.optim.SGD(other.parameters(), lr=0.01)), 1)
    assert torch.equal(flat(problem.parameters()), flat(other.parameters()))


@pytest.mark.parametrize("base", FEW)
def test_tensors_that_return_to_their_average_do_not_advance_the_base(base: Base) -> None:
    problem = Problem()
    opt = Hypergradient(base.of(problem), rule=TuningFree(), scope="tensor")
    params = opt.param_groups[0]["params"]
    returned = stayed = 0
    for t in range(60):
        opt.zero_grad()
        problem.loss(t).backward()
        if t % 9 == 8:  # a sudden gradient back to the average: this tensor returns
            p = params[t % len(params)]
            trace = opt.state[p]["trace"]
            sign = -1.0 if opt.param_groups[0].get("maximize") else 1.0
            p.grad = -sign * trace / trace.norm() * 1e6
        before = [copy.deepcopy({k: v for k, v in opt.state.get(p, {}).items() if k not in ("lr", "trace", "applied")}) for p in params]
        grads = [p.grad for p in params]
        opt.step()
        assert all(g is p.grad for g, p in zip(grads, params, strict=True))
        for p, old in zip(params, before, strict=True):
            if not opt.state[p]["applied"]:
                returned += 1
                new = {k: v for k, v in opt.state[p].items() if k in old and not k.startswith("memory")}
                torch.testing.assert_close(new, {k: old[k] for k in new}, rtol=0, atol=0)
            else:
                stayed += 1
    assert returned > 3
    assert stayed > 100


class Clashing(torch.optim.Optimizer):
    """Gradient descent that keeps ``key`` in its state, from the start or from its first step on."""

    def __init__(self, params: Any, key: str, at_once: bool, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        self.key = key
        if at_once:
            self.keep()

    def keep(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p][self.key] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.keep()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])


class Failing(Clashing):
    """One whose step raises when it is half done, from step ``key`` on."""

    def keep(self) -> None:
        self.count = getattr(self, "count", 0) + 1

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()
        if self.count > int(self.key):
            raise RuntimeError("no luck")


def on(problem: Problem, opt: torch.optim.Optimizer) -> tuple[list, list, dict]:
    """All that a refusal must leave as it was."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]
    return copy.deepcopy(([p.detach() for p in problem.parameters()], groups, opt.state_dict()["state"]))


def with_option(name: str) -> Callable[[Any], torch.optim.Optimizer]:
    def make(params: Any) -> torch.optim.Optimizer:
        base = torch.optim.SGD(params)
        base.param_groups[0][name] = 3
        return base

    return make


REFUSED = [
    *(
        pytest.param(with_option(name), ValueError, f"SGD cannot be wrapped: its options '{name}' have the names of", id=f"option {name}")
        for name in ("memory", "adapted", "last", "lr_bounds", "lr_left", "lr_ratio", "step_adapts")
    ),
    pytest.param(torch.optim.ASGD, ValueError, "ASGD cannot be wrapped, since its step is not linear in lr: .*decay", id="ASGD"),
    pytest.param(torch.optim.Rprop, ValueError, "Rprop cannot be wrapped, since .*step sizes that it adapts itself", id="Rprop"),
    pytest.param(torch.optim.Adafactor, ValueError, "Adafactor cannot .*a function of the time", id="Adafactor"),
    pytest.param(torch.optim.LBFGS, ValueError, "LBFGS cannot .*several times a step", id="LBFGS"),
    pytest.param(SGDHD, ValueError, "SGDHD adapts its learning rate already", id="SGDHD"),
    pytest.param(lambda ps: Hypergradient(torch.optim.SGD(ps)), ValueError, "Hypergradient adapts its learning rate already", id="wrapped"),
    pytest.param(lambda ps: Hypergradient(torch.optim.SGD(ps)).base, ValueError, "SGD adapts its learning rate already", id="twice"),
    *(
        pytest.param(partial(Clashing, key=key, at_once=True), ValueError, f"Clashing cannot be wrapped, since it keeps '{key}'", id=key)
        for key in ("lr", "applied", "direction", "trace", "iterate", "hypergrad_lr")
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_refused_base_is_left_alone(make, error: type, message: str) -> None:
    problem = Problem()
    base = make(problem.parameters())
    before = on(problem, base)
    with pytest.raises(error, match=message):
        Hypergradient(base, hypergrad_lr=1e-3)
    torch.testing.assert_close(on(problem, base), before, rtol=0, atol=0)


@pytest.mark.parametrize("base", [None, [nn.Parameter(torch.ones(2))], torch.optim.SGD, "SGD"], ids=["None", "params", "class", "name"])
def test_what_is_no_optimizer_is_refused(base: Any) -> None:
    with pytest.raises(TypeError, match=r"base must be an optimizer such as torch\.optim\.Adam\(params\), got "):
        Hypergradient(base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hypergrad_lr": -1.0}, "hypergrad_lr must be a finite number >= 0"),
        ({"rule": Additive(1.0), "hypergrad_lr": 1.0}, "hypergrad_lr or rule, not both"),
        ({"scope": "layer"}, "scope must be"),
        ({"scope": "element"}, "takes Additive, Multiplicative or a learner .*with a constant beta"),
        ({"hypergrad_lr": 1.0, "horizon": 0}, "horizon must be"),
        ({"hypergrad_lr": 1.0, "lr_bounds": (0.5, 1)}, "lr must lie inside lr_bounds"),
    ],
    ids=str,
)
def test_refused_options_leave_the_base_alone(options: dict, message: str) -> None:
    problem = Problem()
    base = torch.optim.Adam(problem.groups(), lr=0.01)
    problem.train(base, 2)
    before = on(problem, base)
    params = [group["params"] for group in base.param_groups]
    with pytest.raises(ValueError, match=message):
        Hypergradient(base, **options)
    torch.testing.assert_close(on(problem, base), before, rtol=0, atol=0)
    assert all(group["params"] is ps for group, ps in zip(base.param_groups, params, strict=True))
    problem.train(Hypergradient(base, hypergrad_lr=1e-3), 1)


@pytest.mark.parametrize(
    ("key", "scope"), turns(["lr", "applied", "direction", "trace", "iterate", "hypergrad_lr"], ["group", "tensor", "element"])
)
def test_state_that_clashes_in_the_first_step_is_refused(key: str, scope: Any) -> None:
    problem = Problem()
    opt = Hypergradient(Clashing(problem.parameters(), key, at_once=False), hypergrad_lr=1e-3, scope=scope)
    before = on(problem, opt)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"Clashing cannot be wrapped, since it keeps '{key}' in its state"):
            problem.train(opt, 1)
        torch.testing.assert_close(on(problem, opt), before, rtol=0, atol=0)


@pytest.mark.parametrize(("scope", "first", "horizon"), pairs(SCOPES, [0, 3], [1, 4]))
def test_base_whose_step_raises(scope: Any, first: int, horizon: int) -> None:
    """Parameters and learning rates stand where they stood, and the run can go on."""
    problem = Problem()
    base = Failing(problem.parameters(), str(first), at_once=False)
    opt = Hypergradient(base, hypergrad_lr=1e-2, scope=scope, horizon=horizon)
    problem.train(opt, first)
    before = on(problem, opt)
    elements = [state["lr"].clone() for state in opt.state.values() if scope == "element"]
    with pytest.raises(RuntimeError, match="no luck"):
        problem.train(opt, 1, start=first)
    after = on(problem, opt)
    torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)
    assert [state["lr"].tolist() for state in opt.state.values() if scope == "element"] == [x.tolist() for x in elements]
    base.key = "100"
    problem.train(opt, 1, start=first)
    if horizon == 1:  # the last direction is gone
        assert set(opt.hypergradients) == {0.0}
    problem.train(opt, 3, start=first + 1)
    assert opt.skipped == 0
    assert all(map(math.isfinite, opt.hypergradients))


def test_sparse_gradients_are_refused_before_anything_moves() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    opt = Hypergradient(torch.optim.SGD(embedding.parameters(), lr=0.1), hypergrad_lr=1e-3)
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(TypeError, match=r"hypergradients need dense gradients, got torch.sparse_coo .*sparse=False"):
        opt.step()
    assert torch.equal(embedding.weight, before)
    assert not opt.state


@pytest.mark.parametrize("scope", ["group", "tensor", "element"])
def test_adapt_on_another_loss(scope: Any) -> None:
    one, other = Problem(), Problem()
    opt = Hypergradient(torch.optim.Adam(one.parameters(), lr=1e-3), rule=Multiplicative(0.05), scope=scope)
    twin = AdamHD(other.parameters(), lr=1e-3, rule=Multiplicative(0.05), scope=scope)
    for t in range(10):
        one.train(opt, 1, start=t)
        other.train(twin, 1, start=t)
        opt.adapt(one.loss(t + 7))
        twin.adapt(other.loss(t + 7))
    torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-12)
    assert lrs(opt) == pytest.approx(lrs(twin), rel=1e-9) != pytest.approx([1e-3], rel=1e-3)
