"""Accelerate: how to reach the optimizer through its wrapper, and its checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import BATCHES, Tiny, X, Y, equal, refreshed
from torch import nn

from hypergradient import SGDHD, AdamWHD
from hypergradient.integrations import averaged, metrics, use_iterate


def prepared(make: Any, **options: Any) -> tuple[Accelerator, nn.Module, Any, Any]:
    torch.manual_seed(0)
    accelerator, model = Accelerator(cpu=True, **options), Tiny()
    opt = make(model.parameters())
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, total_iters=40)
    return accelerator, *accelerator.prepare(model, opt, schedule)


def train(accelerator: Accelerator, model: nn.Module, opt: Any, schedule: Any, steps: int) -> float:
    model.train()
    for _ in range(steps):
        with accelerator.accumulate(model):
            loss = model(X, Y)["loss"]
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            schedule.step()
            opt.zero_grad()
    return loss.item()


MAKE = [pytest.param(AdamWHD, id="adamw"), pytest.param(lambda params: SGDHD(params, momentum=0.9, nesterov=True), id="sgd")]


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}], ids=["", "accumulation", "bf16"])
@pytest.mark.parametrize("make", MAKE)
def test_saved_as_the_average_and_resumed(tmp_path: Path, make: Any, options: dict[str, Any]) -> None:
    accelerator, model, opt, schedule = prepared(make, **options)
    first = train(accelerator, model, opt, schedule, 2)
    train(accelerator, model, opt, schedule, 18)
    with averaged(opt, model, None if "mixed_precision" in options else BATCHES):
        accelerator.save_state(str(tmp_path))
        weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert not torch.equal(weights["net.0.weight"], model.net[0].weight)
    assert refreshed(weights) is ("mixed_precision" not in options)
    last = train(accelerator, model, opt, schedule, 20)
    assert last < 0.75 * first

    accelerator, resumed, opt, schedule = prepared(make, **options)
    accelerator.load_state(str(tmp_path))
    use_iterate(opt, resumed)
    train(accelerator, resumed, opt, schedule, 20)
    assert equal(model, resumed)


def test_its_own_modes_reach_ours() -> None:
    accelerator, model, opt, schedule = prepared(AdamWHD)
    train(accelerator, model, opt, schedule, 10)
    before = model.net[0].weight.clone()
    opt.eval()
    assert not torch.equal(model.net[0].weight, before)
    opt.train()
    assert torch.equal(model.net[0].weight, before)
    assert metrics(opt)["alpha"] == opt.param_groups[0]["alpha"] == opt.optimizer.param_groups[0]["alpha"]
