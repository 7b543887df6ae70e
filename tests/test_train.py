"""Runs: their histories, and what is left of them when they are stopped."""

import copy
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.config import PAPER, Config, paper
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.engine import StoppedError, loss_of, shuffled
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import Run, train


def tables(folder: Path) -> list[dict]:
    return [pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("history", "epochs")]


@pytest.mark.parametrize("optimizer", PAPER)
def test_history(tmp_path: Path, optimizer: str) -> None:
    config = Config(optimizer=paper(optimizer), epochs=2)
    summary, _ = train(config, load("digits"), Folder(tmp_path))
    iterations, epochs = tables(tmp_path)
    assert iterations["iteration"] == list(range(1, 25))
    assert iterations["epoch"] == [1] * 12 + [2] * 12
    assert epochs["train_loss"] == pytest.approx([sum(iterations["loss"][:12]) / 12, sum(iterations["loss"][12:]) / 12])
    assert epochs["alpha"] == pytest.approx([sum(iterations["alpha"][:12]) / 12, sum(iterations["alpha"][12:]) / 12])
    assert epochs["train_loss"][1] < epochs["train_loss"][0]
    moves = [a != 1e-3 for a in iterations["alpha"]]
    assert moves == [False] + [config.call.adapts] * 23
    assert [h is None for h in iterations["h"]] == [not config.call.adapts] * 24
    assert summary.alpha == iterations["alpha"][-1]
    assert json.loads((tmp_path / "status.json").read_text())["valid_loss"] == epochs["valid_loss"][-1]
    assert json.loads((tmp_path / "config.json").read_text())["config"] == config.as_dict()


MOMENTUM = "adapt={'lr': Additive(1e-3), 'momentum': Additive(0.01), 'weight_decay': Multiplicative(0.02)}"
FOLLOWED = {
    "tower": Config(
        optimizer="SGDHD(lr=1e-3, rule=Additive(Adapted(1e-3, Multiplicative(Adapted(0.02, Multiplicative(0.02))))))", epochs=2
    ),
    "others": Config(optimizer=f"SGDHD(lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4, {MOMENTUM})", epochs=2),
    "validation": Config(
        model="mlp",
        optimizer="AdamHD(lr=1e-3, adapt={'lr': Additive(1e-7), 'betas': (None, Additive(1)), 'eps': Additive(1)})",
        epochs=2,
        hidden=16,
        hypergrad_data="validation",
    ),
}


@pytest.mark.parametrize(
    ("name", "columns"),
    [("tower", {"hypergrad_lr"}), ("others", {"momentum", "weight_decay"}), ("validation", {"beta2", "eps"})],
)
def test_what_moves_is_in_the_history(tmp_path: Path, name: str, columns: set[str]) -> None:
    config = FOLLOWED[name]
    _, history = train(config, load("digits"), Folder(tmp_path))
    found = {key for key, column in history.iterations.items() if set(column) != {None}}
    assert found == {"iteration", "epoch", "loss", "alpha", "h"} | columns
    assert all(len(set(history.iterations[key])) > 10 for key in columns | {"alpha"})
    assert tables(tmp_path)[0] == history.iterations


def test_hypergradients_of_validation_images(tmp_path: Path) -> None:
    """A tenth of the images is held out, and h is the loss's on them: -β h is what moves α, and training alone does not give it."""
    config = FOLLOWED["validation"]
    run, plain = Run(config, load("digits")), Run(replace(config, hypergrad_data="train"), load("digits"))
    assert run.held_out is not None
    assert (len(run.data.train_y), len(run.held_out[1]), len(plain.data.train_y)) == (1294, 143, 1437)
    assert torch.equal(torch.cat([run.data.train_x, run.held_out[0]]), plain.data.train_x)
    indices = torch.arange(128)
    for t in range(3):
        model, batch = copy.deepcopy(run.model), shuffled(143, 1, t)[:128]
        before = list(model.parameters())
        grads = torch.autograd.grad(loss_of(model(run.held_out[0][batch]), run.held_out[1][batch]), before)
        direction = [adam(run.opt.state[p], t) for p in run.model.parameters()] if t else []
        run.step(indices)
        h = run.history.iterations["h"][-1]
        assert h == pytest.approx(-sum((g * d).sum().item() for g, d in zip(grads, direction, strict=False)), rel=1e-4)
    assert run.alpha - 1e-3 == pytest.approx(-1e-7 * sum(run.history.iterations["h"]), rel=1e-4)


def adam(state: dict, t: int) -> torch.Tensor:
    """Adam's last direction, from its moments; β2 and ε move too slowly to matter."""
    return state["exp_avg"] / (1 - 0.9**t) / ((state["exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-8)


def test_batch_norm_sees_no_held_out_images() -> None:
    torch.manual_seed(0)
    config = Config(model="cnn-bn", optimizer=paper("SGD-HD", hypergrad_lr=0.0), limit=256, hypergrad_data="validation")
    run = Run(config, load("digits"))
    assert run.held_out is not None
    other = Run(config, load("digits"))
    other.held_out = (torch.zeros_like(run.held_out[0]), run.held_out[1])
    for _ in range(3):
        assert run.step(torch.arange(64)) == other.step(torch.arange(64))
    assert all(torch.equal(a, b) for a, b in zip(run.model.buffers(), other.model.buffers(), strict=True))


def test_too_few_images_to_hold_out(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="holds out a tenth of the training images: it needs 10 or more, got 9"):
        train(replace(FOLLOWED["validation"], limit=9), load("digits"), Folder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_divergence_is_a_status(tmp_path: Path) -> None:
    config = Config(model="mlp", optimizer=paper("SGD", 1e12), epochs=2)
    summary, history = train(config, load("digits"), Folder(tmp_path))
    assert summary.status == "diverged"
    assert summary.iterations == len(history.iterations["loss"]) < 24
    again, _ = train(config, load("digits"), Folder(tmp_path), resume=True)
    assert again == summary


def run(config: Config, folder: Path, checkpoint_every: float) -> None:
    train(config, load("digits"), Folder(folder), resume=True, every=checkpoint_every)


def test_killed_ten_times_equals_never_killed(tmp_path: Path) -> None:
    config = Config(optimizer=paper("Adam-HD"), epochs=60)
    whole, _ = train(config, load("digits"), Folder(tmp_path / "whole"))
    chance = random.Random(0)
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


@pytest.mark.parametrize("name", FOLLOWED)
def test_resumed_in_an_epoch_equals_never_stopped(tmp_path: Path, name: str) -> None:
    config = FOLLOWED[name]
    whole, _ = train(config, load("digits"), Folder(tmp_path / "whole"))

    def stop(iteration: int, *_: float) -> None:
        if iteration in (5, 17):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    for _ in range(2):
        with pytest.raises(StoppedError):
            train(config, load("digits"), Folder(tmp_path / "stopped"), resume=True, watch=stop)
    resumed, _ = train(config, load("digits"), Folder(tmp_path / "stopped"), resume=True)
    assert tables(tmp_path / "stopped") == tables(tmp_path / "whole")
    assert replace(resumed, seconds=0) == replace(whole, seconds=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_stop_saves_the_iteration(tmp_path: Path, number: signal.Signals) -> None:
    config = Config(optimizer=paper("Adam-HD"), epochs=3)
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
        pytest.param(Config(epochs=1), False, None, "already contains a run: add --resume", id="no-resume"),
        pytest.param(
            Config(epochs=1, optimizer=paper("SGD", 0.1)),
            True,
            None,
            r"contains a run with --optimizer SGDHD\(lr=0\.001.*: give the same options",
            id="other-options",
        ),
        pytest.param(
            Config(epochs=2),
            True,
            damage("checkpoint.pt"),
            "checkpoint.pt cannot be resumed from .*: remove it",
            id="damaged-checkpoint",
        ),
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
