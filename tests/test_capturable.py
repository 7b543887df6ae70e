"""capturable=True: numbers stay on the device, nothing waits for them, and the run is that of the host."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cases import Problem, flat, resumed
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
    for t in range(25):
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


@pytest.mark.parametrize(("ours", "options"), OPTIMIZERS)
@pytest.mark.parametrize("run", [RUNS[0], RUNS[2], RUNS[6]])
@pytest.mark.parametrize("first", [0, 3])
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
    ("run", "scope"), [(run.values[0], "group") for run in RUNS] + [(RUNS[3].values[0], scope) for scope in ("global", "tensor")]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "element"}, 'capturable=True keeps learning rates of groups and tensors on the device, got scope="element"'),
        ({"adapt": {"betas": (Additive(1e-3), None)}}, r"capturable=True keeps learning rates .* got adapt=\['beta1'\]"),
    ],
    ids=["element", "adapt"],
)
def test_what_is_refused(options: dict, message: str) -> None:
    rule = {"rule": Additive(1e-5)} if "adapt" not in options else {}
    with pytest.raises(ValueError, match=message):
        AdamHD(Problem().parameters(), lr=1e-3, capturable=True, **rule, **options)


@pytest.mark.parametrize("run", [RUNS[0], RUNS[6]])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
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
    assert opt.run.fused
    torch.testing.assert_close(flat(other.parameters()), flat(one.parameters()), rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("run", RUNS)
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
