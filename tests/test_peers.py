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
from hypergradient.lab.runs.config import Config
from hypergradient.lab.runs.data import Data, load
from hypergradient.lab.runs.models import make_model
from hypergradient.lab.runs.peers import PEERS
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import Run, evaluate, train
from test_cli import call

SHORT = Config(limit=256, epochs=2, batch_size=64)


def finish(config: Config, data: Data) -> Any:
    *_, last = Run(config, data).go(Event(), math.inf)
    return last.runs[0].summary


@pytest.mark.parametrize("optimizer", PEERS)
def test_peers_learn(optimizer: str) -> None:
    pytest.importorskip(PEERS[optimizer][1])
    config = replace(SHORT, optimizer=optimizer, limit=None, epochs=6)
    data = load("digits")
    summary = finish(config, data)
    assert summary.status == "finished"
    assert summary.valid_loss < evaluate(make_model("logreg", (1, 8, 8), 10, 1), data.valid_x, data.valid_y)[0]


@pytest.mark.parametrize("optimizer", ["AdamHD", "DoG", "AdamWScheduleFree"])
def test_evaluation_leaves_the_run_as_it_was(optimizer: str) -> None:
    data = load("digits")
    config = replace(SHORT, model="cnn-bn", optimizer=optimizer, limit=128)
    run, twin = Run(config, data), Run(config, data)
    for i in range(4):
        for each in (run, twin):
            each.step(torch.arange(32) + 16 * i)
        run.evaluate(data.valid_x, data.valid_y)
    for (name, mine), other in zip(run.model.state_dict().items(), twin.model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6 if optimizer == "AdamWScheduleFree" else 0, msg=name)


def test_statistics_of_the_average_are_its_own() -> None:
    """Under the average, batch norm has seen the training batches through the average's own layers."""
    data = load("digits")
    config = replace(SHORT, model="cnn-bn", optimizer="SGDHD(momentum=0.9, nesterov=True)", limit=128)
    run = Run(config, data)
    for i in range(6):
        run.step(torch.arange(32) + 16 * i)
    with run.averaged():
        first = next(run.model.children())
        images = run.data.train_x
        assert isinstance(first, nn.Conv2d)
        torch.testing.assert_close(run.model[1].running_mean, first(images).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_tuning_free_history_tells_what_the_rule_sees(tmp_path: Path) -> None:
    config = replace(SHORT, optimizer="AdamHD")
    _, history = train(config, load("digits"), Folder(tmp_path))
    table = Folder(tmp_path).history()
    assert table.iterations["horizon"] == [10.0] * 8
    assert all(-1 <= signal <= 1 for signal in table.iterations["signal"])
    assert table.iterations == history.iterations


def test_train_without_a_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--optimizer", "SGDHD(momentum=0.9, nesterov=True)", "--limit", "256", "--epochs", "2", "--output"]
    assert call(monkeypatch, "train", *options, str(tmp_path)) == 0
    assert json.loads((tmp_path / "config.json").read_text())["config"]["optimizer"] == "SGDHD(momentum=0.9, nesterov=True)"
    assert json.loads((tmp_path / "status.json").read_text())["alpha"] > 0


def test_missing_package_of_a_peer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hypergradient.lab.runs.peers.find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"--optimizer DoG needs the package dog: pip install 'hypergradient\[peers\]'"):
        replace(SHORT, optimizer="DoG(lr=0.125)")  # which has not been looked at before


def test_sgd_from_a_huge_learning_rate_diverges() -> None:
    assert finish(replace(SHORT, optimizer="SGD(lr=1e38)"), load("digits")).status == "diverged"


EVERY = [
    *("Hypergradient(RMSprop(lr=1e-3, momentum=0.9), rule=Multiplicative(0.02))", "HDM", "HDM(monotone=True)", "AdamWHD(weight_decay=0.1)"),
    *("SGDHD(lr=0.01, rule=AdaGradRule(0.01), signal=Signal(normalized=True))", "AdamHD(lr=1e-3, rule=Delayed(LionRule(1e-3, log=True)))"),
    *(
        "SGDHD(lr=0.01, momentum=0.9, rule=Multiplicative(0.02), scope='tensor')",
        "AdamHD(lr=1e-3, rule=Autostep(0.01), scope='element', signal=Signal(1.0, curvature='squares'))",
    ),
    *(
        "SGDHD(lr=0.01, momentum=0.9, rule=Marthe(auto=True), signal=Signal(0.9, curvature='hessian'))",
        "AdamHD(rule=Decay(TuningFree(), total_steps=6))",
    ),
    *("SGDHD(lr=0.01, horizon=5, hypergrad_lr=1e-4)", "SGDHD(lr=0.01, hypergrad_lr=1e-4, lr_bounds=(0, 0.1))", "Adagrad(lr=0.01)"),
]


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("optimizer", EVERY)
def test_any_rule_signal_and_scope_of_the_library_is_a_call(tmp_path: Path, optimizer: str) -> None:
    """Each trains, and goes on bit for bit from the middle of an epoch, without a word about it in the lab."""
    config, data = replace(SHORT, optimizer=optimizer, limit=192), load("digits")
    whole, history = train(config, data, Folder(tmp_path / "whole"))
    folder = Folder(tmp_path / "stopped")
    folder.start(config, resume=False)
    next(Run(config, data).go(Event(), every=0)).runs[0].write(folder)
    resumed, again = train(config, data, folder, resume=True)
    assert again == history
    assert replace(resumed, seconds=0) == replace(whole, seconds=0)
    assert whole.status == "finished"
