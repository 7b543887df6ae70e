"""Towers of adaptation: their calls, their grid, what is written of them, and a sweep of them that is killed."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hypergradient import Adapted, Additive, Multiplicative
from hypergradient.lab.errors import LabError
from hypergradient.lab.experiments import plots, tower
from hypergradient.lab.experiments.run import Run, run_of
from hypergradient.lab.pages import report
from hypergradient.lab.pages.figures import figures_of
from hypergradient.lab.runs.calls import parse
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.engine import Summary
from hypergradient.lab.runs.optimizers import make
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.sweeps.sweep import sweep
from kills import kill_often
from test_cli import call
from test_report import page_of
from test_sweep import histories


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("height", "level", "above", "rule"),
    [
        pytest.param(1, "additive", None, Additive(1e-3), id="1"),
        pytest.param(2, "additive", None, Additive(Adapted(1e-3, Additive(1e-3))), id="2"),
        pytest.param(2, "additive", 1e-9, Additive(Adapted(1e-3, Additive(1e-9))), id="2-given"),
        pytest.param(
            3, "multiplicative", 0.02, Additive(Adapted(1e-3, Multiplicative(Adapted(0.02, Multiplicative(0.02))))), id="3-multiplicative"
        ),
        pytest.param(
            4, "additive", 0.5, Additive(Adapted(1e-3, Additive(Adapted(0.5, Additive(Adapted(0.5, Additive(0.5))))))), id="4-additive"
        ),
    ],
)
def test_rule_of_a_height(height: int, level: str, above: float | None, rule: Any) -> None:
    found = parse(tower.tower_of("SGDN-HD", height, 0.1, 1e-3, level, above))
    assert make(found, torch.nn.Linear(1, 1)).setup.rule == rule
    first = above or 1e-3
    assert tower.levels_of(found) == ((height, level, first) if height > 1 else (1, "", None))
    assert (found.title, found.beta, found.options["lr"]) == ("SGDN-HD", 1e-3, 0.1)


def test_height_0_does_not_adapt() -> None:
    found = parse(tower.tower_of("Adam-HD", 0, 0.1, 1e-3, "additive", None))
    assert str(found) == paper("Adam", 0.1)
    assert tower.levels_of(found) == (0, "", None)


def test_the_highest_tower() -> None:
    config = tower.grid(Config(), "SGD-HD", "100", "0.1", "1e-3", "multiplicative", None)[0]
    assert tower.levels_of(config.call) == (100, "multiplicative", 0.02)


def test_grid() -> None:
    configs = tower.grid(Config("digits"), "SGDN-HD", None, None, None, "both", None, 2)
    assert len(configs) == len(set(configs)) == 2 * (6 + 30 + 3 * 2 * 30)
    assert {(c.call.title, *tower.levels_of(c.call)) for c in configs if c.call.beta == 1e-4} == {
        ("SGDN-HD", 1, "", None),
        *(("SGDN-HD", height, "additive", 1e-4) for height in (2, 3, 4)),
        *(("SGDN-HD", height, "multiplicative", 0.02) for height in (2, 3, 4)),
    }
    assert {c.call.title for c in configs if not c.call.adapts} == {"SGDN"}
    chosen = tower.grid(Config(), "Adam-HD", "3,2", "0.1", "1e-8,1e-9", "both", "additive=1e-20,multiplicative=0.5")
    assert [(*tower.levels_of(c.call), c.call.beta) for c in chosen] == [
        (height, level, beta, own)
        for height in (2, 3)
        for level, beta in (("additive", 1e-20), ("multiplicative", 0.5))
        for own in (1e-9, 1e-8)
    ]


WORDS = "tower --data digits --limit 256 --epochs 2 --batch-size 64 --lr 1e-3,0.1,1e30 --hypergrad-lr 1e-4,1e-2 --heights 0,1,3 --output t"


def test_command(monkeypatch, capfd, tmp_path: Path) -> None:
    assert call(monkeypatch, *WORDS.split(), "--seeds", "2", "--json") == 0
    first = capfd.readouterr().out
    assert call(monkeypatch, *WORDS.split(), "--seeds", "2", "--json") == 0  # nothing is run again
    assert capfd.readouterr().out == first
    found = json.loads(first)
    assert len(found["runs"]) == 2 * (3 + 6 + 12)
    assert all((tmp_path / file).exists() for file in found["files"])
    for name in ("tower", "tower-lr"):
        assert (tmp_path / f"t/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"t/{name}.pdf").read_bytes().startswith(b"%PDF")
    with (tmp_path / "t/tower.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["height", "level", "lr", "hypergrad_lr", "level_lr", "seed", "status", "train_loss", "valid_loss", "alpha"]
    assert len(rows) == len(found["runs"])
    assert rows[0] | {"train_loss": "", "valid_loss": "", "alpha": ""} == {
        "height": "0",
        "level": "",
        "lr": "0.001",
        "hypergrad_lr": "",
        "level_lr": "",
        "seed": "1",
        "status": "finished",
        "train_loss": "",
        "valid_loss": "",
        "alpha": "",
    }
    assert [row["status"] for row in rows] == [run["status"] for run in found["runs"]]
    assert {row["status"] for row in rows if row["lr"] == "1e+30"} == {"diverged"}
    assert {row["level"] for row in rows if row["height"] == "3"} == {"additive", "multiplicative"}
    page = page_of(tmp_path / "t")
    assert all(text in page for text in ("Towers of hypergradients", "Runs finished: 42 of 42,", "height 3", "<th", "Adapted"))


def test_closing_words(monkeypatch, capfd) -> None:
    assert call(monkeypatch, *WORDS.split(), "--level", "multiplicative") == 0
    out = capfd.readouterr().out.split("\n")
    assert "within 1.1 × the best of height 0" in out[1]
    lines = [line.split() for line in out if "multiplicative" in line]
    assert [line[1] for line in lines] == ["0", "1", "3"]
    assert {line[4] for line in lines} == {"6"}  # cells, of height 0 too
    assert [line[-1] for line in lines] == ["2", "2", "2"]  # α0 = 1e30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param("--heights 0,x", "--heights takes comma-separated integers >= 0, such as 0,1,2,3,4; got '0,x'", id="heights"),
        pytest.param("--heights -1", "--heights takes comma-separated integers >= 0", id="negative-height"),
        pytest.param("--lr 0", "--lr takes comma-separated numbers > 0, such as 1e-05,", id="lr"),
        pytest.param("--hypergrad-lr ,", "--hypergrad-lr takes comma-separated numbers > 0", id="beta"),
        pytest.param("--heights 101", "--heights must be at most 100, got 101", id="too-high"),
        pytest.param("--level up", "--level", id="level"),
        pytest.param("--level-lr up=1", "--level-lr takes a number, or additive=NUMBER,multiplicative=NUMBER, got 'up=1'", id="level-lr"),
        pytest.param("--optimizer SGD", "--optimizer must be one of SGD-HD, SGDN-HD, Adam-HD, got 'SGD'", id="baseline"),
        pytest.param("--level-lr -1", "Additive", id="negative"),
        pytest.param("--level multiplicative --hypergrad-lr 1e-3 --level-lr 0", "Multiplicative", id="factor-of-0"),
        pytest.param("--seeds 0", "--seeds: input should be greater than or equal to 1, got '0'", id="seeds"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capfd, tmp_path: Path, words: str, message: str) -> None:
    assert call(monkeypatch, "tower", "--data", "digits", *words.split()) == 2
    err = capfd.readouterr().err
    assert err.splitlines() == [err.strip()]
    assert message in err
    assert list(tmp_path.iterdir()) == []


def made() -> list[Run]:
    """Heights 0 to 2, two seeds, losses of 1 at height 0 and 0.5 above, where α_0 = 1 with β = 0.01 diverges at height 2."""
    runs = []
    for config in CONFIGS:
        wild = tower.levels_of(config.call)[0] == 2 and (config.call.options["lr"], config.call.beta) == (1, 0.01)
        loss, status = 0.5 if config.call.adapts else 1.0, "diverged" if wild else "finished"
        summary = Summary("logreg", config.call.title, status, 9, 3, 0.1, loss, loss, 0.9, 1.0)
        runs.append(run_of(config.as_dict(), Path(), summary.as_dict()))
    return runs


CONFIGS = tower.grid(Config("digits"), "SGD-HD", "0,1,2", "0.1,1", "0.01,0.1,0.001", "both", None, 2)


def test_cells_are_medians_and_what_diverged_is_infinite() -> None:
    found = tower.towers(made())
    assert (found.levels, found.heights, found.lrs, found.betas) == (
        ["additive", "multiplicative"],
        [0, 1, 2],
        [0.1, 1],
        [0.001, 0.01, 0.1],
    )
    assert {len(panel.cells) for panel in found.panels.values()} == {6}
    assert {*found.panels["additive", 0].cells.values()} == {1.0}
    assert found.panels["multiplicative", 2].cells[1, 0.01] == math.inf
    assert (found.best, found.middle, found.ends) == (1.0, 0.01, (0.5, 1.0))
    assert [found.close("additive", height) for height in found.heights] == [6, 6, 5]


def test_figures() -> None:
    maps = plots.maps(tower.maps(made()))
    panels = [axis for axis in maps.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == ["height 0 (SGD): 6/6", "height 1 (SGD-HD): 6/6", "height 2: 5/6"] * 2
    assert [[text.get_text() for text in axis.texts].count("–") for axis in panels] == [0, 0, 1] * 2
    assert [text.get_text() for text in maps.legends[0].get_texts()] == ["–: diverged"]
    for axis in plots.lines(tower.lines(made())).axes:
        drawn = [[*line.get_ydata()] for line in axis.lines if line.get_marker() == "o"]
        assert drawn == [[1.0, 1.0], [0.5, 0.5], [0.5, pytest.approx(math.nan, nan_ok=True)]]
        assert [[*line.get_xdata()] for line in axis.lines if line.get_marker() == "x"] == [[], [], [1]]


def test_figures_of_the_report() -> None:
    runs = made()
    runs[0] = replace(runs[0], summary={})  # one is unfinished
    (lines, *maps), legend = figures_of("tower", runs)
    assert [(run["values"]["additive"], run["labels"]) for run in lines["runs"]] == [
        ([1.0, 1.0], ["height 0 (SGD)"]),
        ([0.5, 0.5], ["height 1 (SGD-HD)"]),
        ([0.5, None], ["height 2"]),
    ]
    multiplicative, additive = maps[2]["panels"]
    assert (multiplicative["title"], additive["title"]) == ("multiplicative levels, height 2: 5/6", "additive levels, height 2: 5/6")
    assert additive["texts"] == [["0.50", "0.50"], ["0.50", "–"], ["0.50", "0.50"]]
    assert maps[2]["lrs"] == ["10<sup>-1</sup>", "10<sup>0</sup>"]
    hover = multiplicative["hover"][0][0]
    assert "α₀ = 0.1<br>rule = Additive(Adapted(0.001, Multiplicative(0.02)))<br>seed = 1, finished, iterations 9, train loss 0.5" in hover
    assert "β" not in maps[0]["panels"][0]["hover"][0][0]
    assert "seed = 1, unfinished" in maps[0]["panels"][0]["hover"][0][0]
    assert len(legend["rows"][0][0]) == 3


def test_report_without_a_run_that_has_ended(tmp_path: Path) -> None:
    Folder(tmp_path).start_experiment("tower", CONFIGS)
    assert "Runs finished: 0 of 40" in page_of(tmp_path)
    assert report.write(tmp_path).exists()


BASE = Config("digits", epochs=40)
TOWERS = [
    replace(BASE, optimizer=tower.tower_of("SGD-HD", height, lr, 1e-4, level, above))
    for height, level, above in ((2, "additive", None), (4, "multiplicative", 0.02))
    for lr in (1e-3, 0.1)
]
MOVING = replace(BASE, epochs=8, optimizer="SGDHD(lr=1e-3, hypergrad_lr=1e-4, weight_decay=1e-4, adapt={'weight_decay': Additive(1.0)})")
TOWERS += [MOVING, replace(BASE, epochs=8, hypergrad_data="validation")]


def run(root: Path) -> None:
    sweep(TOWERS, load("digits"), root, every=0.02)


def test_killed_sweep_equals_never_killed(tmp_path: Path) -> None:
    """Of towers, which are one program, and of runs that cannot be stacked, beside them."""
    whole = sweep(TOWERS, load("digits"), tmp_path / "whole")
    kill_often(run, tmp_path / "killed", 4)
    resumed = sweep(TOWERS, load("digits"), tmp_path / "killed")
    assert histories(tmp_path / "killed", TOWERS) == histories(tmp_path / "whole", TOWERS)
    assert [replace(s, seconds=0) for s in resumed] == [replace(s, seconds=0) for s in whole]
    betas = histories(tmp_path / "whole", TOWERS[:1])[0]["hypergrad_lr"]
    assert betas[0] == 1e-4
    assert len(set(betas)) > 100


@pytest.mark.parametrize("config", TOWERS[-2:], ids=["adapt", "validation"])
def test_what_cannot_be_stacked_is_told(tmp_path: Path, config: Config) -> None:
    with pytest.raises(LabError, match=r"--engine batched needs .*use --engine auto"):
        sweep([config], load("digits"), tmp_path, engine="batched")
