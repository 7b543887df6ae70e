"""Every benchmark once, in small; and that the pages of docs/ are what the stored data say."""

import json
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from benchmarks import (
    ablation,
    authors,
    before,
    compare,
    convex,
    flat,
    gpu,
    hyperparameters,
    initial_lr,
    kept,
    launches,
    report,
    step_bounds,
    step_time,
    sweep,
    train_step,
)
from cyclopts.exceptions import CycloptsError

import hypergradient
from hypergradient.lab.compare.runs import RUNS, Job, run_job

ROOT = Path(__file__).parents[2] / "docs"
TINY: Any = {"28 million in 40 tensors": ([(10, 7)] * 3, "28 M in 40"), "1,000 tensors of 1,000": ([(10,)] * 4, "1,000 of 1,000")}

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Where pages, data and figures go."""
    names = ("step_time", "before", "step_bounds", "train_step", "launches")
    (tmp_path / "performance.md").write_text("\n".join(f"<!-- {name} -->\n<!-- /{name} -->" for name in names))
    return tmp_path


def plain(rows: dict[str, Any]) -> dict[str, Any]:
    """Optimizers without a compiler, which takes its time."""
    return {name: (other, call.replace(", fused=True", "").replace("(fused=True)", "")) for name, (other, call) in rows.items()}


def small_step_time(docs: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(step_time, "MODELS", TINY)
    patch.setattr(step_time, "ROWS", plain(step_time.ROWS))
    patch.setattr(step_time, "compile_times", lambda: {"3 tensors": 1.0})
    step_time.main(turns=2, docs=docs)


def small_before(docs: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(before, "MODELS", {"tiny": ([(2, 3)], 3)})
    step_time.main(before=Path(hypergradient.__file__).parent, docs=docs)


def small_step_bounds(docs: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(step_bounds, "MODELS", {"large enough": ([(300, 100)], "")})
    patch.setattr(
        step_bounds,
        "WORKS",
        {name: step_bounds.WORKS[name] for name in (step_bounds.ADAM, "sum over a product of three tensors", "update of Adam-HD")},
    )
    step_bounds.main(turns=2, docs=docs)


def small_train_step(docs: Path, patch: pytest.MonkeyPatch) -> None:
    first = dict([*train_step.batches().items()][:1])
    patch.setattr(train_step, "batches", lambda: {name: (model, x[:2], y[:2]) for name, (model, x, y) in first.items()})
    for name in ("ROWS", "MORE"):
        patch.setattr(train_step, name, plain(getattr(train_step, name)))
    train_step.main(turns=1, steps=1, docs=docs)


def small_launches(docs: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(launches, "LARGE", {name: shapes[:2] for name, shapes in launches.LARGE.items()})
    patch.setattr(launches, "ROWS", {name: launches.ROWS[name] for name in [*launches.ROWS][:2]})
    launches.main(docs=docs, operations=True)


def small_authors(docs: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(authors, "SEEDS", range(1, 3))
    theirs = pd.DataFrame(
        [(name.lower().replace("-", "_"), i) for name in authors.PAPER for i in range(1, 11)], columns=["method", "epoch"]
    )
    theirs.assign(model="logreg", train_loss_epoch_mean=0.5, valid_loss=0.4, alpha_epoch_mean=1e-3).to_csv(docs / "theirs.csv")
    authors.main(data="digits", authors=docs / "theirs.csv", runs=docs / "runs", output=docs / "results")


def small_initial_lr(docs: Path, patch: pytest.MonkeyPatch) -> None:
    initial_lr.main(data="digits", runs=docs / "runs", output=docs / "results")


def small_hyperparameters(docs: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hyperparameters, "SEEDS", (1,))
    for part in hyperparameters.PARTS.values():
        patch.setitem(part.__dict__, "epochs", 10)
    hyperparameters.main(data="digits", runs=docs / "runs", output=docs / "results")


def small_sweep(docs: Path, patch: pytest.MonkeyPatch) -> None:
    sweep.main(data="digits", turns=1, output=docs / "results")


def in_this_process(file: Path, works: dict[str, Any], do: Callable[[Any], Any], processes: int) -> dict[str, Any]:
    return {name: do(work) for name, work in works.items()}


def small_ablation(docs: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ablation, "DEVELOPMENT", ["cancer"])
    patch.setattr(ablation, "SEEDS", (1,))
    patch.setattr(ablation, "answers", in_this_process)
    ablation.main(mnist="none", cifar10="none", output=docs)


def small_flat(docs: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(flat, "WORKS", {"cancer": "adam"})
    patch.setattr(flat, "LRS", [1e-3, 1e-2])
    patch.setattr(flat, "answers", in_this_process)
    flat.main(cifar10="none", output=docs)


def small_compare(docs: Path, patch: pytest.MonkeyPatch) -> None:
    jobs = [("constant", 1e-2), ("cosine", 1e-2), ("ours", None), ("given", 1e-3)]
    lines = [json.dumps(run_job(Job("cancer", "adam", method, lr, 1), None).as_dict()) for method, lr in jobs]
    (docs / RUNS).write_text("\n".join([*lines, ""]))
    compare.main(docs, output=docs / "results")
    compare.main(docs, output=docs / "results", methods=True)


#: What each writes: of docs/results, or of docs/images.
WRITTEN = [
    pytest.param(small_step_time, ["results/step-time.json", "images/step-time.png"], id="step_time"),
    pytest.param(small_before, ["results/before.json"], id="before"),
    pytest.param(small_step_bounds, ["results/step-bounds.json"], id="step_bounds"),
    pytest.param(small_train_step, ["results/train-step.json"], id="train_step"),
    pytest.param(small_launches, ["results/launches.json"], id="launches"),
    pytest.param(small_authors, ["results/mnist-logreg.csv", "results/mnist-logreg.md"], id="authors"),
    pytest.param(small_initial_lr, ["results/initial-lr.csv", "results/initial-lr.md"], id="initial_lr"),
    pytest.param(small_hyperparameters, [f"results/hyperparameters.{kind}" for kind in ("csv", "md", "png")], id="hyperparameters"),
    pytest.param(small_sweep, ["results/sweep-speed.json", "results/sweep-speed.md"], id="sweep"),
    pytest.param(small_ablation, ["images/ablation.png"], id="ablation"),
    pytest.param(small_flat, ["images/flat.png"], id="flat"),
    pytest.param(
        small_compare,
        [f"results/compare{rest}" for rest in (".md", ".csv", "-rho.png", "-lr.png", "-alpha.png", "-methods.md", "-methods-rho.png")],
        id="compare",
    ),
]


@pytest.mark.parametrize(("run", "files"), WRITTEN)
def test_each_benchmark_runs(run: Callable[..., None], files: list[str], docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(docs, monkeypatch)
    for file in files:
        assert (docs / file).stat().st_size > 100
    if len(files) == 1 and files[0].endswith(".json"):
        assert "Made by `python -m benchmarks." in (docs / "performance.md").read_text()


#: Command lines of the docs, and what they say.
LINES = [
    pytest.param(step_time, "--before ../x --turns 3", {"before": Path("../x"), "turns": 3}, id="before"),
    pytest.param(step_time, "--models one two --docs d", {"models": ["one", "two"], "docs": Path("d")}, id="step_time"),
    pytest.param(launches, "--operations", {"operations": True}, id="launches"),
    pytest.param(gpu, "--data d --part gpt --text a b --small --seed 2", {"part": "gpt", "text": ["a", "b"], "small": True}, id="gpu"),
    pytest.param(convex, "--quick", {"quick": True}, id="convex"),
    pytest.param(ablation, "--mnist m --cifar10 c --processes 1", {"mnist": "m", "cifar10": "c", "processes": 1}, id="ablation"),
    pytest.param(flat, "--cifar10 c", {"cifar10": "c"}, id="flat"),
    pytest.param(authors, "--data d --authors a", {"data": "d", "authors": Path("a")}, id="authors"),
    pytest.param(compare, "--methods a b", {"methods": True, "folders": (Path("a"), Path("b"))}, id="compare"),
]


@pytest.mark.parametrize(("module", "line", "found"), LINES)
def test_command_lines(module: Any, line: str, found: dict[str, Any]) -> None:
    _, bound, _ = report.app(module.main).parse_args(line)
    assert bound.arguments.items() >= found.items()


@pytest.mark.parametrize("line", ["--turns x", "--tunrs 3", "--no-quick", "stray"])
def test_command_lines_that_are_refused(line: str) -> None:
    with pytest.raises(CycloptsError):
        report.app(step_time.main).parse_args(line, exit_on_error=False, print_error=False)


def test_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert kept.answers(file, {"a": 1.0, "b": 4.0}, math.sqrt, 1) == {"a": 1.0, "b": 2.0}
    file.write_text('{"a": 7}')
    assert kept.answers(file, {"a": 1.0, "c": 9.0}, math.sqrt, 1) == json.loads(file.read_text()) == {"a": 7, "c": 3.0}


def data(name: str) -> Any:
    return json.loads((ROOT / "results" / name).read_text())


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / name, dtype={"start": str})


#: Pages, and what their data say.
PAGES = [
    pytest.param(
        "performance.md", lambda: step_time.text(data("step-time.json")["models"], data("step-time.json")["first steps"]), id="step"
    ),
    pytest.param("performance.md", lambda: before.text(data("before.json")["rows"]), id="before"),
    pytest.param("performance.md", lambda: step_bounds.text(data("step-bounds.json")["rows"]), id="bounds"),
    pytest.param("performance.md", lambda: train_step.text(data("train-step.json")["models"]), id="train-step"),
    pytest.param("performance.md", lambda: launches.text(data("launches.json")["rows"]), id="launches"),
    pytest.param("results/convex.md", lambda: convex.text(data("convex.json")["problems"]), id="convex"),
    pytest.param("results/initial-lr.md", lambda: initial_lr.text(table("initial-lr.csv")), id="initial-lr"),
    pytest.param("results/hyperparameters.md", lambda: hyperparameters.text(table("hyperparameters.csv")), id="hyperparameters"),
]


@pytest.mark.parametrize(("page", "text"), PAGES)
def test_pages_are_what_the_data_say(page: str, text: Callable[[], str]) -> None:
    stored = (ROOT / page).read_text()
    missing = [line for line in text().splitlines() if line not in stored and platform.machine() not in line]
    assert not missing
