"""The installed command in processes of its own: terminals of few characters, Ctrl-C at any moment, two at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hypergradient
from test_cli import COMMAND


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_of_few_characters(tmp_path: Path, encoding: str) -> None:
    command = [COMMAND, "train", "--epochs", "1", "--limit", "64"]
    result = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}, check=True)
    assert {"ascii": b"final alpha", "cp1252": b"final alpha", "utf-8": "final α".encode()}[encoding] in result.stdout


@pytest.mark.parametrize("command", [["-m", "hypergradient"], [str(COMMAND)]], ids=["module", "script"])
def test_installed_command(command: list[str]) -> None:
    told = [
        subprocess.run([sys.executable, *command, *words], capture_output=True, text=True, check=True).stdout
        for words in (["--version"], ["train", "--help"])
    ]
    assert told[0] == f"hypergradient {hypergradient.__version__}\n"
    assert "--hypergrad-data" in told[1]
    assert "--no-" not in told[1]


@pytest.mark.parametrize("wait", [0.3, 0.8, 1.3, 1.8, 2.4])
def test_ctrl_c_while_importing_is_a_line(wait: float) -> None:
    process = subprocess.Popen([COMMAND, "train", "--epochs", "9999"], stderr=subprocess.PIPE, text=True)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("hypergradient: stopped")


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    """Twenty pairs: one works, and the other is told so in a line, whichever comes first; what is made is whole."""
    (tmp_path / "grid.toml").write_text('epochs = 1\nlimit = 256\noptimizer = "SGD(lr=[0.1, 0.01, 0.001])"')
    words = [sys.executable, "-c", PAIR]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["20", "20", "20"], found.stderr


#: Forks the command twice at once, twenty times: how often one worked, one was told of the other, and nothing else was said.
PAIR = """
import os, re, sys
from pathlib import Path
from hypergradient.lab import main
from hypergradient.lab.cli import experiments
import torch

torch.set_num_threads(1)
experiments.write_report = lambda folder: folder
experiments.curves.write_sweep = lambda *_: []
worked = told = silent = 0
for i in range(20):
    children = []
    for j in range(2):
        pid = os.fork()
        if pid == 0:
            sys.argv = ["hypergradient", "sweep", "grid.toml", "--output", f"s{i}"]
            os.dup2(os.open(f"{i}.{j}.txt", os.O_WRONLY | os.O_CREAT), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                main()
            except SystemExit as end:
                os._exit(end.code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    said = [Path(f"{i}.{j}.txt").read_text().splitlines() for j in range(2)]
    in_use = [len(lines) == 1 and bool(re.search("is in use by process [0-9]+", lines[0])) for lines in said]
    worked += 0 in codes
    told += sum(in_use) == 1 if 2 in codes else all("already finished" in lines[0] for lines in said)
    silent += not any("Traceback" in line for lines in said for line in lines)
print(worked, told, silent)
"""
