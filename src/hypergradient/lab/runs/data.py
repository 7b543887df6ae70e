"""Data sets in memory: images and labels as tensors on the device, indexed there."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor

from .cache import Tensors, cached, digest
from .parquet import folder_of, read_folder, read_hub, scan_folder

Split = tuple[Tensor, Tensor]

#: The parts of a data set on which the result of a run depends.
CONTENT = ("train_x", "train_y", "valid_x", "valid_y", "classes")


@dataclass(frozen=True)
class Data:
    """A data set for classification, or for regression if its targets are floats.

    Args:
        train_x: training images, float32 [n, channels, height, width], each channel with mean 0 and variance 1 over the training set;
            text, int64 [n, length]; or vectors, float32 [n, dimensions].
        train_y: their labels, int64 [n], in [0, classes); for text the next characters, int64 [n, length]; or targets,
            float32 [n, classes].
        valid_x: validation images, normalised like the training images.
        valid_y: their labels.
        classes: number of classes, or of targets.
        digest: SHA-256 of all of it before normalisation; empty if not made by ``load``.
    """

    train_x: Tensor
    train_y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    classes: int
    digest: str = ""

    def batch(self, indices: Tensor) -> Split:
        """Training images and labels at ``indices`` (index_select takes half the time of brackets)."""
        return self.train_x.index_select(0, indices), self.train_y.index_select(0, indices)


def load(name: str, device: str = "cpu") -> Data:
    """Load ``digits``, one of GENERATED, a folder in the Hugging Face Parquet layout, or a Hub id.

    A folder or Hub data set needs a split "train" and one named "validation" or "test" (the first found is used), each with a column
    of images of one size and a column of integer labels. Images must have 8 bits per channel: grey or RGB, with or without alpha;
    palette images become RGB, and black-and-white images grey.

    Digits and folders are decoded once and cached, under a digest of the files, in the user's cache folder
    (``platformdirs.user_cache_path("hypergradient")``: ~/.cache/hypergradient on Linux). It may be deleted at any time.

    Args:
        name: the value of ``--data``.
        device: where the tensors are placed.

    Raises:
        LabError: the folder is missing, unreadable, or not such a data set.
    """
    key, read = source(name)
    found, digests = cached(key, lambda: content(*read()))
    found |= {x: normalised(found[x], found) for x in ("train_x", "valid_x")}
    tensors = {part: x.to(device) for part, x in found.items() if part in CONTENT[:4]}
    return Data(**tensors, classes=int(found["classes"]), digest=digest(" ".join(digests[part] for part in CONTENT)))


def source(name: str) -> tuple[str | None, Callable[[], tuple[Split, Split, int]]]:
    """The key under which the data is cached (None: not cached), and the function that reads it."""
    if name in GENERATED:
        return None, GENERATED[name]
    if name == "digits":
        return f"digits of scikit-learn {version('scikit-learn')}", digits
    folder = folder_of(name)
    if folder is None:
        return None, lambda: read_hub(name)
    files, key = scan_folder(name, folder)
    return key, lambda: read_folder(name, folder, files)


def content(train: Split, valid: Split, classes: int) -> Tensors:
    """The tensors to be cached: CONTENT, and for images the mean and standard deviation of each channel, which are slow to compute."""
    found = dict(zip(CONTENT, (*train, *valid, torch.tensor(classes)), strict=True))
    if train[0].dim() == 4:
        x = scaled(train[0])
        found |= {"mean": x.mean((0, 2, 3), keepdim=True), "std": x.std((0, 2, 3), keepdim=True).clamp_min(1e-8)}
    return found


def normalised(x: Tensor, found: Tensors) -> Tensor:
    """Images normalised to mean 0 and variance 1 per channel, in place unless they are bytes; other data unchanged."""
    return scaled(x).sub_(found["mean"]).div_(found["std"]) if "mean" in found else x


def scaled(x: Tensor) -> Tensor:
    """Bytes scaled to [0, 1]."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def digits() -> tuple[Split, Split, int]:
    """The 1,797 8x8 digits that scikit-learn ships; a fixed fifth of them is for validation."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    train_x, valid_x = (torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16 for x in parts[:2])
    train_y, valid_y = (torch.tensor(y, dtype=torch.int64) for y in parts[2:])
    return (train_x, train_y), (valid_x, valid_y), 10


def text() -> tuple[Split, Split, int]:
    """The Python language reference (pydoc_data.topics, part of Python): sequences of 64 characters, the next characters as targets.

    The last tenth is for validation. Its size depends on Python's version: 465,000 characters, 103 of them distinct, in 3.11.
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
    """½ Σ k_i (q_i · w)² in 100 dimensions, with orthonormal q and k from 1 to 1e-4, as a noiseless regression: deterministic in full
    batches (of 100)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bits, and so the data's digest, depend on the number of threads
    q, _ = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(0)))
    torch.set_num_threads(threads)
    x = (100 * torch.logspace(0, -4, 100)).sqrt()[:, None] * q
    y = torch.zeros(100, 1)
    return (x, y), (x, y), 1


def regression() -> tuple[Split, Split, int]:
    """Linear regression on 10,000 vectors in 50 dimensions with variances from 1 to 1e-3, and noise of variance 1: convex and noisy."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12_000, 50, generator=generator) * torch.logspace(0, -1.5, 50)
    y = x @ torch.randn(50, 1, generator=generator) * 3 + torch.randn(12_000, 1, generator=generator)
    return (x[:10_000], y[:10_000]), (x[10_000:], y[10_000:]), 1


#: Data sets that need no files.
GENERATED = {"text": text, "quadratic": quadratic, "regression": regression}
