"""The average swapped in with its batch norm statistics, and the iterate restored bit for bit."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import BATCHES, Tiny, X, Y, equal, refreshed
from torch import nn

from hypergradient import SGDHD, AdamHD, AdamWHD, Hypergradient
from hypergradient.integrations import averaged, metrics, use_average, use_iterate


class Wrapper:
    """As Accelerate's and others: an optimizer that holds another."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


MAKE = {
    "sgd": lambda params: SGDHD(params, momentum=0.9),
    "adamw": AdamWHD,
    "around": lambda params: Hypergradient(torch.optim.NAdam(params)),
    "wrapped": lambda params: Wrapper(Wrapper(AdamHD(params))),
}


def train(model: nn.Module, opt: Any, steps: int = 15) -> None:
    while isinstance(opt, Wrapper):
        opt = opt.optimizer
    model.train()
    for _ in range(steps):
        opt.zero_grad()
        model(X, Y)["loss"].backward()
        opt.step()


@pytest.fixture
def run(request: pytest.FixtureRequest) -> tuple[Tiny, Any]:
    torch.manual_seed(0)
    model = Tiny()
    opt = MAKE[request.param](model.parameters())
    train(model, opt)
    return model, opt


@pytest.mark.parametrize("run", MAKE, indirect=True)
@pytest.mark.parametrize(
    "batches", [None, BATCHES, [(x, 0) for x in BATCHES], [{"x": x} for x in BATCHES]], ids=["no", "x", "rows", "named"]
)
def test_there_and_back(run: tuple[Tiny, Any], batches: Any) -> None:
    model, opt = run
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    with averaged(opt, model, batches):
        assert not torch.equal(model.net[0].weight, before["net.0.weight"])
        assert refreshed(model.state_dict()) is (batches is not None)
        with averaged(opt, model, batches):  # where it is there already
            pass
        assert not torch.equal(model.net[0].weight, before["net.0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert model.training


@pytest.mark.parametrize("run", MAKE, indirect=True)
def test_saved_there_and_resumed(run: tuple[Tiny, Any]) -> None:
    model, opt = run
    own = opt.optimizer.optimizer if isinstance(opt, Wrapper) else opt
    use_average(opt, model, BATCHES)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    resumed = Tiny()
    its = type(own)(torch.optim.NAdam(resumed.parameters())) if isinstance(own, Hypergradient) else type(own)(resumed.parameters())
    its.load_state_dict(copy.deepcopy(own.state_dict()))
    resumed.load_state_dict(weights)
    use_iterate(its, resumed)
    use_iterate(opt, model)
    if isinstance(own, SGDHD):
        its.param_groups[0]["momentum"] = 0.9
    train(model, own)
    train(resumed, its)
    assert equal(model, resumed)


def test_frozen_batch_norm_keeps_its_mode() -> None:
    model = Tiny()
    opt = AdamWHD(model.parameters())
    train(model, opt, 3)
    model.net[1].eval()
    with averaged(opt, model, BATCHES):
        assert [module.training for module in model.net] == [True, False, True, True]


def test_rules_without_an_average_keep_the_statistics() -> None:
    model = Tiny()
    opt = AdamWHD(model.parameters(), lr=1e-2, hypergrad_lr=1e-6)
    train(model, opt, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with averaged(opt, model, BATCHES):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


READINGS = {
    "one": (lambda m: AdamWHD(m.parameters()), {"alpha", "lr", "signal", "noise", "horizon", "climbing", "hypergradient"}),
    "groups": (
        lambda m: AdamWHD([{"params": m.net[0].parameters()}, {"params": m.net[3].parameters()}]),
        {"alpha/0", "alpha/1", "signal/1"},
    ),
    "tensor": (lambda m: AdamWHD(m.parameters(), scope="tensor"), {"alpha"}),
    "base": (lambda m: Hypergradient(torch.optim.RMSprop(m.parameters())), {"alpha", "signal"}),
    "several": (lambda m: [AdamWHD(m.net[:2].parameters()), AdamWHD(m.net[3].parameters())], {"0/alpha", "1/alpha", "0/signal"}),
}


@pytest.mark.parametrize(("make", "names"), READINGS.values(), ids=READINGS)
def test_metrics(make: Any, names: set[str]) -> None:
    torch.manual_seed(0)
    model = Tiny()
    optimizers = make(model)
    for opt in optimizers if isinstance(optimizers, list) else [optimizers]:
        train(model, opt, 5)
    found = metrics(optimizers)
    assert names <= found.keys()
    assert all(isinstance(value, float) for value in found.values())
    assert all(found[name] > 0 for name in names if "alpha" in name)
    assert all(a != b for a, b in pairwise(found[name] for name in sorted(names) if "alpha" in name))
    if names == {"alpha"}:
        assert found.keys() == names, "a tensor's own numbers are too many to log"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        pytest.param(lambda opt, _: use_average(torch.optim.Adam([torch.ones(1)])), TypeError, "such as AdamWHD.*got Adam", id="torch's"),
        pytest.param(lambda opt, _: metrics(3), TypeError, "got int", id="none"),
        pytest.param(lambda opt, _: use_average(opt, None, BATCHES), ValueError, "pass model too", id="batches alone"),
        pytest.param(lambda opt, m: (use_average(opt, m, BATCHES), use_iterate(opt)), ValueError, "use_iterate", id="back without model"),
    ],
)
def test_errors(call: Any, error: type[Exception], match: str) -> None:
    model = Tiny()
    opt = AdamWHD(model.parameters())
    train(model, opt, 3)
    with pytest.raises(error, match=match):
        call(opt, model)
