"""Reading thousands of run folders fast: index.parquet, next to them, caches their config.json and status.json.

It is only a cache: an entry is valid while its file has the same size and time, and without the index all files are read.
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

#: By folder: times and sizes of its config.json and status.json, and their contents.
Index = dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]]


@dataclass(frozen=True)
class Entry:
    """A run's folder: the content of config.json, its options under this version's names, and the results, None if unfinished."""

    name: str
    path: Path
    about: dict[str, Any]
    config: dict[str, Any]
    summary: dict[str, Any] | None


def entries(root: Path) -> dict[str, Entry]:
    """The runs in the folders under ``root/runs`` and directly under ``root``, by folder name.

    Raises:
        LabError: one of their files cannot be read, or was written by a newer version.
    """
    known, now, found = read_index(root), {}, {}
    for place in run_folders(root):
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
        write_index(root, now)
    return found


def stamp_of(file: str) -> str:
    """Time and size of a file; empty if it is missing."""
    try:
        stat = os.stat(file)  # noqa: PTH116 (half the time)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): remove its folder, or choose another --output") from None
    return f"{stat.st_mtime_ns} {stat.st_size}"


def ended(entry: Entry | None, config: Config) -> dict[str, Any] | None:
    """The results of a configuration's run, from the entry of its name; None if it has not ended.

    Raises:
        LabError: the folder of that name contains another run.
    """
    if entry is None:
        return None
    own = config.as_dict()
    ignored = {"data"} if config.data_digest else set()  # the digest identifies it, whatever its path
    other = [name for name in own if name not in ignored and entry.config[name] != own[name]]
    if other:
        raise LabError(f"{entry.path} contains a run whose {', '.join(other)} does not match its name: remove it to run it again")
    return entry.summary


def run_folders(root: Path) -> Iterator[str]:
    """The folders that may contain runs, by name; those under runs/ come last, and so win if names are equal."""
    for base in ("", "runs/"):
        try:
            with os.scandir(root / base) as inside:
                yield from sorted(base + item.name for item in inside if item.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise LabError(f"{root / base} cannot be read ({first_line(error)}): choose another folder") from None


def read_index(root: Path) -> Index:
    """The content of the index; empty if it is missing or damaged."""
    try:
        with pq.ParquetFile(root / INDEX, page_checksum_verification=True) as parquet:
            table = parquet.read()
        rows = zip(*(table[name].to_pylist() for name in ("folder", "stamp", "config", "status")), strict=True)
        return {folder: (stamp, dict(json.loads(config)), json.loads(status)) for folder, stamp, config, status in rows}
    except Exception:  # a damaged file may raise anything
        return {}


def write_index(root: Path, known: Index) -> None:
    """Write the index, if possible."""
    stamps, *held = zip(*known.values(), strict=True) if known else ((), (), ())
    configs, statuses = ([json.dumps(value) for value in values] for values in held)
    table = pa.table({"folder": [*known], "stamp": stamps, "config": configs, "status": statuses})
    with suppress(LabError):
        write(root / INDEX, partial(pq.write_table, table, use_dictionary=False, compression="zstd", write_page_checksum=True))
