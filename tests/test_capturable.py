"""capturable=True: scalars stay on the device, no step waits for them, and the run equals that of the host."""

import copy
import io
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cases import Problem, compiles, flat, pairs, resumed, turns
from hypergradient import SGDHD, AdamHD, AdamWHD, Adapted, Additive, Decay, Multiplicative, Transition, TuningFree


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that brings a value, or a size that depends on one, to the host."""

    REFUSED = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_to_cpu")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        if name in self.REFUSED:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


OPTIMIZERS = [
    pytest.param(SGDHD, {}, id="sgd"),
    pytest.param(SGDHD, {"momentum": 0.9, "weight_decay": 0.01}, id="momentum"),
    pytest.param(SGDHD, {"momentum": 0.9, "nesterov": True}, id="nesterov"),
    pytest.param(AdamHD, {"weight_decay": 0.01, "maximize": True}, id="adam"),
    pytest.param(AdamWHD, {"weight_decay": 0.1}, id="adamw"),
]
RUNS = [
    pytest.param({"lr": 1e-3, "rule": Additive(1e-5)}, id="additive"),
    pytest.param({"lr": 1e-3, "rule": Additive(1e-5), "horizon": 5, "lr_bounds": (5e-4, 1.1e-3)}, id="horizon-bounds"),
    pytest.param({"lr": 1e-3, "rule": Multiplicative(0.02)}, id="multiplicative"),
    pytest.param({"lr": 1e-3, "rule": Additive(Adapted(1e-5, Multiplicative(0.1)))}, id="tower"),
    pytest.param({"lr": 1e-3, "rule": Transition(Multiplicative(0.02), alpha_inf=2e-3)}, id="transition"),
    pytest.param({"rule": Decay(TuningFree(), total_steps=60)}, id="decay"),
    pytest.param({"lr": 1e-3}, id="tuning"),
    pytest.param({"lr": 100.0}, id="tuning-too-large"),
]


@pytest.mark.parametrize(
    ("ours", "options", "run", "scope"),
    [
        pytest.param(*row.values, *run.values, scope, id=f"{row.id}-{run.id}-{scope}")
        for scope, rows, runs in [
            ("group", OPTIMIZERS, [RUNS[1], RUNS[3], RUNS[7]]),
            ("group", OPTIMIZERS[3:4], [RUNS[0], RUNS[2], RUNS[4], RUNS[5], RUNS[6]]),
            ("global", OPTIMIZERS[::4], [RUNS[1], RUNS[3], RUNS[7]]),
            ("tensor", OPTIMIZERS[::4], [RUNS[1], RUNS[3], RUNS[7]]),
        ]
        for row in rows
        for run in runs
    ],
)
def test_equals_the_host_and_waits_for_nothing(ours: Any, options: dict, run: dict, scope: str) -> None:
    one, other = Problem(), Problem()
    host, opt = ours(one.groups(), **run, **options, scope=scope), ours(other.groups(), **run, **options, scope=scope, capturable=True)
    for t in range(15):
        one.train(host, 1, start=t)
        opt.zero_grad()
        other.loss(t).backward()
        with NoWaiting():
            opt.step()
    torch.testing.assert_close(flat(other.parameters()), flat(one.parameters()), rtol=1e-9, atol=1e-11)
    assert [float(group["lr"]) for group in opt.param_groups] == pytest.approx([group["lr"] for group in host.param_groups], rel=1e-8)
    assert [float(h) for h in opt.hypergradients] == pytest.approx(host.hypergradients, rel=1e-6, abs=1e-12)
    assert all(group["lr"].dtype == torch.float64 for group in opt.param_groups)
    mine, theirs = opt.summary(), host.summary()
    assert mine == [pytest.approx(row, rel=1e-6, abs=1e-9) for row in theirs]
    one.train(host, 1)
    assert opt.skipped == host.skipped


@pytest.mark.parametrize(("ours", "options", "run", "first"), pairs(OPTIMIZERS, [RUNS[0], RUNS[2], RUNS[6]], [0, 3]))
@pytest.mark.filterwarnings("ignore:.* skipped a step")
def test_step_without_finite_gradient_is_undone_on_the_device(ours: Any, options: dict, run: dict, first: int) -> None:
    one, other = Problem(), Problem()
    host, opt = ours(one.groups(), **run, **options), ours(other.groups(), **run, **options, capturable=True)
    for problem, optimizer in ((one, host), (other, opt)):
        problem.train(optimizer, first)
        optimizer.zero_grad()
        problem.loss(first).backward()
        problem.parameters()[-1].grad[1] = math.nan
        optimizer.step()
        problem.train(optimizer, 6, start=first)
    torch.testing.assert_close(flat(other.parameters()), flat(one.parameters()), rtol=1e-9, atol=1e-11)
    assert [float(group["lr"]) for group in opt.param_groups] == pytest.approx([group["lr"] for group in host.param_groups], rel=1e-8)
    assert opt.skipped == host.skipped == 1


@pytest.mark.parametrize(
    ("run", "scope", "dtype"),
    turns(turns(RUNS, ["group"]) + pairs(RUNS[3:4], ["global", "tensor"]), [torch.float64, torch.bfloat16]),
)
def test_resumed_equals_never_stopped(run: dict, scope: str, dtype: torch.dtype) -> None:
    def start() -> tuple[Problem, AdamWHD]:
        problem = Problem(dtype)
        return problem, AdamWHD(problem.groups(), **run, weight_decay=0.1, scope=scope, capturable=True)

    _, opt, _, opt_second = resumed(start)
    assert [float(group["lr"]) for group in opt_second.param_groups] == [float(group["lr"]) for group in opt.param_groups]


@pytest.mark.parametrize("scope", ["group", "global", "tensor"])
@pytest.mark.parametrize(("of", "to"), [(False, True), (True, False)], ids=["to the device", "to the host"])
def test_checkpoints_go_between_host_and_device(scope: str, of: bool, to: bool) -> None:
    one, other = Problem(), Problem()
    opt = AdamHD(one.groups(), lr=1e-3, hypergrad_lr=1e-5, scope=scope, capturable=of)
    twin = AdamHD(other.groups(), lr=1.0, hypergrad_lr=1.0, scope=scope, capturable=to)
    one.train(opt, 5)
    other.model.load_state_dict(one.model.state_dict())
    twin.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert one.train(opt, 5, start=5) == pytest.approx(other.train(twin, 5, start=5), rel=1e-12)
    assert [float(group["lr"]) for group in opt.param_groups] == pytest.approx(
        [float(group["lr"]) for group in twin.param_groups], rel=1e-9
    )
    assert all(isinstance(group["lr"], torch.Tensor) for group in twin.param_groups)  # as torch.optim does
    assert all(isinstance(state["step"], torch.Tensor) == to for state in twin.state.values())


def test_a_scheduler_writes_the_tensor() -> None:
    one, other = Problem(), Problem()
    host = AdamHD(one.groups(), lr=1e-3, hypergrad_lr=1e-5)
    opt = AdamHD(other.groups(), lr=1e-3, hypergrad_lr=1e-5, capturable=True)
    for problem, optimizer in ((one, host), (other, opt)):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
        place = [group["lr"] for group in optimizer.param_groups]
        for t in range(10):
            problem.train(optimizer, 1, start=t)
            scheduler.step()
    assert all(group["lr"] is lr for group, lr in zip(opt.param_groups, place, strict=True))
    torch.testing.assert_close(flat(other.parameters()), flat(one.parameters()), rtol=0, atol=1e-12)


SMALL = (Additive(0.05), Multiplicative(0.05))
TOWER = Additive(Adapted(0.05, Multiplicative(0.1)))
ADAPTED = [
    pytest.param(SGDHD, {"momentum": 0.9}, {"adapt": {"lr": Multiplicative(0.02), "momentum": SMALL[0]}}, id="momentum"),
    pytest.param(
        SGDHD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"adapt": {"momentum": TOWER, "weight_decay": SMALL[1]}},
        id="nesterov",
    ),
    pytest.param(
        AdamHD, {"weight_decay": 0.1, "eps": 1e-3}, {"adapt": {"betas": SMALL, "eps": SMALL[0], "weight_decay": TOWER}}, id="adam"
    ),
    pytest.param(AdamWHD, {"weight_decay": 0.1}, {"adapt": {"lr": Additive(1e-6), "betas": SMALL, "weight_decay": SMALL[1]}}, id="adamw"),
    pytest.param(AdamWHD, {"weight_decay": 0.1}, {"adapt": {"betas": SMALL}, "scope": "tensor"}, id="adamw-tensor"),
    pytest.param(SGDHD, {"momentum": 0.9}, {"rule": Multiplicative(0.05), "scope": "element"}, id="element"),
    pytest.param(AdamHD, {}, {"rule": Additive(1e-7), "scope": "element", "horizon": 4, "lr_bounds": (5e-4, 2e-3)}, id="element-horizon"),
    pytest.param(AdamWHD, {"weight_decay": 0.1}, {"adapt": {"lr": Additive(1e-7), "betas": SMALL}, "scope": "element"}, id="element-adapt"),
]
OPTIONS = ("lr", "momentum", "betas", "eps", "weight_decay")


def hyperparameters(opt: Any) -> list[float]:
    """All of them, as floats."""
    values = [group[name] for group in opt.param_groups for name in OPTIONS if name in group]
    return [float(x) for value in values for x in (value if isinstance(value, tuple) else [value])]


@pytest.mark.parametrize(
    ("ours", "options", "run", "held_out", "bad"),
    pairs(ADAPTED, [pytest.param(False, id="training"), pytest.param(True, id="another loss")], [None, 0, 5]),
)
@pytest.mark.filterwarnings("ignore:weight_decay is adapted", "ignore:.* skipped a step")
def test_everything_adapts_on_the_device(ours: Any, options: dict, run: dict, held_out: bool, bad: int | None) -> None:
    """As on the host, without a wait, and undone where a gradient is not finite."""
    one, other = Problem(), Problem()
    host, opt = (ours(problem.groups(), **{"lr": 1e-3, **options}, **run, capturable=x) for problem, x in ((one, False), (other, True)))
    for t in range(12):
        for problem, optimizer in ((one, host), (other, opt)):
            optimizer.zero_grad()
            problem.loss(t).backward()
            if t == bad:
                problem.parameters()[-1].grad[1] = math.nan
            grads = torch.autograd.grad(problem.loss(t + 7), problem.parameters())
            with NoWaiting() if optimizer is opt else nullcontext():
                if held_out:
                    optimizer.adapt(grads)
                optimizer.step()
    torch.testing.assert_close(flat(other.parameters()), flat(one.parameters()), rtol=1e-9, atol=1e-11)
    assert hyperparameters(opt) == pytest.approx(hyperparameters(host), rel=1e-8)
    assert [float(h) for h in opt.hypergradients] == pytest.approx(host.hypergradients, rel=1e-6, abs=1e-12)
    for mine, theirs in zip(opt.other_hypergradients, host.other_hypergradients, strict=True):
        assert {name: float(h) for name, h in mine.items()} == pytest.approx(theirs, rel=1e-6, abs=1e-12)
    assert opt.skipped == host.skipped
    assert hyperparameters(host) != hyperparameters(ours(Problem().groups(), **{"lr": 1e-3, **options}, **run))


@pytest.mark.parametrize(("ours", "options", "run"), ADAPTED)
@pytest.mark.parametrize("to", [True, False], ids=["to the device", "to the host"])
@pytest.mark.filterwarnings("ignore:weight_decay is adapted")
def test_what_adapts_on_the_device_goes_on_from_a_checkpoint(ours: Any, options: dict, run: dict, to: bool) -> None:
    def start(capturable: bool) -> tuple[Problem, Any]:
        problem = Problem()
        return problem, ours(problem.groups(), **{"lr": 1e-3, **options}, **run, capturable=capturable)

    (one, opt), (other, twin) = start(True), start(to)
    one.train(opt, 6)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    other.model.load_state_dict(one.model.state_dict())
    twin.load_state_dict(torch.load(file, weights_only=True))
    losses, theirs = one.train(opt, 5, start=6), other.train(twin, 5, start=6)
    assert losses == theirs if to else losses == pytest.approx(theirs, rel=1e-10)
    assert hyperparameters(opt) == (hyperparameters(twin) if to else pytest.approx(hyperparameters(twin), rel=1e-9))


@pytest.mark.parametrize(("ours", "options", "run", "scope"), pairs(OPTIMIZERS, [RUNS[1], RUNS[3], RUNS[6]], ["group", "tensor"]))
@pytest.mark.filterwarnings("ignore:.* skipped a step")
def test_gradients_that_come_and_go(ours: Any, options: dict, run: dict, scope: str) -> None:
    """Tensors leave the others' numbers and come back; one step is not finite while some have no gradient."""
    one, other = Problem(), Problem()
    host, opt = (ours(p.groups(), **run, **options, scope=scope, capturable=x) for p, x in ((one, False), (other, True)))
    for t in range(14):
        for problem, optimizer in ((one, host), (other, opt)):
            optimizer.zero_grad()
            problem.loss(t).backward()
            for i, p in enumerate(problem.parameters()):
                if (t + i) % 4 == 0 or 5 <= t + i // 3 < 8:
                    p.grad = None
            if t == 9:
                problem.parameters()[1].grad[0] = math.inf
            optimizer.step()
    torch.testing.assert_close(flat(other.parameters()), flat(one.parameters()), rtol=1e-9, atol=1e-11)
    assert [float(h) for h in opt.hypergradients] == pytest.approx(host.hypergradients, rel=1e-6, abs=1e-12)
    assert opt.skipped == host.skipped == 1


def test_a_float_written_to_lr_is_taken_up_without_gradients_too() -> None:
    w = torch.nn.Parameter(torch.ones(2))
    opt = AdamHD([w], lr=1e-3, hypergrad_lr=1e-5, capturable=True)
    opt.param_groups[0]["lr"] = 0.5
    opt.step()
    assert (float(opt.param_groups[0]["lr"]), float(opt.skipped)) == (0.5, 0.0)
    assert isinstance(opt.param_groups[0]["lr"], torch.Tensor)


@pytest.mark.parametrize("run", [RUNS[0], RUNS[6]])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@compiles
def test_fused_kernels_take_numbers_from_the_device(run: dict) -> None:
    sizes = (160, 128, 128, 3)
    one, other = Problem(torch.float32, sizes=sizes), Problem(torch.float32, sizes=sizes)
    host, opt = AdamWHD(one.groups(), **run), AdamWHD(other.groups(), **run, fused=True, capturable=True)
    one.train(host, 12)
    other.train(opt, 2)  # which compile
    for t in range(2, 12):
        opt.zero_grad()
        other.loss(t).backward()
        with NoWaiting():
            opt.step()
    assert opt.setup.run.fused
    torch.testing.assert_close(flat(other.parameters()), flat(one.parameters()), rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("run", "fused"), turns(RUNS, [False, True]))
def test_is_captured_in_a_cuda_graph(run: dict, fused: bool) -> None:
    def start() -> tuple[Any, AdamHD]:
        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.randn(200, 100, device="cuda"))
        return w, AdamHD([w], **run, fused=fused, capturable=True)

    (w, opt), (v, twin) = start(), start()
    w.grad, v.grad = torch.zeros_like(w), torch.zeros_like(v)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            w.grad.copy_(w)
            opt.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        w.grad.copy_(w)
        opt.step()
    for _ in range(10):
        graph.replay()
    for t in range(13):
        v.grad.copy_(v)
        if t > 3:
            torch.cuda.set_sync_debug_mode("error")
        twin.step()
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(w, v)
    assert float(opt.param_groups[0]["lr"]) == pytest.approx(float(twin.param_groups[0]["lr"]))
