"""``hypergradient report``, and the report that every experiment writes at its end."""

from pathlib import Path


def report(folder: Path, /) -> None:
    """Rebuild FOLDER/report.html, a self-contained HTML page.

    Args:
        folder: The output folder of an experiment or a run, finished or not.
    """
    print(write_report(folder))


def write_report(folder: Path) -> Path:
    """Write the report of a folder and return its path."""
    from ..pages.report import write  # imported late: it takes a second

    return write(folder)
