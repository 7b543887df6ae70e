"""The command as a stranger uses it: what it prints, what it writes, how it ends."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from hypergradient.lab import main
from hypergradient.lab.experiments import demo as room
from hypergradient.lab.runs.config import TITLES


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hypergradient", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param("train --data nowhere", "--data nowhere: there is no such folder", id="missing-folder"),
        pytest.param("train --data /no/such/folder", "--data /no/such/folder: there is no such folder", id="missing-path"),
        pytest.param("train --model tree", "--model must be one of logreg, mlp, cnn, cnn-bn, vgg16", id="model"),
        pytest.param(
            "train --optimizer adagrad",
            "--optimizer must be one of sgd, sgd-hd, sgdn, sgdn-hd, adam, adam-hd, prodigy, dadapt-adam",
            id="optimizer",
        ),
        pytest.param("train --optimizer sgd --hypergrad-lr 0.1", "--hypergrad-lr has no meaning for sgd", id="beta-of-a-baseline"),
        pytest.param("train --lr -1", "--lr must be a finite number >= 0, got -1.0", id="negative-lr"),
        pytest.param("train --lr nan", "--lr must be a finite number >= 0, got nan", id="nan-lr"),
        pytest.param("train --hypergrad-lr inf", "--hypergrad-lr must be a finite number >= 0, got inf", id="infinite-beta"),
        pytest.param("train --momentum 1", "--momentum must lie between 0 and 1, got 1.0", id="momentum"),
        pytest.param("train --batch-size 0", "--batch-size must be at least 1, got 0", id="batch-size"),
        pytest.param("train --epochs 0", "--epochs must be at least 1, got 0", id="epochs"),
        pytest.param("train --seed -1", "--seed must be at least 0, got -1", id="seed"),
        pytest.param("train --height 0", "--height must be at least 1, got 0", id="height"),
        pytest.param("train --height 2 --optimizer sgd", "--height 2 has no meaning for sgd", id="tower-of-a-baseline"),
        pytest.param("train --height 2 --level up", "--level must be one of additive, multiplicative, got 'up'", id="level"),
        pytest.param("train --adapt speed", "NAME=RULE:β with commas, such as weight_decay=multiplicative:0.02", id="adapt"),
        pytest.param("train --hypergrad-data test", "--hypergrad-data must be one of train, validation, got 'test'", id="hypergrad-data"),
        pytest.param("train --device toaster", "--device toaster cannot be used here", id="device"),
        pytest.param("train --lr much", "'--lr': Input should be a valid number", id="not-a-number"),
        pytest.param("train --learning-rate 1", "--learning-rate", id="unknown-option"),
        pytest.param("train --data text", "--model logreg does not take --data text, which is text: try --model transformer", id="text"),
        pytest.param("train --model transformer", "--model transformer does not take --data digits, which is no text", id="images"),
        pytest.param("train --data quadratic --model cnn", "--model cnn needs images, the data's have the shape (100,)", id="vectors"),
        pytest.param(
            "compare --workload tree", "--workload must be one or more, with commas, of digits, mnist, cifar, resnet-gn", id="workload"
        ),
        pytest.param("compare --family tree", "--family must be one or more, with commas, of image, sequence, dense", id="family"),
        pytest.param("compare --workload digits --judged", "leave no workload: leave one of them out", id="no-workload"),
        pytest.param("compare --methods --judged", "and --judged takes the others: leave one of them out", id="methods-judged"),
        pytest.param("compare --data nowhere", "--data must be mnist=FOLDER and cifar10=FOLDER", id="compare-data"),
        pytest.param("compare --workload digits --seeds 0", "--seeds must be at least 1, got 0", id="seeds"),
        pytest.param("compare --quick --processes 0", "--processes must be at least 1, got 0", id="processes"),
        pytest.param("train stray", "stray", id="stray-argument"),
        pytest.param("fly", "fly", id="unknown-command"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capfd, tmp_path: Path, words: str, message: str) -> None:
    assert call(monkeypatch, *words.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert err.startswith("hypergradient: ")
    assert list(tmp_path.iterdir()) == []


def test_train_json(monkeypatch, capfd, tmp_path: Path) -> None:
    assert call(monkeypatch, "train", "--epochs", "1", "--json") == 0
    out, _ = capfd.readouterr()
    found = json.loads(out)
    assert found["runs"][0]["status"] == "finished"
    assert all((tmp_path / file).exists() for file in found["files"])
    assert call(monkeypatch, "train", "--epochs", "1") == 2
    assert call(monkeypatch, "train", "--epochs", "2", "--resume") == 0
    out, _ = capfd.readouterr()
    assert "sgd-hd" in out


def test_weight_decay_on_the_training_loss_is_told_in_a_line(monkeypatch, capfd) -> None:
    words = "train --epochs 1 --limit 256 --adapt weight_decay=additive:1 --output"
    assert call(monkeypatch, *words.split(), "a") == 0
    assert "\nWeight decay that follows the training loss drifts to its lower bound: --hypergrad-data validation" in capfd.readouterr().err
    assert call(monkeypatch, *words.split(), "b", "--hypergrad-data", "validation") == 0
    assert [line.split()[0] for line in capfd.readouterr().err.splitlines()] == ["Training", "Results:"]


def test_demo(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "DEMO_EPOCHS", 1)
    for _ in range(2):  # a second demo replaces the first
        assert call(monkeypatch, "demo", "--output", "d", "--json") == 0
        found = json.loads(capfd.readouterr().out)
    assert [(run["model"], run["optimizer"]) for run in found["runs"]] == [(model, name) for model in ("logreg", "mlp") for name in TITLES]
    assert (tmp_path / "d/demo.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "d/demo.pdf").read_bytes().startswith(b"%PDF")
    table = pq.read_table(tmp_path / "d/history.parquet").to_pandas()
    assert len(table) == 12 * 12
    assert set(table.columns) > {"model", "optimizer", "lr", "hypergrad_lr", "iteration", "epoch", "loss", "alpha", "h"}
    about = json.loads((tmp_path / "d/experiment.json").read_text())
    assert about["command"] == "hypergradient demo --output d --json"
    assert {"configurations", "versions", "machine"} < set(about)


@pytest.mark.parametrize("words", ["train --epochs 1", "sweep grid.toml", "demo"])
def test_denormals_count_as_0(monkeypatch, capfd, tmp_path: Path, words: str) -> None:
    monkeypatch.setattr(room, "DEMO_EPOCHS", 1)
    monkeypatch.setattr(room, "TITLES", ["sgd-hd"])
    (tmp_path / "grid.toml").write_text("epochs = 1")
    smallest = torch.tensor(1e-40)
    assert (smallest * 1).item() > 0
    assert call(monkeypatch, *words.split()) == 0
    assert (smallest * 1).item() == 0


def test_installed_command() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("hypergradient"), "train", "--help"], capture_output=True, text=True, check=True
    )
    assert "--hypergrad-lr" in result.stdout


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    (tmp_path / "grid.toml").write_text('model = ["cnn", "logreg"]\nlr = [1e-3, 1e-4]\nepochs = 1\nlimit = 64')
    command = [Path(sys.executable).with_name("hypergradient"), "sweep", "grid.toml"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    told = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(ours, 10_000):
            told += part
    process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", told.decode())  # without colours and moves of the cursor
    assert re.search(r"runs .* 4/4 [\d,]+ iterations/s  best minibatch loss 2\.\d+ \d:\d\d:\d\d", plain)


def test_without_the_extra(monkeypatch, capfd) -> None:
    monkeypatch.setattr("hypergradient.lab.find_spec", lambda name: None if name in ("rich", "typer") else name)
    assert call(monkeypatch, "demo") == 2
    assert capfd.readouterr().err == "hypergradient: the lab needs rich, typer: pip install 'hypergradient[lab]'\n"
