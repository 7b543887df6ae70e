"""Runs in one program equal separate runs."""

from dataclasses import replace

import pytest
import torch

from hypergradient.lab.runs.calls import parse
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.engine import shuffled
from hypergradient.lab.runs.ensemble import Ensemble
from hypergradient.lab.runs.train import Run, evaluate


def towers(rule: str, level: str, *betas: float) -> dict:
    """A rule whose first β is adapted by levels above it, each with its β."""
    text = f"{level}({betas[-1]})"
    for i, beta in reversed([*enumerate(betas[:-1])]):
        text = f"{level if i else rule}(Adapted({beta}, {text}))"
    return {"rule": parse(text)}


CALLS = {
    "SGD": [
        paper("SGD", 0.1),
        paper("SGD-HD", 1e-3, 1e-3),
        paper("SGD-HD", 0.1, 1e-2, weight_decay=0.1),
        paper("SGD-HD", 0.01, rule=parse("Multiplicative(0.02)")),
        paper("SGD-HD", 0.0, 1e-3),
        paper("SGD-HD", 1e-3, **towers("Additive", "Additive", 1e-4, 1e-6)),
        paper("SGD-HD", 1e-3, **towers("Additive", "Multiplicative", 1e-4, 0.02, 0.02, 0.02)),
        paper("SGD-HD", 1e-3, **towers("Multiplicative", "Additive", 0.02, 1e-4, 1e-4)),
    ],
    "SGDN": [
        paper("SGDN", 0.01),
        paper("SGDN-HD", 1e-3, 1e-3, momentum=0.5),
        paper("SGDN-HD", 1e-3, 1e-4),
        paper("SGDN-HD", 0.01, rule=parse("Multiplicative(0.02)")),
        paper("SGDN-HD", 1e-3, **towers("Additive", "Multiplicative", 1e-5, 0.1, 0.1)),
    ],
    "Adam": [
        paper("Adam", 1e-2),
        paper("Adam-HD", 1e-3, 1e-5),
        paper("Adam-HD", 1e-3, 1e-6, weight_decay=0.01),
        paper("Adam-HD", 1e-4, rule=parse("Multiplicative(0.02)")),
        paper("Adam-HD", 1e-3, **towers("Additive", "Multiplicative", 1e-6, 0.02)),
        paper("Adam-HD", 1e-3, **towers("Additive", "Additive", 1e-6, 1e-24, 1e-24)),
    ],
}
FAMILIES = {family: [Config("digits", "logreg", call) for call in calls] for family, calls in CALLS.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("model", "dtype", "steps", "close"),
    [
        pytest.param("logreg", torch.float32, 100, 1e-5, id="logreg"),
        pytest.param("mlp", torch.float64, 30, 1e-9, id="mlp"),  # in float32 a network amplifies the last bit
    ],
)
def test_ensemble_equals_single_runs(tmp_path, family: str, model: str, dtype, steps: int, close: float) -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        data = load("digits")
        data = replace(data, train_x=data.train_x.to(dtype), valid_x=data.valid_x.to(dtype))
        configs = [replace(config, model=model, epochs=10, hidden=100) for config in FAMILIES[family]]
        together = Ensemble(configs, data.train_x.shape[1:], data.classes)
        singles = [Run(config, data) for config in configs]
    finally:
        torch.set_default_dtype(default)
    for t in range(steps):
        epoch, batch = divmod(t, 12)
        indices = shuffled(1437, 1, epoch)[batch * 128 : (batch + 1) * 128]
        losses, h = together.step(data.train_x[indices], data.train_y[indices])
        assert losses == pytest.approx([run.step(indices) for run in singles], rel=close)
        assert together.alphas == pytest.approx([run.alpha for run in singles], rel=close)
        assert together.betas == pytest.approx([run.opt.param_groups[0].get("hypergrad_lr", 0.0) for run in singles], rel=100 * close)
        expected = [run.opt.hypergradients[0] if run.config.call.adapts else mine for run, mine in zip(singles, h, strict=True)]
        assert h == pytest.approx(expected, rel=100 * close, abs=close)
    losses, accuracies = together.evaluate(data.valid_x, data.valid_y)
    expected = [evaluate(run.model, data.valid_x, data.valid_y) for run in singles]
    assert losses == pytest.approx([loss for loss, _ in expected], rel=close)
    assert accuracies == pytest.approx([accuracy for _, accuracy in expected], abs=1e-9)


def test_runs_that_leave_do_not_disturb_the_others() -> None:
    data = load("digits")
    whole, parts = (Ensemble(FAMILIES["Adam"], data.train_x.shape[1:], data.classes) for _ in range(2))
    for t in range(20):
        if t == 10:
            parts.retain([0, 2, 4])
        indices = shuffled(1437, 1, 0)[t % 11 * 128 :][:128]
        losses = whole.step(data.train_x[indices], data.train_y[indices])[0]
        some = parts.step(data.train_x[indices], data.train_y[indices])[0]
    assert some == pytest.approx([losses[0], losses[2], losses[4]], rel=1e-5)
    assert parts.alphas == pytest.approx([whole.alphas[0], whole.alphas[2], whole.alphas[4]], rel=1e-5)
    assert [options["weight_decay"] for options in parts.options] == [1e-4, 0.01, 1e-4]
