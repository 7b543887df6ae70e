"""Towers of adaptation: their options, their grid, what is written of them, and a sweep of them that is killed."""

import copy
import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from hypergradient import Adapted, Additive, Multiplicative
from hypergradient.lab.errors import LabError
from hypergradient.lab.experiments import tower
from hypergradient.lab.pages import report
from hypergradient.lab.pages.figures import tower_figures
from hypergradient.lab.pages.stored import Run
from hypergradient.lab.runs.config import Config
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.engine import Summary
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.sweeps.sweep import Store, plan, sweep
from kills import kill_often
from test_cli import call
from test_report import page_of
from test_sweep import histories


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        pytest.param(Config(), "81c0aa617f7bb29c", id="default"),
        pytest.param(Config("digits", "mlp", "adam-hd", rule="multiplicative"), "26716f206796978f", id="multiplicative"),
        pytest.param(Config(optimizer="sgd"), "4457e18b5fed28f7", id="baseline"),
        pytest.param(Config(optimizer="sgdn-hd", rule="tuning-free", lr=0.0), "46051d0e1000ccab", id="tuning-free"),
    ],
)
def test_names_of_runs_are_those_of_the_versions_before(config: Config, name: str) -> None:
    assert config.name == name


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        pytest.param({}, Additive(1e-3), id="1"),
        pytest.param({"height": 2}, Additive(Adapted(1e-3, Additive(1e-3))), id="2"),
        pytest.param({"height": 2, "level_lr": 1e-9}, Additive(Adapted(1e-3, Additive(1e-9))), id="2-given"),
        pytest.param(
            {"height": 3, "level": "multiplicative"},
            Additive(Adapted(1e-3, Multiplicative(Adapted(0.02, Multiplicative(0.02))))),
            id="3-multiplicative",
        ),
        pytest.param(
            {"height": 4, "rule": "multiplicative", "hypergrad_lr": 0.1, "level_lr": 0.5},
            Multiplicative(Adapted(0.1, Additive(Adapted(0.5, Additive(Adapted(0.5, Additive(0.5))))))),
            id="4-of-a-multiplicative-rule",
        ),
    ],
)
def test_rule_of_a_height(options: dict, rule: Any) -> None:
    assert Config(**options).make_rule() == rule


def test_what_moves_is_what_adapt_names() -> None:
    betas = Config(optimizer="adam-hd", adapt="beta2=multiplicative:0.1, eps=additive:1")
    assert betas.adapted == {"beta2": Multiplicative(0.1), "eps": Additive(1.0)}
    assert betas._others() == {"betas": (None, Multiplicative(0.1)), "eps": Additive(1.0)}
    assert Config(optimizer="sgdn-hd", adapt="momentum=additive:1")._others() == {"momentum": Additive(1.0)}


FORM = r"--adapt takes NAME=RULE:β with commas, such as weight_decay=multiplicative:0.02; for {} NAME is one of {}, each once.*got '{}'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"height": 0}, "--height must be at least 1, got 0", id="no-height"),
        pytest.param({"height": 101}, "--height must be at most 100, got 101", id="too-high"),
        pytest.param(
            {"height": 2, "optimizer": "sgd"}, "--height 2 has no meaning for sgd: leave it out, or choose one of sgd-hd", id="sgd"
        ),
        pytest.param({"height": 2, "optimizer": "dog"}, "--height 2 has no meaning for dog", id="peer"),
        pytest.param({"adapt": "eps=additive:1", "optimizer": "adam"}, "--adapt eps=additive:1 has no meaning for adam", id="adam"),
        pytest.param({"hypergrad_data": "validation", "optimizer": "sgd"}, "--hypergrad-data validation has no meaning for sgd", id="data"),
        pytest.param({"hypergrad_data": "test"}, "--hypergrad-data must be one of train, validation, got 'test'", id="other-data"),
        pytest.param({"height": 2, "rule": "tuning-free"}, "--height 2 has no meaning for --rule tuning-free", id="tuning-free"),
        pytest.param(
            {"hypergrad_data": "validation", "rule": "tuning-free"},
            "--hypergrad-data validation has no meaning for --rule tuning-free",
            id="tuning-free-data",
        ),
        pytest.param({"level": "multiplicative"}, "--level multiplicative is for the levels above the first.*add --height 2", id="level"),
        pytest.param({"level_lr": 0.1}, "--level-lr 0.1 is for the levels above the first", id="level-lr"),
        pytest.param({"level_lr": -1, "height": 2}, "--level-lr must be a finite number >= 0, got -1", id="negative"),
        pytest.param({"level": "tuning-free", "height": 2}, "--level must be one of additive, multiplicative", id="level-name"),
        pytest.param(
            {"height": 2, "level": "multiplicative", "hypergrad_lr": 0.0}, "--height 2: Multiplicative scales β by a factor", id="beta-0"
        ),
        pytest.param({"adapt": "speed"}, FORM.format("sgd-hd", "weight_decay", "speed"), id="no-form"),
        pytest.param({"adapt": "momentum=additive:1"}, FORM.format("sgd-hd", "weight_decay", "momentum=additive:1"), id="no-momentum"),
        pytest.param(
            {"adapt": "eps=additive:x", "optimizer": "adam-hd"},
            FORM.format("adam-hd", "beta1, beta2, eps, weight_decay", "eps=additive:x"),
            id="no-number",
        ),
        pytest.param({"adapt": "weight_decay=additive:-1"}, FORM.format("sgd-hd", "weight_decay", "weight_decay=additive:-1"), id="minus"),
        pytest.param({"adapt": "weight_decay=other:1"}, FORM.format("sgd-hd", "weight_decay", "weight_decay=other:1"), id="rule"),
        pytest.param({"adapt": "weight_decay=additive:1,weight_decay=additive:1"}, "each once", id="twice"),
        pytest.param(
            {"adapt": "weight_decay=additive:1", "weight_decay": 0.0},
            r"--adapt weight_decay=additive:1: weight_decay must lie in \[1e-08, 1\] to be adapted, got 0.0: start it inside$",
            id="optimizer-refuses",
        ),
    ],
)
def test_options_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(LabError, match=message):
        Config(**options)


def test_grid() -> None:
    configs = tower.grid(tower.base_of("sgdn-hd", data="digits"), seeds=2)
    assert len(configs) == len(set(configs)) == 2 * (6 + 30 + 3 * 2 * 30)
    assert {(c.optimizer, c.height, c.level, c.level_lr) for c in configs if c.hypergrad_lr == 1e-4} == {
        ("sgdn-hd", 1, "additive", None),
        *(("sgdn-hd", height, "additive", 1e-4) for height in (2, 3, 4)),
        *(("sgdn-hd", height, "multiplicative", 0.02) for height in (2, 3, 4)),
    }
    assert {(c.optimizer, c.hypergrad_lr) for c in configs if not c.adapts} == {("sgdn", None)}
    chosen = tower.grid(tower.base_of("adam-hd"), "3,2", "0.1", "1e-8,1e-9", "both", "additive=1e-20,multiplicative=0.5")
    assert [(c.height, c.level, c.level_lr, c.hypergrad_lr) for c in chosen] == [
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
    assert all(text in page for text in ("Levels of adaptation", "42 of 42 runs have ended", "Height 3", "<th", "β above"))


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
        pytest.param("--heights 0,x", "--heights takes whole numbers >= 0 with commas, such as 0,1,2,3,4, got '0,x'", id="heights"),
        pytest.param("--heights -1", "--heights takes whole numbers >= 0", id="negative-height"),
        pytest.param("--lr 0", "--lr takes numbers > 0 with commas, such as 1e-05,", id="lr"),
        pytest.param("--hypergrad-lr ,", "--hypergrad-lr takes numbers > 0", id="beta"),
        pytest.param("--level up", "--level must be one of additive, multiplicative, both, got 'up'", id="level"),
        pytest.param("--level-lr up=1", "--level-lr takes a number, or additive=NUMBER,multiplicative=NUMBER, got 'up=1'", id="level-lr"),
        pytest.param("--optimizer sgd", "--optimizer must be one of sgd-hd, sgdn-hd, adam-hd, got 'sgd'", id="baseline"),
        pytest.param("--seeds 0", "--seeds must be at least 1, got 0", id="seeds"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capfd, tmp_path: Path, words: str, message: str) -> None:
    assert call(monkeypatch, "tower", "--data", "digits", *words.split()) == 2
    err = capfd.readouterr().err
    assert err.splitlines() == [err.strip()]
    assert message in err
    assert list(tmp_path.iterdir()) == []


def table() -> tuple[list[Config], list[Summary]]:
    """Heights 0 to 2, two seeds, losses of 1 at height 0 and 0.5 above, where α_0 = 1 with β = 0.01 diverges at height 2."""
    configs = tower.grid(tower.base_of("sgd-hd", data="digits"), "0,1,2", "0.1,1", "0.01,0.1,0.001", seeds=2)
    summaries = []
    for config in configs:
        wild = config.height == 2 and (config.lr, config.hypergrad_lr) == (1, 0.01)
        loss = 0.5 if config.adapts else 1.0
        status = "diverged" if wild else "finished"
        summaries.append(Summary("logreg", config.optimizer, status, 9, 3, config.lr, loss, loss, 0.9, 1.0))
    return configs, summaries


def test_cells_are_medians_and_what_diverged_is_infinite() -> None:
    found = tower.towers(tower.rows(*table()))
    assert (found.levels, found.heights, found.lrs, found.betas) == (
        ["additive", "multiplicative"],
        [0, 1, 2],
        [0.1, 1],
        [0.001, 0.01, 0.1],
    )
    assert {len(cells) for cells in found.cells.values()} == {6}
    assert found.cells["additive", 0] == dict.fromkeys(found.cells["additive", 0], 1.0)
    assert found.cells["multiplicative", 2][1, 0.01] == math.inf
    assert (found.best, found.middle, found.ends) == (1.0, 0.01, (0.5, 1.0))
    assert [found.close("additive", height) for height in found.heights] == [6, 6, 5]


def test_figures() -> None:
    configs, summaries = table()
    found = tower.towers(tower.rows(configs, summaries))
    maps = tower.figure(found, configs[-1], 2)
    panels = [axis for axis in maps.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == ["height 0 (SGD): 6/6", "height 1 (SGD-HD): 6/6", "height 2: 5/6"] * 2
    assert [(len(axis.texts), len(axis.patches)) for axis in panels] == [(6, 0), (6, 0), (5, 1)] * 2
    assert [text.get_text() for text in maps.legends[0].get_texts()] == ["diverged"]
    lines = tower.lines(found, configs[-1], 2)
    for axis in lines.axes:
        drawn = {line.get_label(): [*line.get_ydata()] for line in axis.lines if not line.get_label().startswith("_")}
        assert drawn["height 0 (SGD)"] == [1.0, 1.0]
        assert drawn["height 2"] == pytest.approx([0.5, math.nan], nan_ok=True)
        assert [[*line.get_xdata()] for line in axis.lines if line.get_label().startswith("_")] == [[], [], [1]]


def test_figures_of_the_report(tmp_path: Path) -> None:
    configs, summaries = table()
    runs = [Run(config.as_dict(), tmp_path, summary.as_dict()) for config, summary in zip(configs, summaries, strict=True)]
    runs[0] = Run(runs[0].options, tmp_path, {})  # one is under way
    (lines, *maps), legend = tower_figures(runs)
    assert [(run["values"]["additive"], run["labels"]) for run in lines["runs"]] == [
        ([1.0, 1.0], ["height 0"]),
        ([0.5, 0.5], ["height 1"]),
        ([0.5, None], ["height 2"]),
    ]
    multiplicative, additive = maps[2]["panels"]
    assert [figure["title"] for figure in maps] == ["Height 0", "Height 1", "Height 2"]
    assert (multiplicative["title"], additive["title"]) == ("multiplicative 5/6", "additive 5/6")
    assert additive["cells"] == [[0.5, 0.5], [0.5, "–"], [0.5, 0.5]]
    assert maps[2]["lrs"] == ["10<sup>-1</sup>", "10<sup>0</sup>"]
    assert "height = 2<br>level = multiplicative<br>β above = 0.02<br>seed = 1, finished: training 0.5" in multiplicative["hover"][0][0]
    assert "β" not in maps[0]["panels"][0]["hover"][0][0]
    assert "seed = 1, not begun" not in maps[0]["panels"][0]["hover"][0][0]
    assert legend.count("<button") == 3


def test_report_without_a_run_that_has_ended(tmp_path: Path) -> None:
    Folder(tmp_path).start_experiment("tower", table()[0])
    assert "0 of 40 runs have ended" in page_of(tmp_path)
    assert report.write(tmp_path).exists()


BASE = Config("digits", "logreg", "sgd-hd", hypergrad_lr=1e-4, epochs=40)
TOWERS = [
    replace(BASE, height=height, level=level, lr=lr) for height, level in ((2, "additive"), (4, "multiplicative")) for lr in (1e-3, 0.1)
]
TOWERS += [replace(BASE, epochs=8, adapt="weight_decay=additive:1"), replace(BASE, epochs=8, hypergrad_data="validation")]


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


def test_an_ensemble_that_an_earlier_version_left_goes_on(tmp_path: Path) -> None:
    configs, data = [replace(BASE, lr=lr, epochs=3) for lr in (1e-3, 0.1)], load("digits")
    sweep(configs, data, tmp_path / "whole", engine="batched")
    store = Store(tmp_path / "parts")
    (work,) = plan(configs, data, store.root, "batched")
    save = next(work.go(data, Event(), every=0))
    assert save.state is not None
    state, new = copy.deepcopy(save.state), ("height", "level", "level_lr", "adapt", "hypergrad_data", "betas", "memories")
    for table in (state["ensemble"], *state["configs"]):
        for name in new:
            table.pop(name, None)
    for iterations, _ in state["histories"].values():
        for name in ("hypergrad_lr", "momentum", "weight_decay", "beta1", "beta2", "eps"):
            del iterations[name]
    store.write(work, replace(save, state=state))
    sweep(configs, data, store.root, engine="batched")
    assert histories(store.root, configs) == histories(tmp_path / "whole", configs)


@pytest.mark.parametrize("options", [{"adapt": "weight_decay=additive:1"}, {"hypergrad_data": "validation"}], ids=["adapt", "validation"])
def test_what_cannot_be_stacked_is_told(tmp_path: Path, options: dict) -> None:
    with pytest.raises(LabError, match=r"--engine batched takes the models logreg, mlp .*--adapt and --hypergrad-data.*use --engine auto"):
        sweep([replace(BASE, **options)], load("digits"), tmp_path, engine="batched")
