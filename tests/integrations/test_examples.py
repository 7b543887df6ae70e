"""Each file of examples/ runs as it stands, in seconds, shows in its own assertions that it trained, and prints what the docs show.

HYPERGRADIENT_WRITE_OUTPUT=1 writes what it prints into examples/output/, for docs/recipes.md and docs/stacks.md.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def output_of(stdout: str, folder: Path) -> str:
    """Without the dicts that a trainer prints on its own, and with one name for all temporary folders."""
    lines = (line for line in stdout.splitlines(keepends=True) if not re.fullmatch(r"\{'\w+': '.*\}\n", line))
    return re.sub(rf"{re.escape(str(folder))}/\w+", "/tmp/run", "".join(lines))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    env.setdefault("OMP_NUM_THREADS", "1")
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = path.read_text().count("\n")
    assert 20 <= lines <= 70, "a recipe is read at a glance"

    found, shown = output_of(done.stdout, tmp_path), path.parent / "output" / f"{path.stem}.txt"
    if os.environ.get("HYPERGRADIENT_WRITE_OUTPUT"):
        shown.write_text(found)
    assert NUMBER.sub("#", found) == NUMBER.sub("#", shown.read_text())
    for now, then in zip(NUMBER.findall(found), NUMBER.findall(shown.read_text()), strict=True):
        assert float(now) == pytest.approx(float(then), rel=1.0, abs=0.1), "processors differ, but not by as much"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_docs_show_it(path: Path) -> None:
    pages = [(ROOT / "docs" / name).read_text() for name in ("recipes.md", "stacks.md")]
    for shown in (f"examples/{path.name}", f"examples/output/{path.stem}.txt"):
        assert sum(f'--8<-- "{shown}"' in page for page in pages) == 1
