"""``hypergradient runs``: the runs in a folder, all or some of them, beside each other, or removed."""

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
from .options import Flag, Json
from .talk import note, varied

#: Rows of a table at most.
ROWS = 40

#: What a table of runs shows at its ends, and the format of its numbers.
FIRST = ("name", "status", "model", "optimizer")
LAST = {"iterations": ",", "alpha": ".3g", "train_loss": ".4f", "valid_loss": ".4f", "valid_accuracy": ".2%", "seconds": ",.1f"}

CONDITION = re.compile(r"([\w-]+)\s*(<=|>=|!=|==?|<|>)\s*(.*)", re.DOTALL)
ORDER: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

#: A run as a line: its name, options, and how it ended.
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
    """List the runs in a folder, compare them, or delete some.

    Args:
        folder: The --output of an experiment, or a folder of runs.
        where: Those of one kind alone: optimizer=SGD-HD, lr<0.01, status!=finished, limit=none; again for both of two.
        compare: Two or more of them beside each other: NAME,NAME. The beginning of a name will do.
        delete: Remove them, with --yes.
        yes: Do so.
        as_json: Print all of them as JSON, for machines.

    Raises:
        LabError: the folder holds no such runs, or another process works in it.
    """
    if yes and not delete:
        raise LabError("--yes has no meaning without --delete: leave it out")
    if delete and compare:
        raise LabError("--delete and --compare do not go together: leave one of them out")
    tests = [condition(text) for text in where]
    if delete:
        remove(folder, tests, yes)
        return
    found = chosen(folder, tests)
    rows = [row_of(entry) for entry in named(compare, found)] if compare else sorted(map(row_of, found.values()), key=rank)
    if as_json:
        print(json.dumps({"runs": [{name: finite(value) for name, value in row.items()} for row in rows]}, indent=2))
    elif compare:
        show(side_by_side(rows))
    else:
        show(table_of(rows))
        note(f"{len(rows):,} runs in {folder}")


Condition = tuple[str, str, str]


def condition(text: str) -> Condition:
    """What stands in ``--where``: a name, how it is compared, and with what.

    Raises:
        LabError: it is no such thing.
    """
    match = CONDITION.fullmatch(text.strip())
    if match is None:
        raise LabError(f"--where takes NAME=VALUE, or with !=, <, <=, > or >=, such as 'lr<0.01', got {shortened(text)!r}")
    name, sign, value = match.groups()
    if sign in ORDER and number(value) is None:
        raise LabError(f"--where {shortened(text)}: only numbers have an order, got {shortened(value)!r}: use = or !=")
    return name.replace("-", "_"), sign, value


def holds(row: Row, test: Condition) -> bool:
    """Whether a run is of the kind; numbers are compared as such, and what a run has not is none."""
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


def chosen(folder: Path, tests: Sequence[Condition]) -> dict[str, Entry]:
    """The runs of a kind.

    Raises:
        LabError: there are none, or they have no such option.
    """
    found = entries(folder)
    if not found:
        raise LabError(f"{folder} holds no runs: give the --output of an experiment, or a folder of runs")
    if not tests:
        return found
    rows = {name: row_of(entry) for name, entry in found.items()}
    known = set().union(*rows.values())
    for name, _, _ in tests:
        if name not in known:
            raise LabError(f"--where: the runs in {folder} have no {shortened(name)}; they have {', '.join(sorted(known))}")
    found = {name: found[name] for name, row in rows.items() if all(holds(row, test) for test in tests)}
    if not found:
        raise LabError(f"none of the {len(rows):,} runs in {folder} is of this kind: leave out a --where")
    return found


def named(names: str, found: Mapping[str, Entry]) -> list[Entry]:
    """The runs of these names, or beginnings of names."""
    picked = {}
    for name in filter(None, map(str.strip, names.split(","))):
        fits = [name] if name in found else [full for full in found if full.startswith(name)]
        if len(fits) != 1:
            raise LabError(f"--compare {shortened(name)}: that is {len(fits)} runs: give one of {shortened(', '.join(found))}")
        picked[fits[0]] = found[fits[0]]
    if len(picked) < 2:
        raise LabError(f"--compare takes two runs or more, NAME,NAME, got {shortened(names)!r}")
    return [*picked.values()]


def row_of(entry: Entry) -> Row:
    """A run as a line; its iterations are those that it made."""
    options, versions = flat(entry.config), entry.about.get("versions")
    own = {name: value for name, value in options.items() if name != "iterations"} | {"cap": options.get("iterations")}
    ending = {**dict.fromkeys(LAST), "status": "under way", **(entry.summary or {})}
    return {"name": entry.name, **ending, **own, **(versions if isinstance(versions, dict) else {})}


def rank(row: Row) -> list[float]:
    """The lowest losses come first."""
    losses = [number(row[name]) for name in ("valid_loss", "train_loss")]
    return [math.inf if loss is None or math.isnan(loss) else loss for loss in losses]


def finite(value: object) -> object:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table_of(rows: Sequence[Row]) -> Table:
    """A line a run, with the options that they differ in."""
    passed = {*FIRST, *LAST, "data_digest", "source_digest"}
    options = [name for name in varied(rows) if name not in passed]
    table = Table(box=box.SIMPLE_HEAD)
    for name in (*FIRST, *options, *LAST):
        table.add_column(name.replace("_", " "), no_wrap=True, justify="right" if name in LAST else "left")
    for row in rows[:ROWS]:
        table.add_row(*(cell(row.get(name), LAST.get(name, "g")) for name in (*FIRST, *options, *LAST)))
    if rows[ROWS:]:
        table.caption = f"and {len(rows) - ROWS:,} more (--json for all)"
    return table


def side_by_side(rows: Sequence[Row]) -> Table:
    """A column a run; a star marks the lines in which they differ."""
    table, differ = Table(box=box.SIMPLE_HEAD), varied(rows)
    table.add_column("")
    table.add_column("name", no_wrap=True)
    for row in rows:
        table.add_column(cell(row["name"]), overflow="fold")
    for name in dict.fromkeys(name for row in rows for name in row if name != "name"):
        table.add_row("*" if name in differ else "", name.replace("_", " "), *(cell(row.get(name), LAST.get(name, "g")) for row in rows))
    return table


def cell(value: object, form: str = "g") -> str:
    """A value as a table has room for it, without what a terminal would obey."""
    with suppress(ValueError, OverflowError):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return format(value, form) if isinstance(value, float) or form == "," else str(value)
    return "-" if value is None else "".join(letter if letter.isprintable() else "?" for letter in shortened(str(value)))


def show(table: Table) -> None:
    """Print a table, on a terminal as wide as that, elsewhere as wide as it needs."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not sys.stdout.isatty():
        console.width = 10_000
        console.width = console.measure(table).maximum
    console.print(table)


def remove(folder: Path, tests: Sequence[Condition], yes: bool) -> None:
    """Delete what was written of runs, and their folders where nothing else lies in them."""
    if not yes:
        raise LabError(f"--delete removes {len(chosen(folder, tests)):,} runs from {folder}: add --yes to do so")
    with Folder(folder).lock():
        paths = [entry.path for entry in chosen(folder, tests).values()]
        for path in paths:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise LabError(f"{path} is a link to elsewhere: remove it by hand")
        left = sum(removed(path) for path in paths)
        entries(folder)  # so that the index forgets them
    note(f"{len(paths):,} runs deleted from {folder}" + f"; {left:,} of their folders hold other files too, and were left" * (left > 0))


def removed(path: Path) -> bool:
    """Delete what was written of a run; whether its folder holds something else too."""
    with Folder(path).lock():
        Folder(path).clear()
        (path / "report.html").unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()
    return path.exists()
