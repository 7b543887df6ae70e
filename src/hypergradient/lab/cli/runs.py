"""``hypergradient runs``: list, filter, compare and delete the runs in a folder."""

import json
import math
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import LabError, shortened
from ..runs.config import flat
from ..runs.store import Folder
from ..sweeps.index import Entry, entries
from .console import differing, note
from .options import Flag, Json

#: The most rows that a table shows.
ROWS = 40

#: The first and the last columns of the table, with the format of its numbers.
FIRST = ("name", "status", "model", "optimizer")
LAST = {"iterations": ",", "alpha": ".3g", "train_loss": ".4f", "valid_loss": ".4f", "valid_accuracy": ".2%", "seconds": ",.1f"}

CONDITION = re.compile(r"([\w-]+)\s*(<=|>=|!=|==?|<|>)\s*(.*)", re.DOTALL)
ORDER: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

#: A run as a table row: its name, options and results.
Row = dict[str, Any]


def runs(
    folder: Path,
    /,
    *,
    where: Annotated[list[str], Parameter(negative=(), show_default=False)] = [],  # noqa: B006 (cyclopts would show a None)
    compare: str | None = None,
    delete: Flag = False,
    yes: Flag = False,
    as_json: Json = False,
) -> None:
    """List, filter, compare or delete the runs in a folder.

    Args:
        folder: The output folder of an experiment, or a folder of runs.
        where: Keep only matching runs: optimizer=SGD-HD, 'lr<0.01', status!=finished, limit=none. Repeat it to combine conditions.
        compare: Show runs side by side: NAME,NAME. A unique prefix of a name is enough.
        delete: Delete the matching runs (needs --yes).
        yes: Confirm --delete.
        as_json: Print all matching runs as JSON.

    Raises:
        LabError: there are no such runs, or another process is using the folder.
    """
    if yes and not delete:
        raise LabError("--yes only confirms --delete: leave it out")
    if delete and compare:
        raise LabError("--delete and --compare cannot be combined: leave out one of them")
    conditions = [condition(text) for text in where]
    if delete:
        delete_runs(folder, conditions, yes)
        return
    found = select_runs(folder, conditions)
    rows = [row_of(entry) for entry in select_by_name(compare, found)] if compare else sorted(map(row_of, found.values()), key=sort_key)
    if as_json:
        print(json.dumps({"runs": [{name: finite(value) for name, value in row.items()} for row in rows]}, indent=2))
    elif compare:
        print_table(side_by_side(rows))
    else:
        print_table(table_of(rows))
        note(f"{len(rows):,} runs in {folder}")


Condition = tuple[str, str, str]


def condition(text: str) -> Condition:
    """Parse a condition of ``--where``: name, comparison, value.

    Raises:
        LabError: it is malformed.
    """
    match = CONDITION.fullmatch(text.strip())
    if match is None:
        raise LabError(f"--where takes NAME=VALUE (or !=, <, <=, >, >=), such as 'lr<0.01', got {shortened(text)!r}")
    name, sign, value = match.groups()
    if sign in ORDER and number(value) is None:
        raise LabError(f"--where {shortened(text)}: {sign} needs a number, got {shortened(value)!r}: use = or != for texts")
    return name.replace("-", "_"), sign, value


def matches(row: Row, test: Condition) -> bool:
    """Whether a run meets a condition. Numbers compare as numbers; an option that a run lacks equals none."""
    name, sign, value = test
    own, wanted = row.get(name), number(value)
    if sign in ORDER:
        mine = None if isinstance(own, str) else number(own)
        return mine is not None and wanted is not None and ORDER[sign](mine, wanted)
    same = str(own).lower() == value.lower() or (wanted is not None and number(own) == wanted)
    return same == (sign != "!=")


def number(value: object) -> float | None:
    with suppress(ValueError, OverflowError):
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    return None


def select_runs(folder: Path, conditions: Sequence[Condition]) -> dict[str, Entry]:
    """The runs that meet all conditions.

    Raises:
        LabError: there are none, or no run has such an option.
    """
    found = entries(folder)
    if not found:
        raise LabError(f"{folder} contains no runs: give the output folder of an experiment, or a folder of runs")
    if not conditions:
        return found
    rows = {name: row_of(entry) for name, entry in found.items()}
    known = set().union(*rows.values())
    for name, _, _ in conditions:
        if name not in known:
            raise LabError(f"--where: the runs in {folder} have no option {shortened(name)}; they have {', '.join(sorted(known))}")
    found = {name: found[name] for name, row in rows.items() if all(matches(row, test) for test in conditions)}
    if not found:
        raise LabError(f"none of the {len(rows):,} runs in {folder} matches: leave out a --where")
    return found


def select_by_name(names: str, found: Mapping[str, Entry]) -> list[Entry]:
    """The runs with these names, or with unique prefixes of names."""
    picked = {}
    for name in filter(None, map(str.strip, names.split(","))):
        fits = [name] if name in found else [full for full in found if full.startswith(name)]
        if len(fits) != 1:
            raise LabError(f"--compare: {shortened(name)!r} matches {len(fits)} runs: choose from {shortened(', '.join(found))}")
        picked[fits[0]] = found[fits[0]]
    if len(picked) < 2:
        raise LabError(f"--compare takes two or more names, NAME,NAME, got {shortened(names)!r}")
    return [*picked.values()]


def row_of(entry: Entry) -> Row:
    """A run as a table row; ``iterations`` is the number that it ran, ``cap`` the option."""
    options, versions = flat(entry.config), entry.about.get("versions")
    own = {name: value for name, value in options.items() if name != "iterations"} | {"cap": options.get("iterations")}
    ending = {**dict.fromkeys(LAST), "status": "unfinished", **(entry.summary or {})}
    return {"name": entry.name, **ending, **own, **(versions if isinstance(versions, dict) else {})}


def sort_key(row: Row) -> list[float]:
    """Sorts by loss, lowest first."""
    losses = [number(row[name]) for name in ("valid_loss", "train_loss")]
    return [math.inf if loss is None or math.isnan(loss) else loss for loss in losses]


def finite(value: object) -> object:
    """A value for JSON, with null for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table_of(rows: Sequence[Row]) -> Table:
    """One row per run, with the options in which the runs differ."""
    passed = {*FIRST, *LAST, "data_digest", "source_digest"}
    options = [name for name in differing(rows) if name not in passed]
    table = Table(box=box.SIMPLE_HEAD)
    for name in (*FIRST, *options, *LAST):
        table.add_column(name.replace("_", " "), no_wrap=True, justify="right" if name in LAST else "left")
    for row in rows[:ROWS]:
        table.add_row(*(cell(row.get(name), LAST.get(name, "g")) for name in (*FIRST, *options, *LAST)))
    if rows[ROWS:]:
        table.caption = f"and {len(rows) - ROWS:,} more (--json for all)"
    return table


def side_by_side(rows: Sequence[Row]) -> Table:
    """One column per run; a star marks the rows in which the runs differ."""
    table, differ = Table(box=box.SIMPLE_HEAD), differing(rows)
    table.add_column("")
    table.add_column("name", no_wrap=True)
    for row in rows:
        table.add_column(cell(row["name"]), overflow="fold")
    for name in dict.fromkeys(name for row in rows for name in row if name != "name"):
        table.add_row("*" if name in differ else "", name.replace("_", " "), *(cell(row.get(name), LAST.get(name, "g")) for row in rows))
    return table


def cell(value: object, form: str = "g") -> str:
    """A value as a table shows it: shortened, without control characters."""
    with suppress(ValueError, OverflowError):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return format(value, form) if isinstance(value, float) or form == "," else str(value)
    return "-" if value is None else "".join(letter if letter.isprintable() else "?" for letter in shortened(str(value)))


def print_table(table: Table) -> None:
    """Print a table, fitted to a terminal's width, elsewhere at full width."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not sys.stdout.isatty():
        console.width = 10_000
        console.width = console.measure(table).maximum
    console.print(table)


def delete_runs(folder: Path, conditions: Sequence[Condition], yes: bool) -> None:
    """Delete the files of runs, and their folders where nothing else is left in them."""
    if not yes:
        raise LabError(f"--delete would delete {len(select_runs(folder, conditions)):,} runs in {folder}: add --yes to confirm")
    with Folder(folder).lock():
        paths = [entry.path for entry in select_runs(folder, conditions).values()]
        for path in paths:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise LabError(f"{path} is a link out of this folder: remove it by hand")
        left = sum(delete_run(path) for path in paths)
        entries(folder)  # updates the index
    note(f"Deleted {len(paths):,} runs in {folder}" + f"; {left:,} of their folders contain other files and were kept" * (left > 0))


def delete_run(path: Path) -> bool:
    """Delete a run's files; return whether its folder contains anything else."""
    with Folder(path).lock():
        Folder(path).clear()
        (path / "report.html").unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()
    return path.exists()
