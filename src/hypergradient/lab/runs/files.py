"""Files that a killed process leaves whole, that are known when they are damaged, and that nobody can turn elsewhere; and a folder's lock.

What is read may come from strangers: whatever it is, it is read as data, or refused in one line.
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

#: Of the layout that is written; a folder with a higher number is left alone, one with a lower is only read.
FORMAT = 2

#: The files of a folder's lock, and of who holds it.
LOCK, HOLDER = ".lock", ".holder.json"


def write(file: Path, to: Callable[[Path], Any]) -> None:
    """Let ``to`` write a file to the side, then rename it into place.

    Raises:
        LabError: it cannot be written.
    """
    side = file.with_name(f".{file.name}.{token_hex(8)}.part")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        side.touch(exist_ok=False)  # so that it is no link to elsewhere
        try:
            to(side)
            side.replace(file)
        except BaseException:
            with suppress(OSError):
                side.unlink()
            raise


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """What keeps a file from being written is the user's to mend."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by a RuntimeError
        raise LabError(f"cannot write {file} ({first_line(error)}): make room, or choose another --output") from None


def remove(file: Path) -> None:
    with writing(file), suppress(FileNotFoundError, NotADirectoryError):
        file.unlink()


def write_json(file: Path, value: Any) -> None:
    write(file, lambda side: side.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def read_json(file: Path) -> dict[str, Any] | None:
    """What ``write_json`` wrote; None where there is no such file.

    Raises:
        LabError: it cannot be read, or a newer version of hypergradient wrote it.
    """
    try:
        if file.exists() and not file.is_file():
            raise OSError("it is no file")  # a pipe or a device would never end
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no table")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): remove its folder, or choose another --output") from None
    check_format(file, found)
    return found


def write_torch(file: Path, value: Any) -> None:
    """Write what torch.save writes, behind a line with its digest."""

    def to(side: Path) -> None:
        body = io.BytesIO()
        torch.save(value, body)
        header = {"format": FORMAT, "sha256": hashlib.sha256(body.getbuffer()).hexdigest()}
        with side.open("wb") as out:
            out.write(json.dumps(header).encode() + b"\n")
            out.write(body.getbuffer())

    write(file, to)


def read_torch(file: Path) -> Any:
    """What ``write_torch`` wrote; None where there is no such file.

    Raises:
        LabError: it is damaged, or a newer version of hypergradient wrote it.
    """
    try:
        header, _, body = file.read_bytes().partition(b"\n")
        about = json.loads(header)
        check_format(file, about)
        if about["sha256"] != hashlib.sha256(body).hexdigest():
            raise ValueError("it is not what was written")
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except LabError:
        raise
    except Exception as error:
        raise LabError(
            f"{file} cannot be resumed from ({first_line(error)}): remove it to begin anew, or choose another --output"
        ) from None


def append_json(file: Path, value: Any) -> None:
    """Add a line to a file of lines; what a kill has torn off one is cut off before.

    Raises:
        LabError: the file cannot be written.
    """
    line = json.dumps(value, allow_nan=False) + "\n"
    with writing(file), open(file, "ab+", opener=no_link) as lines:
        if lines.tell():
            lines.seek(-1, os.SEEK_END)
            if lines.read() != b"\n":
                lines.seek(0)
                lines.truncate(lines.read().rfind(b"\n") + 1)
        lines.write(line.encode())


def no_link(path: str, flags: int) -> int:
    """Open a file, but not through a link in its place."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def read_lines(file: Path) -> list[Any]:
    """What ``append_json`` wrote, but for a last line that was torn.

    Raises:
        LabError: the file cannot be read.
    """
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0].splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): run hypergradient compare into another --output") from None


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone, and clear away what killed ones have left; a folder that stays empty goes again.

    Raises:
        LabError: another process holds it, or it cannot be written.
    """
    held = FileLock(folder / LOCK)
    with writing(folder / LOCK):
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0.2)  # time for a process that has just got it to say who it is
        except Timeout:
            raise LabError(f"{folder} is in use by {holder(folder)}: wait for it, or choose another --output") from None
    try:
        write_json(folder / HOLDER, {"pid": os.getpid(), "command": command()})
        tidy(folder)
        tidy(folder / "unfinished")
        yield
    finally:
        for name in (HOLDER, LOCK):  # while it is held: who has opened the file meanwhile sees that it is gone, and makes another
            with suppress(OSError):
                (folder / name).unlink()
        held.release()
        for place in made:
            with suppress(OSError):
                place.rmdir()


def holder(folder: Path) -> str:
    """Who holds a folder's lock."""
    try:
        found = read_json(folder / HOLDER) or {}
    except LabError:
        found = {}
    return f"process {shortened(str(found['pid']))} ({shortened(str(found.get('command')))})" if "pid" in found else "another process"


def tidy(folder: Path) -> None:
    """Remove what ``write`` was killed over."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            part.unlink()


def check_format(file: Path, found: Mapping[str, Any]) -> None:
    """Raise LabError where a newer version wrote ``found`` into the file."""
    written = found.get("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        raise LabError(
            f"{file} was written by a newer hypergradient (format {shortened(str(written))}, this one knows {FORMAT}): "
            "upgrade hypergradient, or choose another --output"
        )


def command() -> str:
    """The command line of this process; of bytes in it that are no text, their numbers."""
    return os.fsencode(shlex.join(["hypergradient", *sys.argv[1:]])).decode(errors="backslashreplace")


def provenance() -> dict[str, Any]:
    """What a result depends on beside its configuration: the command, the versions and the machine."""
    return {
        "command": command(),
        "versions": {"hypergradient": hypergradient.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"processor": platform.machine(), "system": platform.system(), "threads": torch.get_num_threads()},
    }
