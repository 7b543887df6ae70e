"""Defects that torch's own tests have found: incomplete or foreign checkpoints, hooks, gradients with a graph, wrong options."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from cases import Problem
from hypergradient import SGDHD, AdamHD, AdamWHD, Additive, Hypergradient, Multiplicative, TuningFree

OURS = [SGDHD, AdamHD, AdamWHD]


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("missing", ["maximize", "lr_bounds", "hypergrad_lr", "step_adapts", "capturable"])
def test_a_checkpoint_without_an_option_takes_its_default(ours: Any, missing: str) -> None:
    one, other = Problem(), Problem()
    opt, twin = (ours(problem.groups(), lr=0.01, hypergrad_lr=1e-4) for problem in (one, other))
    one.train(opt, 3)
    saved = copy.deepcopy(opt.state_dict())
    for group in saved["param_groups"]:
        del group[missing]
    other.model.load_state_dict(one.model.state_dict())
    twin.load_state_dict(saved)
    assert one.train(opt, 3, start=3) == other.train(twin, 3, start=3)


@pytest.mark.parametrize("base", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("ours", OURS)
def test_a_checkpoint_of_another_class_steps(ours: Any, base: Any) -> None:
    one, other = Problem(), Problem()
    opt, twin = base(one.groups(), lr=0.01), ours(other.groups(), lr=0.5, hypergrad_lr=1e-4)
    one.train(opt, 3)
    twin.load_state_dict(copy.deepcopy(opt.state_dict()))
    other.train(twin, 3)
    assert [group["lr"] for group in twin.param_groups] == pytest.approx([0.01] * 2, rel=0.2)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("saved", [{}, {"state": {}}, [], None], ids=str)
def test_what_is_no_checkpoint_is_refused(ours: Any, saved: Any) -> None:
    with pytest.raises(ValueError, match=r"a checkpoint must be a dict from state_dict\(\), with 'state' and 'param_groups', got"):
        ours(Problem().parameters(), lr=0.1).load_state_dict(saved)


@pytest.mark.parametrize(("ours", "name"), [(SGDHD, "momentum_buffer"), (AdamHD, "exp_avg"), (AdamWHD, "trace")])
def test_state_of_other_shapes_is_refused(ours: Any, name: str) -> None:
    w, v = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    opt = ours([w, v], **({"momentum": 0.9} if ours is SGDHD else {}))
    w.grad, v.grad = torch.ones(2), torch.ones(3)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][1][name] = torch.ones(4)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=rf"the checkpoint's '{name}' has shape \(4,\), but its parameter has shape \(3,\)"):
        opt.load_state_dict(saved)
    torch.testing.assert_close(opt.state_dict(), before, rtol=0, atol=0)


def test_global_hooks_are_called_once_a_step() -> None:
    calls: list[tuple[str, float]] = []
    handles = [
        register(lambda opt, *_, kind=kind: calls.append((f"{kind} {type(opt).__name__}", opt.param_groups[0]["lr"])))
        for kind, register in (("pre", register_optimizer_step_pre_hook), ("post", register_optimizer_step_post_hook))
    ]
    try:
        problem = Problem()
        opt = Hypergradient(torch.optim.SGD(problem.parameters(), lr=0.1), rule=TuningFree())
        for t in range(3):
            problem.train(opt, 1, start=t)
            assert [name for name, _ in calls] == ["pre Hypergradient", "post Hypergradient"]
            assert calls[1][1] == opt.param_groups[0]["lr"] != 1.0
            calls.clear()
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("make", [lambda w: Hypergradient(torch.optim.SGD([w], lr=0.1)), lambda w: SGDHD([w], 0.1, hypergrad_lr=1e-3)])
def test_gradients_with_a_graph_are_not_in_the_way_of_copies(make: Any) -> None:
    w = torch.ones(20_000, requires_grad=True)
    opt = make(w)
    for _ in range(4):
        opt.zero_grad()
        (w**2).sum().backward(create_graph=True)
        opt.step()
    w.grad = None
    copy.deepcopy(opt).step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fused": "x"}, "fused must be True, False or None, got 'x'"),
        ({"fused": 1}, "fused must be True, False or None, got 1"),
        ({"capturable": "yes"}, "capturable must be True, False or None, got 'yes'"),
        ({"maximize": "yes"}, "maximize must be True or False, got 'yes'"),
        ({"maximize": None}, "maximize must be True or False, got None"),
        ({"lr": True}, "lr must be a finite number >= 0, got True"),
        ({"hypergrad_lr": True}, "hypergrad_lr must be a finite number >= 0, got True"),
        ({"weight_decay": True}, "weight_decay must be a finite number >= 0, got True"),
    ],
    ids=str,
)
@pytest.mark.parametrize("ours", OURS)
def test_options_of_a_wrong_kind_are_refused(ours: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours([nn.Parameter(torch.ones(2))], **options)


def test_a_rule_takes_no_switch() -> None:
    with pytest.raises(ValueError, match="beta must be a finite number >= 0, got True"):
        Additive(True)


@pytest.mark.parametrize("option", [{"fused": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("ours", OURS)
def test_what_holds_for_all_groups_is_refused_in_one(ours: Any, option: dict) -> None:
    w, v = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=f"{next(iter(option))} applies to the whole optimizer"):
        ours([{"params": [w], **option}])
    with pytest.raises(ValueError, match=f"{next(iter(option))} applies to the whole optimizer"):
        ours([w]).add_param_group({"params": [v], **option})


@pytest.mark.parametrize("options", [{}, {"rule": Multiplicative(0.02), "scope": "element"}], ids=["tuning-free", "element"])
@pytest.mark.parametrize("capturable", [False, True])
def test_complex_beside_real_without_a_gradient(options: dict, capturable: bool) -> None:
    z, w = nn.Parameter(torch.ones(3, dtype=torch.complex64)), nn.Parameter(torch.ones(2))
    opt = SGDHD([z, w], capturable=capturable, **options)
    for t in range(4):
        z.grad, w.grad = torch.ones_like(z) if t != 1 else None, torch.ones_like(w)
        opt.step()
    assert bool((z.imag == 0).all() and (z.real < 1).all())


def test_decay_is_not_rounded_to_the_default_dtype() -> None:
    found = []
    for dtype in (torch.float32, torch.float16):
        w = nn.Parameter(torch.ones(3, dtype=torch.float32))
        opt = AdamWHD([w], 1e-3, weight_decay=0.1, hypergrad_lr=1e-5, capturable=True)
        try:
            torch.set_default_dtype(dtype)
            for _ in range(3):
                w.grad = torch.full_like(w, 0.5)
                opt.step()
        finally:
            torch.set_default_dtype(torch.float32)
        found.append(float(opt.hypergradients[0]))
    assert found[0] == found[1] != 0


@pytest.mark.parametrize("ours", OURS)
def test_a_copy_has_no_option_more(ours: Any) -> None:
    opt = ours(Problem().parameters(), lr=0.1)
    options = opt.param_groups[0].keys()
    assert copy.deepcopy(opt).param_groups[0].keys() == options
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups[0].keys() == options


@pytest.mark.parametrize("ours", [*OURS, lambda params: Hypergradient(torch.optim.SGD(params, lr=0.1))])
def test_what_others_keep_in_the_state_is_left_alone(ours: Any) -> None:
    problem = Problem()
    opt = ours(problem.parameters())
    opt.state["note"] = 1
    problem.train(opt, 2)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    with opt.averaged():  # which is eval() and train()
        assert opt.state["note"] == 1
    problem.train(opt, 1)
    assert opt.state["note"] == 1


@pytest.mark.parametrize("ours", OURS)
def test_hooks_have_the_last_word_on_what_is_loaded(ours: Any) -> None:
    problem = Problem()
    opt, twin = ours(problem.parameters(), lr=0.1, scope="tensor"), ours(problem.parameters(), lr=0.5, scope="tensor")
    problem.train(opt, 3)
    found = []
    twin.register_load_state_dict_pre_hook(lambda _, outer: outer["inner"])
    twin.register_load_state_dict_post_hook(lambda own: found.append([own.state[p]["lr"] for p in problem.parameters()]))
    twin.load_state_dict({"inner": copy.deepcopy(opt.state_dict())})
    assert found == [[opt.state[p]["lr"] for p in problem.parameters()]]
    with pytest.raises(KeyError, match="inner"):
        twin.load_state_dict({})
    twin.load_state_dict({"inner": opt.state_dict()})
    assert len(found) == 2


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("shapes", [[(0, 3)], [(0, 3), (2,)]], ids=str)
def test_elements_of_none(options: dict, shapes: list) -> None:
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    opt = AdamWHD(params, 0.1, rule=Multiplicative(0.02), scope="element", **options)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    assert 0 < float(opt.param_groups[0]["lr"]) < 1
