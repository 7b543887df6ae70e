"""Images and labels from Parquet files, in a folder or on the Hugging Face Hub, read with the ``datasets`` library."""

import os
import re
from importlib.metadata import version
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import LabError, first_line, shortened
from .cache import file_digest

Read = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]

ALLOWED = "give digits, a folder of Parquet files, or a Hub id like ylecun/mnist"

#: Files that may assign the Parquet files to splits.
CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")

#: The most files and folders scanned: no data set that fits into memory has more.
MAX_ENTRIES = 10_000

#: The mode to which images are converted, by their stored mode (pillow's names): 8 bits per channel, grey or RGB, with or without alpha.
MODES = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA"}


def option(name: str) -> str:
    """The option ``--data NAME``, shortened for a message."""
    return f"--data {shortened(name if name.isprintable() else ascii(name))}"


def folder_of(name: str) -> Path | None:
    """The folder that a name refers to; None for a Hub id."""
    if not name:
        raise LabError(f"--data is empty: {ALLOWED}")
    try:
        if S_ISDIR(Path(name).stat().st_mode):
            return Path(name).resolve()
    except FileNotFoundError:
        if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
            return None
        raise LabError(f"{option(name)}: no such folder; {ALLOWED}") from None
    except (OSError, ValueError) as error:  # too long, not permitted, circular links, a NUL character
        raise LabError(f"{option(name)} cannot be opened ({getattr(error, 'strerror', error)}): {ALLOWED}") from None
    raise LabError(f"{option(name)} is a file: give the folder that holds its Parquet files")


def scan_folder(name: str, folder: Path) -> tuple[list[Path], str]:
    """The folder's Parquet files and CARDS, and a key for all that their images and labels depend on, whatever the folder's path."""
    try:
        files = parquet_files(name, folder)
        lines = [f"{os.fsencode(file.relative_to(folder))!r} {file_digest(file)}" for file in files]
    except OSError as error:
        raise LabError(f"{option(name)}: cannot be read ({first_line(error)})") from None
    return files, " ".join([f"datasets {version('datasets')} pillow {version('pillow')}", *lines])


def parquet_files(name: str, folder: Path) -> list[Path]:
    """The folder's Parquet files and CARDS, sorted; at most MAX_ENTRIES entries are scanned."""

    def fail(error: OSError) -> None:
        raise error

    found, entries = [], 0
    for where, folders, files in os.walk(folder, onerror=fail):
        entries += len(folders) + len(files)
        if entries > MAX_ENTRIES:
            raise LabError(f"{option(name)}: more than {MAX_ENTRIES:,} files in it: give a folder with only the Parquet files")
        found += [Path(where, file) for file in files if file.endswith(".parquet") or file in CARDS]
    if not any(file.suffix == ".parquet" for file in found):
        raise LabError(f"{option(name)}: no *.parquet file in it, and other formats are not supported: {ALLOWED}")
    for file in found:
        if not S_ISREG(file.stat().st_mode):  # opening a pipe would block
            raise LabError(f"{option(name)}: {file} is not a regular file: remove it")
    return sorted(found)


def quiet_datasets() -> Any:
    """Import datasets with its output silenced: errors are reported in one line instead."""
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    for library in (datasets, huggingface_hub):
        library.logging.set_verbosity(library.logging.CRITICAL)
    return datasets


def read_folder(name: str, folder: Path, files: list[Path]) -> Read:
    """Read a folder's images and labels, from these files only."""
    datasets = quiet_datasets()
    try:
        with TemporaryDirectory() as scratch:  # datasets' own cache does not notice changed files
            builder = datasets.load_dataset_builder(str(folder), cache_dir=scratch)
            strays = {file for split in builder.config.data_files.values() for file in split} - {str(file) for file in files}
            if not strays:
                builder.download_and_prepare()
                splits = builder.as_dataset(in_memory=True)
    except Exception as error:  # datasets raises its own, pyarrow's, huggingface_hub's and builtin exceptions
        cause = first_line(error.__cause__ or error)
        raise LabError(f"{option(name)}: not readable as Parquet data with splits train and test ({cause})") from None
    if strays:  # another format, or outside the folder: named in its card, or as * ? [ in its path are read as patterns
        raise LabError(f"{option(name)}: {min(strays)} would be read too, but is not a Parquet file of the folder: remove or rename it")
    return labelled(name, splits)


def read_hub(name: str) -> Read:
    """Read a Hub data set's images and labels."""
    datasets = quiet_datasets()
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:
        cause = first_line(error.__cause__ or error)
        what = "Parquet data with splits train and test"
        raise LabError(f"{option(name)}: no such folder, and the Hub returned no {what} ({cause})") from None
    return labelled(name, splits)


def labelled(name: str, splits: Any) -> Read:
    """Training and validation images and labels, and the number of classes."""
    if "train" not in splits or not {"validation", "test"} & set(splits):
        raise LabError(f"{option(name)}: needs a split train and one named validation or test; it has {', '.join(splits)}")
    parts = [splits["train"], splits["validation" if "validation" in splits else "test"]]
    image, label = zip(*(columns(name, part.features) for part in parts), strict=True)
    train_y, valid_y = (labels(name, part, column) for part, column in zip(parts, label, strict=True))
    named = getattr(parts[0].features[label[0]], "num_classes", None)
    classes = named or int(train_y.max()) + 1
    if classes < 2:
        raise LabError(f"{option(name)}: needs at least two classes, but the highest label is {classes - 1}")
    if not named and classes > len(train_y):
        raise LabError(f"{option(name)}: labels must be 0, 1, ..., number of classes - 1, but one is {classes - 1}")
    for y in (train_y, valid_y):
        wrong = y[(y < 0) | (y >= classes)]
        if len(wrong):
            raise LabError(f"{option(name)}: labels must be in 0 ... {classes - 1}, but {len(wrong)} are not, such as {int(wrong[0])}")
    train_x, valid_x = (images(name, part, column) for part, column in zip(parts, image, strict=True))
    if train_x.shape[1:] != valid_x.shape[1:]:
        sizes = ["x".join(map(str, x.shape[1:])) for x in (train_x, valid_x)]
        raise LabError(f"{option(name)}: training images are {sizes[0]}, validation images {sizes[1]}: they must have the same size")
    return (train_x, train_y), (valid_x, valid_y), classes


def columns(name: str, features: Any) -> tuple[str, str]:
    """The names of the image and the label column."""
    import datasets

    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [key for key in ("label", "labels") if getattr(features.get(key), "dtype", "").startswith(("int", "uint"))]
    if not images or not labels:
        missing = "column of images" if not images else "integer column named label"
        raise LabError(f"{option(name)}: no {missing}; its columns are {', '.join(features)}")
    return images[0], labels[0]


def labels(name: str, split: Any, column: str) -> Tensor:
    """A split's labels, int64."""
    found = split.with_format("arrow")[:][column]
    if len(found) == 0:
        raise LabError(f"{option(name)}: the split {split.split} is empty")
    if found.null_count:
        raise LabError(f"{option(name)}: row {found.to_pylist().index(None)} of the split {split.split} has no label: remove the row")
    try:
        return torch.tensor(found.cast("int64").to_numpy())
    except ValueError as error:
        raise LabError(f"{option(name)}: a label of the split {split.split} cannot be read ({first_line(error)})") from None


def images(name: str, split: Any, column: str) -> Tensor:
    """A split's images, uint8 [n, channels, height, width]."""
    rows, feature = split.with_format("arrow")[:][column].to_pylist(), split.features[column]
    inside = split.info.builder_name == "parquet"  # a path in a Parquet file is not trusted, and its target may change
    found = np.empty(0, np.uint8)
    for i, row in enumerate(rows):
        try:
            if row is None or (row["bytes"] is None and (inside or row["path"] is None)):
                raise LabError("it is null or stored in another file: remove the row, or store the image's bytes in it")
            pixels = to_uint8(feature.decode_example(row))
            if i == 0:
                found = np.empty((len(rows), *pixels.shape), np.uint8)
            if pixels.shape != found.shape[1:]:
                raise LabError(f"its shape is {pixels.shape}, that of row 0 {found.shape[1:]}: all must be equal")
        except Exception as error:  # pillow raises many kinds
            raise LabError(f"{option(name)}: cannot read the image in row {i} of the split {split.split} ({first_line(error)})") from None
        found[i] = pixels
    x = torch.from_numpy(found)
    return x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()


def to_uint8(picture: Any) -> np.ndarray:
    """A picture as values in 0 ... 255, [height, width] or [height, width, channels]; transparency in a palette becomes alpha."""
    if picture.mode not in MODES:
        raise LabError(f"its mode is {picture.mode}: convert it to one of {', '.join(MODES)}, with 8 bits per channel")
    mode = "RGBA" if picture.mode == "P" and "transparency" in picture.info else MODES[picture.mode]
    return np.asarray(picture if mode == picture.mode else picture.convert(mode))
