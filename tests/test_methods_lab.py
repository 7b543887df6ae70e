"""``compare --methods``: the published methods as they are set up, what they are run on, what is made of it, and the command."""

import csv
import json
import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import pytest
import torch

from hypergradient.lab.compare import verdict
from hypergradient.lab.compare.methods import PUBLISHED, PUBLISHED_LRS
from hypergradient.lab.compare.plan import published_plan, run_plans, tuned_plan
from hypergradient.lab.compare.runs import AHEAD, RUNS, Job, Result, make_optimizer, parse_result, run_job, twin_losses
from hypergradient.lab.compare.table import rows
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.workloads import WORKLOADS
from test_cli import call
from test_compare import TINY, Fakes, played

EACH = [(name, base) for name, method in PUBLISHED.items() for base in method.bases if base != "adam"]


@pytest.mark.parametrize(("name", "base"), EACH)
def test_methods_learn(monkeypatch: pytest.MonkeyPatch, name: str, base: str) -> None:
    monkeypatch.setitem(WORKLOADS, "tiny", replace(TINY, bases=(base,)))
    with catch_warnings():
        simplefilter("ignore")  # as in the processes of a comparison: torch's of graphs, by which one may lose memory
        found = run_job(Job("tiny", base, name, PUBLISHED[name].lr, 1), None)
    assert found.error is None
    assert found.train < WORKLOADS["digits"].make(1, None).evaluate()[0]
    assert found.pace is not None
    assert found.pace_torch is not None
    assert found.pace > found.pace_torch > 0
    assert found.bytes is not None
    assert parse_result(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize(("name", "base", "lr", "beta"), [("additive", "adam", 1e-3, 1e-7), ("additive", "sgdn", 1e-3, 1e-3)])
def test_defaults_are_those_that_were_published(name: str, base: str, lr: float, beta: float) -> None:
    model = torch.nn.Linear(2, 1)
    job = Job("digits", base, name, PUBLISHED[name].lr, 1)
    opt, _ = make_optimizer(job, model, [{"params": [*model.parameters()]}], 0.0, 9)
    (group,) = opt.param_groups
    assert (group["lr"], group["hypergrad_lr"]) == (lr, beta)


@pytest.mark.parametrize("name", ["gru", "lora", "bandit", "quadratic"])
def test_held_out_losses_are_of_later_minibatches_and_the_same_parameters(name: str) -> None:
    own, twin, other = (WORKLOADS[name].make(1, None) for _ in range(3))
    held = twin_losses(own, twin, 5)
    later = [float(other.loss(i).detach()) for i in range(5)]
    assert [float(held(i).detach()) for i in range(5 - AHEAD)] == later[AHEAD:]
    held(4)  # and none beyond the last
    assert [float(own.loss(i).detach()) for i in range(3)] == later[:3]  # which were drawn as ever
    moved = [p for p in own.model.parameters() if p.requires_grad]
    assert all(g is not None for g in torch.autograd.grad(held(1), moved))


def test_all_methods_run_from_where_they_start_and_from_given_learning_rates() -> None:
    _, jobs = played(
        published_plan("digits", "sgdn", 2),
        dict.fromkeys((None, *PUBLISHED_LRS, *(method.lr for method in PUBLISHED.values())), (1.0, 1.0)),
    )
    assert len(jobs) == len(set(jobs))
    assert {(job.method, job.lr) for job in jobs if job.seed == 2} == {("ours", None), *((name, own.lr) for name, own in PUBLISHED.items())}
    assert {job.method for job in jobs} == {"ours", "given", *PUBLISHED}
    assert {job.lr for job in jobs if job.method == "given"} == set(PUBLISHED_LRS)
    assert {job.lr for job in jobs if job.method == "additive"} == {*PUBLISHED_LRS, 1e-3}
    assert {job.lr for job in jobs if job.method == "marthe"} == {*PUBLISHED_LRS}  # from one of which it starts
    _, jobs = played(published_plan("digits", "adam", 1), {job.lr: (1.0, 1.0) for job in jobs})
    assert {PUBLISHED[job.method].bases for job in jobs if job.method in PUBLISHED} == {("adam", "adamw", "sgdn")}


#: Losses of three seeds, by method, of a pair on which the tuned constant has 1 and the tuned cosine 0.8.
LOSSES: dict[str, tuple[float, float, float]] = {
    "constant": (1.0, 1.0, 1.0),
    "cosine": (0.8, 0.8, 0.8),
    "ours": (1.05, 1.05, 3.0),
    "additive": (3.0, 1.0, 3.0),
    "multiplicative": (0.7, 0.9, math.inf),
}


def made() -> list[Result]:
    """Two pairs with such losses, and one on which no method of the field ran; a method from its other learning rates too."""
    found = []
    for work, base in (("digits", "adam"), ("digits", "sgdn"), ("cancer", "adam")):
        for method, losses in LOSSES.items():
            if work == "digits" or method not in PUBLISHED:
                lr = None if method == "ours" else 1e-3
                found += [Result(Job(work, base, method, lr, seed), x, x, bytes=8.0) for seed, x in enumerate(losses, 1)]
    found = [replace(x, pace=3.0, pace_torch=2.0) if (x.job.method, x.job.seed) == ("additive", 1) else x for x in found]
    return [*found, *(Result(Job("digits", "adam", "additive", lr, 1), 1.0, 12.0) for lr in (1e-4, 1e-2))]


def test_what_works_without_tuning_follows_from_the_figures() -> None:
    table = verdict.published_rows(rows(made()))
    lines = {line.method: line for line in verdict.summarize(made(), table)}
    assert [*lines] == ["cosine", "ours", "additive", "multiplicative"]
    ours, slow = lines["ours"], lines["additive"]
    assert (ours.pairs, ours.mean_train, ours.mean_cos_valid) == (2, pytest.approx(1.05), pytest.approx(1.05 / 0.8))
    assert (ours.runs, ours.failed, ours.twice, ours.pace, ours.spread) == (6, 0, 2, None, None)
    assert (slow.mean_valid, slow.worst_train, slow.twice, slow.pace, slow.spread) == (pytest.approx(3.0), 3.0, 4, 1.5, 4.0)
    assert (slow.bytes_adam, slow.bytes_sgd, lines["cosine"].runs) == (8.0, 8.0, 0)
    assert [line.method for line in lines.values() if line.works_untuned] == ["cosine", "ours"]  # and not what fails with one seed
    told = verdict.verdict([*lines.values()])
    assert told == (
        "Works without tuning (mean loss within 10 % of the best constant learning rate, no failed run): HD, tuning-free 1.05 / 1.05 on 2 "
        "pairs, 2 of 6 runs with ρ > 2. Also within 10 % of the best cosine decay: none. Needs tuning: Multiplicative rule 0.90 / 0.90, "
        "2 of 6 runs failed; Additive rule 3.00 / 3.00."
    )
    page = verdict.page([*lines.values()], table)
    assert told in page
    assert f"| Additive rule | {PUBLISHED['additive'].claim} | 3.00 / 3.00 | 4.00 |" in page
    assert "| Digits, network, SGD, Nesterov | 0.80 | 1.05 | 3.00 | 0.90 |" in page
    assert verdict.verdict([slow]).startswith("Works without tuning (mean loss within 10 % of the best constant learning rate, ")
    assert "failed run): none. Needs" in verdict.verdict([slow])


def test_command_writes_tables_figure_report_and_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for name in [*PUBLISHED][2:]:
        monkeypatch.delitem(PUBLISHED, name)
    monkeypatch.setitem(WORKLOADS, "quadratic", replace(WORKLOADS["quadratic"], bases=("sgdn",)))
    tuned_ones = tuned_plan("quadratic", "sgdn", 1)  # which are there already, as after a comparison
    run_plans([tuned_ones], {}, Fakes(1), lambda found, _: Folder(tmp_path).append_json(RUNS, found.as_dict()))
    Folder(tmp_path).append_json(RUNS, Result(Job("cancer", "adam", "ours", None, 1), 0.5, 0.5).as_dict())
    command = ("compare", "--methods", "--quick", "--workload", "quadratic", "--processes", "1", "--output", str(tmp_path), "--json")
    assert call(monkeypatch, *command) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert re.search(r"Workloads: 1; runs finished: \d+, left: at least \d+; output: ", err)
    assert {line["method"]: line["runs"] for line in told["methods"]} == {"cosine": 0, "ours": 1, "additive": 1, "multiplicative": 1}
    assert {(row["workload"], row["base"], row["runs"]) for row in told["rows"][2:]} == {("quadratic", "sgdn", 1)}
    assert all(Path(file).exists() for file in told["files"])
    for name in ("compare-methods.md", "report.html"):
        assert told["verdict"].split(":")[0] in unescape((tmp_path / name).read_text())
    with (tmp_path / "compare-methods.csv").open() as file:
        assert [line["method"] for line in csv.DictReader(file)] == ["cosine", "ours", "additive", "multiplicative"]
    assert call(monkeypatch, *command) == 0
    assert ", left: none; output: " in capfd.readouterr().err
