"""``compare`` as a stranger uses it: what it writes, what is made again, what is refused, and what a kill takes."""

import csv
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hypergradient.lab.cli import compare as room
from hypergradient.lab.cli.compare import prepare_folder
from hypergradient.lab.compare import plots, table
from hypergradient.lab.compare.plan import peers_of
from hypergradient.lab.compare.runs import RUNS, Job, Result, read_results
from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.data import Data
from hypergradient.lab.runs.store import Folder
from kills import kill_often
from test_cli import call
from test_compare import Fakes, made


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A comparison on the workload that takes least time."""
    root = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, "compare", "--quick", "--workload", "cancer", "--processes", "1", "--output", str(root)) == 0
        yield root


def test_command_writes_tables_figures_and_report(compared: Path) -> None:
    with (compared / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["base"], row["method"]) for row in rows} == {
        (base, method) for base in ("adam", "sgdn") for method in ("constant", "cosine", "ours", "ours-cosine", *peers_of("cancer", base))
    }
    assert all(0.9 < float(row["rho_train"]) < 3 and row["failures"] == "0" for row in rows)
    for name in ("compare-rho", "compare-lr", "compare-alpha"):
        assert {file.suffix for file in compared.glob(f"{name}.*")} == {".png", ".pdf", ".svg"}
    page = (compared / "report.html").read_text()
    assert all(text in page for text in ("Training without a learning rate", "Logistic regression", "Prodigy+Schedule-Free", "held-out"))


def test_second_start_makes_what_a_kill_took(compared: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    before, file = read_results(Folder(compared)), compared / "runs.jsonl"
    lost = [x for x in before if x.job.method in ("prodigy-plus", "dadapt-adam", "ours-cosine") or x is before[-1]]
    lines = file.read_text().splitlines(keepends=True)
    kept = "".join(line for line, x in zip(lines, before, strict=True) if x not in lost)
    file.write_text(kept + lines[0][:40])  # torn
    assert call(monkeypatch, "compare", "--quick", "--workload", "cancer", "--processes", "1", "--output", str(compared)) == 0
    told = [line.split(" ")[0] for line in capfd.readouterr().err.splitlines()]
    assert told == ["Workloads:", "Results:"]  # and nothing that a peer prints
    assert file.read_text().startswith(kept)
    after = read_results(Folder(compared))[len(before) - len(lost) :]
    key = {x.job: (x.train, x.valid, x.alpha) for x in lost}
    assert {x.job: (x.train, x.valid, x.alpha) for x in after} == key


def test_runs_that_somebody_has_put_there_are_gone_on_from(tmp_path: Path) -> None:
    found = Result(Job("cancer", "adam", "constant", 1e-3, 1), 0.5, 0.6)
    Folder(tmp_path).append_json("runs.jsonl", found.as_dict())
    assert prepare_folder(Folder(tmp_path), {}) == {found.job: found}
    assert read_results(Folder(tmp_path)) == [found]


@pytest.mark.parametrize("held_out", [(False,), (True,), (False, True), ()], ids=str)
def test_figure_of_rho_says_which_set_is_which(held_out: tuple[bool, ...]) -> None:
    figure = plots.rho([row for row in table.rows(made()) if row.held_out in held_out])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*(table.SETS[own] for own in held_out), "median"]


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> list[Fakes]:
    """The command makes no runs and draws nothing; the workers that it has had."""
    had = list[Fakes]()
    monkeypatch.setattr(room, "Workers", lambda most, files: had.append(Fakes(most)) or had[-1])
    monkeypatch.setattr(room, "finish", lambda *_: 0)
    return had


def test_results_are_of_their_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faked: list[Fakes], capfd: Any) -> None:
    """Other data are other runs; lines that do not name theirs count on any."""
    loaded, digests = [], ["a", "a", "b", "b", "a"]
    x, y = torch.zeros(9, 1, 28, 28), torch.zeros(9, dtype=torch.int64)

    def load(name: str) -> Data:
        loaded.append(name)
        return Data(x, y, x, y, 10, digests[len(loaded) - 1])

    monkeypatch.setattr(room, "load", load)
    command = (
        "compare",
        "--workload",
        "images-1000,quadratic",
        "--data",
        "mnist=mine",
        "--seeds",
        "1",
        "--quick",
        "--output",
        str(tmp_path),
    )
    assert call(monkeypatch, *command) == 0
    lines = [json.loads(line) for line in (tmp_path / RUNS).read_text().splitlines()]
    own = sum(line["workload"] == "images-1000" for line in lines)
    assert {(line["workload"], line["digest"]) for line in lines} == {("images-1000", "a"), ("quadratic", None)}
    assert all(set(line["versions"]) == {"hypergradient", "torch", "python"} for line in lines)
    for more in (0, own, own, own):  # on the same data, on others, on those again, and on the first again
        assert call(monkeypatch, *command) == 0
        assert len((tmp_path / RUNS).read_text().splitlines()) == len(lines) + more
        assert {x.digest for x in read_results(Folder(tmp_path)) if x.job.workload == "images-1000"} == {digests[len(loaded) - 1]}
    assert loaded == ["mine"] * 5
    (tmp_path / RUNS).write_text("".join(json.dumps(line | {"digest": None}) + "\n" for line in lines))
    assert call(monkeypatch, *command) == 0
    assert loaded == ["mine"] * 5  # nor need the data be there
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"Workloads: 2; runs finished: {len(lines)}, left: none; output: ")


def test_no_data_is_loaded_that_no_workload_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faked: list[Fakes]) -> None:
    monkeypatch.setattr(room, "load", lambda name: pytest.fail(name))
    assert call(monkeypatch, "compare", "--quick", "--data", "mnist=nowhere", "--output", str(tmp_path)) == 0
    assert len(faked) == 1


def test_a_folder_is_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faked: list[Fakes], capfd: Any) -> None:
    with Folder(tmp_path).lock():
        assert call(monkeypatch, "compare", "--quick", "--output", str(tmp_path)) == 2
    assert "is in use by process" in capfd.readouterr().err
    assert faked == []


class Slow(Fakes):
    """As Fakes, with time to be killed."""

    def collect(self, timeout: float) -> list[Result]:
        time.sleep(0.01)
        return super().collect(timeout)


def test_killed_at_random_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faked: list[Fakes]) -> None:
    monkeypatch.setattr(room, "Workers", lambda most, files: Slow(most))
    torn = []

    def run(path: Path) -> None:
        room.compare(workload="digits", seeds=2, quick=True, output=path, processes=3)

    def cut(path: Path) -> None:
        """Each start finds the last line torn."""
        file = path / RUNS
        if file.exists() and (whole := file.read_bytes()):
            torn.append(len(whole))
            file.write_bytes(whole[:-7])
        run(path)

    run(tmp_path / "whole")
    kill_often(cut, tmp_path / "killed", 6)
    run(tmp_path / "killed")
    whole, killed = ({x.job: x for x in read_results(Folder(tmp_path / name))} for name in ("whole", "killed"))
    assert whole == killed
    assert len(killed) > 50


def test_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"runs\.jsonl is missing, as in comparisons of earlier versions"):
        read_results(Folder(tmp_path))


LISTS = "takes comma-separated names, each once, from"
PLACES = "--data takes mnist=DATA,cifar10=DATA (or one of the two), got "
WRONG = {
    "tree Digits , digits, ,digits digits,digits digits;raw": ("--workload=", f"--workload {LISTS} digits, mnist"),
    "tree , image,image image,,ids": ("--family=", f"--family {LISTS} image, sequence"),
    f"0 -1 {2**64} x 1.5 0x10 nan 1,2 {'9' * 400}": ("--quick --seeds=", "--seeds"),
    f"0 -2 {10**9} x 1.5 0x2 inf 1;2": ("--quick --processes=", "--processes"),
    "mnist , = tree=x mnist= mnist=a,mnist=b mnist=a, MNIST=a =a": ("--data=", PLACES),
}
BAD = [
    *((option + value, message) for values, (option, message) in WRONG.items() for value in ("", *values.split(" "))),
    ("--workload digits --held-out", "select no workload: leave out one of them"),
    ("--workload mnist --family games", "select no workload: leave out one of them"),
    ("--workload mnist --development", "select no workload: leave out one of them"),
    ("--held-out --development", "--development"),
    ("--methods --held-out", "--held-out selects the others: leave out one of the two"),
    ("--methods --workload mnist", "select no workload: leave out one of them"),
    ("--workload mnist --data mnist=/no/such/folder", "--data /no/such/folder: no such folder"),
    ("--workload mnist --data mnist=file.txt", "--data file.txt is a file"),
    ("--workload mnist --data mnist=digits", "--data mnist=digits: images must have shape (1, 28, 28) and 10 classes, got (1, 8, 8)"),
    ("--workload cifar --data cifar10=text", "--data cifar10=text: images must have shape (3, 32, 32) and 10 classes, got (64,)"),
    ("--quick --output=", "--output"),
    ("--quick --output file.txt", "--output file.txt is a file: choose a folder"),
    ("--quick --output file.txt/run", "file.txt/run"),
    ("--quick --output heat", "heat contains an experiment of hypergradient heatmap: choose another --output"),
    ("--quick --output run", "run contains a training run: choose another --output"),
    ("--quick --output newer", "was written by a newer hypergradient (format 99"),
    ("--quick --output damaged", "damaged/runs.jsonl cannot be read (line 2: "),
    ("--quick --output list", "experiment.json cannot be read"),
    ("--no-quick", "--no-quick"),
    ("--quick stray", "stray"),
    ("--quick --seeds 1 --seeds 2", "--seeds"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the rows name."""
    root = tmp_path_factory.mktemp("place")
    (root / "file.txt").write_text("mine")
    Folder(root / "heat").write_json("experiment.json", {"experiment": "heatmap", "configurations": [{}]})
    Folder(root / "run").write_json("config.json", {"config": {}})
    Folder(root / "newer").write_json("experiment.json", {"experiment": "compare", "format": 99})
    Folder(root / "list").write_json("experiment.json", [])
    whole = json.dumps(next(made()).as_dict())
    Folder(root / "damaged").write(RUNS, lambda file: file.write_text(f"{whole}\n{whole[:50]}\n{whole}\n"))
    return root


def content(root: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("words", "message"), BAD, ids=[words[:40] for words, _ in BAD])
def test_bad_input_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: Any, place: Path, words: str, message: str) -> None:
    monkeypatch.chdir(place)
    before = content(place)
    assert call(monkeypatch, "compare", *words.split(" ")) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines()), err[:15]) == ("", 1, "hypergradient: ")
    assert message in err
    assert content(place) == before


DAMAGED = {
    "torn": '{"workload": "can',
    "empty": "",
    "a list": "[1]",
    "a number": "5",
    "null": "null",
    "no JSON": "workload=cancer",
    "deep": "[" * 100_000,
    "digits": '{"workload": ' + "9" * 5000 + "}",
    "no keys": "{}",
    **{f"no {name}": {name: ...} for name in ("workload", "base", "method", "lr", "seed", "train", "valid")},
    **{f"{name} {value!r}": {name: value} for name in ("workload", "base", "method") for value in (1, None, ["adam"], True)},
    **{f"seed {value!r}": {"seed": value} for value in (0, -1, 1.5, "1", None, True, 10**400, 2**40)},
    **{
        f"{name} {value!r}": {name: value}
        for name in ("lr", "train", "valid", "seconds", "bytes", "pace")
        for value in (math.nan, math.inf, -math.inf, -1.0, 1e300, 10**400, "1.0", True, [1.0], {})
    },
    **{f"error {value!r}": {"error": value} for value in (1, ["x"], True)},
    **{
        f"alpha {value!r}": {"alpha": value}
        for value in (
            1.0,
            "x",
            [],
            [[1]],
            [[1], [1.0], [1.0]],
            [[1], [1.0, 2.0]],
            [[0], [1.0]],
            [[1.5], [1.0]],
            [[1], [math.nan]],
            [["1"], [1.0]],
        )
    },
    **{f"digest {value!r}": {"digest": value} for value in (1, ["x"])},
}


@pytest.mark.parametrize("spoilt", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_named(tmp_path: Path, spoilt: Any) -> None:
    whole = next(made()).as_dict()
    line = spoilt if isinstance(spoilt, str) else json.dumps({key: x for key, x in (whole | spoilt).items() if x is not ...})
    (tmp_path / RUNS).write_text(f"{json.dumps(whole)}\n{line}\n{json.dumps(whole)}\n")
    with pytest.raises(LabError, match=r"runs\.jsonl cannot be read \(line 2: .*\): remove that line, its run is repeated") as error:
        read_results(Folder(tmp_path))
    assert len(str(error.value)) < 600
    (tmp_path / RUNS).write_bytes(json.dumps(whole).encode() + b"\n" + b"\xff" + line.encode())  # torn is what has no end
    assert read_results(Folder(tmp_path)) == [next(made())]


def test_what_is_no_text_is_damage(tmp_path: Path) -> None:
    (tmp_path / RUNS).write_bytes(json.dumps(next(made()).as_dict()).encode().replace(b"quadratic", b"qua\xffratic") + b"\n")
    with pytest.raises(LabError, match=r"\(line 1: "):
        read_results(Folder(tmp_path))
