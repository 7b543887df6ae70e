"""The index of a folder of runs: it saves time, and changes nothing else."""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.config import Config
from hypergradient.lab.runs.store import DEFAULTS, Folder
from hypergradient.lab.sweeps import index
from hypergradient.lab.sweeps.index import Entry, ended, entries

CONFIGS = [Config(seed=seed, data_digest="abc") for seed in range(1, 7)]
SUMMARY = {"model": "logreg", "optimizer": "SGD-HD", "status": "finished", "alpha": 0.1, "valid_loss": float("inf")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four runs under runs/, one of them under way, and two beside it, one of which has ended."""
    for i, config in enumerate(CONFIGS):
        folder = Folder(tmp_path / "root" / ("runs" if i < 4 else ".") / config.name)
        folder.start(config, resume=False)
        if i % 4:
            folder.write_json("status.json", {"format": 2, **SUMMARY, "iterations": i, "digests": {}})
    (tmp_path / "root/runs/other").mkdir()
    (tmp_path / "root/runs/file").touch()
    return tmp_path / "root"


def whole(root: Path) -> list[Entry]:
    """What the folders hold, without an index."""
    (root / index.INDEX).unlink(missing_ok=True)
    return [*entries(root).values()]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read."""
    found: list[Path] = []
    before = index.read_json
    monkeypatch.setattr(index, "read_json", lambda path: found.append(path) or before(path))
    return found


def test_entries_are_what_the_folders_hold(root: Path) -> None:
    found = entries(root)
    assert {*found} == {config.name for config in CONFIGS}
    for i, config in enumerate(CONFIGS):
        entry = found[config.name]
        folder = Folder(entry.path)
        assert entry.about == folder.read_json("config.json")
        assert entry.config == config.as_dict() == folder.config()
        assert entry.summary == folder.summary() == ({**SUMMARY, "iterations": i} if i % 4 else None)
    assert entries(root / "nowhere") == entries(root / "runs/file") == entries(root / "runs/other") == {}
    assert not (root / "runs/other" / index.INDEX).exists()


def test_nothing_is_read_twice(root: Path, unread: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = entries(root)
    assert len(unread) == 12
    monkeypatch.chdir(root.parent)
    shutil.copytree(root, "moved")  # with the times of the files
    written = (root / index.INDEX).stat().st_ino
    assert [replace(entry, path=root) for entry in entries(Path("moved")).values()] == [replace(x, path=root) for x in first.values()]
    assert entries(root) == first
    assert len(unread) == 12
    assert (root / index.INDEX).stat().st_ino == written


def test_changes_are_seen(root: Path, unread: list[Path]) -> None:
    entries(root)
    unread.clear()
    begun, over, gone = (root / "runs" / config.name for config in CONFIGS[:3])
    Folder(begun).write_json("status.json", SUMMARY)
    (over / "status.json").write_text((over / "status.json").read_text().replace('"alpha": 0.1', '"alpha": 0.2'))
    shutil.rmtree(gone)
    Folder(root / "runs/new").start(Config(), resume=False)
    found = entries(root)
    assert {path.parent.name for path in unread} == {begun.name, over.name, "new"}
    assert gone.name not in found
    assert found["new"].config == Config().as_dict()
    assert [(found[path.name].summary or {}).get("alpha") for path in (begun, over)] == [0.1, 0.2]
    assert [*found.values()] == whole(root)


def odd(value: object) -> pa.Table:
    return pa.table({name: [value] for name in ("folder", "stamp", "config", "status")})


HARMS: dict[str, Callable[[Path], Any]] = {
    "gone": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("damaged"),
    "half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "other-columns": lambda file: pq.write_table(pa.table({"a": [1]}), file),
    "other-types": lambda file: pq.write_table(odd(1), file),
    "no-json": lambda file: pq.write_table(odd("["), file),
    "deep-json": lambda file: pq.write_table(odd("[" * 99_999), file),
    "folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damaged_index_costs_time_alone(root: Path, harm: Callable[[Path], Any]) -> None:
    before = entries(root)
    harm(root / index.INDEX)
    assert entries(root) == before
    assert entries(root) == before


def test_no_flipped_bit_changes_an_entry(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, file, chance = entries(root), root / index.INDEX, random.Random(0)
    good = file.read_bytes()
    monkeypatch.setattr(index, "write_index", lambda *_: None)
    for _ in range(500):
        content = bytearray(good)
        content[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
        assert entries(root) == before


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param("{", r"config\.json cannot be read", id="damaged"),
        pytest.param('{"format": 2, "config": 1}', "contains no configuration", id="no-configuration"),
        pytest.param('{"format": 3, "config": {}}', "by a newer hypergradient", id="newer"),
    ],
)
def test_damaged_run_is_named(root: Path, content: str, told: str, indexed: bool) -> None:
    if indexed:
        entries(root)
    (root / "runs" / CONFIGS[1].name / "config.json").write_text(content)
    for _ in range(2):
        with pytest.raises(LabError, match=rf"{CONFIGS[1].name}.*{told}"):
            entries(root)


def test_index_of_a_newer_version_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / CONFIGS[5].name / "status.json"
    file.write_text(json.dumps({"format": 3}))
    monkeypatch.setattr("hypergradient.lab.runs.files.FORMAT", 3)
    entries(root)
    monkeypatch.undo()
    with pytest.raises(LabError, match=f"{CONFIGS[5].name} was written by a newer"):
        entries(root)


def test_earlier_versions_are_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(upgraded=lambda options: {"seed": options["seed"] + 1})
    monkeypatch.setitem(sys.modules, "hypergradient.lab.runs.legacy", old)
    Folder(root / "old").write_json("config.json", {"format": 1, "config": {"seed": 6}})
    for _ in range(2):
        assert entries(root)["old"].config == {**DEFAULTS, "seed": 7}


def test_link_to_a_run_is_a_run(root: Path, tmp_path: Path) -> None:
    Folder(tmp_path / "there").start(Config(), resume=False)
    (root / "runs/link").symlink_to(tmp_path / "there")
    assert entries(root)["link"].config == Config().as_dict()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param({}, None, id="same"),
        pytest.param({"data": "/elsewhere"}, None, id="same-data-elsewhere"),
        pytest.param({"seed": 9}, "contains a run whose seed does not match its name: remove it to run it again", id="other-run"),
        pytest.param({"data_digest": "x", "epochs": 3}, "whose epochs, data_digest does not match", id="other-data"),
    ],
)
def test_ended(root: Path, changes: dict[str, Any], told: str | None) -> None:
    found, config = entries(root), CONFIGS[1]
    entry = found[config.name]
    assert ended(None, config) is None
    assert ended(found[CONFIGS[0].name], CONFIGS[0]) is None
    if told is None:
        assert ended(entry, replace(config, **changes)) == {**SUMMARY, "iterations": 1}
    else:
        with pytest.raises(LabError, match=told):
            ended(entry, replace(config, **changes))
