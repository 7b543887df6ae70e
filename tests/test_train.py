"""Runs: their histories, and what is left of them when they are stopped."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hypergradient.lab.config import TITLES, Config, LabError
from hypergradient.lab.data import load
from hypergradient.lab.engine import StoppedError
from hypergradient.lab.store import Folder
from hypergradient.lab.train import train


def tables(folder: Path) -> list[dict]:
    return [pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("history", "epochs")]


@pytest.mark.parametrize("optimizer", TITLES)
def test_history(tmp_path: Path, optimizer: str) -> None:
    config = Config("digits", "logreg", optimizer, epochs=2)
    summary, _ = train(config, load("digits"), Folder(tmp_path))
    iterations, epochs = tables(tmp_path)
    assert iterations["iteration"] == list(range(1, 25))
    assert iterations["epoch"] == [1] * 12 + [2] * 12
    assert epochs["train_loss"] == pytest.approx([sum(iterations["loss"][:12]) / 12, sum(iterations["loss"][12:]) / 12])
    assert epochs["alpha"] == pytest.approx([sum(iterations["alpha"][:12]) / 12, sum(iterations["alpha"][12:]) / 12])
    assert epochs["train_loss"][1] < epochs["train_loss"][0]
    moves = [a != config.lr for a in iterations["alpha"]]
    assert moves == [False] + [config.adapts] * 23
    assert [h is None for h in iterations["h"]] == [not config.adapts] * 24
    assert summary.alpha == iterations["alpha"][-1]
    assert json.loads((tmp_path / "status.json").read_text())["valid_loss"] == epochs["valid_loss"][-1]
    assert json.loads((tmp_path / "config.json").read_text())["config"] == config.as_dict()


def test_divergence_is_a_status(tmp_path: Path) -> None:
    config = Config("digits", "mlp", "sgd", lr=1e12, epochs=2)
    summary, history = train(config, load("digits"), Folder(tmp_path))
    assert summary.status == "diverged"
    assert summary.iterations == len(history.iterations["loss"]) < 24
    again, _ = train(config, load("digits"), Folder(tmp_path), resume=True)
    assert again == summary


def run(config: Config, folder: Path, checkpoint_every: float) -> None:
    train(config, load("digits"), Folder(folder), resume=True, every=checkpoint_every)


@pytest.mark.parametrize("optimizer", ["sgdn-hd", "adam-hd"])
def test_killed_ten_times_equals_never_killed(tmp_path: Path, optimizer: str) -> None:
    config = Config("digits", "logreg", optimizer, epochs=60)
    whole, _ = train(config, load("digits"), Folder(tmp_path / "whole"))
    chance = random.Random(optimizer)
    context = multiprocessing.get_context("fork")
    kills = 0
    while kills < 10:
        child = context.Process(target=run, args=(config, tmp_path / "killed", 0.01))
        child.start()
        child.join(chance.uniform(0.01, 0.12) * (1 + kills))
        if child.exitcode == 0:
            (tmp_path / "killed" / "status.json").unlink()
            Folder(tmp_path / "killed").clear()  # it ended before the kill: once more from the start
            continue
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
        if (tmp_path / "killed" / "history.parquet").exists():
            assert len(tables(tmp_path / "killed")[0]["loss"]) > 0  # readable after every kill
    resumed, _ = train(config, load("digits"), Folder(tmp_path / "killed"), resume=True)
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    assert (resumed.valid_loss, resumed.alpha) == (whole.valid_loss, whole.alpha)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_stop_saves_the_iteration(tmp_path: Path, number: signal.Signals) -> None:
    config = Config("digits", "logreg", "adam-hd", epochs=3)
    train(config, load("digits"), Folder(tmp_path / "whole"))

    def stop(iteration: int, *_: float) -> None:
        if iteration == 17:
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    with pytest.raises(StoppedError, match="iteration 17"):
        train(config, load("digits"), Folder(tmp_path / "stopped"), watch=stop)
    assert tables(tmp_path / "stopped")[0]["iteration"] == list(range(1, 18))
    train(config, load("digits"), Folder(tmp_path / "stopped"), resume=True)
    assert tables(tmp_path / "stopped") == tables(tmp_path / "whole")


def test_more_epochs_by_resuming(tmp_path: Path) -> None:
    train(Config(epochs=3), load("digits"), Folder(tmp_path / "whole"))
    train(Config(epochs=1), load("digits"), Folder(tmp_path / "parts"))
    train(Config(epochs=3), load("digits"), Folder(tmp_path / "parts"), resume=True)
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")


def damage(name: str, text: str = "damaged"):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("config", "resume", "harm", "message"),
    [
        pytest.param(Config(epochs=1), False, None, "holds a run already: add --resume", id="no-resume"),
        pytest.param(Config(epochs=1, lr=0.1), True, None, r"holds a run with --lr 0\.001: give the same options", id="other-options"),
        pytest.param(Config(epochs=2), True, damage("checkpoint.pt"), "cannot be resumed", id="damaged-checkpoint"),
        pytest.param(Config(epochs=2), True, damage("history.parquet"), "cannot be resumed", id="damaged-history"),
        pytest.param(Config(epochs=2), True, damage("config.json"), "config.json cannot be read", id="damaged-config"),
        pytest.param(Config(epochs=2), True, damage("config.json", "[]"), "config.json cannot be read", id="odd-config"),
    ],
)
def test_refuses_the_folder(tmp_path: Path, config: Config, resume: bool, harm, message: str) -> None:
    train(Config(epochs=1), load("digits"), Folder(tmp_path))
    if harm:
        harm(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(LabError, match=message):
        train(config, load("digits"), Folder(tmp_path), resume=resume)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LabError, match=r"cannot write .*choose another --output"):
        train(Config(epochs=1), load("digits"), Folder(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
