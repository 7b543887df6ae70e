"""Invalid options: the exception, and a message that names the value and what is allowed."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from cases import turns
from hypergradient import SGDHD, AdamHD, AdamWHD, Adapted, Additive, Decay, Multiplicative, TuningFree

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
    ({"params": [{"params": nn.Parameter(torch.ones(1)), "rule": Additive(1.0)}]}, ValueError, "rule applies to the whole optimizer"),
    ({"params": [{"params": nn.Parameter(torch.ones(1)), "scope": "global"}]}, ValueError, "scope applies to the whole optimizer"),
    ({"params": [{"params": nn.Parameter(torch.ones(1)), "horizon": 9}]}, ValueError, "horizon applies to the whole optimizer"),
]

A = Additive(0.1)
TOWER = Additive(Adapted(1e-4, Additive(1e-10)))
LEVEL = "takes a rule such as Additive\\(1e-6\\) or Multiplicative\\(0.01\\), got "


def outside(name: str, value: str) -> str:
    return rf"{name} must lie in \[.*\] to be adapted, got {value}: start it inside, or give bounds="


# What moves beside the learning rate.
ADAPT = [
    ([SGDHD], {"adapt": {"betas": (A, A)}}, ValueError, "SGDHD has no 'betas' to adapt; adapt takes: lr, momentum, weight_decay"),
    (ADAMS, {"adapt": {"momentum": A}}, ValueError, "has no 'momentum' to adapt; adapt takes: lr, betas, eps, weight_decay"),
    ([SGDHD], {"adapt": {"nesterov": A}, "momentum": 0.9, "nesterov": True}, ValueError, "has no 'nesterov' to adapt"),
    ([SGDHD], {"adapt": {"dampening": A}, "momentum": 0.9, "dampening": 0.5}, ValueError, "has no 'dampening' to adapt"),
    (ALL, {"adapt": {"maximize": A}}, ValueError, "has no 'maximize' to adapt"),
    (ALL, {"adapt": {"learning_rate": None}}, ValueError, "has no 'learning_rate' to adapt"),
    (ALL, {"adapt": [("lr", A)]}, TypeError, r"adapt must be a dict such as .*, got \[\('lr'"),
    (ALL, {"adapt": "lr"}, TypeError, "adapt must be a dict such as .*, got 'lr'"),
    (ALL, {"adapt": {"lr": 0.1}}, TypeError, r"rule must be a Rule such as .*, got 0\.1"),
    (ALL, {"adapt": {"lr": A}, "rule": A}, ValueError, r'once, by rule, hypergrad_lr or adapt\["lr"\], got adapt\["lr"\]=Additive'),
    (ALL, {"adapt": {"lr": A}, "hypergrad_lr": 0.1}, ValueError, r'once, by rule, hypergrad_lr or adapt\["lr"\]'),
    (ALL, {"adapt": {"weight_decay": A}, "weight_decay": 0.0}, ValueError, outside("weight_decay", r"0\.0")),
    (ALL, {"adapt": {"weight_decay": 0.1}, "weight_decay": 0.1}, TypeError, r"adapt\['weight_decay'\] " + LEVEL + r"0\.1"),
    (ALL, {"adapt": {"weight_decay": TuningFree()}, "weight_decay": 0.1}, TypeError, r"adapt\['weight_decay'\] " + LEVEL + "TuningFree"),
    (ALL, {"adapt": {"weight_decay": Decay(A, total_steps=9)}, "weight_decay": 0.1}, TypeError, LEVEL + "Decay"),
    ([SGDHD], {"adapt": {"momentum": A}}, ValueError, outside("momentum", r"0\.0")),
    ([SGDHD], {"adapt": {"momentum": A}, "momentum": 1.0}, ValueError, outside("momentum", r"1\.0")),
    ([SGDHD], {"adapt": {"momentum": A}, "momentum": 0.9, "dampening": 0.5}, ValueError, r"with dampening=0 only, got dampening=0\.5"),
    ([SGDHD], {"adapt": {"momentum": TuningFree()}, "momentum": 0.9}, TypeError, r"adapt\['momentum'\] " + LEVEL + "TuningFree"),
    (ADAMS, {"adapt": {"betas": A}}, TypeError, r"adapt takes a pair for betas, None for one that is not adapted, got Additive"),
    (ADAMS, {"adapt": {"betas": (A,)}}, TypeError, r"adapt takes a pair for betas"),
    (ADAMS, {"adapt": {"betas": (A, A, A)}}, TypeError, r"adapt takes a pair for betas"),
    (ADAMS, {"adapt": {"betas": (None, 0.5)}}, TypeError, r"adapt\['beta2'\] " + LEVEL + r"0\.5"),
    (ADAMS, {"adapt": {"betas": (A, None)}, "betas": (0.0, 0.999)}, ValueError, outside("beta1", r"0\.0")),
    (ADAMS, {"adapt": {"betas": (None, A)}, "betas": (0.9, 0.0)}, ValueError, outside("beta2", r"0\.0")),
    (ADAMS, {"adapt": {"eps": A}, "eps": 0.0}, ValueError, outside("eps", r"0\.0")),
    ([SGDHD], {"adapt": {"momentum": A}, "momentum": 0.9, "bounds": {"momentum": (0.1, 0.5)}}, ValueError, outside("momentum", r"0\.9")),
    ([SGDHD], {"adapt": {"lr": A}, "momentum": 0.9, "bounds": {"momentum": (0.1, 0.9)}}, ValueError, "bounds for 'momentum': give a rule"),
    ([SGDHD], {"adapt": {"momentum": A}, "momentum": 0.9, "bounds": {"momentum": (0, 0.99)}}, ValueError, r"must lie in \(0, 1\)"),
    ([SGDHD], {"adapt": {"momentum": A}, "momentum": 0.9, "bounds": {"momentum": (0.5, 1)}}, ValueError, r"must lie in \(0, 1\)"),
    ([SGDHD], {"adapt": {"momentum": A}, "momentum": 0.9, "bounds": {"momentum": (0.9, 0.5)}}, ValueError, r"bounds\['momentum'\] must be"),
    ([SGDHD], {"adapt": {"momentum": A}, "momentum": 0.9, "bounds": [0.5, 0.9]}, TypeError, "bounds must be a dict"),
    (
        ADAMS,
        {"adapt": {"betas": (A, A)}, "bounds": {"betas": (0.5, 0.9)}},
        ValueError,
        r"bounds\['beta1'\] must be \(low, high\).*got 0\.5",
    ),
    (ADAMS, {"adapt": {"eps": A}, "bounds": {"eps": (0, 1)}}, ValueError, r"bounds\['eps'\] must lie in \(0, inf\), got \(0, 1\)"),
    (ALL, {"adapt": {"lr": A}, "bounds": {"lr": (0, 1)}}, ValueError, "has no 'lr' to adapt; bounds takes: "),
    (ALL, {"scope": "element"}, ValueError, r'scope="element" takes Additive, Multiplicative or a learner.*constant beta, got TuningFree'),
    (ALL, {"scope": "element", "rule": TOWER}, ValueError, 'scope="element" takes .*constant beta, got Additive'),
    (ALL, {"scope": "element", "rule": Decay(A, total_steps=9)}, ValueError, 'scope="element" takes .*constant beta, got Decay'),
    (ALL, {"scope": "element", "adapt": {"lr": TOWER}}, ValueError, 'scope="element" takes .*constant beta, got Additive'),
    (ALL, {"params": [{"params": nn.Parameter(torch.ones(1)), "adapt": {"lr": A}}]}, ValueError, "adapt applies to the whole optimizer"),
    (ALL, {"params": [{"params": nn.Parameter(torch.ones(1)), "bounds": {}}]}, ValueError, "bounds applies to the whole optimizer"),
]


def rows(table: list) -> list:
    return [
        pytest.param(ours, options, error, message, id=f"{ours.__name__}-{options}")
        for classes, options, error, message in table
        for ours in classes
    ]


@pytest.mark.parametrize(("ours", "options", "error", "message"), rows(OPTIONS + ADAPT) + rows([(ALL, *row) for row in WHOLE]))
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
    (ALL, {"rule": Additive(1.0)}, ValueError, "rule applies to the whole optimizer"),
    (ALL, {"scope": "group"}, ValueError, "scope applies to the whole optimizer"),
    (ALL, {"params": ["w"]}, TypeError, "can only optimize Tensors"),
]


@pytest.mark.parametrize(("ours", "options", "error", "message", "scope"), turns(rows(GROUPS), ["group", "global"]))
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
    with pytest.raises(TypeError, match=r"hypergradients need dense gradients, got torch.sparse_coo .*\(4, 2\).*sparse=False"):
        opt.step()
    torch.testing.assert_close(([p.detach() for p in params], opt.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("rule", [Additive, Multiplicative])
@pytest.mark.parametrize("beta", [-1.0, NAN, math.inf, None, "1"], ids=repr)
def test_rules_refuse(rule, beta: Any) -> None:
    with pytest.raises(ValueError, match=f"beta must be {NUMBER}{beta!r}"):
        rule(beta)


@pytest.mark.parametrize(
    ("value", "rule", "error", "message"),
    [
        (-1.0, A, ValueError, f"value must be {NUMBER}-1.0"),
        (NAN, A, ValueError, f"value must be {NUMBER}nan"),
        (None, A, ValueError, f"value must be {NUMBER}None"),
        (0, Multiplicative(0.1), ValueError, "can never leave 0: start from value > 0"),
        (1e-4, TuningFree(), TypeError, f"Adapted {LEVEL}TuningFree"),
        (1e-4, Decay(A, total_steps=9), TypeError, f"Adapted {LEVEL}Decay"),
        (1e-4, 1e-10, TypeError, f"Adapted {LEVEL}1e-10"),
        (1e-4, Adapted(1e-4, A), TypeError, f"Adapted {LEVEL}Adapted"),
    ],
    ids=str,
)
def test_adapted_refuses(value: Any, rule: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Adapted(value, rule)


@pytest.mark.parametrize(
    ("adapt", "options", "message"),
    [
        ({"momentum": A}, {"momentum": 0.0}, outside("momentum", r"0\.0")),
        ({"momentum": A}, {"dampening": 0.5}, "with dampening=0 only"),
        ({"weight_decay": A}, {"weight_decay": 0.0}, outside("weight_decay", r"0\.0")),
    ],
    ids=str,
)
def test_add_param_group_refuses_what_cannot_be_adapted(adapt: dict, options: dict, message: str) -> None:
    w = nn.Parameter(torch.ones(2))
    opt = SGDHD([w], 0.1, momentum=0.9, weight_decay=0.1, adapt=adapt)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(3))], **options})
    assert opt.state_dict() == before


def graph(w: Any, v: Any) -> Any:
    return (w**2).sum() + (v**2).sum()


COUNT = r"a gradient or None for each of 2 parameters, in their shapes, got shapes "
QUANTITIES = {
    "no graph": (lambda w, v: graph(w, v).detach(), ValueError, r"scalar loss .*got a tensor of shape \(\) with requires_grad=False"),
    "no scalar": (lambda w, v: w**2, ValueError, r"scalar loss .*got a tensor of shape \(2,\) with requires_grad=True"),
    "too few": (lambda w, v: [torch.ones(2)], ValueError, COUNT + r"\[\(2,\)\]"),
    "too many": (lambda w, v: [torch.ones(2), torch.ones(3), None], ValueError, COUNT),
    "none at all": (lambda w, v: [], ValueError, COUNT + r"\[\]"),
    "other shapes": (lambda w, v: [torch.ones(2), torch.ones(2)], ValueError, COUNT + r"\[\(2,\), \(2,\)\]"),
    "all None": (lambda w, v: [None, None], ValueError, "adapt\\(\\) got no gradient: the loss depends on no parameter"),
    "another loss": (lambda w, v: graph(nn.Parameter(torch.ones(2)), torch.ones(3)), ValueError, "got no gradient"),
    "a number": (lambda w, v: 0.5, TypeError, r"a scalar loss or a list of gradients, got 0\.5"),
    "nothing": (lambda w, v: None, TypeError, "a scalar loss or a list of gradients, got None"),
    "sparse": (lambda w, v: [torch.ones(2).to_sparse(), None], TypeError, "need dense gradients, got torch.sparse_coo"),
}


@pytest.mark.parametrize("ours", ALL)
@pytest.mark.parametrize(("quantity", "error", "message"), QUANTITIES.values(), ids=QUANTITIES)
@pytest.mark.parametrize("scope", ["group", "element"])
def test_adapt_refuses_and_changes_nothing(ours, quantity: Any, error: type, message: str, scope: Any) -> None:
    w, v = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    opt = ours([w, v], 0.1, hypergrad_lr=1e-3, scope=scope)
    for _ in range(2):
        opt.zero_grad()
        graph(w, v).backward()
        opt.step()
    before = copy.deepcopy(([w.detach(), v.detach()], opt.state_dict(), opt.hypergradients))
    with pytest.raises(error, match=message):
        opt.adapt(quantity(w, v))
    torch.testing.assert_close(([w.detach(), v.detach()], opt.state_dict(), opt.hypergradients), before, rtol=0, atol=0)
    lr = opt.param_groups[0]["lr"]
    opt.step()
    assert opt.param_groups[0]["lr"] != lr


@pytest.mark.parametrize("rule", [TuningFree(), Decay(TuningFree(), total_steps=9)], ids=["tuning", "decay"])
def test_adapt_refuses_rules_that_average(rule) -> None:
    w = nn.Parameter(torch.ones(2))
    opt = SGDHD([w], rule=rule)
    for _ in range(2):
        opt.zero_grad()
        (w**2).sum().backward()
        opt.step()
    before = copy.deepcopy((w.detach(), opt.state_dict()))
    with pytest.raises(TypeError, match=r"adapt\(\) takes Additive or Multiplicative; .*needs the gradients of the steps"):
        opt.adapt((w**2).sum())
    torch.testing.assert_close((w.detach(), opt.state_dict()), before, rtol=0, atol=0)
    opt.eval()
    with pytest.raises(RuntimeError, match=r"call opt\.train\(\)"):
        opt.adapt((w**2).sum())
    opt.train()
    torch.testing.assert_close((w.detach(), opt.state_dict()), before, rtol=0, atol=0)


DRIFTS = r"weight_decay is adapted on the training loss, which drives it to zero \(or its lower bound\): call opt\.adapt\(validation_loss\)"


def step(w: nn.Parameter, opt: Any) -> None:
    opt.zero_grad()
    (w**2).sum().backward()
    opt.step()


@pytest.mark.parametrize("ours", ALL)
def test_weight_decay_on_the_training_loss_warns_once(ours) -> None:
    w = nn.Parameter(torch.ones(2))
    opt = ours([w], 0.1, weight_decay=0.1, adapt={"weight_decay": A})
    step(w, opt)  # moves nothing yet
    opt.zero_grad()
    (w**2).sum().backward()
    with pytest.warns(UserWarning, match=DRIFTS) as caught:
        opt.step()
    assert [warning.filename for warning in caught] == [__file__]
    step(w, opt)
    step(w, copy.deepcopy(opt))


def test_weight_decay_on_another_loss_does_not_warn() -> None:
    w = nn.Parameter(torch.ones(2))
    opt = SGDHD([w], 0.1, weight_decay=0.1, adapt={"weight_decay": A})
    for _ in range(3):
        step(w, opt)
        opt.adapt((w**4).sum())
    assert opt.param_groups[0]["weight_decay"] != 0.1
