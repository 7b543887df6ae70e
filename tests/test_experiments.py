"""The poster's experiments as commands, in small: the grids, the tables and the figures they write."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hypergradient.lab.experiments import charts, flat, plots
from hypergradient.lab.experiments.curves import data_of, sensitivity, tuning, write_sweep
from hypergradient.lab.experiments.heatmap import grid, maps, write
from hypergradient.lab.experiments.run import Run, run_of
from hypergradient.lab.runs import data
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.engine import Summary
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.sweeps.sweep import sweep
from test_cli import call
from test_report import GRID as SEEDED
from test_report import history


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_heatmap_grid() -> None:
    configs = grid(Config(threshold=0.29, iterations=10), 2)
    assert len(configs) == len(set(configs)) == 2 * 3 * (6 + 36)
    assert {c.seed for c in configs} == {1, 2}
    assert {c.call.beta for c in configs if not c.call.adapts} == {None}
    hd = {(c.call.options["lr"], c.call.beta) for c in configs if c.call.title == "Adam-HD"}
    assert hd == {(10.0**i, 10.0**j) for i in range(-6, 0) for j in range(-6, 0)}


def test_sensitivity_grid() -> None:
    configs = sensitivity(Config(), data_of("logreg,mlp", "digits"), 1e-4, 1)
    assert len(configs) == len(set(configs)) == 2 * 2 * 3 * 6
    assert {(c.call.title, c.call.style, c.call.beta) for c in configs} == {
        (family + suffix, style, beta)
        for family in ("SGD", "Adam")
        for suffix, style, beta in (("", "baseline", None), ("-HD", "additive", 1e-4), ("-HD", "multiplicative", 1e-4))
    }


def test_tuning_grid() -> None:
    found = {
        (c.model, c.call.title): (c.call.options["lr"], c.call.beta, c.epochs)
        for c in tuning(Config(), data_of("logreg,mlp,vgg16", None), None, 1)
    }
    assert len(found) == 18
    assert found["vgg16", "SGDN"] == (1e-3, None, 200)
    assert found["logreg", "SGDN-HD"] == (1e-3, 1e-3, 20)
    assert found["mlp", "Adam-HD"] == (1e-3, 1e-8, 100)
    assert found["mlp", "SGD"] == (1e-3, None, 100)


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


def ended(config: Config, iterations: int | None, status: str | None = None) -> Summary:
    return Summary(
        "logreg", config.call.title, status or ("reached" if iterations else "cap"), iterations or 99, 1, 0.1, 1.0, None, None, 0.1
    )


PLAIN, ADAPTING = (Config(optimizer=paper(title, 0.1), threshold=0.29, iterations=100) for title in ("SGD", "SGD-HD"))
TABLE = [(replace(PLAIN, seed=seed), ended(PLAIN, iterations)) for seed, iterations in ((1, 10), (2, 30), (3, None))]
TABLE += [(replace(ADAPTING, seed=seed), ended(ADAPTING, None, "diverged" if seed == 1 else None)) for seed in (1, 2, 3)]


def test_cells_are_medians_over_seeds() -> None:
    found = maps([run_of(config.as_dict(), None, summary.as_dict()) for config, summary in TABLE])
    (_, (plain,)), (_, (adapting,)) = found.rows
    assert plain.cells == {(0.1, None): 30}
    assert adapting.cells == {(0.1, 1e-3): math.inf}
    assert (found.beyond, adapting.worse) == (("> 100", "not reached"), {(0.1, 1e-3)})


def test_heatmap_csv(tmp_path: Path) -> None:
    write(Folder(tmp_path), *zip(*TABLE, strict=True))
    with (tmp_path / "heatmap.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["method", "alpha_0", "beta", "seed", "iterations", "status"]
    assert rows[1] == ["SGD", "0.1", "", "1", "10", "reached"]
    assert rows[4] == ["SGD-HD", "0.1", "0.001", "1", "", "diverged"]


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
    by_beta = {row["iterations"] for row in rows if row["method"] == "SGDN-HD" and row["beta"] == "0.1" and float(row["alpha_0"]) < 1e-3}
    assert len(by_beta) == 1
    assert by_beta != {""}


def test_heatmap_figure_outlines_where_hd_is_worse() -> None:
    base = Config(threshold=0.29, iterations=100)
    runs = [run_of(c.as_dict(), None, ended(c, 50 if c.call.beta == c.call.options["lr"] == 0.1 else 20).as_dict()) for c in grid(base, 1)]
    panels = [axis for axis in plots.maps(maps(runs)).axes if axis.get_title()]
    assert [len(axis.texts) for axis in panels] == [6, 6, 6, 36, 36, 36]
    assert [len(axis.lines) for axis in panels] == [0, 0, 0, 4, 4, 4]  # one cell, four sides


def test_runs_that_diverged_leave_the_frame_of_the_others(tmp_path: Path) -> None:
    def run(title: str, losses: list[float], alpha: float, status: str) -> Run:
        return run_of(Config(optimizer=paper(title)).as_dict(), history(tmp_path / title, losses, [alpha] * 3), {"status": status})

    steady, wild = run("SGD", [2.0, 1.0, 0.5], 0.1, "finished"), run("SGD-HD", [2.0, 1e9, math.nan], 1e9, "diverged")
    figures = [plots.curves(charts.curves("tuning", runs, 100, 100)) for runs in ([steady], [steady, wild])]
    for alone, both in zip(figures[0].axes[1:], figures[1].axes[1:], strict=True):  # α is one value, which has no frame
        frames = [axis.get_ylim() for axis in (alone, both, *alone.child_axes, *both.child_axes)]
        assert frames[1] == pytest.approx(frames[0], rel=0.1)
        assert frames[3:] == [pytest.approx(frame, rel=0.1) for frame in frames[2:3]]


def test_sweep_figures(tmp_path: Path) -> None:
    summaries = sweep(SEEDED, data.load("digits"), tmp_path)
    files = {file.name for file in write_sweep(Folder(tmp_path), SEEDED, summaries)}
    assert files == {"sweep.csv", *(f"{name}.{kind}" for name in ("sweep", "sweep-lr") for kind in plots.KINDS)}
    alone = write_sweep(Folder(tmp_path), SEEDED[:2], summaries[:2])
    assert not [file for file in alone if "lr" in file.name]


def test_flat_figure(tmp_path: Path) -> None:
    base = Config(model="mlp", hidden=flat.HIDDEN)

    def run(optimizer: str, seed: int, loss: float, alpha: float, status: str = "finished") -> Run:
        config = replace(base, optimizer=optimizer, seed=seed)
        ended = {"status": status, "train_loss": loss / 2, "valid_loss": loss, "valid_accuracy": 0.5, "alpha": alpha}
        return run_of(config.as_dict(), history(tmp_path / config.name, [1.0, loss], [alpha / 2, alpha]), ended)

    runs = [run(paper("Adam", lr), seed, loss + seed, lr) for lr, loss in ((1e-3, 1), (1.0, 2)) for seed in (1, 2, 3)]
    runs += [run(paper("Adam", 1e3), seed, 1e9, 1e3, "diverged") for seed in (1, 2, 3)]
    runs += [run("AdamHD(lr=1.0)", 1, 2.5, 0.2), run("AdamHD(lr=0.001)", 1, 2.0, 0.4), run("AdamHD()", 1, 2.0, 0.1)]
    others = [
        replace(base, hidden=1000, optimizer=paper("Adam")),
        replace(base, optimizer=paper("Adam-HD")),
        replace(base, optimizer="Rprop()"),
    ]
    runs += [run_of(config.as_dict(), None, {"status": "finished", "valid_loss": 0.1}) for config in others]
    losses, alphas = flat.losses(runs), flat.alphas(runs)
    assert losses is not None
    assert [(own.chips[0], own.level, own.values["valid_loss"].tolist()) for own in losses.lines] == [
        (flat.FIXED["Adam"], False, [3, 4, math.inf]),
        (flat.GIVEN, False, [2, 2.5]),
        (flat.NONE, True, [2, 2, 2]),
    ]
    assert [[own.values[name].tolist() for name in ("step", "alpha")] for own in alphas.lines] == [
        [[0, 1, 2], [1, 0.1, 0.2]],
        [[0, 1, 2], [0.001, 0.2, 0.4]],
        [[1, 2], [0.05, 0.1]],
    ]
    assert flat.verdict(runs).splitlines()[0] == (
        "Validation loss from 3 learning rates, median of 3 seeds: Adam 3 (at 0.001) to diverged, "
        "AdamHD from each learning rate 2 to 2.5, AdamHD without one 2."
    )
    assert flat.verdict(runs[:3]) == ""
    axes = plots.narrow([losses, alphas]).axes
    assert [axis.get_title() for axis in axes] == ["Training loss", "Validation loss", "Learning rate α of AdamHD"]
    assert [[[*own.get_xdata()] for own in axis.lines if own.get_marker() == "x" and len(own.get_xdata())] for axis in axes] == [
        [[1e3]],
        [[1e3]],
        [],
    ]
    (path, *_, table) = flat.write(Folder(tmp_path), runs)
    assert (path.name, len(table.read_text().splitlines())) == ("flat.png", 1 + 12)


def test_bands_of_seeds_are_drawn(tmp_path: Path) -> None:
    runs = [
        run_of(replace(PLAIN, seed=seed).as_dict(), history(tmp_path / str(seed), [2.0, seed, 0.5], [0.1] * 3), {"status": "finished"})
        for seed in (1, 2, 3)
    ]
    axis = plots.curves(charts.curves("sweep", runs, 100, 100)).axes[1]
    assert [[*line.get_ydata()] for line in axis.lines] == [[2.0, 2.0, 0.5]]
    assert len(axis.collections) == 1
    heights = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert {*heights} == {2.0, 1.0, 3.0, 0.5}


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
    assert table.groupby(["optimizer", "rule", "lr", "hypergrad_lr", "seed"], dropna=False).size().eq(2).all()
    assert (tmp_path / f"c/{name}.pdf").read_bytes().startswith(b"%PDF")
    assert b"<svg" in (tmp_path / f"c/{name}.svg").read_bytes()[:500]


def test_two_data_sets_in_one_figure(monkeypatch, capfd, tmp_path: Path) -> None:
    twin = data.digits
    monkeypatch.setattr(data, "read_hub", lambda name: twin())
    words = ["tuning", "--model", "logreg,cnn", "--data", "digits,cnn=other/digits", "--limit", "200", "--epochs", "1", "--json"]
    assert call(monkeypatch, *words) == 0
    found = json.loads(capfd.readouterr().out)
    assert [(run["model"], run["data"]) for run in found["runs"]] == [("logreg", "digits")] * 6 + [("cnn", "other/digits")] * 6


GRID = """
data = "digits"
optimizer = ["SGD(lr=[0.001, 1])", "SGDHD(lr=[0.001, 1], hypergrad_lr=[1e-3, 1e-4])", "AdamHD(lr=[0.001, 1], hypergrad_lr=[1e-3, 1e-4])"]
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
    assert {key[2] for key in keys if key[0] == "SGD"} == {""}
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
        pytest.param("speed = [1]", "unknown option speed; the options are data, model, optimizer", id="unknown-key"),
        pytest.param("seed = []", "seed is an empty list, so the grid is empty", id="empty-axis"),
        pytest.param('seed = ["big"]', "--seed: input should be a valid integer", id="wrong-type"),
        pytest.param("epochs = [1.5]", "--epochs: input should be a valid integer, got a number with a fractional part", id="fraction"),
        pytest.param("model = [true]", "model takes numbers, strings, and lists of them, got True", id="boolean"),
        pytest.param("optimizer = 'SGDHD(lr=[-1])'", "lr must be a finite number >= 0, got -1", id="range"),
        pytest.param('data = ["digits", "x"]', "--data x: no such folder", id="data"),
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
        pytest.param("heatmap --data digits --address auto", "--address is only for --engine ray, got --engine auto", id="address"),
        pytest.param(
            "heatmap --data digits --engine batched --model cnn", "--engine batched needs a model of logreg, mlp on labels", id="stack"
        ),
        pytest.param("sensitivity --data digits --seeds 0", "--seeds: input should be greater than or equal to 1, got '0'", id="seeds"),
        pytest.param(
            "heatmap --data digits --engine magic",
            "--engine: input should be 'auto', 'batched', 'sequential' or 'ray'",
            id="engine",
        ),
        pytest.param("heatmap --data digits --cap 0", "--cap: input should be greater than or equal to 1, got '0'", id="cap"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capfd, tmp_path: Path, words: str, message: str) -> None:
    assert call(monkeypatch, *words.split()) == 2
    err = capfd.readouterr().err
    assert err.splitlines() == [err.strip()]
    assert message in err
    assert list(tmp_path.iterdir()) == []
