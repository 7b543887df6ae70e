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
from hypergradient.lab.compare.methods import FIELD, FIELD_GIVEN
from hypergradient.lab.compare.plan import drive, field, tuned
from hypergradient.lab.compare.runs import AHEAD, RUNS, Job, Result, attempt, held_out, make_optimizer, result
from hypergradient.lab.compare.table import rows
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.workloads import WORKLOADS
from test_cli import call
from test_compare import TINY, Fakes, played

EACH = [(name, base) for name, method in FIELD.items() for base in method.bases if base != "adam"]


@pytest.mark.parametrize(("name", "base"), EACH)
def test_methods_learn(monkeypatch: pytest.MonkeyPatch, name: str, base: str) -> None:
    monkeypatch.setitem(WORKLOADS, "tiny", replace(TINY, bases=(base,)))
    with catch_warnings():
        simplefilter("ignore")  # as in the processes of a comparison: torch's of graphs, by which one may lose memory
        found = attempt(Job("tiny", base, name, FIELD[name].lr, 1), None)
    assert found.error is None
    assert found.train < WORKLOADS["digits"].make(1, None).evaluate()[0]
    assert found.pace is not None
    assert found.pace_torch is not None
    assert found.pace > found.pace_torch > 0
    assert found.bytes is not None
    assert result(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize(("name", "base", "lr", "beta"), [("additive", "adam", 1e-3, 1e-7), ("additive", "sgdn", 1e-3, 1e-3)])
def test_defaults_are_those_that_were_published(name: str, base: str, lr: float, beta: float) -> None:
    model = torch.nn.Linear(2, 1)
    job = Job("digits", base, name, FIELD[name].lr, 1)
    opt, _ = make_optimizer(job, model, [{"params": [*model.parameters()]}], 0.0, 9)
    (group,) = opt.param_groups
    assert (group["lr"], group["hypergrad_lr"]) == (lr, beta)


@pytest.mark.parametrize("name", ["gru", "lora", "bandit", "quadratic"])
def test_held_out_losses_are_of_later_minibatches_and_the_same_parameters(name: str) -> None:
    own, twin, other = (WORKLOADS[name].make(1, None) for _ in range(3))
    held = held_out(own, twin, 5)
    later = [float(other.loss(i).detach()) for i in range(5)]
    assert [float(held(i).detach()) for i in range(5 - AHEAD)] == later[AHEAD:]
    held(4)  # and none beyond the last
    assert [float(own.loss(i).detach()) for i in range(3)] == later[:3]  # which were drawn as ever
    moved = [p for p in own.model.parameters() if p.requires_grad]
    assert all(g is not None for g in torch.autograd.grad(held(1), moved))


def test_all_methods_run_from_where_they_start_and_from_given_learning_rates() -> None:
    _, jobs = played(field("digits", "sgdn", 2), dict.fromkeys((None, *FIELD_GIVEN, *(method.lr for method in FIELD.values())), (1.0, 1.0)))
    assert len(jobs) == len(set(jobs))
    assert {(job.method, job.lr) for job in jobs if job.seed == 2} == {("ours", None), *((name, own.lr) for name, own in FIELD.items())}
    assert {job.method for job in jobs} == {"ours", "given", *FIELD}
    assert {job.lr for job in jobs if job.method == "given"} == set(FIELD_GIVEN)
    assert {job.lr for job in jobs if job.method == "additive"} == {*FIELD_GIVEN, 1e-3}
    assert {job.lr for job in jobs if job.method == "marthe"} == {*FIELD_GIVEN}  # from one of which it starts
    _, jobs = played(field("digits", "adam", 1), {job.lr: (1.0, 1.0) for job in jobs})
    assert {FIELD[job.method].bases for job in jobs if job.method in FIELD} == {("adam", "adamw", "sgdn")}


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
            if work == "digits" or method not in FIELD:
                lr = None if method == "ours" else 1e-3
                found += [Result(Job(work, base, method, lr, seed), x, x, bytes=8.0) for seed, x in enumerate(losses, 1)]
    found = [replace(x, pace=3.0, pace_torch=2.0) if (x.job.method, x.job.seed) == ("additive", 1) else x for x in found]
    return [*found, *(Result(Job("digits", "adam", "additive", lr, 1), 1.0, 12.0) for lr in (1e-4, 1e-2))]


def test_what_is_worth_a_users_time_follows_from_the_figures() -> None:
    table = verdict.of_field(rows(made()))
    lines = {line.method: line for line in verdict.standings(made(), table)}
    assert [*lines] == ["cosine", "ours", "additive", "multiplicative"]
    ours, slow = lines["ours"], lines["additive"]
    assert (ours.pairs, ours.mean_train, ours.mean_cos_valid) == (2, pytest.approx(1.05), pytest.approx(1.05 / 0.8))
    assert (ours.runs, ours.failed, ours.twice, ours.pace, ours.spread) == (6, 0, 2, None, None)
    assert (slow.mean_valid, slow.worst_train, slow.twice, slow.pace, slow.spread) == (pytest.approx(3.0), 3.0, 4, 1.5, 4.0)
    assert (slow.bytes_adam, slow.bytes_sgd, lines["cosine"].runs) == (8.0, 8.0, 0)
    assert [line.method for line in lines.values() if line.worth] == ["cosine", "ours"]  # and not what fails with one seed
    told = verdict.verdict([*lines.values()])
    assert told == (
        "Worth a user's time without tuning, within 10 % of the best constant learning rate and without a run that failed: HD, no lr 1.05 "
        "/ 1.05 on 2 pairs, 2 of 6 runs beyond ρ = 2. As close to the best cosine decay: none. Not without tuning: Multiplicative rule "
        "0.90 / 0.90, 2 of 6 runs failed; Additive rule 3.00 / 3.00."
    )
    page = verdict.page([*lines.values()], table)
    assert told in page
    assert f"| Additive rule | {FIELD['additive'].says} | 3.00 / 3.00 | 4.00 |" in page
    assert "| Digits, network, SGD, Nesterov | 0.80 | 1.05 | 3.00 | 0.90 |" in page
    assert verdict.verdict([slow]).startswith("Worth a user's time without tuning, within 10 % of the best constant learning rate and ")
    assert "failed: none. Not without" in verdict.verdict([slow])


def test_command_writes_tables_figure_report_and_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for name in [*FIELD][2:]:
        monkeypatch.delitem(FIELD, name)
    monkeypatch.setitem(WORKLOADS, "quadratic", replace(WORKLOADS["quadratic"], bases=("sgdn",)))
    tuned_ones = tuned("quadratic", "sgdn", 1)  # which are there already, as after a comparison
    drive([tuned_ones], {}, Fakes(1), lambda found, _: Folder(tmp_path).append_json(RUNS, found.as_dict()))
    Folder(tmp_path).append_json(RUNS, Result(Job("cancer", "adam", "ours", None, 1), 0.5, 0.5).as_dict())
    command = ("compare", "--methods", "--quick", "--workload", "quadratic", "--processes", "1", "--output", str(tmp_path), "--json")
    assert call(monkeypatch, *command) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert re.search(r"1 workloads, \d+ runs were there, at least \d+ to make, into", err)
    assert {line["method"]: line["runs"] for line in told["methods"]} == {"cosine": 0, "ours": 1, "additive": 1, "multiplicative": 1}
    assert {(row["workload"], row["base"], row["runs"]) for row in told["rows"][2:]} == {("quadratic", "sgdn", 1)}
    assert all(Path(file).exists() for file in told["files"])
    for name in ("compare-methods.md", "report.html"):
        assert told["verdict"].split(":")[0] in unescape((tmp_path / name).read_text())
    with (tmp_path / "compare-methods.csv").open() as file:
        assert [line["method"] for line in csv.DictReader(file)] == ["cosine", "ours", "additive", "multiplicative"]
    assert call(monkeypatch, *command) == 0
    assert " runs were there, none to make, into" in capfd.readouterr().err
