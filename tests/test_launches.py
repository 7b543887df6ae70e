"""The kernel launches of a step on an accelerator, and steps on "meta", which has no values."""

from typing import Any

import pytest
import torch
from benchmarks.launches import HELD, MORE, ROWS, counted, shapes_of
from torch import nn

from cases import turns
from hypergradient import SGDHD, AdamHD, AdamWHD, Additive, Hypergradient, Multiplicative, TuningFree

pytestmark = pytest.mark.filterwarnings("ignore:weight_decay is adapted on the training loss")

#: Missed, by how much: see docs/performance.md.
MISSED = {
    "AdamWHD, lr, betas and weight decay": 172,
    "AdamHD, tuning-free": 191,
    'AdamWHD, tuning-free, scope="tensor"': 196,
    "SGDHD Nesterov, tuning-free": 177,
    "AdamHD, Adam": 86,
    "SGDHD, MARTHE, automatic μ": 72,
    "SGDHD, Autostep": 131,
}


@pytest.mark.parametrize("name", [name for name, (most, _) in ROWS.items() if most])
def test_launches_are_few_and_as_many_for_many_tensors(name: str) -> None:
    most, call = ROWS[name]
    few, many = (counted(call, shapes_of(tensors), steps=3).operations.total() for tensors in (24, 96))
    assert 0 < few <= MISSED.get(name, most)
    assert many <= MORE * few


@pytest.mark.parametrize("name", [[*ROWS][i] for i in (1, 3, 4, 8)])
def test_a_step_holds_little_whatever_the_model(name: str) -> None:
    held = counted(ROWS[name][1], [(5000, 8000)] * 8 + [(300,)] * 20, steps=3).held  # 1.3 GB
    assert 0 < held <= HELD


META = [
    pytest.param(ours, options, id=f"{ours.__name__}-{'-'.join(map(str, options))}-{i}")
    for i, (ours, options) in enumerate(
        [
            (SGDHD, {}),
            (SGDHD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
            (SGDHD, {"momentum": 0.9, "lr": 0.1, "adapt": {"momentum": Additive(0.1)}}),
            (AdamHD, {"scope": "global"}),
            (AdamHD, {"lr": 0.1, "hypergrad_lr": 1e-3, "scope": "element"}),
            (AdamHD, {"lr": 0.1, "rule": Multiplicative(0.1), "horizon": 5, "lr_bounds": (1e-3, 1)}),
            (AdamWHD, {"scope": "tensor"}),
            (AdamWHD, {"lr": 0.1, "hypergrad_lr": 1e-3, "scope": "tensor", "lr_bounds": (1e-3, None)}),
        ]
    )
]


@pytest.mark.parametrize(("ours", "options", "dtype"), turns(META, [torch.float32, torch.bfloat16, torch.complex64], 2))
def test_steps_on_meta(ours: Any, options: dict, dtype: torch.dtype) -> None:
    params = [nn.Parameter(torch.empty(shape, device="meta", dtype=dtype)) for shape in ((3, 4), (5,), ())]
    opt = ours([{"params": params[:2]}, {"params": params[2:]}], **options)
    assert opt.setup.scalars.on_device
    for t in range(5):
        for i, p in enumerate(params):
            p.grad = None if (t, i) == (2, 1) else torch.empty_like(p)
        opt.step()
    opt.eval()
    opt.train()
    assert opt.param_groups[0]["lr"].is_meta


@pytest.mark.parametrize("rule", [Additive(1e-3), TuningFree()], ids=["additive", "tuning"])
def test_a_base_steps_on_meta(rule: Any) -> None:
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in ((3, 4), (5,))]
    opt = Hypergradient(torch.optim.Adam([{"params": [p]} for p in params], lr=0.1, foreach=True), rule=rule)
    for _ in range(5):
        for p in params:
            p.grad = torch.empty_like(p)
        opt.step()
