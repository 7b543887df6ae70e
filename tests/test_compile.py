"""step() inside torch.compile: one operator of the graph, compiled once while the learning rate changes, and equal to eager runs."""

import copy
import functools
import gc
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from hypergradient import SGDHD, AdamHD, AdamWHD, Adapted, Additive, Decay, Hypergradient, Multiplicative, Transition, TuningFree
from hypergradient.compiled_step import OPTIMIZERS

pytestmark = [  # torch's own, while it compiles
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex:UserWarning"),
]

Make = Callable[[Any], torch.optim.Optimizer]


@pytest.fixture(autouse=True)
def compiles_anew() -> Iterator[None]:
    """What one test has compiled is not what another counts."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Pair:
    """Two runs alike, of which one is to be compiled; ``width`` makes a matrix that goes through a step alone."""

    def __init__(self, make: Make, width: int = 7) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(5, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
        self.other = copy.deepcopy(self.model)
        self.opt, self.reference = make(list(self.model.parameters())), make(list(self.other.parameters()))
        self.batches = torch.randn(10, 16, 5)

    def backward(self, x: Tensor) -> None:
        for model in (self.model, self.other):
            model.zero_grad()
            (model(x) ** 2).mean().backward()

    def check(self) -> None:
        """Parameters, learning rates and hypergradients bit for bit."""
        for p, q in zip(self.model.parameters(), self.other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=0)
        assert [group["lr"] for group in self.opt.param_groups] == [group["lr"] for group in self.reference.param_groups]
        assert self.opt.hypergradients == self.reference.hypergradients

    def run(self, step: Callable[[], Any], between: Callable[[torch.optim.Optimizer, int], None] = lambda opt, t: None) -> None:
        for t, x in enumerate(self.batches):
            self.backward(x)
            step()
            self.reference.step()
            self.check()
            for opt in (self.opt, self.reference):
                between(opt, t)


def adam(params: Any) -> torch.optim.Optimizer:
    return AdamHD(params, lr=1e-3, hypergrad_lr=1e-5)


def compiled(f: Callable[..., Any], backend: str = "aot_eager", fullgraph: bool = True) -> tuple[Callable[..., Any], Any]:
    """``f`` compiled, and what counts its graphs."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(f, fullgraph=fullgraph, backend=counter), counter


ROWS = [
    pytest.param(lambda p: SGDHD(p, lr=1e-3, hypergrad_lr=1e-8), id="sgd"),
    pytest.param(lambda p: SGDHD(p, lr=1e-2, hypergrad_lr=1e-3, momentum=0.9, nesterov=True), id="nesterov"),
    pytest.param(adam, id="adam"),
    pytest.param(lambda p: AdamWHD(p, lr=1e-3, rule=Multiplicative(0.02)), id="adamw-multiplicative"),
    pytest.param(lambda p: AdamHD(p, lr=1e-3, rule=Additive(Adapted(1e-5, Multiplicative(0.1)))), id="tower"),
    pytest.param(lambda p: SGDHD(p, lr=1e-2, rule=Transition(Multiplicative(0.02), alpha_inf=2e-2)), id="transition"),
    pytest.param(lambda p: AdamHD(p), id="tuning"),
    pytest.param(lambda p: SGDHD(p, rule=Decay(TuningFree(), total_steps=60)), id="decay"),
    pytest.param(lambda p: AdamHD(p, lr=1e-3, adapt={"betas": (Multiplicative(0.01), None)}), id="adapt"),
    pytest.param(lambda p: AdamHD(p, lr=1e-3, hypergrad_lr=1e-6, scope="element"), id="element"),
    pytest.param(lambda p: AdamHD(p, scope="tensor"), id="tensor"),
    pytest.param(lambda p: AdamHD(p, capturable=True), id="capturable"),
    pytest.param(lambda p: SGDHD(p, lr=torch.tensor(1e-2), hypergrad_lr=1e-3), id="tensor-lr"),
    pytest.param(lambda p: Hypergradient(torch.optim.RMSprop(p, lr=1e-3), hypergrad_lr=1e-6), id="base"),
    pytest.param(lambda p: Hypergradient(torch.optim.NAdam(p)), id="base-tuning"),
]


@pytest.mark.parametrize("make", ROWS)
def test_is_one_graph_and_the_run_without(make: Make) -> None:
    pair = Pair(make)
    step, counter = compiled(lambda: pair.opt.step())
    pair.run(step)
    assert counter.frame_count == 1


@pytest.mark.parametrize("make", [ROWS[0], ROWS[6]])
def test_inductor_too(make: Make) -> None:
    """Its operators run where no change of a tensor is counted; and one matrix here is large enough for its gradient to be kept."""
    pair = Pair(make, width=4000)
    step, counter = compiled(lambda: pair.opt.step(), "inductor")
    pair.run(step)
    assert counter.frame_count == 1


def test_the_bound_method() -> None:
    pair = Pair(adam)
    step, counter = compiled(pair.opt.step)
    pair.run(step)
    assert counter.frame_count == 1


def train(model: torch.nn.Module, opt: torch.optim.Optimizer, x: Tensor) -> Tensor:
    for p in model.parameters():  # torch.compile does not enter opt.zero_grad(), and compiles model.zero_grad() twice
        p.grad = None
    loss = (model(x) ** 2).mean()
    loss.backward()
    opt.step()
    return loss.detach()


def test_a_training_step_leaves_the_graph_where_torch_does() -> None:
    pair = Pair(adam)
    step, counter = compiled(lambda x: train(pair.model, pair.opt, x), fullgraph=False)
    for x in pair.batches:
        step(x)
        train(pair.other, pair.reference, x)
        pair.check()
    assert counter.frame_count == 2  # the loss, and the step


def whole_training_steps() -> None:
    """With backward() in the graph too; under Inductor the matrix is one whose gradient would be kept, if a graph did not write over it."""
    for make, width, backend in [(ROWS[0], 7, "aot_eager"), (ROWS[6], 7, "aot_eager"), (ROWS[0], 4000, "inductor")]:
        pair = Pair(make.values[0], width)
        step, counter = compiled(functools.partial(train, pair.model, pair.opt), backend)
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            for x in pair.batches:
                step(x)
                train(pair.other, pair.reference, x)
                if backend == "aot_eager":
                    pair.check()
                assert pair.opt.hypergradients == pytest.approx(pair.reference.hypergradients, rel=1e-4, abs=1e-9)
        assert counter.frame_count == 1


@pytest.mark.skipif(not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch has no backward() in a graph")
def test_a_whole_training_step_is_one_graph() -> None:
    """In a process of its own: what torch 2.13 compiles after such a graph fails on names of it, step() in it or not."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(whole_training_steps).result()


def test_closure() -> None:
    pair = Pair(adam)

    def loss_of(model: torch.nn.Module, x: Tensor) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            model.zero_grad()
            loss = (model(x) ** 2).mean()
            loss.backward()
            return loss.detach()

        return closure

    step, _ = compiled(lambda x: pair.opt.step(loss_of(pair.model, x)), fullgraph=False)
    for x in pair.batches:
        assert step(x) == pair.reference.step(loss_of(pair.other, x))
        pair.check()


def test_what_the_graph_does_before_and_after() -> None:
    pair = Pair(adam)

    @torch.no_grad()
    def work(model: torch.nn.Module, opt: torch.optim.Optimizer) -> tuple[Tensor, ...]:
        p = model[0].weight
        p.mul_(0.9)
        seen = [p.clone()]
        for _ in range(2):
            opt.step()
            seen.append(p.clone())
            p.add_(1e-3)
        return tuple(seen)

    step, counter = compiled(lambda: work(pair.model, pair.opt))
    for x in pair.batches:
        pair.backward(x)
        for mine, theirs in zip(step(), work(pair.other, pair.reference), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        pair.check()
    assert counter.frame_count == 1


def test_hooks_see_the_step_as_it_is() -> None:
    pair = Pair(adam)
    seen: dict[Any, list[Any]] = {pair.opt: [], pair.reference: []}
    for opt in seen:
        opt.register_step_pre_hook(lambda opt, args, kwargs: seen[opt].append(opt.param_groups[0]["params"][1].grad.clone()))
        opt.register_step_post_hook(lambda opt, args, kwargs: seen[opt].append(torch.tensor(opt.param_groups[0]["lr"])))
        opt.register_step_post_hook(lambda opt, args, kwargs: opt.param_groups[0]["params"][0].detach().clamp_(-0.3, 0.3))
    step, counter = compiled(lambda: pair.opt.step())
    pair.run(step)
    mine, theirs = seen.values()
    assert len(mine) == 20
    assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
    assert counter.frame_count == 1


def test_schedulers() -> None:
    """They wrap step() in a function that torch.compile does not enter."""
    pair = Pair(adam)
    schedulers = {opt: torch.optim.lr_scheduler.StepLR(opt, 3) for opt in (pair.opt, pair.reference)}
    step, counter = compiled(lambda: pair.opt.step(), fullgraph=False)
    with warnings.catch_warnings(action="error"):
        pair.run(step, lambda opt, t: schedulers[opt].step())
    assert counter.frame_count == 1


def test_gradients_that_come_and_go() -> None:
    pair = Pair(adam)
    pair.model[0].weight.requires_grad_(False)
    pair.other[0].weight.requires_grad_(False)
    step, counter = compiled(lambda: pair.opt.step())
    for t, x in enumerate(pair.batches):
        pair.backward(x)
        if t % 3 == 0:
            pair.model[2].bias.grad = pair.other[2].bias.grad = None
        step()
        pair.reference.step()
        pair.check()
    assert counter.frame_count == 2


def test_param_groups_and_checkpoints_between_steps() -> None:
    pair = Pair(lambda params: AdamHD(params[:2], lr=1e-3, hypergrad_lr=1e-5))
    step, counter = compiled(lambda: pair.opt.step())
    saved: dict[Any, Any] = {}

    def between(opt: torch.optim.Optimizer, t: int) -> None:
        if t == 2:
            opt.add_param_group({"params": list((pair.model if opt is pair.opt else pair.other)[2].parameters()), "lr": 1e-2})
        if t == 4:
            saved[opt] = copy.deepcopy(opt.state_dict())
        if t == 6:
            opt.load_state_dict(saved[opt])

    pair.run(step, between)
    assert counter.frame_count == 2


def test_evaluation_between_steps() -> None:
    pair = Pair(lambda params: AdamHD(params))
    step, _ = compiled(lambda: pair.opt.step())
    pair.run(step, lambda opt, t: (opt.eval(), opt.train()))
    pair.opt.eval()
    with pytest.raises(RuntimeError, match=r"opt\.train"):
        step()


def test_two_optimizers_in_one_graph() -> None:
    class Both:
        def __init__(self, params: list[Tensor]) -> None:
            self.all = AdamHD(params[:2]), SGDHD(params[2:], lr=0.01, hypergrad_lr=1e-3)

        param_groups = property(lambda self: [group for opt in self.all for group in opt.param_groups])
        hypergradients = property(lambda self: [h for opt in self.all for h in opt.hypergradients])

        def step(self) -> None:
            for opt in self.all:
                opt.step()

    pair = Pair(Both)
    step, counter = compiled(lambda: pair.opt.step())
    pair.run(step)
    assert counter.frame_count == 1


def test_a_copy_takes_steps_of_its_own() -> None:
    pair = Pair(adam)
    step, _ = compiled(lambda opt: opt.step())
    pair.backward(pair.batches[0])
    step(pair.opt)
    alone = copy.deepcopy(pair.opt)
    lr = pair.opt.param_groups[0]["lr"]
    pair.model, pair.opt, pair.other, pair.reference = *copy.deepcopy((pair.model, pair.opt)), *copy.deepcopy((pair.model, pair.opt))
    pair.run(lambda: step(pair.opt))
    assert alone.param_groups[0]["lr"] == lr != pair.opt.param_groups[0]["lr"]


def test_a_graph_keeps_no_optimizer_alive() -> None:
    step, _ = compiled(lambda opt: opt.step())
    pair = Pair(adam)
    pair.backward(pair.batches[0])
    step(pair.opt)
    number = pair.opt.handle
    assert number in OPTIMIZERS
    del pair
    gc.collect()
    assert number not in OPTIMIZERS


def test_gradients_are_left_as_they_are() -> None:
    pair = Pair(adam)
    step, _ = compiled(lambda: pair.opt.step())
    pair.backward(pair.batches[0])
    before = [p.grad for p in pair.model.parameters()]
    step()
    assert all(p.grad is g for p, g in zip(pair.model.parameters(), before, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_complex_parameters_leave_the_graph(backend: str) -> None:
    p = torch.nn.Parameter(torch.tensor([1 + 2j, -1j]))
    q = copy.deepcopy(p)
    opt, reference = adam([p]), adam([q])
    step, counter = compiled(lambda: opt.step(), backend, fullgraph=False)
    for _ in range(3):
        for x in (p, q):
            x.grad = x.detach().clone()
        step()
        reference.step()
        assert torch.equal(p, q)
    assert counter.frame_count == 0
