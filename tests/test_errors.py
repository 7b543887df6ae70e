"""What the optimizers refuse: the exception, and a message that names the value and what is allowed."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from hypergradient import SGDHD, AdamHD, AdamWHD, Additive, Multiplicative

NAN = math.nan
ALL = [SGDHD, AdamHD, AdamWHD]
ADAMS = [AdamHD, AdamWHD]

NUMBER = "a finite number >= 0, got "
LR = "lr must be " + NUMBER
PAIR = r"lr_bounds must be \(low, high\) with low <= high, None for no bound, got "
BETAS = r"betas must be two numbers in \[0, 1\), got "
NESTEROV = "nesterov=True needs momentum > 0 and dampening = 0, got "

# Options of a param group, in the constructor or in add_param_group.
OPTIONS = [
    (ALL, {"lr": -0.1}, ValueError, LR + r"-0\.1"),
    (ALL, {"lr": NAN}, ValueError, LR + "nan"),
    (ALL, {"lr": math.inf}, ValueError, LR + "inf"),
    (ALL, {"lr": torch.tensor(-0.5)}, ValueError, LR + r"tensor\(-0\.5"),
    (ALL, {"lr": torch.tensor([0.1, 0.2])}, ValueError, r"tensor lr must hold one floating-point number, got shape \(2,\)"),
    (ALL, {"lr": torch.tensor(1)}, ValueError, r"tensor lr must hold one floating-point number, got shape \(\) of torch\.int64"),
    (ALL, {"lr": 0.5, "lr_bounds": (0, 0.1)}, ValueError, r"lr must lie inside lr_bounds=\(0, 0\.1\), got 0\.5"),
    (ALL, {"lr": 0.01, "lr_bounds": (0.1, None)}, ValueError, r"lr must lie inside lr_bounds=\(0\.1, None\), got 0\.01"),
    (ALL, {"lr_bounds": (1.0, 0.0)}, ValueError, PAIR + r"\(1\.0, 0\.0\)"),
    (ALL, {"lr_bounds": (NAN, 1)}, ValueError, PAIR),
    (ALL, {"lr_bounds": 0.1}, ValueError, PAIR + r"0\.1"),
    (ALL, {"lr_bounds": (0.0,)}, ValueError, PAIR),
    (ALL, {"hypergrad_lr": -1e-3}, ValueError, "hypergrad_lr must be " + NUMBER + r"-0\.001"),
    (ALL, {"hypergrad_lr": NAN}, ValueError, "hypergrad_lr must be " + NUMBER + "nan"),
    (ALL, {"hypergrad_lr": math.inf}, ValueError, "hypergrad_lr must be " + NUMBER + "inf"),
    (ALL, {"weight_decay": -1.0}, ValueError, "weight_decay must be " + NUMBER + r"-1\.0"),
    (ALL, {"weight_decay": NAN}, ValueError, "weight_decay must be " + NUMBER + "nan"),
    (ADAMS, {"eps": -1e-8}, ValueError, "eps must be " + NUMBER + "-1e-08"),
    (ADAMS, {"betas": (1.0, 0.999)}, ValueError, BETAS + r"\(1\.0, 0\.999\)"),
    (ADAMS, {"betas": (0.9, -0.1)}, ValueError, BETAS + r"\(0\.9, -0\.1\)"),
    (ADAMS, {"betas": (0.9, NAN)}, ValueError, BETAS),
    (ADAMS, {"betas": (0.9,)}, ValueError, BETAS + r"\(0\.9,\)"),
    (ADAMS, {"betas": 0.9}, ValueError, BETAS + r"0\.9"),
    ([SGDHD], {"momentum": -0.9}, ValueError, "momentum must be " + NUMBER + r"-0\.9"),
    ([SGDHD], {"momentum": NAN}, ValueError, "momentum must be " + NUMBER + "nan"),
    ([SGDHD], {"dampening": math.inf}, ValueError, "dampening must be a finite number, got inf"),
    ([SGDHD], {"nesterov": True}, ValueError, NESTEROV + r"momentum=0\.0"),
    ([SGDHD], {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, NESTEROV + r"momentum=0\.9, dampening=0\.1"),
]

# Of a wrong type: refused by accident, or not at all.
WRONG_TYPES = [
    (ALL, {"lr": "0.1"}, (TypeError, ValueError), "lr must be .*'0.1'"),
    (ALL, {"lr_bounds": ("0", 1)}, (TypeError, ValueError), "lr_bounds must be .*'0'"),
    (ALL, {"weight_decay": None}, (TypeError, ValueError), "weight_decay must be .*None"),
    (ADAMS, {"betas": ("0.9", 0.99)}, (TypeError, ValueError), "betas must be .*'0.9'"),
    (ALL, {"scope": ["group"]}, (TypeError, ValueError), "scope must be .*'group'"),
]

# What holds for the whole optimizer.
WHOLE = [
    ({"scope": "layer"}, ValueError, """scope must be "group", "global", "tensor" or "element", got 'layer'"""),
    ({"scope": None}, ValueError, "scope must be .*got None"),
    ({"horizon": 0.5, "hypergrad_lr": 1e-3}, ValueError, r"horizon must be a finite number >= 1, got 0\.5"),
    ({"horizon": NAN, "hypergrad_lr": 1e-3}, ValueError, "horizon must be a finite number >= 1, got nan"),
    ({"horizon": 1}, ValueError, "horizon must be a finite number >= 2, got 1"),
    ({"rule": 0.01}, TypeError, r"rule must be a Rule such as .*, got 0\.01"),
    ({"rule": Multiplicative}, TypeError, "rule must be a Rule such as .*, got <class"),
    ({"rule": Additive(1e-3), "hypergrad_lr": 1e-3}, ValueError, r"hypergrad_lr or rule, not both: got hypergrad_lr=0\.001"),
    ({"rule": Multiplicative(0.1), "lr": 0}, ValueError, "never leave lr=0.*use Additive"),
    ({"rule": Multiplicative(0.1), "lr": torch.tensor(0.0)}, ValueError, "never leave lr=0"),
    ({"params": []}, ValueError, "empty parameter list"),
    ({"params": [{"params": nn.Parameter(torch.ones(1)), "rule": Additive(1.0)}]}, ValueError, "rule holds for the whole optimizer"),
    ({"params": [{"params": nn.Parameter(torch.ones(1)), "scope": "global"}]}, ValueError, "scope holds for the whole optimizer"),
    ({"params": [{"params": nn.Parameter(torch.ones(1)), "horizon": 9}]}, ValueError, "horizon holds for the whole optimizer"),
]


def rows(table: list) -> list:
    return [
        pytest.param(ours, options, error, message, id=f"{ours.__name__}-{options}")
        for classes, options, error, message in table
        for ours in classes
    ]


@pytest.mark.parametrize(("ours", "options", "error", "message"), rows(OPTIONS) + rows([(ALL, *row) for row in WHOLE]))
def test_constructor_refuses(ours, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ours(**{"params": [nn.Parameter(torch.ones(2))], **options})


@pytest.mark.parametrize(("ours", "options", "error", "message"), rows(WRONG_TYPES))
def test_constructor_refuses_wrong_types(ours, options: dict, error: tuple, message: str) -> None:
    with pytest.raises(error, match=message):
        ours([nn.Parameter(torch.ones(2))], **options)


def test_tensor_lr_may_stand_on_its_bound() -> None:
    opt = SGDHD([nn.Parameter(torch.ones(2))], lr=torch.tensor(0.1), lr_bounds=(0, 0.1))
    assert opt.param_groups[0]["lr_bounds"] == (0, 0.1)


GROUPS = [
    *OPTIONS,
    (ALL, {"rule": Additive(1.0)}, ValueError, "rule holds for the whole optimizer"),
    (ALL, {"scope": "group"}, ValueError, "scope holds for the whole optimizer"),
    (ALL, {"params": ["w"]}, TypeError, "can only optimize Tensors"),
]


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize(("ours", "options", "error", "message"), rows(GROUPS))
def test_add_param_group_refuses_and_changes_nothing(ours, options: dict, error: type, message: str, scope: str) -> None:
    w = nn.Parameter(torch.ones(2))
    opt = ours([w], lr=0.01, scope=scope)
    before = copy.deepcopy(opt.state_dict()), list(opt.param_groups), dict(opt.defaults)
    with pytest.raises(error, match=message):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(3))], **options})
    assert (opt.state_dict(), opt.param_groups, opt.defaults) == before
    w.grad = torch.ones(2)
    opt.step()


def test_add_param_group_refuses_lr_0_under_multiplicative() -> None:
    opt = SGDHD([nn.Parameter(torch.ones(2))], lr=0.01, rule=Multiplicative(0.1))
    with pytest.raises(ValueError, match="never leave lr=0"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": 0.0})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize("ours", ALL)
@pytest.mark.parametrize("first", ["sparse", "dense"])
def test_sparse_gradients_are_refused_before_anything_moves(ours, first: str) -> None:
    embedding, dense = nn.Embedding(4, 2, sparse=True), nn.Parameter(torch.ones(2))
    params = {"sparse": [embedding.weight, dense], "dense": [dense, embedding.weight]}[first]
    opt = ours([{"params": [p]} for p in params], lr=0.1)
    (embedding(torch.tensor([1])).sum() + dense.sum()).backward()
    before: Any = copy.deepcopy(([p.detach() for p in params], opt.state_dict()))
    with pytest.raises(TypeError, match=rf"{ours.__name__} takes dense gradients, got torch.sparse_coo .*\(4, 2\).*sparse=False"):
        opt.step()
    torch.testing.assert_close(([p.detach() for p in params], opt.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("rule", [Additive, Multiplicative])
@pytest.mark.parametrize("beta", [-1.0, NAN, math.inf, None, "1"], ids=repr)
def test_rules_refuse(rule, beta: Any) -> None:
    with pytest.raises(ValueError, match=f"beta must be {NUMBER}{beta!r}"):
        rule(beta)
