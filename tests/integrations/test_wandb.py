"""The tests of test_loggers.py for W&B, which starts a process; and that none is left, nor signals taken."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import test_loggers
from hypergradient.lab.errors import LabError
from hypergradient.lab.loggers import Loggers, base
from test_loggers import (  # noqa: F401
    CONFIG,
    Logged,
    full,
    made,
    same,
    saved,
    test_a_disk_that_fills_up,
    test_a_folder_that_cannot_be_written,
    test_a_history_that_grows,
    test_a_run_in_one_write,
    test_a_second_process_writes_the_run_anew,
    test_two_runs_in_turns,
    test_values_that_are_not_finite,
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def name() -> Iterator[str]:
    """And after each test no process is left, and signals are who they were."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    before = psutil.Process().children(recursive=True)
    yield "wandb"
    assert [child for child in psutil.Process().children(recursive=True) if child not in before] == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def records(file: Path) -> Iterator[bytes]:
    """The records of a file as LevelDB logs them, in blocks of 32 KiB: W&B's own reader needs its server."""
    data, whole, at = file.read_bytes(), b"", 7
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            yield whole
            whole = b""


def from_wandb(folder: Path) -> dict[str, Logged]:
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for file in folder.glob("offline-run-*/run-*.wandb"):
        run = Logged({}, {}, None)
        for record in map(Record.FromString, records(file)):
            if record.HasField("run"):
                run.options |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                title = record.run.display_name
            for item in record.summary.update:
                run.status = json.loads(item.value_json) if item.key == "status" else run.status
            row = {"/".join(item.nested_key) or item.key: float(json.loads(item.value_json)) for item in record.history.item}
            for tag in row:
                if "/" in tag:
                    run.curves.setdefault(tag, []).append((int(row[tag.split("/")[0]]), row[tag]))
            code = record.exit.exit_code if record.HasField("exit") else None
        assert code == (0 if run.status else 1)
        assert title not in found
        found[title] = run
    return found


test_loggers.READERS["wandb"] = from_wandb

#: A run that is logged over and over until it is stopped, as the lab does it.
ENDLESS = """
import sys
from pathlib import Path
from test_loggers import Loggers, made, saved
from hypergradient.lab.runs.engine import StoppedError, stop_signals

with stop_signals() as stopped, Loggers(["wandb"], Path(sys.argv[1])) as loggers:
    n = 0
    while not stopped.is_set():
        n += 10
        loggers.write(saved(made(n, seed=1)))
        print(n, flush=True)
print("stopped", flush=True)
"""


def test_a_disk_that_is_full_later(name: str, tmp_path: Path, capfd: pytest.CaptureFixture, request: pytest.FixtureRequest) -> None:
    loggers = Loggers([name], tmp_path)
    loggers.write(saved(made(3)))
    request.getfixturevalue("full")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**9, resource.RLIM_INFINITY))  # so that W&B's log cannot be written, either
    with pytest.raises(LabError, match=r"^--log wandb cannot write to .*: free some space"):
        loggers.write(saved(made(30)))
    with pytest.raises(LabError, match=r"^--log wandb cannot write to .*: free some space"):
        loggers.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_process_that_is_stopped(name: str, number: int, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal's group. W&B's own ends with ours, and the run is there once after it was resumed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, process_group=0
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["10\n", "20\n"]
        others = psutil.Process(process.pid).children(recursive=True)
        assert [other.name() for other in others] == ["wandb-core"]
        os.killpg(process.pid, number)
        said = process.stdout.read().splitlines()
    assert said[-1:] == ["stopped"] if number != signal.SIGKILL else process.returncode == -number
    assert all(line.isdigit() for line in said[:-1])
    _, alive = psutil.wait_procs(others, timeout=20)
    assert alive == []
    with Loggers([name], tmp_path) as loggers:
        loggers.write(saved(made(15, seed=2), "finished"))
    ((label, found),) = from_wandb(tmp_path / name).items()
    assert (label, found.status) == (base.label(CONFIG), "finished")
    same(found.curves, made(15, seed=2))
