"""``compare``: workloads, the runs that are made, in what order, over which processes; the table, and the command."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from threading import Event
from typing import Any
from warnings import catch_warnings, simplefilter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypergradient.lab.cli.compare import select_workloads
from hypergradient.lab.compare import table
from hypergradient.lab.compare.methods import PUBLISHED
from hypergradient.lab.compare.plan import GRID, GUESS, bracket, peers_of, plans, run_plans, tuned_plan
from hypergradient.lab.compare.runs import METHODS, Job, Result, cosine, parse_result, run_job
from hypergradient.lab.compare.workers import Workers
from hypergradient.lab.runs.data import Data
from hypergradient.lab.runs.engine import StoppedError
from hypergradient.lab.runs.peers import PEER_CLASSES, PEERS
from hypergradient.lab.workloads import FAMILIES, WORKLOADS, fine_tuning
from kills import first_dies

HELD_OUT = """
mnist resnet-bn cnn lstm gpt-groups gpt-long vae denoising raw poisson sine images-1000 cancer decay-0.3 decay-0 batch-1
batch-1000 short-150 short-100 switch drift wrong-labels-conv frozen skip-gram reinforce adversarial
"""


def test_the_split_is_fixed() -> None:
    assert [name for name, workload in WORKLOADS.items() if workload.held_out] == HELD_OUT.split()
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(WORKLOADS)
    assert all({WORKLOADS[name].held_out for name in names} == {True, False} for names in FAMILIES.values())


@pytest.fixture(scope="module")
def noise() -> Iterator[dict[str | None, Data | None]]:
    """Data sets in the shapes of MNIST and CIFAR-10; networks are not trained before they are tuned finely."""
    draw = torch.Generator().manual_seed(0)
    found: dict[str | None, Data | None] = {None: None}
    for name, shape in (("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))):
        x, y = torch.randn(1200, *shape, generator=draw), torch.randint(10, (1200,), generator=draw)
        found[name] = Data(x[:1000], y[:1000], x[1000:], y[1000:], 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "pretrain", lambda problem, steps: None)
        yield found
    fine_tuning.pretrained.cache_clear()
    fine_tuning.pretrained_transformer.cache_clear()


def two_steps(name: str, seed: int, data: Data | None) -> list[float]:
    """The losses of two steps, then those of the end, twice."""
    torch.manual_seed(seed)
    problem = WORKLOADS[name].make(seed, data)
    opt = torch.optim.Adam(problem.model.parameters(), 1e-3)
    found = []
    for i in range(2):
        if problem.before:
            problem.before(i)
        opt.zero_grad()
        loss = problem.loss(i)
        loss.backward()
        opt.step()
        found.append(loss.item())
    if problem.inputs:
        torch.optim.swa_utils.update_bn(problem.inputs(), problem.model)
    return [*found, *problem.evaluate(), *problem.evaluate()]


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload(name: str, noise: dict[str | None, Data | None]) -> None:
    data = noise[WORKLOADS[name].data]
    first, again, other = (two_steps(name, seed, data) for seed in (1, 1, 2))
    assert all(math.isfinite(x) for x in first)
    assert min(first[2:]) > 0
    assert first[2:4] == first[4:]
    assert first == again
    assert first != other


TINY = replace(WORKLOADS["digits"], steps=80, bases=("adamw",), title="Tiny")


@pytest.mark.parametrize("method", [method for method in METHODS if method not in PUBLISHED])
@pytest.mark.parametrize("one_group", [True, False])
def test_methods_learn(monkeypatch: pytest.MonkeyPatch, method: str, one_group: bool) -> None:
    if method in PEER_CLASSES:
        pytest.importorskip(PEERS[PEER_CLASSES[method]][1])
    monkeypatch.setitem(WORKLOADS, "tiny", replace(TINY, one_group=one_group))
    job = Job("tiny", "adamw", method, 1e-3 if method in ("constant", "cosine", "given") else None, 1)
    with redirect_stdout(StringIO()), catch_warnings():
        simplefilter("ignore")
        found = run_job(job, None)
    assert found.error is None
    assert found.train < WORKLOADS["digits"].make(1, None).evaluate()[0]
    assert found.bytes is not None
    assert 3 < found.bytes < 17
    assert parse_result(json.loads(json.dumps(found.as_dict()))) == found
    assert (found.alpha is None) == (method in (*PEER_CLASSES, "constant", "cosine"))
    if found.alpha:
        assert len(found.alpha[0]) == len(found.alpha[1]) <= 100
        assert found.alpha[0][-1] == 80


def test_cosine_warms_up_and_ends_at_zero() -> None:
    assert [cosine(i, 100) for i in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert [cosine(52, 100), cosine(100, 100)] == pytest.approx([0.5, 0], abs=0.01)


def failing(seed: int, data: Data | None) -> Any:
    raise ValueError("first line\nsecond line")


@pytest.mark.parametrize(
    ("workload", "method", "lr", "error"),
    [
        pytest.param(replace(TINY, make=failing), "ours", None, "ValueError: first line", id="it cannot be made"),
        pytest.param(TINY, "constant", 1e30, None, id="it diverges"),
    ],
)
def test_a_run_that_fails_is_a_result(monkeypatch: pytest.MonkeyPatch, workload: Any, method: str, lr: float, error: str) -> None:
    monkeypatch.setitem(WORKLOADS, "tiny", workload)
    found = run_job(Job("tiny", "adamw", method, lr, 1), None)
    assert (found.failed, found.error, found.train) == (True, error, math.inf)
    assert parse_result(json.loads(json.dumps(found.as_dict()))) == found


def test_a_process_that_dies_costs_its_run() -> None:
    workers, found = Workers(2, {}, first_dies), dict[int, Result]()
    try:
        for seed in (1, 2):
            workers.submit(Job("digits", "adam", "ours", None, seed))
        while workers.busy:
            found |= {x.job.seed: x for x in workers.collect(60)}
    finally:
        workers.close()
    assert (found[1].error, found[1].valid, found[2].valid) == ("the process died with exit status 7", math.inf, 2.0)
    assert workers.free == 2


def played(plan: Any, losses: Mapping[float, tuple[float, float]]) -> tuple[Any, list[Job]]:
    """What a plan ends with, and the runs that it asked for, whose losses depend on the learning rate alone."""
    asked, answer = [], None
    while True:
        try:
            asked += (wanted := plan.send(answer))
        except StopIteration as end:
            return end.value, asked
        answer = {job: Result(job, *losses[job.lr]) for job in wanted}


def at(lr: float) -> Job:
    return Job("digits", "adam", "constant", lr, 1)


PLACES = st.integers(0, len(GRID) - 1)


@given(PLACES, PLACES, PLACES, st.lists(st.floats(0.01, 9), min_size=len(GRID), max_size=len(GRID)))
def test_a_bracket_finds_the_lowest_of_what_falls_and_rises(guess: int, train: int, valid: int, steps: list[float]) -> None:
    slopes = [sum(steps[: i + 1]) for i in range(len(GRID))]
    losses = {lr: (slopes[abs(i - train)], slopes[abs(i - valid)]) for i, lr in enumerate(GRID)}
    best, asked = played(bracket(at, guess), losses)
    assert best == [train, valid]
    assert len(asked) == len(set(asked))


LOSSES = st.one_of(st.floats(0, 1), st.just(math.inf))


@given(PLACES, st.lists(st.tuples(LOSSES, LOSSES), min_size=len(GRID), max_size=len(GRID)))
def test_a_bracket_ends_on_the_grid(guess: int, pairs: list[tuple[float, float]]) -> None:
    best, asked = played(bracket(at, guess), dict(zip(GRID, pairs, strict=True)))
    places = sorted(GRID.index(job.lr) for job in asked)  # a ValueError where one is not on it
    assert places == list(range(places[0], places[-1] + 1))
    for i, place in enumerate(best):
        assert pairs[place][i] == min(pairs[k][i] for k in places)
        assert place not in {places[0], places[-1]} - {0, len(GRID) - 1}


class Fakes:
    """Workers that have done their jobs when they are asked."""

    def __init__(self, most: int) -> None:
        self.most, self.busy, self.began = most, list[Job](), list[Job]()

    @property
    def free(self) -> int:
        return self.most - len(self.busy)

    def submit(self, job: Job) -> None:
        assert self.free
        self.busy.append(job)
        self.began.append(job)

    def collect(self, timeout: float) -> list[Result]:
        off = abs(math.log10((self.busy[0].lr or 1e-3) / 3e-2))
        return [Result(self.busy.pop(0), 1 + off, 2 + off)]

    def close(self) -> None: ...


@pytest.mark.parametrize("most", [1, 4])
def test_what_is_missing_is_made_once(most: int) -> None:
    known: dict[Job, Result] = {}
    fakes, told = Fakes(most), list[tuple[Result, int]]()
    run_plans(plans(["digits", "gpt"], 3, False), known, fakes, lambda *x: told.append(x))
    assert len(fakes.began) == len(set(fakes.began)) == len(known) == len(told)
    assert told[-1][1] == 6
    assert {job.lr for job in known if job.seed == 2 and (job.base, job.method) == ("adam", "constant")} == {GRID[13]}
    left = fakes.began[-3:]
    for job in left:
        del known[job]
    again = Fakes(most)
    run_plans(plans(["digits", "gpt"], 3, False), known, again, lambda *x: None)
    assert sorted(map(str, again.began)) == sorted(map(str, left))


def test_no_process_waits_while_there_is_work() -> None:
    fakes, idle = Fakes(4), list[int]()
    run_plans(plans(["digits"], 3, False), {}, fakes, lambda *_: idle.append(len(fakes.busy)))
    assert idle[:-3] == [3] * (len(idle) - 3)


def test_stopped_between_runs() -> None:
    stopped, known = Event(), dict[Job, Result]()
    with pytest.raises(StoppedError):
        run_plans(plans(["digits"], 1, True), known, Fakes(2), lambda *_: stopped.set(), stopped)
    assert len(known) == 1


def test_winners_of_both_losses_run_with_all_seeds() -> None:
    _, jobs = played(tuned_plan("digits", "adam", 2), {lr: (1.0 + abs(i - 8), 1.0 + abs(i - 11)) for i, lr in enumerate(GRID)})
    assert {job.lr for job in jobs if job.seed == 2} == {GRID[8], GRID[11]}
    assert {job.method for job in jobs if job.seed == 2} == {"constant", "cosine"}


@pytest.mark.parametrize(
    ("workload", "base", "count"), [("digits", "adam", 6), ("digits", "sgdn", 3), ("gpt", "adamw", 9), ("images-1000", "sgdn", 3)]
)
def test_each_peer_runs_once_on_a_workload(workload: str, base: str, count: int) -> None:
    assert len(peers_of(workload, base)) == count
    assert (set(peers_of(workload, base)) >= {"dog", "dowg"}) == (count != 6)


def test_what_is_chosen() -> None:
    assert select_workloads(None, None, None, False) == [*WORKLOADS]
    assert select_workloads(None, None, True, False) == HELD_OUT.split()
    assert select_workloads(None, "games", False, False) == ["bandit"]
    assert select_workloads("digits,gpt", "sequence", None, False) == ["gpt"]
    assert not any(WORKLOADS[name].data for name in select_workloads(None, None, None, True))
    assert set(GUESS) == {base for workload in WORKLOADS.values() for base in workload.bases}


def made() -> Iterator[Result]:
    """Two learning rates with one seed, of which one won and has three; ours, and a peer that diverged once and one that broke."""
    for workload, base, factor in (("quadratic", "adam", 1.0), ("cancer", "adam", 2.0)):
        yield Result(Job(workload, base, "constant", 1e-3, 1), 1.0, 1.0)
        for seed, loss in enumerate((2.0, 4.0, 3.0), 1):
            yield Result(Job(workload, base, "constant", 1e-2, seed), loss, 2 * loss, bytes=8.0)
            yield Result(Job(workload, base, "cosine", 1e-2, seed), 1.5, 4.0, bytes=8.0)
            yield Result(Job(workload, base, "ours", None, seed), 1.5 * seed * factor, 6.0, bytes=12.0, alpha=([1, 9], [0.1, 0.2]))
            yield Result(Job(workload, base, "dog", None, seed), *((math.inf, math.inf) if seed == 1 else (5.0, 3.0)), bytes=8.0)
        yield Result(Job(workload, base, "given", 0.1, 1), 6.0, 9.0)
        yield Result(Job(workload, base, "momo", None, 1), error="TypeError: <b>|")


def test_table() -> None:
    rows = {(row.workload, row.method): row for row in table.rows(made())}
    assert [method for workload, method in rows if workload == "quadratic"] == ["constant", "cosine", "ours", "dog", "momo"]
    best = rows["quadratic", "constant"]
    assert (best.train, best.valid, best.rho_train, best.rho_cos_train, best.bytes) == (3.0, 6.0, 1.0, 2.0, 8.0)
    ours = rows["quadratic", "ours"]
    assert (ours.train, ours.rho_train, ours.rho_cos_valid, ours.worst_train, ours.worst_valid) == (3.0, 1.0, 1.5, 2.0, 1.5)
    dog, momo = rows["quadratic", "dog"], rows["quadratic", "momo"]
    assert (dog.train, dog.valid, dog.rho_valid, dog.failures, dog.runs, table.why_failed(dog)) == (
        5.0,
        3.0,
        0.5,
        1,
        3,
        "1 of 3 diverged",
    )
    assert (momo.train, momo.rho_cos_valid, table.why_failed(momo)) == (math.inf, math.inf, "1 of 1 failed, TypeError: <b>|")
    lines = {(line[0], held_out): line[1:] for held_out in (True, False) for line in table.summary([*rows.values()], held_out)}
    assert lines["DoG", True] == ["1", "1.67 / 0.50", "3.33 / 0.75", "0.75", "0.50", "8.0", "1", "0% / 0%"]
    assert (lines["DoG", False][-1], lines["HD, tuning-free", True][1], lines["HD, tuning-free", True][-1]) == (
        "100% / 0%",
        "2.00 / 1.00",
        "–",
    )
    assert table.failures([*rows.values()], True) == {
        "HD, lr set": ["cancer, Adam (ρ = 1.50)"],
        "DoG": ["cancer, Adam (1 of 3 diverged)"],
        "MoMo-Adam": ["cancer, Adam (1 of 1 failed, TypeError: <b>|)"],
    }
    assert "TypeError: &lt;b>\\|" in table.page([*rows.values()])
    (constant, *_, level, marks) = table.over_lr([x for x in made() if x.job.workload == "quadratic"])
    assert (constant.lr, constant.valid, level.train, marks.lr) == ([1e-3, 1e-2], [1.0, 6.0], [3.0, 3.0], [0.1])
