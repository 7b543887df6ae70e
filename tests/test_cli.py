"""The command as a stranger uses it: what it prints, what it writes, how it ends."""

import contextlib
import csv
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hypergradient.lab import main
from hypergradient.lab.experiments import demo as room
from hypergradient.lab.experiments import flat, plots
from hypergradient.lab.runs.config import PAPER, Config, paper
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.models import identified, source_digest
from hypergradient.lab.sweeps.sweep import ended, sweep

COMMAND = str(Path(sys.executable).with_name("hypergradient"))


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
        pytest.param("train --data nowhere", "--data nowhere: no such folder", id="missing-folder"),
        pytest.param("train --data /no/such/folder", "--data /no/such/folder: no such folder", id="missing-path"),
        pytest.param("train --model tree", "--model must be one of logreg, mlp, cnn, cnn-bn, vgg16", id="model"),
        pytest.param("train --optimizer sgd-hd", "constructor call of at most 50,000 characters, such as 'AdamHD(lr=1e-3)'", id="no-call"),
        pytest.param("train --optimizer adagrad", "--optimizer adagrad is unknown: choose from SGDHD, HDM, AdamHD", id="optimizer"),
        pytest.param("train --optimizer SGDHD(rate=1)", "HypergradientOptimizer.__init__() got an unexpected", id="no-option"),
        pytest.param("train --optimizer SGDHD(lr=-1)", "lr must be a finite number >= 0, got -1", id="negative-lr"),
        pytest.param("train --optimizer SGDHD(rule=Up(1))", "Up is unknown: choose from AdaGradRule, AdamRule, Adapted", id="rule"),
        pytest.param("train --optimizer SGDHD(lr=[1])", "a list is an axis of a sweep: give one value", id="axis"),
        pytest.param("train --batch-size 0", "--batch-size: input should be greater than or equal to 1, got '0'", id="batch-size"),
        pytest.param("train --epochs 0", "--epochs: input should be greater than or equal to 1, got '0'", id="epochs"),
        pytest.param("train --seed -1", "--seed: input should be greater than or equal to 0, got '-1'", id="seed"),
        pytest.param("train --threshold nan", "--threshold: input should be a finite number, got 'nan'", id="threshold"),
        pytest.param("train --hypergrad-data test", "input should be 'train' or 'validation', got 'test'", id="hypergrad-data"),
        pytest.param("train --device toaster", "--device toaster is not available", id="device"),
        pytest.param("train --learning-rate 1", "Unknown option: --learning-rate", id="unknown-option"),
        pytest.param("train --epochs 1 --epochs 2", "--epochs specified multiple times", id="twice"),
        pytest.param("train --resume", "contains no run to resume", id="nothing-to-resume"),
        pytest.param("train --data text", "--model logreg does not accept --data text, which is text: try --model transformer", id="text"),
        pytest.param("train --model transformer", "--model transformer does not accept --data digits, which is not text", id="images"),
        pytest.param("train --data quadratic --model cnn", "--model cnn needs images, but the data has shape (100,)", id="vectors"),
        pytest.param("heatmap --cap 0", "--cap: input should be greater than or equal to 1, got '0'", id="cap"),
        pytest.param("train stray", "stray", id="stray-argument"),
        pytest.param("fly", 'Unknown command "fly". Available commands: demo, train', id="unknown-command"),
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
    assert "SGD-HD" in out


def test_options_of_a_file_give_way_to_those_that_are_given(monkeypatch, capfd, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('optimizer = "AdamHD(lr=[0.1])"\nepochs = 2\nbatch-size = 64\n')
    assert call(monkeypatch, "train", "--config", "run.toml") == 2
    (tmp_path / "run.toml").write_text('optimizer = "AdamHD(lr=0.1)"\nepochs = 2\nbatch-size = 64\n')
    assert call(monkeypatch, "train", "--config", "run.toml", "--epochs", "1", "--output", "r") == 0
    found = json.loads((tmp_path / "r/config.json").read_text())["config"]
    assert (found["optimizer"], found["epochs"], found["batch_size"]) == ("AdamHD(lr=0.1)", 1, 64)


def test_weight_decay_on_the_training_loss_is_told_in_a_line(monkeypatch, capfd) -> None:
    optimizer = "SGDHD(lr=1e-3, weight_decay=1e-4, adapt={'lr': Additive(1e-3), 'weight_decay': Additive(1)})"
    words = ("train", "--epochs", "1", "--limit", "256", "--optimizer", optimizer, "--output")
    assert call(monkeypatch, *words, "a") == 0
    assert "\nWarning: weight decay adapted on the training loss drifts to its lower bound: add --hypergrad-data" in capfd.readouterr().err
    assert call(monkeypatch, *words, "b", "--hypergrad-data", "validation") == 0
    assert [line.split()[0] for line in capfd.readouterr().err.splitlines()] == ["Training", "Results:"]


def test_demo(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "EPOCHS", 1)
    monkeypatch.setattr(flat, "LRS", (1e-4, 1e-2, 1e20))
    assert call(monkeypatch, "demo", "--output", "d", "--seed", "5", "--json") == 0
    first = capfd.readouterr().out
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "d").rglob("*.p*")}
    assert call(monkeypatch, "demo", "--output", "d", "--seed", "5") == 0  # nothing is run or drawn again
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "d").rglob("*.p*")} == files
    out, err = capfd.readouterr()
    assert err.startswith("42 runs on digits, 42 already finished; output: d\n")
    found = json.loads(first)
    six, *others = found["runs"][:12], *found["runs"][12:]
    assert [(run["model"], run["optimizer"], run["seed"], run["hidden"]) for run in six] == [
        (model, paper(name), 5, 1000) for model in ("logreg", "mlp") for name in PAPER
    ]
    assert {(run["optimizer"], run["seed"]) for run in others} == {
        (call, seed)
        for seed in (5, 6, 7)
        for lr in (1e-4, 1e-2, 1e20)
        for call in (paper("Adam", lr), paper("SGDN", lr), f"AdamHD(lr={lr}, weight_decay=0.0001)", "AdamHD(weight_decay=0.0001)")
    }
    assert {(run["model"], run["hidden"], run["batch_size"]) for run in others} == {("mlp", 100, 128)}
    told = " ".join(out.split())
    assert "Validation loss from 3 learning rates, median of 3 seeds: Adam" in told
    assert "SGD (Nesterov)" in told
    assert {file.name for file in (tmp_path / "d").iterdir()} >= {f"{name}.{kind}" for name in ("flat", "demo") for kind in plots.KINDS}
    with (tmp_path / "d/flat.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert [row["lr"] for row in rows if row["method"] == "AdamHD without one"] == [""] * 3
    assert {row["status"] for row in rows if row["method"] == "SGD (Nesterov)" and row["lr"] == "1e+20"} == {"diverged"}
    table = pq.read_table(tmp_path / "d/history.parquet").to_pandas()
    assert len(table[table["rule"] != "tuning-free"]) >= 12 * 12
    assert set(table.columns) > {"model", "optimizer", "lr", "hypergrad_lr", "iteration", "epoch", "loss", "alpha", "h"}
    about = json.loads((tmp_path / "d/experiment.json").read_text())
    assert about["command"] == "hypergradient demo --output d --seed 5"
    assert {"configurations", "versions", "machine"} < set(about)


@pytest.mark.parametrize("words", ["train --epochs 1", "sweep grid.toml", "demo"])
def test_denormals_count_as_0(monkeypatch, capfd, tmp_path: Path, words: str) -> None:
    monkeypatch.setattr(room, "EPOCHS", 1)
    monkeypatch.setattr(room, "PAPER", ["SGD-HD"])
    monkeypatch.setattr(flat, "LRS", (0.1,))
    (tmp_path / "grid.toml").write_text("epochs = 1")
    smallest = torch.tensor(1e-40)
    assert (smallest * 1).item() > 0
    assert call(monkeypatch, *words.split()) == 0
    assert (smallest * 1).item() == 0


def test_a_sweep_of_many_runs_is_counted_and_asked_for(monkeypatch, capfd, tmp_path: Path) -> None:
    numbers = ", ".join(map(str, range(1, 1001)))
    (tmp_path / "grid.toml").write_text(
        f'epochs = 1\nlimit = 64\nseed = [{numbers}]\noptimizer = "SGD(lr=[{numbers}], momentum=[{numbers}])"'
    )
    begun = time.monotonic()
    assert call(monkeypatch, "sweep", "grid.toml") == 2
    assert time.monotonic() - begun < 10
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("hypergradient: 1,000,000,000 runs: a pilot of 1 of 1 iterations estimates ")
    assert told[0].endswith(" hours for all in sequence: add --yes to start them")
    assert not (tmp_path / "runs").exists()


def test_a_sweep_of_others_data_or_source_is_another(monkeypatch, tmp_path: Path) -> None:
    """What is there already counts for the same data and source alone, wherever they lie."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_images(tmp_path / "mine", shift=0)
    source = "from torch import nn\ndef flat(shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    (tmp_path / "my_own.py").write_text(source)

    def again(data: str, model: str = "logreg") -> int:
        """How many of two runs are there before they are made."""
        monkeypatch.delitem(sys.modules, "my_own", raising=False)
        source_digest.cache_clear()
        loaded = load(data)
        configs = [identified(Config(data, model, epochs=epochs, limit=16), loaded) for epochs in (1, 2)]
        there = len(ended(tmp_path / "s", configs))
        sweep(configs, loaded, tmp_path / "s")
        return there

    assert again("mine") == 0
    assert again("mine") == again(str(tmp_path / "mine")) == again(f"../{tmp_path.name}/mine") == 2
    write_images(tmp_path / "mine", shift=1)
    assert again("mine") == 0
    assert [again("mine", "my_own:flat") for _ in range(2)] == [0, 2]
    (tmp_path / "my_own.py").write_text(source + "# another\n")
    assert again("mine", "my_own:flat") == 0


def write_images(folder: Path, shift: int) -> None:
    """A data set of two splits of small images."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
    for split in ("train", "test"):
        pixels = [np.full((8, 8), 10 * i + shift, dtype=np.uint8) for i in range(20)]
        table = datasets.Dataset.from_dict({"image": pixels, "label": [i % 2 for i in range(20)]}, features=features)
        folder.mkdir(exist_ok=True)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    (tmp_path / "grid.toml").write_text(
        'model = ["cnn", "logreg"]\noptimizer = "SGDHD(lr=[1e-3, 1e-4], hypergrad_lr=1e-3)"\nepochs = 1\nlimit = 64'
    )
    command = [COMMAND, "sweep", "grid.toml"]
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
    monkeypatch.setattr("hypergradient.lab.find_spec", lambda name: None if name in ("rich", "cyclopts") else name)
    assert call(monkeypatch, "demo") == 2
    assert capfd.readouterr().err == "hypergradient: the lab needs cyclopts, rich: pip install 'hypergradient[lab]'\n"
