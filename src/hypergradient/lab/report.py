"""The report."""

from pathlib import Path


def write(root: Path) -> Path:
    return root / "report.html"
