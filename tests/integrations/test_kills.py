"""kill -9 at random moments of every command that trains: what goes on afterwards ends as if it had never been killed, bit for bit."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hypergradient.lab import main
from hypergradient.lab.compare.runs import RUNS
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import train
from hypergradient.lab.sweeps.sweep import sweep

GRID = """
epochs = 12
optimizer = ["SGDHD(lr=[0.1, 0.01], hypergrad_lr=[1e-3, 1e-4])", "AdamHD(rule=[TuningFree(), Multiplicative(0.02)])"]
"""

#: Each command, and how often it is killed.
COMMANDS = {
    "train": ("train --model cnn-bn --optimizer AdamHD --epochs 10 --limit 512", 10),
    "train-peer": ("train --optimizer Prodigy --epochs 30", 4),
    "heatmap": ("heatmap --data digits --cap 150 --threshold 0.6", 9),
    "tower": ("tower --quick --epochs 5 --lr 0.01,0.1 --hypergrad-lr 1e-4", 9),
    "sequential": ("sweep grid.toml --engine sequential", 7),
    "auto": ("sweep grid.toml", 7),
    "compare": ("compare --quick --workload quadratic --processes 1", 4),
}  # with Ray in test_cluster.py, as one program in test_sweep.py


#: What tells a run of compare from others.
JOB = ("workload", "base", "method", "lr", "seed")


def run(root: Path, words: list[str]) -> None:
    """The command, which saves all the time."""
    os.chdir(root)
    for function in (train, sweep):
        function.__kwdefaults__["every"] = 0.02
    if words[0] == "train" and (root / "out/config.json").exists():
        words = [*words, "--resume"]
    sys.argv = ["hypergradient", *words, "--output", "out", "--json"]
    main()


def result(root: Path) -> dict[str, Any]:
    """All that came of it, but for the time that it took."""
    found: dict[str, Any] = {}
    for file in root.rglob("status.json"):
        folder = Folder(file.parent)
        summary = folder.summary() or {}
        found[file.parent.name] = summary | {"seconds": 0}, folder.history()
    if (root / RUNS).exists():
        rows = Folder(root).read_lines(RUNS)
        found |= {str([row[name] for name in JOB]): [row[name] for name in ("train", "valid", "alpha", "bytes", "error")] for row in rows}
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_equals_never_killed(tmp_path: Path, name: str) -> None:
    words, kills = COMMANDS[name]
    context, chance, seconds = multiprocessing.get_context("fork"), random.Random(0), 0.0
    for place in ("whole", "killed"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "grid.toml").write_text(GRID)

    def start(place: str) -> Any:
        child = context.Process(target=run, args=(tmp_path / place, words.split()))
        child.start()
        return child

    begun = time.monotonic()
    child = start("whole")
    child.join(300)
    assert child.exitcode == 0
    seconds, killed = time.monotonic() - begun, 0
    for _ in range(kills):
        child = start("killed")
        child.join(chance.uniform(0.05, 1) * seconds / 3)
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
    child = start("killed")
    child.join(300)
    assert child.exitcode == 0
    assert killed > kills / 3
    assert result(tmp_path / "killed/out") == result(tmp_path / "whole/out")
    assert not [*(tmp_path / "killed").rglob("*.part")]
