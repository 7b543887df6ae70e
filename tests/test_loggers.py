"""What the loggers wrote, read by their own packages, against the histories. W&B, which starts processes, is in integrations/."""

import json
import math
import random
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hypergradient.lab.errors import LabError
from hypergradient.lab.loggers import NAMES, Loggers, base, check
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.engine import Snapshot, summarise
from hypergradient.lab.runs.store import History

CONFIG = Config(optimizer=paper("SGDN-HD", lr=0.05), epochs=3)
OTHER = Config(optimizer="AdamHD(lr=0.001, rule=Multiplicative(0.02))", seed=2)


@dataclass
class Logged:
    """A run as it was found: its curves, the options and how it ended."""

    curves: dict[str, list[tuple[int, float]]]
    options: dict[str, Any]
    status: str | None


@pytest.fixture(params=["tensorboard", "mlflow", "trackio"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def made(iterations: int, seed: int = 0, **columns: list) -> History:
    """A history of 10 iterations an epoch whose start does not depend on its length; columns that are not named are null."""
    draw, history = random.Random(seed), History()
    for i in range(1, iterations + 1):
        row = {"iteration": i, "epoch": (i - 1) // 10 + 1, "loss": draw.random(), "alpha": 1 / i, "h": draw.gauss(0, 1e-9)}
        for column, values in history.iterations.items():
            values.append(row.get(column))
        if i % 10 == 0:
            for column, values in history.epochs.items():
                values.append(i // 10 if column == "epoch" else draw.random() if column != "valid_accuracy" else None)
    history.iterations.update(columns)
    return history


def saved(history: History, status: str | None = None, config: Config = CONFIG) -> Snapshot:
    return Snapshot(config, history, {}, summarise(config, history, status, 0.1, 2.5) if status else None)


def curves(history: History) -> dict[str, list[tuple[int, float]]]:
    """What is to be found of a history."""
    found = {
        f"{table}/{name}": [(step, value) for step, value in zip(columns[table], values, strict=True) if value is not None]
        for table, columns in (("iteration", history.iterations), ("epoch", history.epochs))
        for name, values in columns.items()
        if name not in ("iteration", "epoch")
    }
    return {name: points for name, points in found.items() if points}


def logged(name: str, root: Path) -> dict[str, Logged]:
    """The runs that a package finds in its folder, by their labels; each package's own reader reads them."""
    return READERS[name](root / name)


def from_tensorboard(folder: Path) -> dict[str, Logged]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for place in folder.iterdir():
        events = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
        read = {tag.split("/")[0]: json.loads(value.strip("`\n")) for tag, value in texts.items()}
        options = {**read["configuration"], "call": read["configuration"]["optimizer"]}
        found[place.name] = Logged(scalars, options, read.get("summary", {}).get("status"))
    return found


def from_mlflow(folder: Path) -> dict[str, Logged]:
    from mlflow import MlflowClient

    client, found = MlflowClient(folder.as_uri()), {}
    for run in client.search_runs([client.get_experiment_by_name("hypergradient").experiment_id]):
        histories = {tag: client.get_metric_history(run.info.run_id, tag) for tag in run.data.metrics}
        points = {tag: [(metric.step, metric.value) for metric in history] for tag, history in histories.items()}
        assert run.info.status == ("FINISHED" if "status" in run.data.tags else "KILLED")
        found[run.info.run_name] = Logged(points, run.data.params, run.data.tags.get("status"))
    assert len(list(folder.glob("*/*/metrics"))) == len(found)  # nothing of earlier ones is kept
    return found


def from_trackio(folder: Path) -> dict[str, Logged]:
    import trackio
    from trackio import sqlite_storage

    sqlite_storage.TRACKIO_DIR = folder
    found = {}
    for run in trackio.Api().runs("hypergradient"):
        points: dict[str, list] = {}
        for row in sqlite_storage.SQLiteStorage.get_logs("hypergradient", run.name, run_id=run.id):
            for tag in row.keys() - {"step", "timestamp"}:
                points.setdefault(tag, []).append((row["step"], row[tag]))
        shown = {tag: values for tag, values in points.items() if not tag.startswith("summary/")}
        found[run.name] = Logged(shown, run.config, run.config.get("status"))
    return found


READERS = {"tensorboard": from_tensorboard, "mlflow": from_mlflow, "trackio": from_trackio}


def same(found: dict[str, list[tuple[int, float]]], history: History) -> None:
    """TensorBoard keeps 32 bits of a value."""
    wanted = curves(history)
    assert found.keys() == wanted.keys()
    for tag, points in wanted.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in points], rel=1e-6, nan_ok=True), tag


def test_a_run_in_one_write(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    history = made(25)
    with Loggers([name], tmp_path) as loggers:
        loggers.write(saved(history, "finished"))
    ((label, found),) = logged(name, tmp_path).items()
    same(found.curves, history)
    assert (label, found.status) == (base.label(CONFIG), "finished")
    wanted = {"model": "logreg", "epochs": "3", "call": CONFIG.optimizer}
    assert {option: str(found.options[option]) for option in wanted} == wanted
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("lengths", [(1, 9, 10, 25), (0, 25), (25, 25)], ids=["some", "none first", "none last"])
def test_a_history_that_grows(name: str, tmp_path: Path, lengths: tuple[int, ...]) -> None:
    with Loggers([name], tmp_path) as loggers:
        for length in lengths:
            loggers.write(saved(made(length)))
        loggers.write(saved(made(25), "finished"))
    same(logged(name, tmp_path)[base.label(CONFIG)].curves, made(25))


def test_two_runs_in_turns(name: str, tmp_path: Path) -> None:
    with Loggers([name], tmp_path) as loggers:
        for length, status in ((5, None), (12, None), (25, "diverged")):
            loggers.write(saved(made(length, seed=1), status))
            loggers.write(saved(made(length, seed=2), status, OTHER))
    found = logged(name, tmp_path)
    assert found.keys() == {base.label(CONFIG), base.label(OTHER)}
    same(found[base.label(CONFIG)].curves, made(25, seed=1))
    same(found[base.label(OTHER)].curves, made(25, seed=2))


def test_a_second_process_writes_the_run_anew(name: str, tmp_path: Path) -> None:
    """As after a stop: what the first had logged beyond the last checkpoint, and what it had of other values, is gone; other runs stay."""
    with Loggers([name], tmp_path) as loggers:
        loggers.write(saved(made(30, seed=3), "finished", OTHER))
        loggers.write(saved(made(17, seed=1)))
    assert logged(name, tmp_path)[base.label(CONFIG)].status is None
    with Loggers([name], tmp_path) as loggers:
        loggers.write(saved(made(12, seed=2)))
        loggers.write(saved(made(25, seed=2), "reached"))
    found = logged(name, tmp_path)
    assert found.keys() == {base.label(CONFIG), base.label(OTHER)}
    same(found[base.label(CONFIG)].curves, made(25, seed=2))
    assert found[base.label(CONFIG)].status == "reached"
    same(found[base.label(OTHER)].curves, made(30, seed=3))


def test_values_that_are_not_finite(name: str, tmp_path: Path) -> None:
    history = made(4, h=[1.0, math.nan, -math.inf, math.inf])
    with Loggers([name], tmp_path) as loggers:
        loggers.write(saved(history, "diverged"))
    same(logged(name, tmp_path)[base.label(CONFIG)].curves, history)


def log(name: str, root: Path, *saves: Snapshot) -> None:
    with Loggers([name], root) as loggers:
        for save in saves:
            loggers.write(save)


def test_a_folder_that_cannot_be_written(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / name).write_text("a file")
    with pytest.raises(LabError, match=f"^--log {name} cannot write to {tmp_path}/{name} .*: free some space, or leave out {name}$"):
        log(name, tmp_path, saved(made(3)))
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def full() -> Iterator[None]:
    """No file may be longer than 16 KiB, as if the disk were full then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_fills_up(name: str, tmp_path: Path, capfd: pytest.CaptureFixture, full: None) -> None:
    with pytest.raises(LabError, match=f"^--log {name} cannot write to .*: free some space, or leave out {name}$"):
        log(name, tmp_path, saved(made(3)), saved(made(3000)))
    assert capfd.readouterr() == ("", "")


def test_two_folders_in_one_process(name: str, tmp_path: Path) -> None:
    with Loggers([name], tmp_path / "a b") as first, Loggers([name], tmp_path / "c") as second:
        for length, status in ((5, None), (12, "cap")):
            first.write(saved(made(length, seed=1), status))
            second.write(saved(made(length, seed=2), status))
    for place, seed in (("a b", 1), ("c", 2)):
        same(logged(name, tmp_path / place)[base.label(CONFIG)].curves, made(12, seed=seed))


def test_all_at_once(tmp_path: Path) -> None:
    with Loggers(["tensorboard,mlflow", "trackio"], tmp_path) as loggers:
        loggers.write(saved(made(12), "finished"))
    for name in ("tensorboard", "mlflow", "trackio"):
        same(logged(name, tmp_path)[base.label(CONFIG)].curves, made(12))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], []),
        ([""], []),
        (["trackio", "mlflow"], ["trackio", "mlflow"]),
        (["mlflow, tensorboard", "mlflow"], ["mlflow", "tensorboard"]),
    ],
    ids=["none", "empty", "two", "twice"],
)
def test_names(names: list[str], found: list[str]) -> None:
    assert check(names) == found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["neptune"], "--log takes comma-separated names from tensorboard, wandb, mlflow, trackio; got 'neptune'"),
        (["Wandb,mlflow"], "got 'Wandb'"),
        (["x" * 5000], "got 'x{100}'"),
        (["wandb"], r"--log wandb needs the package wandb: pip install 'hypergradient\[loggers\]'"),
        (["mlflow"], "--log mlflow needs the package mlflow"),
    ],
    ids=["unknown", "case", "long", "missing", "a folder of its name"],
)
def test_names_that_are_refused(names: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(LabError, match=message):
        check(names)


@pytest.mark.parametrize(
    ("config", "label"),
    [
        (CONFIG, "logreg-SGDN-HD-lr0.05-beta0.001-additive-seed1-"),
        (OTHER, "logreg-Adam-HD-lr0.001-beta0.02-multiplicative-seed2-"),
        (Config(optimizer="AdamWHD"), "logreg-AdamW-HD-other-seed1-"),
        (Config(optimizer="SGD(lr=0.1)", model="package.models:make"), "package.models.make-SGD-lr0.1-seed1-"),
    ],
    ids=["additive", "multiplicative", "tuning-free", "baseline"],
)
def test_labels(config: Config, label: str) -> None:
    assert base.label(config) == label + config.name[:6]
