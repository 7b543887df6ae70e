"""Text that a machine has anyway, as numbers: what Debian and Python say of themselves, or the text files of any folder."""

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

#: Where a Debian machine has text, and where its Python has; what is not there is left out.
FOLDERS = ("/usr/share/doc", "/usr/share/man", "/usr/lib/python3", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
SUFFIXES = {".txt", ".gz", ".html", ".py", ".md", ".rst"}

#: Letters or punctuation with the blank before them, digits by threes, underscores, other white space.
PIECE = re.compile(r" ?[^\W\d_]+|\d{1,3}| ?[^\w\s]+|_+|\s+")
BYTES = 256


def gather(folders: Iterable[str], least: int, most: int) -> list[str]:
    """Different texts from the files of folders, in random order, always the same: up to ``most`` bytes of them.

    Raises:
        LabError: a folder is missing, or they hold less than ``least`` bytes.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise LabError(f"--text {folder}: there is no such folder; give folders that hold {', '.join(sorted(SUFFIXES))} files")
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
        wanted = f"at least {least:,} are needed: give --text a folder with more"
        raise LabError(f"--text: {size:,} bytes of text in {' '.join(folders)}, {wanted} in {', '.join(sorted(SUFFIXES))} files")
    return [text.decode(errors="replace") for text in found]


def read(file: Path) -> bytes:
    """What a file holds, unpacked; nothing where it cannot be read or is no text."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error):
        return b""
    return b"" if b"\0" in raw else raw


def numbered(texts: Sequence[str], kinds: int) -> array:
    """The texts as one row of numbers below ``kinds``, 0 after each: the most frequent pieces, and the bytes of all other pieces."""
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
    """Numbers, ``length`` at a time, and each one's next; the last 5 % are for validation."""
    row = torch.frombuffer(numbered(texts, kinds), dtype=torch.int32).to(device, torch.int64)
    n = (len(row) - 1) // length
    x, y = (row[i : i + n * length].reshape(n, length) for i in (0, 1))
    cut = n - n // 20
    return Data(x[:cut], y[:cut], x[cut:], y[cut:], kinds)
