"""GitHub's workflows, where they repeat other files: the targets of the Makefile, and the versions of docs/supported.md."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def targets(job: dict) -> set[str]:
    """The make targets of a job; those of its matrix where it names them so."""
    runs = [step.get("run", "") for step in job.get("steps", [])]
    named = {name for run in runs for name in re.findall(r"^\s*make (.+)$", run, re.MULTILINE)}
    if "${{ matrix.target }}" in named:
        named = named - {"${{ matrix.target }}"} | set(job["strategy"]["matrix"]["target"])
    return named


@pytest.mark.parametrize("name", WORKFLOWS)
def test_targets_are_those_of_the_makefile(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())
    used = set().union(*(targets(job) for job in WORKFLOWS[name]["jobs"].values()))
    assert used
    assert used <= known


def test_versions_have_those_of_the_table() -> None:
    tried = re.findall(r"^\| (3\.\d+)\.\d+ \| (2\.\d+\.\d+) \|", (ROOT / "docs" / "supported.md").read_text(encoding="utf-8"), re.MULTILINE)
    rows = WORKFLOWS["ci.yml"]["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert tried
    assert set(tried) <= {(row["python"], row["torch"]) for row in rows}
