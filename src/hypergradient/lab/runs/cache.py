"""A cache of decoded data, as tensors in the user's cache folder. A missing or damaged cache costs time, never a failure."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor

#: Version of the cache's format; entries of other versions are ignored.
CACHE_VERSION = 1

Tensors = dict[str, Tensor]
Digests = dict[str, str]


def digests(tensors: Tensors) -> Digests:
    """SHA-256 of the type, shape and values of each tensor."""
    return {name: digest(f"{x.dtype} {[*x.shape]}", x.contiguous().numpy()) for name, x in tensors.items()}


def digest(text: str, values: Any = b"") -> str:
    """SHA-256 of a text followed by an array's bytes."""
    both = hashlib.sha256(text.encode())
    both.update(values)
    return both.hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def cached(key: str | None, make: Callable[[], Tensors]) -> tuple[Tensors, Digests]:
    """The tensors of ``make`` and their digests: from the cache if an intact entry exists, else computed and stored under ``key``."""
    if key is None:
        tensors = make()
        return tensors, digests(tensors)
    file = user_cache_path("hypergradient") / f"{digest(f'{CACHE_VERSION} {key}')}.pt"
    with suppress(Exception):  # missing, unreadable or damaged: torch and pickle raise many kinds
        found = torch.load(file, weights_only=True)
        if found["digests"] == digests(found["tensors"]):
            return found["tensors"], found["digests"]
    tensors = make()
    made = digests(tensors)
    with suppress(OSError, RuntimeError):  # the cache is optional
        save(file, {"tensors": tensors, "digests": made})
    return tensors, made


def save(file: Path, what: object) -> None:
    """Write with torch.save to a temporary file, then rename it into place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=file.parent, delete=False) as side:
        try:
            torch.save(what, side)
            side.flush()
            Path(side.name).replace(file)
        except BaseException:
            Path(side.name).unlink()
            raise
