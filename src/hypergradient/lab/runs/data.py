"""Data in memory: images and labels as tensors on the device, to be indexed there."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor

from .cache import Tensors, digest, kept
from .parquet import folder_of, hugging_face, in_folder, looked_through

Split = tuple[Tensor, Tensor]

#: What decides the result of a run.
CONTENT = ("train_x", "train_y", "valid_x", "valid_y", "classes")


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
        digest: SHA-256 of all of it as it was before it was normalised, on whatever device; empty where ``load`` did not make it.
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
    """Load ``digits``, one of MADE, a folder in the Hugging Face Parquet layout, or a Hub id.

    A folder or Hub data set has a split "train" and one "validation" or "test" (the first found is used), each with a column of
    images of one size and a column of integer labels. Images have 8 bits a channel: grey or RGB, where alpha is one channel more;
    palettes are looked up, and black and white is grey.

    Digits and folders are decoded once and then kept, by a digest of the files, in the user's cache folder
    (``platformdirs.user_cache_path("hypergradient")``: ~/.cache/hypergradient in Linux). It may be deleted at any time.

    Args:
        name: what ``--data`` says.
        device: where the tensors lie.

    Raises:
        LabError: the folder is missing or unreadable, or what it holds is not such a data set.
    """
    key, read = source(name)
    found, digests = kept(key, lambda: content(*read()))
    found |= {x: normalised(found[x], found) for x in ("train_x", "valid_x")}
    tensors = {part: x.to(device) for part, x in found.items() if part in CONTENT[:4]}
    return Data(**tensors, classes=int(found["classes"]), digest=digest(" ".join(digests[part] for part in CONTENT)))


def source(name: str) -> tuple[str | None, Callable[[], tuple[Split, Split, int]]]:
    """The key to keep the data under, None where it is not kept, and what reads it."""
    if name in MADE:
        return None, MADE[name]
    if name == "digits":
        return f"digits of scikit-learn {version('scikit-learn')}", digits
    folder = folder_of(name)
    if folder is None:
        return None, lambda: hugging_face(name)
    files, key = looked_through(name, folder)
    return key, lambda: in_folder(name, folder, files)


def content(train: Split, valid: Split, classes: int) -> Tensors:
    """What is kept: by the names of CONTENT, and of images the mean and standard deviation of each channel, which take longest."""
    found = dict(zip(CONTENT, (*train, *valid, torch.tensor(classes)), strict=True))
    if train[0].dim() == 4:
        x = scaled(train[0])
        found |= {"mean": x.mean((0, 2, 3), keepdim=True), "std": x.std((0, 2, 3), keepdim=True).clamp_min(1e-8)}
    return found


def normalised(x: Tensor, found: Tensors) -> Tensor:
    """Images, with mean 0 and variance 1 a channel, in place where they are no bytes; all else as it is."""
    return scaled(x).sub_(found["mean"]).div_(found["std"]) if "mean" in found else x


def scaled(x: Tensor) -> Tensor:
    """Bytes to [0, 1]."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more the last bits are others, and so would be the data
    q, _ = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(0)))
    torch.set_num_threads(threads)
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
