"""What thousands of run folders hold, read fast: index.parquet beside them keeps their config.json and status.json.

It stands for no folder: what it keeps of a file counts as long as the file has the same size and time, and without it all files are read.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import LabError, first_line
from ..runs.config import Config
from ..runs.files import check_format, read_json, write
from ..runs.store import options_of, summary_of

INDEX = "index.parquet"

#: By folder: the times and sizes of its config.json and status.json, and what these hold.
Known = dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]]


@dataclass(frozen=True)
class Entry:
    """A run as its folder holds it: what config.json says, the options in that as this version names them, how it ended, None where not."""

    name: str
    path: Path
    about: dict[str, Any]
    config: dict[str, Any]
    summary: dict[str, Any] | None


def entries(root: Path) -> dict[str, Entry]:
    """The runs in folders under ``root/runs`` and right under ``root``, by the names of the folders.

    Raises:
        LabError: a file of theirs cannot be read, or another version of hypergradient wrote it.
    """
    known, now, found = recall(root), {}, {}
    for place in places(root):
        path = root / place
        stamp = f"{stamp_of(f'{path}/config.json')}, {stamp_of(f'{path}/status.json')}"
        if stamp.startswith(","):
            continue
        before, about, status = known.get(place, ("", {}, None))
        if before != stamp:
            about, status = read_json(path / "config.json") or {}, read_json(path / "status.json")
        for held in (about, status or {}):
            check_format(path, held)
        found[path.name] = Entry(path.name, path, about, options_of(path, about), summary_of(status))
        now[place] = stamp, about, status
    if [*now.items()] != [*known.items()]:
        keep(root, now)
    return found


def stamp_of(file: str) -> str:
    """Time and size of a file; empty where there is none."""
    try:
        stat = os.stat(file)  # noqa: PTH116 (half the time)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): remove its folder, or choose another --output") from None
    return f"{stat.st_mtime_ns} {stat.st_size}"


def ended(entry: Entry | None, config: Config) -> dict[str, Any] | None:
    """How the run of a configuration ended, by the entry of its name; None where it has not.

    Raises:
        LabError: the folder of that name holds another run.
    """
    if entry is None:
        return None
    own = config.as_dict()
    passed = {"data"} if config.data_digest else set()  # wherever they lie
    other = [name for name in own if name not in passed and entry.config[name] != own[name]]
    if other:
        raise LabError(f"{entry.path} holds a run with other {', '.join(other)} than its name says: remove it to run it again")
    return entry.summary


def places(root: Path) -> Iterator[str]:
    """The folders that may hold runs, by name; those under runs/ come last, and so count where names are equal."""
    for base in ("", "runs/"):
        try:
            with os.scandir(root / base) as inside:
                yield from sorted(base + item.name for item in inside if item.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise LabError(f"{root / base} cannot be read ({first_line(error)}): choose another folder") from None


def recall(root: Path) -> Known:
    """What the index keeps; nothing where it is missing or damaged."""
    try:
        with pq.ParquetFile(root / INDEX, page_checksum_verification=True) as parquet:
            table = parquet.read()
        rows = zip(*(table[name].to_pylist() for name in ("folder", "stamp", "config", "status")), strict=True)
        return {folder: (stamp, dict(json.loads(config)), json.loads(status)) for folder, stamp, config, status in rows}
    except Exception:  # of any kind, in a file that anything may have happened to
        return {}


def keep(root: Path, known: Known) -> None:
    """Write the index; where that cannot be, it is done without."""
    stamps, *held = zip(*known.values(), strict=True) if known else ((), (), ())
    configs, statuses = ([json.dumps(value) for value in values] for values in held)
    table = pa.table({"folder": [*known], "stamp": stamps, "config": configs, "status": statuses})
    with suppress(LabError):
        write(root / INDEX, partial(pq.write_table, table, use_dictionary=False, compression="zstd", write_page_checksum=True))
