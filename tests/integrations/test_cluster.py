"""Sweeps on a real Ray: a local cluster that is started for them, and one that is there; its workers and the driver are killed."""

import json
import multiprocessing
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from hypergradient.lab import main
from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.engine import Summary
from hypergradient.lab.sweeps.index import entries
from hypergradient.lab.sweeps.sweep import ended, folder_of, sweep
from test_sweep import histories

pytestmark = pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")

GRID = [Config(optimizer=paper("SGD-HD", lr, beta), epochs=150, threshold=0.2) for lr in (1e-3, 1e-1, 1e20) for beta in (1e-4, 1e-2)]
GRID.append(Config("digits", "cnn", paper("Adam"), epochs=8, limit=600))


class Cluster(NamedTuple):
    """One that is there: its address, and the process that all of its own descend from."""

    address: str
    pid: int

    def workers(self) -> set[int]:
        """Its processes that work on a sweep; those of another cluster are not touched."""
        parents, working = dict[int, int](), set[int]()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if (entry / "cmdline").read_bytes().startswith(b"ray::run_part"):
                    working.add(int(entry.name))
            except OSError:  # it has ended
                continue

        def is_own(pid: int) -> bool:
            return pid == self.pid or (pid in parents and is_own(parents[pid]))

        return set(filter(is_own, working))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two processors, with a token of its own."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        options = [f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", "--block"]
        head = subprocess.Popen([Path(sys.executable).with_name("ray"), "start", "--head", *options], stdout=subprocess.DEVNULL)
        try:
            assert until(lambda: is_open(port))
            yield Cluster(f"127.0.0.1:{port}", head.pid)
        finally:
            head.terminate()
            head.wait(30)


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def run(root: Path, address: str) -> None:
    sweep(GRID, load("digits"), root, engine="ray", address=address, every=0.1)


def start(root: Path, address: str) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")  # which imports Ray once for all
    context.set_forkserver_preload(["hypergradient.lab.sweeps.cluster"])
    child = context.Process(target=run, args=(root, address))
    child.start()
    return child


def until(true, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cluster: Cluster) -> Path:
    """The sweep on Ray, not interrupted."""
    root = tmp_path_factory.mktemp("whole")
    child = start(root, cluster.address)
    child.join(120)
    assert child.exitcode == 0
    return root


def finished(root: Path, config: Config) -> Summary | None:
    return ended(root, [config]).get(config.name)


def same(root: Path, whole: Path) -> None:
    assert histories(root, GRID) == histories(whole, GRID)
    for config in GRID:
        ours, theirs = finished(root, config), finished(whole, config)
        assert ours is not None
        assert theirs is not None
        assert replace(ours, seconds=0) == replace(theirs, seconds=0)
    assert list((root / "unfinished").iterdir()) == []


def test_equals_one_process(whole: Path, tmp_path: Path) -> None:
    for summary, config in zip(sweep(GRID, load("digits"), tmp_path), GRID, strict=True):
        other = finished(whole, config)
        assert other is not None
        assert (summary.status, summary.iterations) == (other.status, pytest.approx(other.iterations, abs=1))
        if summary.status != "diverged":
            assert summary.alpha == pytest.approx(other.alpha, rel=1e-3)


def test_killed_workers_are_replaced(whole: Path, cluster: Cluster, tmp_path: Path) -> None:
    child, killed = start(tmp_path, cluster.address), 0
    while killed < 2 and until(lambda: cluster.workers() or not child.is_alive()) and child.is_alive():
        time.sleep(0.3)
        for pid in cluster.workers():
            os.kill(pid, signal.SIGKILL)
            killed += 1
    child.join(120)
    assert killed >= 2
    assert child.exitcode == 0
    same(tmp_path, whole)


def test_killed_driver_goes_on(whole: Path, cluster: Cluster, tmp_path: Path) -> None:
    chance, kept, killed = random.Random(0), {}, 0
    for _ in range(3):
        child = start(tmp_path, cluster.address)
        assert until(lambda: cluster.workers() or not child.is_alive())  # noqa: B023
        child.join(chance.uniform(0.05, 0.25))
        if child.exitcode is None:
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            killed += 1
        assert until(lambda: not cluster.workers())
        for config in GRID:
            file = folder_of(tmp_path, config).path / "status.json"
            if file.exists():
                kept.setdefault(file, file.stat().st_mtime_ns)
    assert killed == 3
    assert finished(tmp_path, GRID[-1]) is None  # the kills left work to do
    child = start(tmp_path, cluster.address)
    child.join(120)
    assert child.exitcode == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    same(tmp_path, whole)


EXPERIMENTS = (
    "heatmap --quick --cap 20 --threshold 1.5",
    "tower --quick --epochs 1 --lr 0.1 --hypergrad-lr 1e-3",
    "sensitivity --quick --epochs 1 --hidden 16",
    "tuning --quick --epochs 1 --hidden 16",
)


def command(root: Path, words: list[str]) -> None:
    os.chdir(root)
    sys.argv = ["hypergradient", *words, "--output", "out", "--json"]
    main()


@pytest.mark.parametrize("words", EXPERIMENTS)
def test_every_experiment(cluster: Cluster, tmp_path: Path, words: str) -> None:
    """On Ray and in one process the same runs end in the same way."""
    ends: list[dict] = []
    for engine in (["ray", "--address", cluster.address], ["auto"]):
        place = tmp_path / engine[0]
        place.mkdir()
        child = multiprocessing.get_context("forkserver").Process(target=command, args=(place, [*words.split(), "--engine", *engine]))
        child.start()
        child.join(120)
        assert child.exitcode == 0
        found = {entry.name: entry.summary or {} for entry in entries(place / "out").values()}
        ends.append({name: (summary["status"], summary["iterations"]) for name, summary in found.items()})
    assert len(ends[0]) >= 6
    assert ends[0] == ends[1]


def test_starts_a_cluster_of_its_own(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("hypergradient"), "sweep", "grid.toml", "--engine", "ray", "--json"]
    (tmp_path / "grid.toml").write_text('optimizer = "SGDHD(lr=[0.1, 0.01], hypergrad_lr=1e-3)"\nepochs = 2\n')
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [run["status"] for run in json.loads(result.stdout)["runs"]] == ["finished"] * 2
    assert result.stderr == "2 runs on digits, 0 already finished; output: runs/sweep\n"


def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no Ray cluster at 127.0.0.1:9 .*: leave out --address"):
        sweep(GRID, load("digits"), tmp_path, engine="ray", address="127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []
