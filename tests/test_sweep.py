"""Sweeps: engines agree, finished runs stay finished, and a sweep that was killed ends as if it had not been."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.sweeps.sweep import folder_of, sweep
from kills import kill_often

GRID = [Config(optimizer=paper("SGD-HD", lr, beta), epochs=40, threshold=0.25) for lr in (1e-3, 1e-1, 1e20) for beta in (1e-4, 1e-2)]


def histories(root: Path, configs: list[Config]) -> list[dict]:
    return [pq.read_table(folder_of(root, c).path / f"{t}.parquet").to_pydict() for c in configs for t in ("history", "epochs")]


def test_engines_agree(tmp_path: Path) -> None:
    data = load("digits")
    one = sweep(GRID, data, tmp_path / "one", engine="sequential")
    other = sweep(GRID, data, tmp_path / "other", engine="batched")
    assert [s.status for s in one] == [s.status for s in other]
    assert {s.status for s in one} == {"reached", "diverged", "finished"}
    assert [s.iterations for s in one] == pytest.approx([s.iterations for s in other], abs=1)
    assert [s.alpha for s in one[:4]] == pytest.approx([s.alpha for s in other[:4]], rel=1e-3)


def test_ends_at_the_cap_and_validates_without_threshold(tmp_path: Path) -> None:
    configs = [replace(c, threshold=None, iterations=30, limit=500) for c in GRID[:4]]
    summaries = sweep(configs, load("digits"), tmp_path, engine="batched")
    assert [(s.status, s.iterations, s.epochs) for s in summaries] == [("cap", 30, 7)] * 4
    assert all(0 < s.valid_loss < 3 for s in summaries if s.valid_loss)
    alone = sweep(configs[:1], load("digits"), tmp_path / "alone")
    assert alone[0].valid_loss == pytest.approx(summaries[0].valid_loss, rel=1e-4)


def test_finished_runs_are_not_run_again(tmp_path: Path) -> None:
    data = load("digits")
    configs = [replace(c, threshold=None, iterations=20) for c in GRID[:4]]
    sweep(configs[:2], data, tmp_path)
    times = [(folder_of(tmp_path, c).path / "status.json").stat().st_mtime_ns for c in configs[:2]]
    sweep(configs, data, tmp_path)
    assert [(folder_of(tmp_path, c).path / "status.json").stat().st_mtime_ns for c in configs[:2]] == times
    assert len(list((tmp_path / "runs").iterdir())) == 4


def run(root: Path) -> None:
    with Folder(root).lock():
        sweep(GRID, load("digits"), root, engine="batched", every=0.02)


def test_killed_sweep_equals_never_killed(tmp_path: Path) -> None:
    whole = sweep(GRID, load("digits"), tmp_path / "whole", engine="batched")
    kill_often(run, tmp_path / "killed", 5)
    with Folder(tmp_path / "killed").lock():
        resumed = sweep(GRID, load("digits"), tmp_path / "killed", engine="batched")
    assert histories(tmp_path / "killed", GRID) == histories(tmp_path / "whole", GRID)
    assert [replace(s, seconds=0) for s in resumed] == [replace(s, seconds=0) for s in whole]
    assert list((tmp_path / "killed" / "unfinished").iterdir()) == []


@pytest.mark.parametrize(
    ("configs", "engine", "message"),
    [
        pytest.param([], "auto", "the grid is empty", id="empty"),
        pytest.param(GRID, "magic", "--engine must be one of auto, batched, sequential, ray, got 'magic'", id="engine"),
    ],
)
def test_refuses(tmp_path: Path, configs: list, engine: str, message: str) -> None:
    with pytest.raises(LabError, match=message):
        sweep(configs, load("digits"), tmp_path, engine=engine)


def test_damaged_summary_is_named(tmp_path: Path) -> None:
    configs = [replace(GRID[0], threshold=None, iterations=3)]
    sweep(configs, load("digits"), tmp_path)
    (folder_of(tmp_path, configs[0]).path / "status.json").write_text(json.dumps({"status": "odd"}))
    with pytest.raises(LabError, match=r"status.json cannot be read .*remove its folder"):
        sweep(configs, load("digits"), tmp_path)
