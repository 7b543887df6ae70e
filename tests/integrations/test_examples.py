"""Each file of examples/ runs as it stands, in seconds, and shows in its own assertions that it trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    env.setdefault("OMP_NUM_THREADS", "1")
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip(), "it prints what it has come to"
    lines = path.read_text().count("\n")
    assert 20 <= lines <= 70, "a recipe is read at a glance"
