"""The command ``hypergradient runs``, on folders made by hand."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hypergradient.lab.cli.runs import runs
from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.store import FILES, Folder, History
from hypergradient.lab.sweeps.index import INDEX

#: By name: options, how it ended, and its losses.
RUNS: dict[str, tuple[dict[str, Any], str | None, float | None]] = {
    "aa1": ({"optimizer": paper("SGD-HD", lr=0.01, hypergrad_lr=1e-3)}, "finished", 0.5),
    "aa2": ({"optimizer": paper("SGD-HD", lr=0.1, hypergrad_lr=1e-3)}, "finished", 0.25),
    "bb1": ({"optimizer": paper("Adam", lr=0.01), "limit": 100}, "diverged", float("nan")),
    "bb2": ({"optimizer": "SGDHD(rule=Multiplicative(0.02), momentum=0.9, nesterov=True)", "epochs": 3}, "finished", 0.75),
    "cc1": ({"optimizer": paper("SGDN-HD", lr=0.001), "iterations": 9}, None, None),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, (options, status, loss) in RUNS.items():
        folder = Folder(tmp_path / "runs" / name)
        folder.start(Config(**options), resume=False)
        summary = {"model": "logreg", "optimizer": "x", "status": status, "iterations": 120, "epochs": 3, "seconds": 1.0}
        summary |= dict.fromkeys(("alpha", "train_loss", "valid_loss", "valid_accuracy"), loss)
        folder.save(History(), {"iteration": 0, "epoch": 0}, summary if status else None)
    return tmp_path


def rows(capsys: pytest.CaptureFixture[str], *args: Any, **options: Any) -> list[dict[str, Any]]:
    runs(*args, **options, as_json=True)
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["runs"]
    return found


@pytest.mark.parametrize(
    ("where", "names"),
    [
        pytest.param([], "aa2 aa1 bb2 bb1 cc1", id="all-lowest-loss-first"),
        pytest.param(["optimizer=SGD-HD"], "aa2 aa1", id="optimizer"),
        pytest.param(["optimizer == sgd-hd", "lr<0.1"], "aa1", id="both"),
        pytest.param(["lr<=1e-2"], "aa1 bb1 cc1", id="at-most"),
        pytest.param(["lr = 1e-1"], "aa2", id="number-as-number"),
        pytest.param(["lr!=0.1"], "aa1 bb2 bb1 cc1", id="not"),
        pytest.param(["status=diverged"], "bb1", id="diverged"),
        pytest.param(["status!=finished"], "bb1 cc1", id="not-finished"),
        pytest.param(["status=unfinished"], "cc1", id="unfinished"),
        pytest.param(["limit=none"], "aa2 aa1 bb2 cc1", id="none"),
        pytest.param(["limit>=100"], "bb1", id="of-what-others-have-not"),
        pytest.param(["nesterov=true"], "bb2 cc1", id="truth"),
        pytest.param(["rule=Multiplicative(0.02)"], "bb2", id="rule"),
        pytest.param(["valid_loss>0.3"], "aa1 bb2", id="nan-has-no-order"),
        pytest.param(["valid-loss=nan"], "bb1", id="nan"),
        pytest.param(["iterations=120"], "aa2 aa1 bb2 bb1", id="iterations-are-those-made"),
        pytest.param(["cap=9"], "cc1", id="cap"),
        pytest.param(["epochs=3"], "bb2", id="epochs-are-those-planned"),
        pytest.param(["name=bb2"], "bb2", id="name"),
        pytest.param(["model=logreg", "torch!=0"], "aa2 aa1 bb2 bb1 cc1", id="version"),
    ],
)
def test_where(root: Path, capsys: pytest.CaptureFixture[str], where: list[str], names: str) -> None:
    assert [row["name"] for row in rows(capsys, root, where=where)] == names.split()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        pytest.param({"where": ["lr"]}, r"--where takes NAME=VALUE \(or .*\), such as .*, got 'lr'", id="no-condition"),
        pytest.param({"where": [""]}, "--where takes NAME=VALUE", id="empty"),
        pytest.param({"where": ["__import__('os')=1"]}, "--where takes NAME=VALUE", id="code"),
        pytest.param({"where": ["a\nb=1"]}, "--where takes NAME=VALUE", id="two-lines"),
        pytest.param({"where": ["lr<small"]}, "< needs a number, got 'small': use = or !=", id="no-number"),
        pytest.param({"where": ["lrr=1"]}, r"have no option lrr; they have alpha, batch_size, .*, weight_decay$", id="no-option"),
        pytest.param({"where": ["lr=7"]}, "none of the 5 runs in .* matches: leave out a --where", id="none"),
        pytest.param({"compare": "aa1"}, "--compare takes two or more names, NAME,NAME, got 'aa1'", id="one"),
        pytest.param({"compare": "aa1,aa1"}, "--compare takes two or more names", id="twice"),
        pytest.param({"compare": "aa1,zz"}, "--compare: 'zz' matches 0 runs: choose from aa1, aa2, bb1, bb2, cc1", id="unknown"),
        pytest.param({"compare": "aa,bb1"}, "--compare: 'aa' matches 2 runs", id="two-fit"),
        pytest.param({"delete": True}, "--delete would delete 5 runs in .*: add --yes to confirm", id="delete"),
        pytest.param({"delete": True, "where": ["lr=0.1"]}, "--delete would delete 1 runs in", id="delete-some"),
        pytest.param({"yes": True}, "--yes only confirms --delete", id="yes"),
        pytest.param({"delete": True, "compare": "aa1,aa2"}, "cannot be combined", id="delete-and-compare"),
    ],
)
def test_refused(root: Path, options: dict[str, Any], told: str) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(LabError, match=told):
        runs(root, **options)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != INDEX} == before


@pytest.mark.parametrize("delete", [False, True])
def test_no_runs(tmp_path: Path, delete: bool) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(LabError, match="contains no runs: give the output folder of an experiment, or a folder of runs"):
            runs(place, delete=delete, yes=delete)
    assert [*tmp_path.iterdir()] == []


def test_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(root, where=["optimizer=SGD-HD"])
    out, err = capsys.readouterr()
    head, _, *lines = [line.split() for line in out.splitlines() if line.strip()]
    assert " ".join(head) == "name status model optimizer lr iterations alpha train loss valid loss valid accuracy seconds"
    assert " ".join(lines[0]) == "aa2 finished logreg SGD-HD 0.1 120 0.25 0.2500 0.2500 25.00% 1.0"
    assert err == f"2 runs in {root}\n"


def test_long_list_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(1, 46):
        Folder(tmp_path / str(seed)).start(Config(seed=seed), resume=False)
    runs(tmp_path)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) < 48
    assert "and 5 more (--json for all)" in out
    assert err == f"45 runs in {tmp_path}\n"
    assert len(rows(capsys, tmp_path)) == 45


def test_compare(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(root, compare="bb1, aa1")
    head, _, *lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert head == ["name", "bb1", "aa1"]
    assert ["*", "limit", "100", "-"] in lines
    assert ["*", "optimizer", "Adam", "SGD-HD"] in lines
    assert ["lr", "0.01", "0.01"] in lines
    assert ["*", "status", "diverged", "finished"] in lines
    assert [row["name"] for row in rows(capsys, root, compare="bb1, aa1")] == ["bb1", "aa1"]


def test_what_strangers_wrote_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"optimizer": "[red]x[/red]", "seed": 10**400, "data": "\x1b[2J\n\x07", "limit": [1], "hidden": {"a": None}, "batch_size": True}
    for name in ("a", "b"):
        Folder(tmp_path / name).write_json("config.json", {"format": 2, "config": {**odd, "model": name}, "versions": 3})
        Folder(tmp_path / name).write_json("status.json", {"format": 2, "status": None, "valid_loss": "low", "alpha": -0.0})
    for options in ({}, {"compare": "a,b"}, {"where": ["limit=[1]"]}, {"where": ["valid_loss=low", "status=none"]}):
        runs(tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(LabError, match="none of the 2 runs"):
        runs(tmp_path, where=["seed>1"])
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_delete(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(root)
    (root / "runs/aa1/mine").write_text("mine")
    (root / "runs/aa2/report.html").touch()
    runs(root, where=["optimizer=SGD-HD"], delete=True, yes=True)
    assert capsys.readouterr().err.endswith(f"Deleted 2 runs in {root}; 1 of their folders contain other files and were kept\n")
    assert {path.name for path in (root / "runs").iterdir()} == {"aa1", "bb1", "bb2", "cc1"}
    assert [path.name for path in (root / "runs/aa1").iterdir()] == ["mine"]
    assert {path.name for path in (root / "runs/bb1").iterdir()} == {*FILES}
    assert {path.name for path in root.iterdir()} == {"runs", INDEX}
    assert len(rows(capsys, root)) == 3


def test_delete_follows_no_links(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    there = tmp_path_factory.mktemp("there")
    (root / "runs/aa1").rename(there / "aa1")
    (root / "runs/aa1").symlink_to(there / "aa1")
    (there / "mine").write_text("mine")
    (root / "runs/aa2/status.json").unlink()
    (root / "runs/aa2/history.parquet").unlink()
    (root / "runs/aa2/history.parquet").symlink_to(there / "mine")
    with pytest.raises(LabError, match="aa1 is a link out of this folder: remove it by hand"):
        runs(root, delete=True, yes=True)
    runs(root, where=["lr=0.1"], delete=True, yes=True)
    assert {path.name for path in (root / "runs").iterdir()} == {"aa1", "bb1", "bb2", "cc1"}
    assert {path.name for path in (there / "aa1").iterdir()} == {*FILES}
    assert (there / "mine").read_text() == "mine"


@pytest.mark.parametrize("place", [".", "runs/bb2"])
def test_delete_waits_for_nobody(root: Path, place: str) -> None:
    with Folder(root / place).lock(), pytest.raises(LabError, match=f"is in use by process {os.getpid()} "):
        runs(root, where=["name=bb2"], delete=True, yes=True)
    assert {path.name for path in (root / "runs/bb2").iterdir()} == {*FILES}
