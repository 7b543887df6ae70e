"""Decoded data between commands: tensors in the user's cache folder. Whatever is amiss there costs time, never a command."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor

#: Of what is kept; what an older version kept is not looked at.
LAYOUT = 1

Tensors = dict[str, Tensor]
Digests = dict[str, str]


def digests(tensors: Tensors) -> Digests:
    """SHA-256 of each tensor: of its type, shape and values."""
    return {name: digest(f"{x.dtype} {[*x.shape]}", x.contiguous().numpy()) for name, x in tensors.items()}


def digest(text: str, values: Any = b"") -> str:
    """SHA-256 of a text, and of an array's bytes."""
    both = hashlib.sha256(text.encode())
    both.update(values)
    return both.hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def kept(key: str | None, make: Callable[[], Tensors]) -> tuple[Tensors, Digests]:
    """What ``make`` gives and its digests, from the cache where it is there and whole, else made and kept under ``key``, if any."""
    if key is None:
        tensors = make()
        return tensors, digests(tensors)
    file = user_cache_path("hypergradient") / f"{digest(f'{LAYOUT} {key}')}.pt"
    with suppress(Exception):  # not there, not readable, or damaged: torch and pickle raise much
        found = torch.load(file, weights_only=True)
        if found["digests"] == digests(found["tensors"]):
            return found["tensors"], found["digests"]
    tensors = make()
    made = digests(tensors)
    with suppress(OSError, RuntimeError):  # a cache that cannot be written: the data is here
        keep(file, {"tensors": tensors, "digests": made})
    return tensors, made


def keep(file: Path, what: object) -> None:
    """Write by torch.save to a side file that nobody else has, and rename it into place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=file.parent, delete=False) as side:
        try:
            torch.save(what, side)
            side.flush()
            Path(side.name).replace(file)
        except BaseException:
            Path(side.name).unlink()
            raise
