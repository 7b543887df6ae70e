"""The running average in use: evaluated, saved, loaded, overwritten."""

import copy
from typing import Any

import pytest
import torch

from cases import Problem, flat
from hypergradient import SGDHD, AdamHD, AdamWHD, Hypergradient

MAKE = [
    pytest.param(AdamHD, id="AdamHD"),
    pytest.param(lambda params: AdamWHD(params, scope="tensor"), id="AdamWHD-tensor"),
    pytest.param(lambda params: SGDHD(params, momentum=0.9, capturable=True), id="SGDHD-capturable"),
    pytest.param(lambda params: Hypergradient(torch.optim.Adam(params)), id="Hypergradient"),
]


def trained(make: Any) -> tuple[Problem, Any]:
    problem = Problem()
    opt = make(problem.parameters())
    problem.train(opt, 20)
    return problem, opt


@pytest.mark.parametrize("make", MAKE)
def test_averaged_gives_the_average_and_takes_it_back(make: Any) -> None:
    problem, opt = trained(make)
    before = flat(problem.parameters()).clone()
    with opt.averaged():
        average = flat(problem.parameters()).clone()
        with opt.averaged():
            assert torch.equal(flat(problem.parameters()), average)
        assert torch.equal(flat(problem.parameters()), average)
    assert torch.equal(flat(problem.parameters()), before)
    opt.eval()
    assert torch.equal(flat(problem.parameters()), average)
    with opt.averaged():
        pass
    assert torch.equal(flat(problem.parameters()), average)
    with pytest.raises(ZeroDivisionError), opt.averaged():
        raise ZeroDivisionError
    opt.train()
    assert torch.equal(flat(problem.parameters()), before)


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("by", ["load_state_dict", "data"])
def test_weights_that_were_loaded_meanwhile_are_kept(make: Any, by: str) -> None:
    problem, opt = trained(make)
    best = {name: x + 1 for name, x in problem.model.state_dict().items()}
    opt.eval()
    if by == "load_state_dict":
        problem.model.load_state_dict(best)
    else:
        for name, p in problem.model.named_parameters():
            p.data = best[name]
    with pytest.warns(UserWarning, match="parameters were overwritten while the average was swapped in"):
        opt.train()
    for name, p in problem.model.named_parameters():
        assert torch.equal(p, best[name])
    with opt.averaged():
        for name, p in problem.model.named_parameters():
            assert torch.equal(p, best[name])
    problem.train(opt, 3, start=20)


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("both", ["train", "eval", "apart"])
def test_model_saved_in_eval_and_optimizer_in_train_is_noticed(make: Any, both: str, recwarn: pytest.WarningsRecorder) -> None:
    problem, opt = trained(make)
    saved = copy.deepcopy((problem.model.state_dict(), opt.state_dict()))
    with opt.averaged():
        average = copy.deepcopy((problem.model.state_dict(), opt.state_dict()))
    other = Problem()
    twin = make(other.parameters())
    other.model.load_state_dict((saved if both == "train" else average)[0])
    twin.load_state_dict((average if both == "eval" else saved)[1])
    twin.train()
    other.train(twin, 5, start=20)
    problem.train(opt, 5, start=20)
    told = [str(warning.message) for warning in recwarn if "saved under eval()" in str(warning.message)]
    assert len(told) == (both == "apart")
    assert torch.equal(flat(problem.parameters()), flat(other.parameters())) == (both != "apart")


@pytest.mark.parametrize("make", MAKE)
def test_a_state_dict_that_was_taken_keeps_the_iterate(make: Any) -> None:
    _, opt = trained(make)
    with opt.averaged():
        saved = opt.state_dict()
    assert all("iterate" in own for own in saved["state"].values())
    assert not any("iterate" in own for own in opt.state.values())
