"""Data in memory: images and labels as tensors on the device, to be indexed there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import LabError, first_line

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """A data set for classification, or for regression where its targets are no labels.

    Args:
        train_x: training images, float32 [n, channels, height, width], each channel with mean 0 and variance 1 over the training set;
            text, int64 [n, length]; or vectors, float32 [n, dimensions].
        train_y: their labels, int64 [n], in [0, classes); of text the characters that follow, int64 [n, length]; or targets,
            float32 [n, classes].
        valid_x: validation images, normalised as the training images.
        valid_y: their labels.
        classes: how many classes there are, or targets.
    """

    train_x: Tensor
    train_y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    classes: int

    def batch(self, indices: Tensor) -> Split:
        """Training images and labels at ``indices`` (index_select takes half the time of brackets)."""
        return self.train_x.index_select(0, indices), self.train_y.index_select(0, indices)


def load(name: str, device: str = "cpu") -> Data:
    """Load ``digits``, one of MADE, a folder in the Hugging Face Parquet layout, or a Hub id.

    A folder or Hub data set has a split "train" and one "validation" or "test" (the first found is used), each with a column of
    images of one size and a column of integer labels.

    Args:
        name: what ``--data`` says.
        device: where the tensors lie.

    Raises:
        LabError: the folder is missing or unreadable, or what it holds is not such a data set.
    """
    if name in MADE:
        train, valid, classes = MADE[name]()
        return Data(train[0].to(device), train[1].to(device), valid[0].to(device), valid[1].to(device), classes)
    train, valid, classes = digits() if name == "digits" else hugging_face(name)
    mean, std = train[0].mean((0, 2, 3), keepdim=True), train[0].std((0, 2, 3), keepdim=True).clamp_min(1e-8)
    x_y = [((x - mean) / std, y) for x, y in (train, valid)]
    (train_x, train_y), (valid_x, valid_y) = [(x.to(device), y.to(device)) for x, y in x_y]
    return Data(train_x, train_y, valid_x, valid_y, classes)


def digits() -> tuple[Split, Split, int]:
    """The 1,797 8x8 digits that scikit-learn ships, a fifth of them for validation, always the same fifth."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    train_x, valid_x = (torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16 for x in parts[:2])
    train_y, valid_y = (torch.tensor(y, dtype=torch.int64) for y in parts[2:])
    return (train_x, train_y), (valid_x, valid_y), 10


def text() -> tuple[Split, Split, int]:
    """The reference of the Python language, which every Python ships (pydoc_data.topics): 64 characters, and each one's next.

    The last tenth is for validation. Its size depends on Python's version: 465,000 characters of 103 kinds in 3.11.
    """
    from pydoc_data.topics import topics

    whole = "\n".join(topics[name] for name in sorted(topics))
    numbers = {character: i for i, character in enumerate(sorted(set(whole)))}
    length = 64
    stream = torch.tensor([numbers[character] for character in whole])
    n = (len(stream) - 1) // length
    x, y = (stream[i : i + n * length].reshape(n, length) for i in (0, 1))
    cut = n - n // 10
    return (x[:cut], y[:cut]), (x[cut:], y[cut:]), len(numbers)


def quadratic() -> tuple[Split, Split, int]:
    """½ Σ k_i (q_i · w)² in 100 dimensions, orthonormal q and k from 1 to 1e-4, as a regression without noise: in full batches (of 100) it
    is deterministic."""
    q, _ = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(0)))
    x = (100 * torch.logspace(0, -4, 100)).sqrt()[:, None] * q
    y = torch.zeros(100, 1)
    return (x, y), (x, y), 1


def regression() -> tuple[Split, Split, int]:
    """A linear regression of 10,000 vectors in 50 dimensions with variances from 1 to 1e-3, whose noise has variance 1: convex, noisy."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12_000, 50, generator=generator) * torch.logspace(0, -1.5, 50)
    y = x @ torch.randn(50, 1, generator=generator) * 3 + torch.randn(12_000, 1, generator=generator)
    return (x[:10_000], y[:10_000]), (x[10_000:], y[10_000:]), 1


#: Data that is made here, from no file.
MADE = {"text": text, "quadratic": quadratic, "regression": regression}


def hugging_face(name: str) -> tuple[Split, Split, int]:
    """A local folder or a Hub id, by the ``datasets`` library."""
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    for library in (datasets, huggingface_hub):  # what goes wrong is told in one line below
        library.logging.set_verbosity(library.logging.CRITICAL)
    folder = Path(name)
    if folder.is_file():
        raise LabError(f"--data {name} is a file: give the folder that holds its Parquet files")
    if not folder.is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise LabError(f"--data {name}: there is no such folder; give digits, a folder of Parquet files, or a Hub id like ylecun/mnist")
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # datasets raises its own, pyarrow's, huggingface_hub's and builtin exceptions
        cause = first_line(error.__cause__ or error)
        where = "the folder cannot be read as" if folder.is_dir() else "there is no such folder, and the Hub gave no"
        raise LabError(f"--data {name}: {where} Parquet data with splits train and test ({cause})") from None
    if "train" not in splits or not {"validation", "test"} & set(splits):
        raise LabError(f"--data {name}: needs a split train and one named validation or test, has {', '.join(splits)}")
    valid = splits["validation" if "validation" in splits else "test"]
    image, label = columns(name, splits["train"].features)
    classes = getattr(splits["train"].features[label], "num_classes", None)
    train = tensors(name, splits["train"], image, label)
    if classes is None:
        classes = int(train[1].max()) + 1
        if classes > len(train[1]):
            raise LabError(f"--data {name}: labels must be 0, 1, ... up to the number of classes, but one is {classes - 1}")
    both = (train, tensors(name, valid, image, label))
    for x, y in both:
        wrong = y[(y < 0) | (y >= classes)]
        if len(wrong):
            raise LabError(f"--data {name}: labels must lie in 0 ... {classes - 1}, but {len(wrong)} do not, such as {int(wrong[0])}")
        if x.shape[1:] != train[0].shape[1:]:
            raise LabError(f"--data {name}: training images are {size(train[0])}, validation images {size(x)}: they must be alike")
    return *both, classes


def columns(name: str, features: Any) -> tuple[str, str]:
    """The names of the image and the label column."""
    import datasets

    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [key for key in ("label", "labels") if getattr(features.get(key), "dtype", "").startswith(("int", "uint"))]
    if not images or not labels:
        missing = "column of images" if not images else "integer column named label"
        raise LabError(f"--data {name}: has no {missing}; its columns are {', '.join(features)}")
    return images[0], labels[0]


def tensors(name: str, split: Any, image: str, label: str) -> Split:
    """One split as float32 images [n, channels, height, width] in [0, 1] and int64 labels."""
    if len(split) == 0:
        raise LabError(f"--data {name}: the split {split.split} is empty")
    try:
        images = [np.asarray(picture) for picture in split[image]]
        labels = torch.tensor(split[label], dtype=torch.int64)
    except Exception as error:
        raise LabError(f"--data {name}: an image or label of the split {split.split} cannot be read ({first_line(error)})") from None
    shapes = {x.shape for x in images}
    if len(shapes) > 1:
        raise LabError(f"--data {name}: images must be of one size, but there are {' and '.join(map(str, sorted(shapes)[:2]))}")
    x = torch.from_numpy(np.stack(images)).float() / 255
    return (x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()), labels


def size(x: Tensor) -> str:
    return "x".join(map(str, x.shape[1:]))
