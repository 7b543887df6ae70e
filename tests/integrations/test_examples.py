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


def apart(output: str) -> tuple[str, list[float]]:
    """Words and numbers; which epoch was best does not count."""
    return NUMBER.sub("#", output), [float(number) for number in NUMBER.findall(re.sub(r"/tmp/run/\S+", "", output))]


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
    (words, numbers), (words_then, numbers_then) = map(apart, (found, shown.read_text()))
    assert words == words_then
    for now, then in zip(numbers, numbers_then, strict=True):
        assert abs(now - then) <= max(0.1, min(abs(now), abs(then))), f"{now}, {then}: processors differ, but not by as much"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_docs_show_it(path: Path) -> None:
    pages = [(ROOT / "docs" / name).read_text() for name in ("recipes.md", "stacks.md")]
    for shown in (f"examples/{path.name}", f"examples/output/{path.stem}.txt"):
        assert sum(f'--8<-- "{shown}"' in page for page in pages) == 1
