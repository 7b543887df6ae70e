"""benchmarks.gpu in small: all methods of both parts, what a second start does, what fails, and text as numbers."""

import gzip
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import gpu, gpu_parts, text

from hypergradient.average import is_average
from hypergradient.lab.compare.runs import RUNS, Job
from hypergradient.lab.errors import LabError
from hypergradient.lab.runs import peers
from hypergradient.lab.runs.data import Data

LRS = {"gpt": (3e-4, 6e-4, 1.2e-3), "resnet": (0.2, 0.4, 0.8)}
PEERS = {"gpt": ("prodigy-plus", "schedule-free-adamw"), "resnet": ("dog",)}
WANTED = {
    f"{part}-small": [("ours", None), *(("cosine", lr) for lr in LRS[part]), *((peer, None) for peer in PEERS[part])]
    + [("given", lr) for lr in (1e-5, 1e-3, 1e-1)]
    for part in LRS
}

#: The loss of a guess.
GUESS = {"gpt-small": math.log(512), "resnet-small": math.log(10)}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 files of random words, 70 kB."""
    folder, chance = tmp_path_factory.mktemp("words"), random.Random(0)
    known = ["".join(chance.choices("abcdefgh", k=chance.randint(2, 6))) for _ in range(100)]
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(chance.choices(known, k=350)))
    return folder


def small(words: Path, output: Path, **more: Any) -> None:
    gpu.main(small=True, text=[str(words)], output=output, **more)


@pytest.fixture(scope="module")
def ended(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("small")
    small(words, output)
    return output


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / RUNS).read_text().splitlines()]


@pytest.mark.parametrize("part", WANTED)
def test_a_line_for_every_method(ended: Path, part: str) -> None:
    lines = [line for line in lines_of(ended) if line["workload"] == part]
    assert [(line["method"], line["lr"]) for line in lines] == WANTED[part]
    for line in lines:
        assert line["error"] is None
        assert line["steps"] == 20
        assert 0 < line["train"] < 1.02 * GUESS[part]
        assert 0 < line["valid"] < 1.02 * GUESS[part]
        assert 0 <= line["accuracy"] <= 1
        assert all(math.isfinite(line[name]) and line[name] > 0 for name in ("seconds", "per_second", "bytes", "parameters"))
        assert line["peak"] is None
        assert (line["alpha"] is not None) == (line["method"] in ("ours", "given"))


@pytest.mark.parametrize("part", WANTED)
def test_ours_learns(ended: Path, part: str) -> None:
    first = next(line for line in lines_of(ended) if line["workload"] == part)
    assert max(first["train"], first["valid"]) < 0.99 * GUESS[part]


def test_bytes_and_groups(ended: Path) -> None:
    lines = lines_of(ended)
    size = {(line["workload"], line["method"]): line["bytes"] for line in lines}
    assert size["gpt-small", "ours"] == pytest.approx(8, abs=0.1)
    assert size["gpt-small", "cosine"] == pytest.approx(8, abs=0.1)
    assert size["resnet-small", "ours"] == pytest.approx(4, abs=0.1)
    assert [len(line["alpha"]) for line in lines if line["method"] == "ours"] == [2, 1]  # matrices and vectors; all


def test_the_page_has_all_runs(ended: Path) -> None:
    page = (ended / "gpu.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == sum(map(len, WANTED.values())) + 2 * 2
    assert "## gpt-small, 20 steps of 4" in page
    assert "| SGD, Nesterov, cosine 0.4 | 1 |" in page
    assert "images per second" in page


def test_a_second_start_does_what_is_missing(
    ended: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = (ended / RUNS).read_text()
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "run", None)
        small(words, ended)
    assert (ended / RUNS).read_text() == before
    assert capsys.readouterr().out.count("all runs are done") == 2
    kept = before.splitlines(keepends=True)
    (tmp_path / RUNS).write_text("".join([*kept[:2], *kept[3:]]))
    small(words, tmp_path)
    again, once = lines_of(tmp_path)[-1], json.loads(kept[2])
    assert len(lines_of(tmp_path)) == len(kept)
    times = ("seconds", "per_second")
    assert {name: x for name, x in again.items() if name not in times} == {name: x for name, x in once.items() if name not in times}


def test_a_run_that_fails_is_a_line(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "DoG", ("DoG", "not_there"))
    small(words, tmp_path, part="resnet", steps=2)
    lines = lines_of(tmp_path)
    failed = {line["method"]: line["error"] for line in lines if line["error"]}
    assert failed == {"dog": "LabError: --optimizer DoG needs the package not_there: pip install 'hypergradient[peers]'"}
    assert len(lines) == len(WANTED["resnet-small"])
    assert "needs the package not_there" in (tmp_path / "gpu.md").read_text()


def test_a_run_that_diverges_is_a_line(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = gpu_parts.gpt([str(words)], "cpu", True)
    data = part.load()
    line = gpu.attempt(part, Job(part.name, part.base, "cosine", 1e30, 1), data)
    assert line["error"].startswith("ArithmeticError: the loss is nan at step")
    monkeypatch.setattr(gpu, "evaluate", lambda *_: (math.inf, 0.0))
    late = gpu.attempt(replace(part, steps=1), next(part.jobs(1)), data)
    assert late["error"] == "ArithmeticError: the final losses are inf and inf"
    assert line["train"] is line["valid"] is late["train"] is late["valid"] is None


def test_judged_under_the_average_with_its_statistics(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = replace(gpu_parts.resnet(None, "cpu", True), steps=3)
    told: list[tuple[str, bool]] = []
    opts: list[Any] = []
    for name in ("optimizer_of", "update_bn", "evaluate"):
        real = getattr(gpu, name)

        def call(*arguments: Any, name: str = name, real: Any = real) -> Any:
            told.append((name, bool(opts) and is_average(opts[0].state)))
            found = real(*arguments)
            if name == "optimizer_of":
                opts.append(found[0])
            return found

        monkeypatch.setattr(gpu, name, call)
    gpu.run(part, next(part.jobs(1)), part.load())
    assert told == [("optimizer_of", False), ("update_bn", True), ("evaluate", True), ("evaluate", True)]


SIZES = [pytest.param(gpu_parts.gpt, 124, [0.1, 0.0], id="gpt"), pytest.param(gpu_parts.resnet, 6.6, [5e-4], id="resnet")]


@pytest.mark.parametrize(("make", "millions", "decay"), SIZES)
def test_the_large_models(make: Any, millions: float, decay: list[float]) -> None:
    part = make(None, "cuda", False)
    images = torch.empty(1, 3, 32, 32)
    with torch.device("meta"):
        model = part.model(Data(images, images, images, images, 10))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    for job in part.jobs(1):
        if job.method in ("ours", "cosine", "given"):
            groups = gpu.optimizer_of(part, job, model)[0].param_groups
            assert [group["weight_decay"] for group in groups] == decay
            assert {p.dim() >= 2 for p in groups[0]["params"]} == ({True} if len(decay) == 2 else {True, False})


REFUSED = [
    pytest.param({}, "--device cuda: torch finds no GPU: .* --small", id="no-gpu"),
    pytest.param({"small": True, "device": "cuda"}, "--device cuda: torch finds no GPU", id="small-on-gpu"),
    pytest.param({"small": True, "text": ["not/there"]}, "--text not/there: no such folder", id="no-folder"),
    pytest.param({"small": True, "text": ["EMPTY"]}, "--text: 9 bytes of text in .*, at least 20,000 are needed", id="little-text"),
    pytest.param({"part": "resnet", "device": "cpu"}, "--part resnet needs --data", id="no-data"),
    pytest.param({"part": "resnet", "device": "cpu", "data": "digits", "steps": 0}, "--steps must be at least 1, got 0", id="steps"),
]


@pytest.mark.parametrize(("options", "told"), REFUSED)
def test_refusals(options: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "few.txt").write_text("few words")
    if options.get("text") == ["EMPTY"]:
        options = options | {"text": [str(tmp_path)]}
    with pytest.raises(LabError, match=told):
        gpu.main(output=tmp_path / "out", **options)


def test_text_as_numbers(tmp_path: Path) -> None:
    """Frequent pieces have numbers of their own, rare ones are bytes, and nothing is lost."""
    texts = ["the cat sat on the mat_12 345678 é\n\n", "the the the <b>"]
    row = text.numbered(texts, 258)
    known = [" the", "the"]
    assert sorted(set(row) - set(range(256))) == [256, 257]
    found = b"".join(known[x - 256].encode() if x >= 256 else bytes([x]) for x in row)
    assert found == b"".join(x.encode() + b"\0" for x in texts)


def test_what_is_text(tmp_path: Path) -> None:
    files = {"a.txt": b"a" * 30, "b.txt": b"a" * 30, "c.txt.gz": gzip.compress(b"c" * 50), "d.gz": b"none", "e.py": b"x\0y"}
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "f.png").write_bytes(b"p" * 99)
    assert sorted(text.gather([str(tmp_path)], 80, 1000)) == ["a" * 30, "c" * 50]
    with pytest.raises(LabError, match="80 bytes of text in"):
        text.gather([str(tmp_path)], 81, 1000)
    data = text.text_data(["ab " * 200], 300, 8, "cpu")
    assert (len(data.train_x), len(data.valid_x)) == (data.train_y.shape[0], 1)
    assert torch.equal(data.train_x.flatten()[1:], data.train_y.flatten()[:-1])
