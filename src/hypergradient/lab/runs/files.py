"""Atomic files with digests, which do not follow links, and a folder's lock.

Files may come from anywhere: whatever they hold is read as data, or refused with a one-line error.
"""

import hashlib
import io
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from filelock import FileLock, Timeout

import hypergradient

from ..errors import LabError, first_line, shortened

#: Version of the stored format. Folders of a higher version are refused, those of a lower one are only read.
FORMAT = 2

#: The lock file of a folder, and the file that says which process holds it.
LOCK, HOLDER = ".lock", ".holder.json"


def write(file: Path, to: Callable[[Path], Any]) -> None:
    """Write a file atomically: ``to`` writes a temporary file, which is then renamed into place.

    Raises:
        LabError: the file cannot be written.
    """
    side = file.with_name(f".{file.name}.{token_hex(8)}.part")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        side.touch(exist_ok=False)  # fails on a planted link
        try:
            to(side)
            side.replace(file)
        except BaseException:
            with suppress(OSError):
                side.unlink()
            raise


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Report a failure to write as a LabError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        raise LabError(f"cannot write {file} ({first_line(error)}): free some space, or choose another --output") from None


def remove(file: Path) -> None:
    with writing(file), suppress(FileNotFoundError, NotADirectoryError):
        file.unlink()


def write_json(file: Path, value: Any) -> None:
    write(file, lambda side: side.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def read_json(file: Path) -> dict[str, Any] | None:
    """Read what ``write_json`` wrote; None if the file is missing.

    Raises:
        LabError: it cannot be read, or was written by a newer version.
    """
    try:
        if file.exists() and not file.is_file():
            raise OSError("not a regular file")  # reading a pipe or a device would never end
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): remove its folder, or choose another --output") from None
    check_format(file, found)
    return found


def write_torch(file: Path, value: Any) -> None:
    """Write a value with torch.save, after a line with its digest."""

    def to(side: Path) -> None:
        body = io.BytesIO()
        torch.save(value, body)
        header = {"format": FORMAT, "sha256": hashlib.sha256(body.getbuffer()).hexdigest()}
        with side.open("wb") as out:
            out.write(json.dumps(header).encode() + b"\n")
            out.write(body.getbuffer())

    write(file, to)


def read_torch(file: Path) -> Any:
    """Read what ``write_torch`` wrote; None if the file is missing.

    Raises:
        LabError: it is damaged, or was written by a newer version.
    """
    try:
        header, _, body = file.read_bytes().partition(b"\n")
        about = json.loads(header)
        check_format(file, about)
        if about["sha256"] != hashlib.sha256(body).hexdigest():
            raise ValueError("its content does not match its digest")
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except LabError:
        raise
    except Exception as error:
        raise LabError(
            f"{file} cannot be resumed from ({first_line(error)}): remove it to start over, or choose another --output"
        ) from None


def append_json(file: Path, value: Any) -> None:
    """Append a line to a JSON-lines file, after removing an incomplete last line left by a killed process.

    Raises:
        LabError: the file cannot be written.
    """
    line = json.dumps(value, allow_nan=False) + "\n"
    with writing(file), open(file, "ab+", opener=open_without_links) as lines:
        if lines.tell():
            lines.seek(-1, os.SEEK_END)
            if lines.read() != b"\n":
                lines.seek(0)
                lines.truncate(lines.read().rfind(b"\n") + 1)
        lines.write(line.encode())


def open_without_links(path: str, flags: int) -> int:
    """Open a file without following a link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def read_lines(file: Path) -> list[Any]:
    """Read what ``append_json`` wrote, without an incomplete last line.

    Raises:
        LabError: the file cannot be read.
    """
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0].splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): run hypergradient compare into another --output") from None


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder for this process, and remove partial files of killed ones; a folder left empty is removed again.

    Raises:
        LabError: another process holds the lock, or the folder cannot be written.
    """
    held = FileLock(folder / LOCK)
    with writing(folder / LOCK):
        created = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0.2)  # the holder may not have written its name yet
        except Timeout:
            raise LabError(f"{folder} is in use by {holder(folder)}: wait for it, or choose another --output") from None
    try:
        write_json(folder / HOLDER, {"pid": os.getpid(), "command": command()})
        remove_partial_files(folder)
        remove_partial_files(folder / "unfinished")
        yield
    finally:
        for name in (HOLDER, LOCK):  # while locked: a process that has opened the file sees that it is gone, and makes another
            with suppress(OSError):
                (folder / name).unlink()
        held.release()
        for place in created:
            with suppress(OSError):
                place.rmdir()


def holder(folder: Path) -> str:
    """Describe the process that holds a folder's lock."""
    try:
        found = read_json(folder / HOLDER) or {}
    except LabError:
        found = {}
    return f"process {shortened(str(found['pid']))} ({shortened(str(found.get('command')))})" if "pid" in found else "another process"


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files of killed processes."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            part.unlink()


def check_format(file: Path, found: Mapping[str, Any]) -> None:
    """Raise LabError if a newer version wrote ``found`` to the file."""
    written = found.get("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        raise LabError(
            f"{file} was written by a newer hypergradient (format {shortened(str(written))}, this version reads up to {FORMAT}): "
            "upgrade hypergradient, or choose another --output"
        )


def command() -> str:
    """The command line of this process, with undecodable bytes escaped."""
    return os.fsencode(shlex.join(["hypergradient", *sys.argv[1:]])).decode(errors="backslashreplace")


def provenance() -> dict[str, Any]:
    """What a result depends on besides its configuration: command, versions and machine."""
    return {
        "command": command(),
        "versions": {"hypergradient": hypergradient.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"processor": platform.machine(), "system": platform.system(), "threads": torch.get_num_threads()},
    }
