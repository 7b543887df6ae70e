"""``compare``: what it adds to the lab, its table, and the command."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn

from hypergradient.lab import compare
from hypergradient.lab.compare import Result, Workload
from hypergradient.lab.config import PEERS, Config, LabError
from hypergradient.lab.data import Data, load
from hypergradient.lab.models import cnn_bn, make_model
from hypergradient.lab.store import Folder
from hypergradient.lab.sweep import folder_of, sweep
from hypergradient.lab.train import Run, evaluate, train
from test_cli import call

SHORT = Config("digits", limit=256, epochs=2, batch_size=64, final=True, weight_decay=0.0)
TINY = {"tiny": Workload("Tiny", "digits", {"model": "logreg", "limit": 64, "epochs": 2, "batch_size": 32})}


def finish(config: Config, data: Data) -> Any:
    *_, last = Run(config, data).go(Event(), math.inf)
    return last.runs[0].summary


def test_cosine_is_torchs() -> None:
    data = load("digits")
    run = Run(replace(SHORT, optimizer="adam", lr=0.01, hypergrad_lr=None, schedule="cosine"), data)
    list(run.go(Event(), math.inf))
    opt = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 8)
    expected = []
    for _ in range(8):
        expected.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    assert run.history.iterations["alpha"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("options", [{"optimizer": "sgd-hd"}, {"optimizer": "prodigy", "lr": 0.0}])
def test_cosine_of_what_adapts_is_refused(options: dict) -> None:
    with pytest.raises(LabError, match="--schedule cosine has no meaning for"):
        replace(SHORT, schedule="cosine", hypergrad_lr=None, **options)


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_final_loss_is_that_of_the_whole_training_set(tmp_path: Path, engine: str) -> None:
    config, data = replace(SHORT, optimizer="sgd", lr=0.1, hypergrad_lr=None), load("digits")
    (summary,) = sweep([config], data, tmp_path, engine=engine)
    run = Run(config, data)
    list(run.go(Event(), math.inf))
    assert summary.final_train_loss == pytest.approx(evaluate(run.model, data.train_x[:256], data.train_y[:256])[0], rel=1e-5)
    assert summary.final_train_loss != summary.train_loss


@pytest.mark.parametrize("optimizer", PEERS)
def test_peers_learn(optimizer: str) -> None:
    pytest.importorskip({"mechanic": "mechanic_pytorch", "prodigy": "prodigyopt"}.get(optimizer, "dog"))
    config = replace(SHORT, optimizer=optimizer, lr=0.0, hypergrad_lr=None, limit=None, epochs=6)
    data = load("digits")
    summary = finish(config, data)
    assert summary.status == "finished"
    assert summary.final_train_loss < evaluate(make_model("logreg", (1, 8, 8), 10, 1), data.train_x, data.train_y)[0]


@pytest.mark.parametrize("optimizer", ["adam-hd", "dog", "schedule-free-adamw"])
def test_evaluation_leaves_the_run_as_it_was(optimizer: str) -> None:
    data = load("digits")
    rule = "tuning-free" if optimizer == "adam-hd" else "additive"
    config = replace(SHORT, model="cnn-bn", optimizer=optimizer, rule=rule, lr=0.0, hypergrad_lr=None, limit=128)
    run, twin = Run(config, data), Run(config, data)
    for i in range(4):
        for each in (run, twin):
            each.step(torch.arange(32) + 16 * i)
        run.evaluate(data.valid_x, data.valid_y)
    for (name, mine), other in zip(run.model.state_dict().items(), twin.model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6 if optimizer == "schedule-free-adamw" else 0, msg=name)


def test_statistics_of_the_average_are_its_own() -> None:
    """Under the average, batch norm has seen the training batches through the average's own layers."""
    data = load("digits")
    config = replace(SHORT, model="cnn-bn", optimizer="sgdn-hd", rule="tuning-free", lr=0.0, hypergrad_lr=None, limit=128)
    run = Run(config, data)
    for i in range(6):
        run.step(torch.arange(32) + 16 * i)
    with run.averaged():
        first = next(run.model.children())
        images = run.data.train_x
        assert isinstance(first, nn.Conv2d)
        torch.testing.assert_close(run.model[1].running_mean, first(images).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_tuning_free_history_tells_what_the_rule_sees(tmp_path: Path) -> None:
    config = replace(SHORT, optimizer="adam-hd", rule="tuning-free", lr=0.0, hypergrad_lr=None)
    _, history = train(config, load("digits"), Folder(tmp_path))
    table = Folder(tmp_path).history()
    assert table.iterations["horizon"] == [10.0] * 8
    assert all(-1 <= signal <= 1 for signal in table.iterations["signal"])
    assert table.iterations == history.iterations


def test_train_without_a_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--optimizer", "sgdn-hd", "--rule", "tuning-free", "--limit", "256", "--epochs", "2", "--output"]
    assert call(monkeypatch, "train", *options, str(tmp_path)) == 0
    assert json.loads((tmp_path / "config.json").read_text())["config"]["lr"] == 0
    assert json.loads((tmp_path / "status.json").read_text())["alpha"] > 0


def test_made_data() -> None:
    text, quadratic, regression = (load(name) for name in ("text", "quadratic", "regression"))
    assert torch.equal(text.train_x[:, 1:], text.train_y[:, :-1])
    assert torch.equal(text.train_x[1:, 0], text.train_y[:-1, -1])
    assert int(text.train_x.max()) < text.classes
    w = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    hessian = quadratic.train_x.T @ quadratic.train_x / 100
    torch.testing.assert_close(torch.linalg.eigvalsh(hessian).flip(0)[:50], torch.logspace(0, -4, 100)[:50], rtol=1e-3, atol=1e-6)
    loss = evaluate(linear_of(w), quadratic.train_x, quadratic.train_y)
    assert loss == (pytest.approx(float(w.T @ hessian @ w / 2), rel=1e-5), None)
    best = torch.linalg.lstsq(regression.train_x, regression.train_y).solution
    assert evaluate(linear_of(best), regression.valid_x, regression.valid_y)[0] == pytest.approx(0.5, abs=0.03)


def linear_of(w: torch.Tensor) -> nn.Module:
    layer = nn.Linear(len(w), 1, bias=False)
    layer.weight.data.copy_(w.T)
    return layer


def test_transformer_does_not_see_what_follows() -> None:
    model = make_model("transformer", (16,), 20, 1).eval()
    x = torch.randint(20, (3, 16), generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 20
    before, after = model(x), model(other)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, 9], after[:, 9])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param("compare --workload tree", "--workload must be one or more, with commas, of digits, quadratic", id="workload"),
        pytest.param("compare --data nowhere", "--data must be mnist=FOLDER and cifar10=FOLDER", id="data"),
        pytest.param("compare --workload digits --seeds 0", "--seeds must be at least 1, got 0", id="seeds"),
        pytest.param("train --data text", "--model logreg does not take --data text, which is text: try --model transformer", id="text"),
        pytest.param("train --model transformer", "--model transformer does not take --data digits, which is no text", id="images"),
        pytest.param("train --data quadratic --model cnn", "--model cnn needs images, the data's have the shape (100,)", id="vectors"),
        pytest.param("train --optimizer adagrad", "sgd-hd, sgdn, sgdn-hd, adam, adam-hd, prodigy, dadapt-adam", id="optimizer"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, arguments: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments.split()) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_missing_package_of_a_peer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hypergradient.lab.peers.find_spec", lambda name: None)
    config = replace(SHORT, optimizer="dog", lr=0.0, hypergrad_lr=None)
    with pytest.raises(LabError, match=r"--optimizer dog needs the package dog: pip install 'hypergradient\[peers\]'"):
        sweep([config], load("digits"), tmp_path)


def results() -> Iterator[Result]:
    """A grid of two learning rates and three seeds, ours, and a peer that diverged once."""
    for seed, (low, high) in enumerate([(2.0, 3.0), (4.0, 1.0), (4.0, 3.0)], 1):
        yield Result("w", "Adam, constant", "adam", "constant", 1e-3, seed, low, 2 * low)
        yield Result("w", "Adam, constant", "adam", "constant", 1e-2, seed, high, math.inf)
        yield Result("w", "Adam, cosine", "adam", "cosine", 1e-2, seed, 1.5, 4.0)
        yield Result("w", "AdamHD, no lr", "adam", "ours", 0.0, seed, 1.5 * seed, 4.0)
        yield Result("w", "AdamHD, lr = 0.1", "adam", "given", 0.1, seed, 6.0, 4.0)
        yield Result("w", "DoG", "adam", "other", 0.0, seed, math.inf if seed == 1 else 6.0, math.inf if seed == 1 else 2.0)


def test_table() -> None:
    rows = {row.method: row for row in compare.rows(results(), {"w": {"DoG": {"time": 1.5, "bytes_per_parameter": 8.0}}})}
    assert [*rows] == ["Adam, constant", "Adam, cosine", "AdamHD, no lr", "DoG", "Adam, lr = 0.001"]
    best = rows["Adam, constant"]
    assert (best.train, best.valid, best.rho_train, best.failures, best.runs) == (3.0, 8.0, 1.0, 0, 6)
    ours = rows["AdamHD, no lr"]
    assert (ours.train, ours.rho_train, ours.rho_valid, ours.rho_cos_train, ours.worst_train) == (3.0, 1.0, 0.5, 2.0, 2.0)
    dog = rows["DoG"]
    assert (dog.train, dog.valid, dog.rho_valid, dog.failures, dog.runs, dog.time) == (6.0, 2.0, 0.25, 1, 3, 1.5)
    other = replace(dog, workload="x", rho_train=8.0, failures=2)
    mean, worst = next(line for line in compare.overall([*rows.values(), other]) if line[0].method == "DoG")
    assert (mean.rho_train, worst.rho_train, mean.valid, mean.failures, mean.runs) == (pytest.approx(4.0), 8.0, pytest.approx(2.0), 3, 6)


def test_every_workload_knows_itself() -> None:
    for workload in compare.WORKLOADS.values():
        configs = compare.configs_of(workload, {}, 1, False, "cpu")
        found = [compare.result(config.as_dict(), {}) for config in configs]
        assert {result.workload for result in found} == {workload.title}
        assert len(configs) == len(set(configs)) == 13 * 4 + 1 + 2 + len(PEERS) + 14
        assert {result.kind for result in found} == set(compare.KINDS)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A comparison on a workload that takes a second."""
    root = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "WORKLOADS", TINY)
        assert call(patch, "compare", "--quick", "--workload", "tiny", "--output", str(root)) == 0
        yield root


def test_command_writes_tables_figures_and_report(compared: Path) -> None:
    with (compared / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} >= {"AdamHD, no lr", "SGDHD, Nesterov, no lr", "Prodigy", "SGD, lr = 0.01", "Adam-HD, additive"}
    ours = next(row for row in rows if row["method"] == "AdamHD, no lr")
    assert float(ours["time"]) > 0
    assert float(ours["bytes_per_parameter"]) == pytest.approx(12, abs=0.1)
    for name in ("compare-rho", "compare-lr", "compare-alpha"):
        assert {file.suffix for file in compared.glob(f"{name}.*")} == {".png", ".pdf", ".svg"}
    page = (compared / "report.html").read_text()
    for text in ("No learning rate to choose", "Tiny: loss over the learning rate", "Tiny: α over time", "Schedule-Free AdamW"):
        assert text in page


def test_second_start_runs_nothing_and_a_lost_run_alone(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: file.stat().st_mtime_ns for file in compared.glob("runs/*/status.json")}
    config = compare.configs_of(TINY["tiny"], {}, 1, True, "cpu")[-1]
    lost = folder_of(compared, config)
    status = json.loads((lost.path / "status.json").read_text())
    lost.clear()
    assert call(monkeypatch, "compare", "--quick", "--workload", "tiny", "--output", str(compared)) == 0
    after = {file: file.stat().st_mtime_ns for file in compared.glob("runs/*/status.json")}
    assert {file for file in before if after[file] != before[file]} == {lost.path / "status.json"}
    assert json.loads((lost.path / "status.json").read_text()) | {"seconds": 0} == status | {"seconds": 0}


def test_cnn_needs_no_bias_before_batch_norm() -> None:
    assert [name for name, _ in cnn_bn((3, 32, 32), 10).named_parameters() if "bias" in name] == ["1.bias", "5.bias", "9.bias", "13.bias"]


def test_the_rule_of_an_optimizer_without_one_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD has no rule: it starts from lr = 1e-3 as ever, and diverges where its loss is not finite."""
    assert finish(replace(SHORT, optimizer="sgd", hypergrad_lr=None, rule="tuning-free", lr=1e38), load("digits")).status == "diverged"
    options = ["--optimizer", "sgd", "--rule", "tuning-free", "--limit", "64", "--epochs", "1", "--output", str(tmp_path)]
    assert call(monkeypatch, "train", *options) == 0
    assert json.loads((tmp_path / "status.json").read_text())["alpha"] == 1e-3
