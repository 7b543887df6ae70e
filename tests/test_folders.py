"""A run's folder: what is damaged is named and refused, what is planted is not followed, and one process at a time works in it."""

import itertools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hypergradient.lab.errors import LabError
from hypergradient.lab.runs import files
from hypergradient.lab.runs.config import Config
from hypergradient.lab.runs.store import FILES, TABLES, Folder, History

CONFIG = Config(epochs=3, seed=5)
FORK = multiprocessing.get_context("fork")
SUMMARY = {"model": "logreg", "optimizer": "SGD-HD", "status": "finished", "iterations": 6, "epochs": 2, "alpha": 0.1}


def history(rows: int, epochs: int, scale: float = 0.1) -> History:
    """Losses that fall, one of them NaN, and no h in the first step."""
    found = History()
    for i in range(rows):
        row = {
            "iteration": i + 1,
            "epoch": i // 3 + 1,
            "loss": float("nan") if i == 3 else scale / (i + 1),
            "alpha": scale,
            "h": i - 1.0 if i else None,
        }
        for name, column in found.iterations.items():
            column.append(row.get(name))
    for i in range(epochs):
        for name, column in found.epochs.items():
            column.append(i + 1 if name == "epoch" else scale)
    return found


def state(rows: int, epochs: int) -> dict[str, Any]:
    optimizer = {"param_groups": [{"lr": 0.125}]}
    return {"iteration": rows, "epoch": epochs, "batch": 0, "seconds": 1.0, "model": {"w": torch.arange(50.0)}, "optimizer": optimizer}


def stored(path: Path, config: Config = CONFIG, scale: float = 0.1, summary: dict[str, Any] | None = None) -> Folder:
    folder = Folder(path)
    folder.start(config, resume=False)
    folder.save(history(6, 2, scale), state(6, 2), summary)
    return folder


def tables(found: History) -> str:
    return repr((found.iterations, found.epochs))


def test_goes_on_from_what_was_written(tmp_path: Path) -> None:
    folder = stored(tmp_path / "lr=0.1")  # which Parquet readers take for a column
    folder.write("history.parquet", lambda side: pq.write_table(table_of(history(9, 3).iterations, "history"), side))  # killed after that
    found = folder.load()
    assert found is not None
    assert tables(found[0]) == tables(history(6, 2))
    assert found[1]["optimizer"] == {"param_groups": [{"lr": 0.125}]}
    assert torch.equal(found[1]["model"]["w"], torch.arange(50.0))


def table_of(columns: dict[str, list], name: str) -> pa.Table:
    return pa.table(columns, schema=pa.schema(list(TABLES[name].items())))


def edit(name: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], Any]:
    return lambda path: pq.write_table(change(pq.read_table(path / name, partitioning=None)), path / name)


def put(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        return table.set_column(table.column_names.index(column), column, pa.array(values, table[column].type))

    return change


def flip(name: str, where: float) -> Callable[[Path], Any]:
    def harm(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[int(where * (len(content) - 1))] ^= 16
        (path / name).write_bytes(content)

    return harm


def cut(name: str, kept: float) -> Callable[[Path], Any]:
    return lambda path: os.truncate(path / name, int(kept * (path / name).stat().st_size))


def resealed(**changes: Any) -> Callable[[Path], Any]:
    """A checkpoint with other content whose own digest is right."""

    def harm(path: Path) -> None:
        found = Folder(path).read_torch("checkpoint.pt")
        Folder(path).write_torch("checkpoint.pt", {name: value for name, value in {**found, **changes}.items() if value is not None})

    return harm


def of_another(name: str, **options: Any) -> Callable[[Path], Any]:
    def harm(path: Path) -> None:
        other = stored(path.parent / "other", **options)
        (path / name).write_bytes((other.path / name).read_bytes())

    return harm


def without_digest(path: Path) -> None:
    torch.save(state(6, 2), path / "checkpoint.pt")


def other_lr(path: Path) -> None:
    about = json.loads((path / "config.json").read_text())
    about["config"]["optimizer"] = about["config"]["optimizer"].replace("lr=0.001", "lr=0.1", 1)
    (path / "config.json").write_text(json.dumps(about))


CHECKPOINTS = [
    *(pytest.param(flip("checkpoint.pt", x), "checkpoint.pt", id=f"flipped-{x}") for x in (0, 0.01, 0.03, 0.1, 0.3, 0.5, 0.9, 1)),
    *(pytest.param(cut("checkpoint.pt", x), "checkpoint.pt", id=f"cut-{x}") for x in (0, 0.01, 0.5, 0.999)),
    pytest.param(without_digest, "checkpoint.pt", id="no-digest"),
    pytest.param(resealed(iteration=5), "history.parquet", id="other-iteration"),
    pytest.param(resealed(epoch=1), "epochs.parquet", id="other-epoch"),
    pytest.param(resealed(iteration="6"), "cannot be resumed", id="odd-iteration"),
    pytest.param(resealed(iteration=None), "iteration", id="no-iteration"),
    pytest.param(resealed(digests=None), "digests", id="no-digests"),
    pytest.param(resealed(digests="x"), "cannot be resumed", id="odd-digests"),
    pytest.param(of_another("checkpoint.pt", scale=0.3), "history.parquet", id="checkpoint-of-another"),
    pytest.param(of_another("checkpoint.pt", config=replace(CONFIG, seed=6)), "config.json", id="checkpoint-of-another-configuration"),
]
OTHERS = [
    pytest.param(edit("history.parquet", lambda table: table.slice(0, 4)), "history.parquet", id="history-cut"),
    pytest.param(edit("history.parquet", put("loss", 2, 0.25)), "history.parquet", id="loss-edited"),
    pytest.param(edit("history.parquet", put("loss", 3, None)), "history.parquet", id="nan-to-null"),
    pytest.param(edit("history.parquet", put("h", 0, 0.0)), "history.parquet", id="null-to-zero"),
    pytest.param(edit("history.parquet", lambda table: put("h", 1, None)(put("h", 0, 0.0)(table))), "history.parquet", id="null-moved"),
    pytest.param(edit("history.parquet", lambda table: table.drop_columns(["h"])), "history.parquet", id="column-lost"),
    pytest.param(edit("history.parquet", lambda table: table.append_column("odd", table["h"])), "history.parquet", id="column-more"),
    pytest.param(edit("epochs.parquet", put("valid_loss", 1, 0.0)), "epochs.parquet", id="epochs-edited"),
    pytest.param(of_another("history.parquet", scale=0.3), "history.parquet", id="history-of-another"),
    pytest.param(cut("epochs.parquet", 0.5), "cannot be", id="epochs-truncated"),
    pytest.param(lambda path: (path / "epochs.parquet").unlink(), "epochs.parquet", id="epochs-gone"),
    pytest.param(other_lr, "config.json", id="configuration-edited"),
    pytest.param(lambda path: (path / "config.json").unlink(), "config.json", id="configuration-gone"),
]


@pytest.mark.parametrize(("harm", "named"), [*CHECKPOINTS, *OTHERS])
def test_damaged_is_not_resumed(tmp_path: Path, harm: Callable[[Path], Any], named: str) -> None:
    folder = stored(tmp_path / "run")
    harm(folder.path)
    with pytest.raises(LabError, match=r"remove it to (run it again|start over), or choose another --output$") as told:
        folder.load()
    assert named in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("harm", "named"), OTHERS)
def test_damaged_end_is_not_shown(tmp_path: Path, harm: Callable[[Path], Any], named: str) -> None:
    folder = stored(tmp_path / "run", summary=SUMMARY)
    assert tables(folder.history()) == tables(history(6, 2))
    assert folder.summary() == SUMMARY
    harm(folder.path)
    with pytest.raises(LabError, match=r"cannot be read .*: remove it and run it again$") as told:
        folder.history()
    assert named.replace("cannot be", "") in str(told.value)


@pytest.mark.parametrize("name", ["config.json", "history.parquet", "epochs.parquet", "checkpoint.pt"])
def test_no_flipped_bit_changes_a_number(tmp_path: Path, name: str) -> None:
    folder, chance = stored(tmp_path), random.Random(0)
    good, refused = (tmp_path / name).read_bytes(), 0
    for _ in range(60):
        flip(name, chance.random())(tmp_path)
        try:
            found = folder.load()
            assert found is not None
            assert tables(found[0]) == tables(history(6, 2))
        except LabError:
            refused += 1
        (tmp_path / name).write_bytes(good)
    assert refused > 10


def test_run_without_checkpoint_begins_anew(tmp_path: Path) -> None:
    folder = stored(tmp_path)
    folder.save(history(6, 2), {}, SUMMARY)
    assert folder.load() is None


def test_more_epochs(tmp_path: Path) -> None:
    folder = stored(tmp_path, summary=SUMMARY)
    about = folder.read_json("config.json")
    folder.start(replace(CONFIG, epochs=7), resume=True)
    assert folder.summary() is None
    assert about is not None
    assert folder.read_json("config.json") == {**about, "config": {**about["config"], "epochs": 7}}
    assert folder.load() is not None


KNOWN = replace(CONFIG, data="/there/digits", data_digest="abc", source_digest="def")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param({}, None, id="same"),
        pytest.param({"epochs": 9}, None, id="more-epochs"),
        pytest.param({"data": "../digits"}, None, id="same-data-elsewhere"),
        pytest.param({"data_digest": "", "data": "../digits", "source_digest": ""}, None, id="not-loaded-yet"),
        pytest.param({"data_digest": "xyz"}, "contains a run with other data: give the same options", id="other-data"),
        pytest.param({"source_digest": "xyz"}, "contains a run with another source code of its model", id="other-source"),
        pytest.param({"batch_size": 64}, "contains a run with --batch-size 128: give the same options to resume it", id="other-batch"),
        pytest.param({"optimizer": "SGD(lr=0.1)"}, r"with --optimizer SGDHD\(lr=0.001, .*: give the same", id="other-optimizer"),
    ],
)
def test_goes_on_with_the_same_run_alone(tmp_path: Path, changes: dict[str, Any], told: str | None) -> None:
    folder = stored(tmp_path, KNOWN)
    with pytest.raises(LabError, match="already contains a run: add --resume"):
        folder.check(KNOWN, resume=False)
    if told is None:
        folder.start(replace(KNOWN, **changes), resume=True)
        assert folder.load() is not None
    else:
        with pytest.raises(LabError, match=told):
            folder.start(replace(KNOWN, **changes), resume=True)


def test_earlier_version_is_read_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = {"optimizer": "SGDHD(lr=0.5)", "seed": 4}
    old = SimpleNamespace(upgraded=lambda options: new if options == {"optimizer": "sgd-hd", "lr": 0.5} else None)
    monkeypatch.setitem(sys.modules, "hypergradient.lab.runs.legacy", old)
    monkeypatch.setattr("hypergradient.lab.runs.legacy", old, raising=False)
    folder = Folder(tmp_path)
    folder.write_json("config.json", {"format": 1, "config": {"optimizer": "sgd-hd", "lr": 0.5}})
    folder.write_json("experiment.json", {"format": 1, "configurations": []})
    folder.save(history(6, 2), {})
    found = folder.config()
    assert found is not None
    assert {name: found[name] for name in ("optimizer", "seed", "batch_size")} == {**new, "batch_size": 128}
    assert tables(folder.history()) == tables(history(6, 2))
    for start in (lambda: folder.start(CONFIG, resume=True), lambda: folder.start_experiment("sweep", [CONFIG])):
        with pytest.raises(
            LabError, match=r"an earlier version \(format 1\): hypergradient report can still read it; choose another --output"
        ):
            start()


@pytest.mark.parametrize("version", [3, 99, "2", None, [1], 2.5])
def test_newer_version_is_left_alone(tmp_path: Path, version: Any) -> None:
    folder = stored(tmp_path, summary=SUMMARY)
    content = (tmp_path / "checkpoint.pt").read_bytes().partition(b"\n")[2]
    (tmp_path / "checkpoint.pt").write_bytes(json.dumps({"format": version}).encode() + b"\n" + content)
    for name in ("config.json", "status.json"):
        folder.write_json(name, {**(folder.read_json(name) or {}), "format": version})
    for read in (folder.config, folder.summary, folder.load, lambda: folder.start(CONFIG, resume=True)):
        with pytest.raises(LabError, match=r"by a newer hypergradient .*: upgrade hypergradient, or choose another --output"):
            read()


STRANGE = {
    "empty": b"",
    "deep": b'{"config":' + b"[" * 100_000,
    "huge-int": b'{"format": ' + b"9" * 10_000 + b"}",
    "latin-1": '{"config": {"data": "é"}}'.encode("latin-1"),
    "utf-16": '{"config": {}}'.encode("utf-16"),
    "list": b"[1]",
    "number": b"NaN",
    "no-configuration": b'{"format": 2}',
    "odd-configuration": b'{"format": 2, "config": [1]}',
    "huge-format": b'{"format": 1' + b"0" * 4_000 + b"}",
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_strange_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(LabError, match=r"config\.json .*choose another --output$") as told:
        Folder(tmp_path).config()
    assert len(str(told.value)) < 500
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "config.json"
    {
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
        "device": lambda: file.symlink_to("/dev/zero"),
        "loop": lambda: file.symlink_to(file),
    }[kind]()
    with pytest.raises(LabError, match=r"config\.json cannot be read"):
        Folder(tmp_path).config()


def test_names_twice_and_infinities_are_read(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"format": 2, "alpha": 1, "alpha": NaN, "train_loss": 1e999}')
    assert repr(Folder(tmp_path).summary()) == "{'alpha': nan, 'train_loss': inf}"


def test_text_is_utf8_in_any_locale(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"status": "α"}', encoding="utf-8")
    (tmp_path / "runs.jsonl").write_text('"β"\n', encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from hypergradient.lab.runs.store import *; f = Folder(Path(sys.argv[1]));"
        r"assert f.summary() == {'status': '\u03b1'} and f.read_lines('runs.jsonl') == ['\u03b2'];"
        r"f.write_json('a.json', {'\u03b3': provenance()['command']}); f.append_json('runs.jsonl', '\u03b4')"
    )
    place = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, tmp_path, b"\xff\xce\xb1"], check=True, env=place)
    found = Folder(tmp_path).read_json("a.json")
    assert found is not None
    found["γ"].encode()
    assert found["γ"].endswith(r" '\xffα'")
    assert Folder(tmp_path).read_lines("runs.jsonl") == ["β", "δ"]


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.write_text("mine")
    run.mkdir()
    for name in (*FILES, files.HOLDER):
        (run / name).symlink_to(mine)
    folder = Folder(run)
    with folder.lock():
        folder.clear()
        folder.start(CONFIG, resume=False)
        (run / ".history.parquet.part").symlink_to(mine)
        folder.save(history(6, 2), state(6, 2), SUMMARY)
        for name in ("runs.jsonl", files.LOCK):
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(mine)
        with pytest.raises(LabError, match=r"cannot write .*runs\.jsonl"):
            folder.append_json("runs.jsonl", 1)
    (run / files.LOCK).symlink_to(mine)
    with pytest.raises(LabError, match=r"cannot write .*\.lock"), folder.lock():
        pass
    assert mine.read_text() == "mine"
    assert {file.name for file in run.iterdir() if not file.is_symlink()} == {*FILES}


def test_folder_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    folder = Folder(tmp_path / "link")
    with folder.lock():
        stored(folder.path)
    assert {file.name for file in (tmp_path / "there").iterdir()} == {*FILES} - {"status.json"}


def test_mode_of_files_is_the_users(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Folder(tmp_path).write_json("config.json", {})
        Folder(tmp_path).append_json("runs.jsonl", {})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


def hold(path: Path, inside: Any) -> None:
    with Folder(path).lock():
        inside.set()
        time.sleep(60)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path, inside = tmp_path / "not/there/yet", FORK.Event()
    other = FORK.Process(target=hold, args=(path, inside))
    other.start()
    assert inside.wait(20)
    for name in (".config.json.1.part", "unfinished/.x.pt.2.part"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).touch()
    message = rf"yet is in use by process {other.pid} \(hypergradient.*\): wait for it, or choose another --output$"
    with pytest.raises(LabError, match=message), Folder(path).lock():
        pass
    (path / files.HOLDER).write_text("[" * 100_000)
    with pytest.raises(LabError, match="yet is in use by another process: wait for it"), Folder(path).lock():
        pass
    other.kill()
    other.join()
    with Folder(path).lock():
        assert {file.name for file in path.iterdir()} == {files.LOCK, files.HOLDER, "unfinished"}
        (path / "unfinished").rmdir()
    assert [*path.iterdir()] == []


def test_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), Folder(tmp_path / "a/b").lock():
            raise ZeroDivisionError
        assert [*tmp_path.iterdir()] == []
    with Folder(tmp_path / "a/b").lock():
        Folder(tmp_path / "a/b").write_json("config.json", {})
    assert [*tmp_path.rglob("*.*")] == [tmp_path / "a/b/config.json"]


def compete(path: Path, at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))
    try:
        with Folder(path).lock():
            (path / "inside").touch(exist_ok=False)
            time.sleep(0.5)
            (path / "inside").unlink()
    except LabError as error:
        os._exit(3 if "is in use by process" in str(error) else 4)


def test_two_processes_twenty_times(tmp_path: Path) -> None:
    at = time.monotonic() + 0.5
    pairs = [[FORK.Process(target=compete, args=(tmp_path / str(i), at)) for _ in range(2)] for i in range(20)]
    for process in itertools.chain(*pairs):
        process.start()
    for pair in pairs:
        for process in pair:
            process.join()
        assert sorted(process.exitcode or 0 for process in pair) == [0, 3]
    assert not [*tmp_path.rglob("*/*")]
