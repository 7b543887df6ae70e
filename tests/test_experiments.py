"""The poster's experiments as commands, in small: the grids, the tables and the figures they write."""

import csv
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hypergradient.lab.experiments.curves import data_of, sensitivity, tuning
from hypergradient.lab.experiments.heatmap import COLUMNS, Row, cells, figure, grid, write_csv
from hypergradient.lab.experiments.plots import by_optimizer, curves
from hypergradient.lab.runs import data
from hypergradient.lab.runs.config import Config
from hypergradient.lab.runs.store import Folder, History
from test_cli import call


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_heatmap_grid() -> None:
    configs = grid(Config(threshold=0.29, iterations=10), 2)
    assert len(configs) == len(set(configs)) == 2 * 3 * (6 + 36)
    assert {c.seed for c in configs} == {1, 2}
    assert {c.hypergrad_lr for c in configs if not c.adapts} == {None}
    hd = {(c.lr, c.hypergrad_lr) for c in configs if c.optimizer == "adam-hd"}
    assert hd == {(10.0**i, 10.0**j) for i in range(-6, 0) for j in range(-6, 0)}


def test_sensitivity_grid() -> None:
    configs = sensitivity(Config(), data_of("logreg,mlp", "digits"), 1e-4, 1)
    assert len(configs) == len(set(configs)) == 2 * 2 * 3 * 6
    assert {(c.optimizer, c.rule, c.hypergrad_lr) for c in configs} == {
        (family + suffix, rule, beta)
        for family in ("sgd", "adam")
        for suffix, rule, beta in (("", "additive", None), ("-hd", "additive", 1e-4), ("-hd", "multiplicative", 1e-4))
    }


def test_tuning_grid() -> None:
    found = {(c.model, c.optimizer): (c.lr, c.hypergrad_lr, c.epochs) for c in tuning(Config(), data_of("logreg,mlp,vgg16", None), None, 1)}
    assert len(found) == 18
    assert found["vgg16", "sgdn"] == (1e-3, None, 200)
    assert found["logreg", "sgdn-hd"] == (1e-3, 1e-3, 20)
    assert found["mlp", "adam-hd"] == (1e-3, 1e-8, 100)
    assert found["mlp", "sgd"] == (1e-3, None, 100)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(None, {"mlp": "ylecun/mnist", "vgg16": "uoft-cs/cifar10"}, id="paper"),
        pytest.param("x", {"mlp": "x", "vgg16": "x"}, id="one"),
        pytest.param("x,vgg16=y", {"mlp": "x", "vgg16": "y"}, id="one-and-another"),
        pytest.param("mlp=x", {"mlp": "x", "vgg16": "uoft-cs/cifar10"}, id="one-of-two"),
    ],
)
def test_data_of(data: str | None, expected: dict) -> None:
    assert data_of("mlp,vgg16", data) == expected


TABLE = [
    Row("sgd", 0.1, None, seed, iterations, "reached" if iterations else "cap") for seed, iterations in ((1, 10), (2, 30), (3, None))
] + [Row("sgd-hd", 0.1, 1e-3, seed, None, "diverged" if seed == 1 else "cap") for seed in (1, 2, 3)]


def test_cells_are_medians_over_seeds() -> None:
    assert cells(TABLE, "sgd") == {(0.1, None): 30}
    assert cells(TABLE, "sgd-hd") == {(0.1, 1e-3): math.inf}


def test_heatmap_csv(tmp_path: Path) -> None:
    with write_csv(Folder(tmp_path), TABLE).open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(COLUMNS) == ["method", "alpha_0", "beta", "seed", "iterations", "status"]
    assert rows[1] == ["sgd", "0.1", "", "1", "10", "reached"]
    assert rows[4] == ["sgd-hd", "0.1", "0.001", "1", "", "diverged"]


def test_heatmap_command(monkeypatch, capfd, tmp_path: Path) -> None:
    words = ["heatmap", "--data", "digits", "--cap", "40", "--threshold", "1.5", "--output", "h", "--json"]
    assert call(monkeypatch, *words) == 0
    first = capfd.readouterr().out
    assert call(monkeypatch, *words) == 0  # nothing is run again
    assert capfd.readouterr().out == first
    found = json.loads(first)
    assert len(found["runs"]) == 126
    assert (tmp_path / "h/heatmap.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "h/heatmap.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["iterations"] != "" for row in rows) == sum(run["status"] == "reached" for run in found["runs"])
    by_beta = {row["iterations"] for row in rows if row["method"] == "sgdn-hd" and row["beta"] == "0.1" and float(row["alpha_0"]) < 1e-3}
    assert len(by_beta) == 1
    assert by_beta != {""}


def test_heatmap_figure_outlines_where_hd_is_worse() -> None:
    base = Config(threshold=0.29, iterations=100)
    table = [
        Row(c.optimizer, c.lr, c.hypergrad_lr, 1, 50 if c.hypergrad_lr == 0.1 and c.lr == 0.1 else 20, "reached") for c in grid(base, 1)
    ]
    panels = [axis for axis in figure(table, base).axes if axis.get_title()]
    assert [len(axis.texts) for axis in panels] == [6, 6, 6, 36, 36, 36]
    assert [len(axis.lines) for axis in panels] == [0, 0, 0, 4, 4, 4]  # one cell, four sides


def test_runs_that_diverged_leave_the_frame_of_the_others() -> None:
    def run(optimizer: str, losses: list[float], alpha: float) -> tuple[Config, History]:
        history = History()
        for n, loss in enumerate(losses, start=1):
            for table in (history.iterations, history.epochs):
                row = {"iteration": n, "epoch": n, "h": None, "loss": loss, "train_loss": loss, "valid_loss": loss, "alpha": alpha}
                for name in table:
                    table[name].append(row.get(name))
        return Config(optimizer=optimizer), history

    steady, wild = run("sgd", [2.0, 1.0, 0.5], 0.1), run("sgd-hd", [2.0, 1e9, math.nan], 1e9)
    figures = [curves(runs, column=lambda _: "", look=by_optimizer) for runs in ([steady], [steady, wild])]
    for alone, both in zip(figures[0].axes, figures[1].axes, strict=True):
        frames = [axis.get_ylim() for axis in (alone, both, *alone.child_axes, *both.child_axes)]
        assert frames[1] == pytest.approx(frames[0], rel=0.1)
        assert frames[3:] == [pytest.approx(frame, rel=0.1) for frame in frames[2:3]]


@pytest.mark.parametrize(
    ("words", "name", "runs"),
    [
        pytest.param("sensitivity --model logreg --epochs 2", "sensitivity", 36, id="sensitivity"),
        pytest.param("tuning --model logreg --epochs 2 --seeds 2", "tuning", 12, id="tuning"),
    ],
)
def test_curves_command(monkeypatch, capfd, tmp_path: Path, words: str, name: str, runs: int) -> None:
    assert call(monkeypatch, *words.split(), "--data", "digits", "--output", "c", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert len(found["runs"]) == runs
    table = pq.read_table(tmp_path / "c/epochs.parquet").to_pandas()
    assert len(table) == 2 * runs
    assert table.groupby(["optimizer", "rule", "lr", "seed"], dropna=False).size().eq(2).all()
    assert (tmp_path / f"c/{name}.pdf").read_bytes().startswith(b"%PDF")
    assert b"<svg" in (tmp_path / f"c/{name}.svg").read_bytes()[:500]


def test_two_data_sets_in_one_figure(monkeypatch, capfd, tmp_path: Path) -> None:
    twin = data.digits
    monkeypatch.setattr(data, "hugging_face", lambda name: twin())
    words = ["tuning", "--model", "logreg,cnn", "--data", "digits,cnn=other/digits", "--limit", "200", "--epochs", "1", "--json"]
    assert call(monkeypatch, *words) == 0
    found = json.loads(capfd.readouterr().out)
    assert [(run["model"], run["data"]) for run in found["runs"]] == [("logreg", "digits")] * 6 + [("cnn", "other/digits")] * 6


GRID = """
data = "digits"
optimizer = ["sgd", "sgd-hd", "adam-hd"]
lr = [0.001, 1]
hypergrad-lr = [1e-3, 1e-4]
seed = [1, 2]
epochs = 1
"""


def test_sweep_command(monkeypatch, capfd, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    assert call(monkeypatch, "sweep", "grid.toml", "--output", "s", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    with (tmp_path / "s/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = [(row["optimizer"], float(row["lr"]), row["hypergrad_lr"], row["seed"]) for row in rows]
    assert len(keys) == len(set(keys)) == len(found["runs"]) == 2 * 2 + 2 * 2 * 2 * 2
    assert {key[2] for key in keys if key[0] == "sgd"} == {""}
    assert all(row["status"] in ("finished", "diverged") for row in rows)
    assert float(rows[0]["valid_loss"]) == found["runs"][0]["valid_loss"]


def test_options_stand_instead_of_the_grids(monkeypatch, capfd, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    words = "sweep grid.toml --data digits --model cnn --epochs 2 --seeds 3 --limit 128 --device cpu --json"
    assert call(monkeypatch, *words.split()) == 0
    runs = json.loads(capfd.readouterr().out)["runs"]
    assert {run["seed"] for run in runs} == {1, 2, 3}
    assert {(run["model"], run["epochs"], run["limit"], run["iterations"]) for run in runs if run["status"] == "finished"} == {
        ("cnn", 2, 128, 2)
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("lr = ", "grid.toml cannot be read as TOML", id="not-toml"),
        pytest.param("speed = [1]", "there is no option speed; options are data, model, optimizer", id="unknown-key"),
        pytest.param("lr = []", "lr has no values, so the grid is empty", id="empty-axis"),
        pytest.param('lr = ["big"]', "lr takes float values, got 'big'", id="wrong-type"),
        pytest.param("epochs = [1.5]", "epochs takes int values, got 1.5", id="fraction"),
        pytest.param("model = [true]", "model takes str values, got True", id="boolean"),
        pytest.param("lr = [-1]", "--lr must be a finite number >= 0, got -1", id="range"),
        pytest.param('data = ["digits", "x"]', "--data x: there is no such folder", id="data"),
    ],
)
def test_bad_grid_is_one_line(monkeypatch, capfd, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "grid.toml").write_text(text)
    assert call(monkeypatch, "sweep", "grid.toml") == 2
    err = capfd.readouterr().err
    assert err.splitlines() == [err.strip()]
    assert message in err
    assert [file.name for file in tmp_path.iterdir()] == ["grid.toml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param("sweep nowhere.toml", "nowhere.toml cannot be read as TOML", id="no-grid"),
        pytest.param(
            "tuning --data digits --model logreg,tree",
            "--model must be one of logreg, mlp, cnn, cnn-bn, vgg16, transformer, linear, package",
            id="model",
        ),
        pytest.param("tuning --data a,b", "--data a,b: b is one data set too many", id="two-data-sets"),
        pytest.param("tuning --data tree=a", "tree=a is for no model of --model logreg,mlp,vgg16", id="data-of-no-model"),
        pytest.param("tuning --data digits", "--model vgg16 needs images of at least 32x32", id="small-images"),
        pytest.param("heatmap --data digits --address auto", "--address has no meaning for --engine auto", id="address"),
        pytest.param(
            "heatmap --data digits --engine batched --model cnn", "--engine batched takes the models logreg, mlp on labels", id="stack"
        ),
        pytest.param("sensitivity --data digits --seeds 0", "--seeds must be at least 1, got 0", id="seeds"),
        pytest.param("heatmap --data digits --engine magic", "--engine must be one of auto, batched, sequential, ray", id="engine"),
        pytest.param("heatmap --data digits --cap 0", "--cap must be at least 1, got 0", id="cap"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capfd, tmp_path: Path, words: str, message: str) -> None:
    assert call(monkeypatch, *words.split()) == 2
    err = capfd.readouterr().err
    assert err.splitlines() == [err.strip()]
    assert message in err
    assert list(tmp_path.iterdir()) == []
