"""Images and labels from Parquet files, in a folder or on the Hugging Face Hub, by the ``datasets`` library."""

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

#: Files beside the Parquet files that may say which split each is of.
CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")

#: How many files and folders are looked at: no data set that fits into memory has more.
ENTRIES = 10_000

#: What images become, by how they are stored (pillow's modes): 8 bits a channel, grey or RGB, with alpha or without.
MODES = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA"}


def shown(name: str) -> str:
    """The name, as far as a line has room for it."""
    return f"--data {shortened(name if name.isprintable() else ascii(name))}"


def folder_of(name: str) -> Path | None:
    """The folder that is meant; None where it is a Hub id."""
    if not name:
        raise LabError(f"--data is empty: {ALLOWED}")
    try:
        if S_ISDIR(Path(name).stat().st_mode):
            return Path(name).resolve()
    except FileNotFoundError:
        if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
            return None
        raise LabError(f"{shown(name)}: there is no such folder; {ALLOWED}") from None
    except (OSError, ValueError) as error:  # too long, not permitted, links in a circle; a NUL
        raise LabError(f"{shown(name)} cannot be opened ({getattr(error, 'strerror', error)}): {ALLOWED}") from None
    raise LabError(f"{shown(name)} is a file: give the folder that holds its Parquet files")


def looked_through(name: str, folder: Path) -> tuple[list[Path], str]:
    """The folder's Parquet files and CARDS, and all that their images and labels depend on, whatever the folder is called."""
    try:
        files = parquet_files(name, folder)
        lines = [f"{os.fsencode(file.relative_to(folder))!r} {file_digest(file)}" for file in files]
    except OSError as error:
        raise LabError(f"{shown(name)}: cannot be read ({first_line(error)})") from None
    return files, " ".join([f"datasets {version('datasets')} pillow {version('pillow')}", *lines])


def parquet_files(name: str, folder: Path) -> list[Path]:
    """The folder's Parquet files and CARDS, sorted, found without a look at more than ENTRIES."""

    def fail(error: OSError) -> None:
        raise error

    found, entries = [], 0
    for where, folders, files in os.walk(folder, onerror=fail):
        entries += len(folders) + len(files)
        if entries > ENTRIES:
            raise LabError(f"{shown(name)}: there are more than {ENTRIES:,} files in it: give the folder of the Parquet files alone")
        found += [Path(where, file) for file in files if file.endswith(".parquet") or file in CARDS]
    if not any(file.suffix == ".parquet" for file in found):
        raise LabError(f"{shown(name)}: no file in it is named *.parquet, and other formats are not read: {ALLOWED}")
    for file in found:
        if not S_ISREG(file.stat().st_mode):  # a pipe would be waited for
            raise LabError(f"{shown(name)}: {file} is no regular file: take it away")
    return sorted(found)


def quiet_datasets() -> Any:
    """The library, made silent: what goes wrong is told in one line."""
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    for library in (datasets, huggingface_hub):
        library.logging.set_verbosity(library.logging.CRITICAL)
    return datasets


def in_folder(name: str, folder: Path, files: list[Path]) -> Read:
    """A folder's images and labels, of no file but those."""
    datasets = quiet_datasets()
    try:
        with TemporaryDirectory() as scratch:  # datasets' own cache goes by names and times: a changed file is not seen
            builder = datasets.load_dataset_builder(str(folder), cache_dir=scratch)
            strays = {file for split in builder.config.data_files.values() for file in split} - {str(file) for file in files}
            if not strays:
                builder.download_and_prepare()
                splits = builder.as_dataset(in_memory=True)
    except Exception as error:  # datasets raises its own, pyarrow's, huggingface_hub's and builtin exceptions
        cause = first_line(error.__cause__ or error)
        raise LabError(f"{shown(name)}: the folder cannot be read as Parquet data with splits train and test ({cause})") from None
    if strays:  # of another format, or beyond the folder: by its card, or as * ? [ in its path are taken for patterns
        raise LabError(f"{shown(name)}: {min(strays)} would be read, too, which is no Parquet file of the folder: take it away, or rename")
    return labelled(name, splits)


def hugging_face(name: str) -> Read:
    """A Hub data set's images and labels."""
    datasets = quiet_datasets()
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:
        cause = first_line(error.__cause__ or error)
        what = "Parquet data with splits train and test"
        raise LabError(f"{shown(name)}: there is no such folder, and the Hub gave no {what} ({cause})") from None
    return labelled(name, splits)


def labelled(name: str, splits: Any) -> Read:
    """Images and labels for training and for validation, and how many classes there are."""
    if "train" not in splits or not {"validation", "test"} & set(splits):
        raise LabError(f"{shown(name)}: needs a split train and one named validation or test, has {', '.join(splits)}")
    parts = [splits["train"], splits["validation" if "validation" in splits else "test"]]
    image, label = zip(*(columns(name, part.features) for part in parts), strict=True)
    train_y, valid_y = (labels(name, part, column) for part, column in zip(parts, label, strict=True))
    named = getattr(parts[0].features[label[0]], "num_classes", None)
    classes = named or int(train_y.max()) + 1
    if classes < 2:
        raise LabError(f"{shown(name)}: needs two classes or more, but the highest label is {classes - 1}")
    if not named and classes > len(train_y):
        raise LabError(f"{shown(name)}: labels must be 0, 1, ... up to the number of classes, but one is {classes - 1}")
    for y in (train_y, valid_y):
        wrong = y[(y < 0) | (y >= classes)]
        if len(wrong):
            raise LabError(f"{shown(name)}: labels must lie in 0 ... {classes - 1}, but {len(wrong)} do not, such as {int(wrong[0])}")
    train_x, valid_x = (images(name, part, column) for part, column in zip(parts, image, strict=True))
    if train_x.shape[1:] != valid_x.shape[1:]:
        sizes = ["x".join(map(str, x.shape[1:])) for x in (train_x, valid_x)]
        raise LabError(f"{shown(name)}: training images are {sizes[0]}, validation images {sizes[1]}: they must be alike")
    return (train_x, train_y), (valid_x, valid_y), classes


def columns(name: str, features: Any) -> tuple[str, str]:
    """The names of the image and the label column."""
    import datasets

    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [key for key in ("label", "labels") if getattr(features.get(key), "dtype", "").startswith(("int", "uint"))]
    if not images or not labels:
        missing = "column of images" if not images else "integer column named label"
        raise LabError(f"{shown(name)}: has no {missing}; its columns are {', '.join(features)}")
    return images[0], labels[0]


def labels(name: str, split: Any, column: str) -> Tensor:
    """A split's labels, int64."""
    found = split.with_format("arrow")[:][column]
    if len(found) == 0:
        raise LabError(f"{shown(name)}: the split {split.split} is empty")
    if found.null_count:
        raise LabError(f"{shown(name)}: row {found.to_pylist().index(None)} of the split {split.split} has no label: leave it out")
    try:
        return torch.tensor(found.cast("int64").to_numpy())
    except ValueError as error:
        raise LabError(f"{shown(name)}: a label of the split {split.split} cannot be read ({first_line(error)})") from None


def images(name: str, split: Any, column: str) -> Tensor:
    """A split's images, uint8 [n, channels, height, width]."""
    rows, feature = split.with_format("arrow")[:][column].to_pylist(), split.features[column]
    inside = split.info.builder_name == "parquet"  # where a path is a stranger's, and what it leads to may change
    found = np.empty(0, np.uint8)
    for i, row in enumerate(rows):
        try:
            if row is None or (row["bytes"] is None and (inside or row["path"] is None)):
                raise LabError("it is null, or in another file: leave the row out, or write the image's bytes into it")
            pixels = eight_bits(feature.decode_example(row))
            if i == 0:
                found = np.empty((len(rows), *pixels.shape), np.uint8)
            if pixels.shape != found.shape[1:]:
                raise LabError(f"it is {pixels.shape}, that of row 0 {found.shape[1:]}: images must be of one size, and all grey or none")
        except Exception as error:  # pillow raises many
            raise LabError(f"{shown(name)}: the image in row {i} of the split {split.split} cannot be read ({first_line(error)})") from None
        found[i] = pixels
    x = torch.from_numpy(found)
    return x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()


def eight_bits(picture: Any) -> np.ndarray:
    """A picture's values in 0 ... 255, [height, width] or [height, width, channels]; what is transparent in a palette becomes alpha."""
    if picture.mode not in MODES:
        raise LabError(f"its mode is {picture.mode}: convert it to {', '.join(MODES)}, which have 8 bits a channel")
    mode = "RGBA" if picture.mode == "P" and "transparency" in picture.info else MODES[picture.mode]
    return np.asarray(picture if mode == picture.mode else picture.convert(mode))
