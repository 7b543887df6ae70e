"""The store under stress: a full disk, a newer version's files, event files."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import field, make_dataclass, replace
from pathlib import Path
from threading import Event

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hypergradient.lab.errors import LabError
from hypergradient.lab.loggers import Loggers
from hypergradient.lab.loggers.base import label
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.models import identified
from hypergradient.lab.sweeps.sweep import Store, folder_of, plan, sweep
from test_cli import call

GRID = [Config(optimizer=paper("Adam-HD", lr), epochs=40) for lr in (1e-3, 1e-2, 1e-1)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for a little."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)


def content(root: Path) -> list[bytes]:
    return [(folder_of(root, config).path / name).read_bytes() for config in GRID for name in ("history.parquet", "epochs.parquet")]


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_full_disk_loses_nothing(disk: Path, tmp_path: Path, engine: str) -> None:
    data = load("digits")
    sweep(GRID, data, tmp_path / "whole", engine=engine)
    for _ in range(2):
        with pytest.raises(LabError, match=r"cannot write .* free some space, or choose another --output"):
            sweep(GRID, data, disk, engine=engine)
    assert not list(disk.rglob("*.part"))
    grow(disk)
    sweep(GRID, data, disk, engine=engine)
    assert content(disk) == content(tmp_path / "whole")


def test_full_disk_is_one_line(disk: Path) -> None:
    command = [Path(sys.executable).with_name("hypergradient"), "tuning", "--data", "digits", "--model", "logreg", "--output", disk / "t"]
    result = subprocess.run([*command, "--log", "tensorboard"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    told = result.stderr.splitlines()[-1]
    assert "cannot write " in told
    assert "No space left on device): free some space, or " in told
    assert result.stderr.splitlines()[:-1] == [f"6 runs on digits, 0 already finished; output: {disk / 't'}"]


def newer(file: Path) -> None:
    if file.suffix == ".pt":
        header, _, body = file.read_bytes().partition(b"\n")
        file.write_bytes(json.dumps(json.loads(header) | {"format": 99}).encode() + b"\n" + body)
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))


@pytest.mark.parametrize("name", ["config.json", "status.json", "experiment.json", "unfinished"])
def test_store_of_a_newer_version_is_left_alone(monkeypatch, capfd, tmp_path: Path, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.toml").write_text('optimizer = "Adam(lr=[0.1, 0.01])"\nepochs = 2')
    words = ("sweep", "grid.toml", "--output", "s")
    assert call(monkeypatch, *words) == 0
    if name == "unfinished":
        data = load("digits")
        configs = [identified(Config(optimizer=f"Adam(lr={lr})", epochs=2), data) for lr in (0.1, 0.01)]
        for config in configs:
            folder_of(tmp_path / "s", config).clear()
        store = Store(tmp_path / "s", {})
        (work,) = plan(configs, data, store.ended, "batched")
        store.write(work, next(work.go(data, Event(), every=0)))
        (file,) = (tmp_path / "s/unfinished").iterdir()
    else:
        file = next((tmp_path / "s").rglob(name))
    newer(file)
    before = {path: path.read_bytes() for path in (tmp_path / "s/runs").rglob("*") if path.is_file()} | {file: file.read_bytes()}
    capfd.readouterr()
    assert call(monkeypatch, *words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[-1].endswith(
        f"{file.relative_to(tmp_path)} was written by a newer hypergradient (format 99, this version reads up to 2): "
        "upgrade hypergradient, or choose another --output"
    )
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_event_files_hold_the_history(tmp_path: Path, engine: str) -> None:
    configs = [replace(config, epochs=2) for config in GRID]
    for _ in range(2):
        with Loggers(["tensorboard"], tmp_path) as loggers:
            sweep(configs, load("digits"), tmp_path, engine=engine, log=loggers.write)
    for config in configs:
        history = folder_of(tmp_path, config).history()
        events = EventAccumulator(str(tmp_path / "tensorboard" / label(config)))
        events.Reload()
        for x, columns in (("iteration", history.iterations), ("epoch", history.epochs)):
            for name in {name for name, column in columns.items() if any(value is not None for value in column)} - {"iteration", "epoch"}:
                found = [(event.step, event.value) for event in events.Scalars(f"{x}/{name}")]
                assert [step for step, _ in found] == columns[x]
                assert [value for _, value in found] == pytest.approx(columns[name], rel=1e-6)


def test_name_of_a_run_lasts_as_options_come() -> None:
    wider = make_dataclass("Wider", [("new", int, field(default=3))], bases=(Config,), frozen=True)
    assert wider().name == Config().name == Config(optimizer=paper("SGD-HD", 1e-3), epochs=10).name
    assert len({c.name for c in (Config(), Config(optimizer="SGD"), Config(seed=2), Config(model="mlp"), wider(new=4))}) == 5


def test_name_of_a_run_is_that_of_its_data_and_source() -> None:
    config = Config("mine", "own:model", data_digest="a", source_digest="b")
    assert config.name == replace(config, data="/somewhere/mine").name
    assert len({c.name for c in (config, replace(config, data_digest="c"), replace(config, source_digest="c"))}) == 3


def test_train_writes_events(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "--epochs", "1", "--output", "r", "--log", "tensorboard") == 0
    assert list(tmp_path.glob("r/tensorboard/*/events.out.tfevents.*"))
