"""``hypergradient report``, and the report that every command ends with."""

from pathlib import Path


def report(folder: Path, /) -> None:
    """Write the report of an experiment again: one page, DIR/report.html, that needs no network.

    Args:
        folder: Of an experiment or a run, finished or not.
    """
    print(write_report(folder))


def write_report(folder: Path) -> Path:
    """The page of what a folder holds."""
    from ..pages.report import write  # which draws, and takes a second to import

    return write(folder)
