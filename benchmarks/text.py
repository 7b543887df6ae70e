"""Tokenised text of files that a machine has anyway: the documentation of Debian and Python, or any folders of text."""

import gzip
import random
import re
import sysconfig
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.data import Data

#: Folders with text on a Debian machine and of its Python; missing ones are skipped.
FOLDERS = ("/usr/share/doc", "/usr/share/man", "/usr/lib/python3", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
SUFFIXES = {".txt", ".gz", ".html", ".py", ".md", ".rst"}

#: Tokens: letters or punctuation with a preceding blank, up to three digits, underscores, other white space.
PIECE = re.compile(r" ?[^\W\d_]+|\d{1,3}| ?[^\w\s]+|_+|\s+")
BYTES = 256


def gather(folders: Iterable[str], least: int, most: int) -> list[str]:
    """Distinct texts from the files of folders, up to ``most`` bytes, in a fixed random order.

    Raises:
        LabError: a folder does not exist, or all of them hold less than ``least`` bytes.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise LabError(f"--text {folder}: no such folder; give folders with {', '.join(sorted(SUFFIXES))} files")
    files = sorted({file for folder in folders for file in Path(folder).rglob("*") if file.suffix in SUFFIXES})
    random.Random(0).shuffle(files)
    found: dict[bytes, None] = {}
    size = 0
    for file in files:
        text = read(file)
        if text and text not in found:
            found[text] = None
            size += len(text)
        if size >= most:
            break
    print(f"{size:,} bytes of text in {len(found):,} of {len(files):,} files", flush=True)
    if size < least:
        wanted = f"at least {least:,} are needed: add folders with more text to --text"
        raise LabError(f"--text: {size:,} bytes of text in {' '.join(folders)}, {wanted} in {', '.join(sorted(SUFFIXES))} files")
    return [text.decode(errors="replace") for text in found]


def read(file: Path) -> bytes:
    """The contents of a file, decompressed; empty if it cannot be read or is not text."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error):
        return b""
    return b"" if b"\0" in raw else raw


def numbered(texts: Sequence[str], kinds: int) -> array:
    """The token ids of all texts, below ``kinds``, with 0 after each text: the most frequent tokens, and bytes for all others."""
    counts = Counter(piece for text in texts for piece in PIECE.findall(text))
    numbers = {piece: BYTES + i for i, (piece, _) in enumerate(counts.most_common(kinds - BYTES))}
    row = array("i")
    for text in texts:
        for piece in PIECE.findall(text):
            if piece in numbers:
                row.append(numbers[piece])
            else:
                row.extend(piece.encode())
        row.append(0)
    return row


def text_data(texts: Sequence[str], kinds: int, length: int, device: str) -> Data:
    """Sequences of ``length`` token ids and their next tokens as targets; the last 5 % are for validation."""
    row = torch.frombuffer(numbered(texts, kinds), dtype=torch.int32).to(device, torch.int64)
    n = (len(row) - 1) // length
    x, y = (row[i : i + n * length].reshape(n, length) for i in (0, 1))
    cut = n - n // 20
    return Data(x[:cut], y[:cut], x[cut:], y[cut:], kinds)
