"""``train`` without a learning rate: by the tuning-free rule and by the optimizers of others, and what is evaluated."""

import json
import math
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn

from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.config import PEERS, Config
from hypergradient.lab.runs.data import Data, load
from hypergradient.lab.runs.models import make_model
from hypergradient.lab.runs.peers import MODULES
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import Run, evaluate, train
from hypergradient.lab.sweeps.sweep import sweep
from test_cli import call

SHORT = Config("digits", limit=256, epochs=2, batch_size=64, weight_decay=0.0)


def finish(config: Config, data: Data) -> Any:
    *_, last = Run(config, data).go(Event(), math.inf)
    return last.runs[0].summary


@pytest.mark.parametrize("optimizer", PEERS)
def test_peers_learn(optimizer: str) -> None:
    pytest.importorskip(MODULES[optimizer])
    config = replace(SHORT, optimizer=optimizer, lr=0.0, hypergrad_lr=None, limit=None, epochs=6)
    data = load("digits")
    summary = finish(config, data)
    assert summary.status == "finished"
    assert summary.valid_loss < evaluate(make_model("logreg", (1, 8, 8), 10, 1), data.valid_x, data.valid_y)[0]


@pytest.mark.parametrize("optimizer", ["adam-hd", "dog", "schedule-free-adamw"])
def test_evaluation_leaves_the_run_as_it_was(optimizer: str) -> None:
    data = load("digits")
    rule = "tuning-free" if optimizer == "adam-hd" else "additive"
    config = replace(SHORT, model="cnn-bn", optimizer=optimizer, rule=rule, lr=0.0, hypergrad_lr=None, limit=128)
    run, twin = Run(config, data), Run(config, data)
    for i in range(4):
        for each in (run, twin):
            each.step(torch.arange(32) + 16 * i)
        run.evaluate(data.valid_x, data.valid_y)
    for (name, mine), other in zip(run.model.state_dict().items(), twin.model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6 if optimizer == "schedule-free-adamw" else 0, msg=name)


def test_statistics_of_the_average_are_its_own() -> None:
    """Under the average, batch norm has seen the training batches through the average's own layers."""
    data = load("digits")
    config = replace(SHORT, model="cnn-bn", optimizer="sgdn-hd", rule="tuning-free", lr=0.0, hypergrad_lr=None, limit=128)
    run = Run(config, data)
    for i in range(6):
        run.step(torch.arange(32) + 16 * i)
    with run.averaged():
        first = next(run.model.children())
        images = run.data.train_x
        assert isinstance(first, nn.Conv2d)
        torch.testing.assert_close(run.model[1].running_mean, first(images).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_tuning_free_history_tells_what_the_rule_sees(tmp_path: Path) -> None:
    config = replace(SHORT, optimizer="adam-hd", rule="tuning-free", lr=0.0, hypergrad_lr=None)
    _, history = train(config, load("digits"), Folder(tmp_path))
    table = Folder(tmp_path).history()
    assert table.iterations["horizon"] == [10.0] * 8
    assert all(-1 <= signal <= 1 for signal in table.iterations["signal"])
    assert table.iterations == history.iterations


def test_train_without_a_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--optimizer", "sgdn-hd", "--rule", "tuning-free", "--limit", "256", "--epochs", "2", "--output"]
    assert call(monkeypatch, "train", *options, str(tmp_path)) == 0
    assert json.loads((tmp_path / "config.json").read_text())["config"]["lr"] == 0
    assert json.loads((tmp_path / "status.json").read_text())["alpha"] > 0


def test_missing_package_of_a_peer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hypergradient.lab.runs.peers.find_spec", lambda name: None)
    config = replace(SHORT, optimizer="dog", lr=0.0, hypergrad_lr=None)
    with pytest.raises(LabError, match=r"--optimizer dog needs the package dog: pip install 'hypergradient\[peers\]'"):
        sweep([config], load("digits"), tmp_path)


def test_the_rule_of_an_optimizer_without_one_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD has no rule: it starts from lr = 1e-3 as ever, and diverges where its loss is not finite."""
    assert finish(replace(SHORT, optimizer="sgd", hypergrad_lr=None, rule="tuning-free", lr=1e38), load("digits")).status == "diverged"
    options = ["--optimizer", "sgd", "--rule", "tuning-free", "--limit", "64", "--epochs", "1", "--output", str(tmp_path)]
    assert call(monkeypatch, "train", *options) == 0
    assert json.loads((tmp_path / "status.json").read_text())["alpha"] == 1e-3
