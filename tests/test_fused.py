"""fused=True: one compiled kernel equals the work in pieces; it is not recompiled, and without a compiler the pieces run."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from cases import Problem, compiles, flat
from hypergradient import SGDHD, AdamHD, AdamWHD, Adapted, Additive, Multiplicative, TuningFree

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, in its compiler


#: Layers whose weights are kernels of their own, and smaller ones that make up one together.
SIZES = (160, 128, 128, 100, 100, 3)


NESTEROV = {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
ADAM = {"lr": 1e-3, "weight_decay": 0.01}
BOTH = (Multiplicative(0.01), Multiplicative(0.01))
TOWER = Additive(Adapted(2e-2, Multiplicative(0.05)))
ROWS = [
    pytest.param(ours, options, dtype, id=f"{ours.__name__}-{'-'.join(options)}-{dtype}")
    for ours, options, dtype in [
        (SGDHD, {"lr": 0.02, "rule": TOWER}, torch.float32),
        (SGDHD, {**NESTEROV, "hypergrad_lr": 1e-3, "maximize": True}, torch.float64),
        (SGDHD, {**NESTEROV, "adapt": {"momentum": Multiplicative(0.01), "weight_decay": Additive(0.1)}, "horizon": 5}, torch.float32),
        (SGDHD, {"lr": 0.02, "momentum": 0.9, "dampening": 0.1, "rule": Multiplicative(0.02), "scope": "tensor"}, torch.float64),
        (AdamHD, {**ADAM, "rule": TuningFree()}, torch.float32),
        (AdamHD, {**ADAM, "adapt": {"lr": Additive(1e-5), "betas": BOTH, "eps": BOTH[0], "weight_decay": BOTH[0]}}, torch.float64),
        (AdamHD, {"lr": 1e-3, "hypergrad_lr": 1e-5, "scope": "element"}, torch.float32),
        (AdamWHD, {**ADAM, "adapt": {"lr": Additive(1e-5), "betas": BOTH, "weight_decay": BOTH[0]}, "scope": "global"}, torch.float32),
    ]
]


@pytest.mark.filterwarnings("ignore:weight_decay is adapted on the training loss")
@pytest.mark.parametrize(("ours", "options", "dtype"), ROWS)
@compiles
def test_equals_the_eager_path(ours: Any, options: dict, dtype: torch.dtype) -> None:
    one, other = Problem(dtype, sizes=SIZES), Problem(dtype, sizes=SIZES)
    eager, mine = ours(one.groups(), **options), ours(other.groups(), fused=True, **options)
    one.train(eager, 20)
    other.train(mine, 20)
    assert mine.setup.run.fused, "it fell back"
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(flat(other.parameters()), flat(one.parameters()), rtol=0, atol=tolerance)
    for group, theirs in zip(mine.param_groups, eager.param_groups, strict=True):
        for name in ("lr", "momentum", "betas", "eps", "weight_decay", "hypergrad_lr"):
            if name in theirs:
                assert group[name] == pytest.approx(theirs[name], rel=1e-9 if dtype == torch.float64 else 1e-4), name


def step(opt: Any, *params: nn.Parameter) -> None:
    opt.zero_grad()
    sum((p.abs() ** 2).sum() for p in params).backward()
    opt.step()


@compiles
def test_is_compiled_once_for_all_sizes_and_numbers() -> None:
    """Growing tensors, another layout, a scheduler, a tensor for a learning rate: no kernel more, and nothing compiled anew."""
    params = [nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(1))) for shape in [(200, 100), (5,)]]
    opt = AdamHD(params, lr=1e-3, hypergrad_lr=1e-5, fused=True)
    for _ in range(3):
        step(opt, *params)
    kernels, before = len(opt.setup.run.kernels.made), counters["stats"]["unique_graphs"]
    image = nn.Parameter(torch.randn(20, 30, 40, 5).to(memory_format=torch.channels_last))
    opt.add_param_group({"params": [nn.Parameter(torch.randn(400, 300)), image], "lr": torch.tensor(0.01)})
    params += opt.param_groups[1]["params"]
    for t in range(4):
        opt.param_groups[0].update(lr=1e-3 * (t + 1), eps=10.0**-t)
        step(opt, *params)
    assert (len(opt.setup.run.kernels.made), counters["stats"]["unique_graphs"]) == (kernels, before)
    assert opt.setup.run.fused


def test_odd_tensors_take_the_eager_path_or_their_own_layout() -> None:
    """Single numbers, gradients of another layout, complex numbers, bfloat16."""

    def run(fused: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        params = [nn.Parameter(x) for x in (torch.randn(()), torch.randn(200, 100), torch.randn(20_000, dtype=torch.complex64))]
        params.append(nn.Parameter(torch.randn(200, 100).bfloat16()))
        opt = SGDHD([{"params": params[:3]}, {"params": params[3:]}], lr=0.1, momentum=0.9, hypergrad_lr=1e-9, fused=fused)
        for _ in range(5):
            for p in params:
                p.grad = p.detach().clone()
            params[1].grad = params[1].detach().t().contiguous().t()
            opt.step()
        assert opt.setup.run.fused == fused
        return [p.detach() for p in params]

    for mine, theirs in zip(run(True), run(False), strict=True):
        # A kernel rounds to bfloat16 once, pieces after each operation.
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-2 if mine.dtype == torch.bfloat16 else 1e-6)


def test_without_a_compiler_the_eager_path_runs() -> None:
    one, other = Problem(sizes=SIZES), Problem(sizes=SIZES)
    opt = AdamHD(one.parameters(), lr=1e-3, hypergrad_lr=1e-5, fused=True)
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    utils = torch._inductor.utils
    fresh = utils.fresh_cache() if hasattr(utils, "fresh_cache") else utils.fresh_inductor_cache()  # its name in torch 2.6
    with missing, fresh, pytest.warns(UserWarning, match="needs a compiler .*continuing without"):
        losses = one.train(opt, 5)
    assert not opt.setup.run.fused
    assert losses == other.train(AdamHD(other.parameters(), lr=1e-3, hypergrad_lr=1e-5), 5)
    assert torch.equal(flat(one.parameters()), flat(other.parameters()))


def test_copies_and_pickles_go_on_fused() -> None:
    problem = Problem(sizes=SIZES)
    opt = SGDHD(problem.parameters(), lr=0.02, hypergrad_lr=1e-3, fused=True)
    problem.train(opt, 3)
    for twin, copied in (copy.deepcopy((problem, opt)), pickle.loads(pickle.dumps((problem, opt)))):
        assert copied.setup.run.fused
        twin.train(copied, 3, start=3)
    problem.train(opt, 3, start=3)
    torch.testing.assert_close(flat(twin.parameters()), flat(problem.parameters()), rtol=0, atol=0)


def test_a_change_in_place_is_seen_by_autograd() -> None:
    w = nn.Parameter(torch.ones(20_000))
    opt = SGDHD([w], lr=0.1, hypergrad_lr=1e-3, fused=True)
    step(opt, w)
    loss = (w**2).sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
