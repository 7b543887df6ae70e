"""Loading real files: digits, Parquet folders in the Hugging Face layout, and everything that can be wrong with them."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch import nn

from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.train import evaluate


def write(folder: Path, split: str, *, size: int = 6, labels: list[int] | None = None, channels: int = 1, **columns: object) -> None:
    """A Parquet file of random images, as the Hub holds them."""
    labels = [0, 1, 2, 1] if labels is None else labels
    shape = (size, size) if channels == 1 else (size, size, channels)
    pictures = np.random.default_rng(0).integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    rows: dict = {"image": list(pictures), "label": labels, **columns}
    rows = {key: value for key, value in rows.items() if value is not None}
    features = datasets.Features(
        {key: datasets.Image() if key == "image" else datasets.Value("string" if key == "text" else "int64") for key in rows}
    )
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_digits() -> None:
    data = load("digits")
    assert data.train_x.shape == (1437, 1, 8, 8)
    assert data.valid_x.shape == (360, 1, 8, 8)
    assert data.train_x.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train_x.std().item() == pytest.approx(1, abs=1e-5)
    assert data.train_y.bincount(minlength=10).min() > 130
    assert data.classes == 10


@pytest.mark.parametrize(("channels", "valid"), [(1, "test"), (3, "validation")], ids=["grey-test", "colour-validation"])
def test_folder(tmp_path: Path, channels: int, valid: str) -> None:
    write(tmp_path / "d", "train", channels=channels)
    write(tmp_path / "d", valid, channels=channels, labels=[2, 0])
    data = load(str(tmp_path / "d"))
    assert data.train_x.shape == (4, channels, 6, 6)
    assert data.valid_y.tolist() == [2, 0]
    assert data.classes == 3
    pictures = np.random.default_rng(0).integers(0, 256, (4, 6, 6) if channels == 1 else (4, 6, 6, 3), dtype=np.uint8)
    raw = torch.from_numpy(pictures).float().reshape(4, 6, 6, channels).permute(0, 3, 1, 2) / 255
    expected = (raw - raw.mean((0, 2, 3), keepdim=True)) / raw.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(data.train_x, expected)


def no_valid(d: Path) -> None:
    write(d, "train")


def no_label(d: Path) -> None:
    for split in ("train", "test"):
        write(d, split, label=None, text=["a", "b", "c", "d"])


def no_image(d: Path) -> None:
    for split in ("train", "test"):
        write(d, split, image=None)


def negative(d: Path) -> None:
    write(d, "train")
    write(d, "test", labels=[0, -1])


def beyond(d: Path) -> None:
    write(d, "train")
    write(d, "test", labels=[0, 3])


def huge(d: Path) -> None:
    write(d, "train", labels=[0, 10**9])
    write(d, "test")


def sizes(d: Path) -> None:
    write(d, "train")
    write(d, "test", size=7)


def corrupt(d: Path) -> None:
    for split in ("train", "test"):
        write(d, split)
    file = d / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-40])


def not_parquet(d: Path) -> None:
    d.mkdir()
    (d / "train.parquet").write_text("hello")


def bad_picture(d: Path) -> None:
    for split in ("train", "test"):
        write(d, split, image=[{"bytes": b"no picture", "path": None}] * 4)


def empty_folder(d: Path) -> None:
    d.mkdir()


def a_file(d: Path) -> None:
    d.write_text("hello")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(no_valid, "needs a split train and one named validation or test, has train", id="no-validation-split"),
        pytest.param(no_label, "no integer column named label; its columns are image, text", id="no-label"),
        pytest.param(no_image, "no column of images; its columns are label", id="no-image"),
        pytest.param(negative, r"labels must lie in 0 \.\.\. 2, but 1 do not, such as -1", id="negative-label"),
        pytest.param(beyond, r"labels must lie in 0 \.\.\. 2, but 1 do not, such as 3", id="label-beyond-training"),
        pytest.param(huge, "labels must be 0, 1, .* one is 1000000000", id="huge-label"),
        pytest.param(sizes, "training images are 1x6x6, validation images 1x7x7", id="sizes-differ"),
        pytest.param(corrupt, "cannot be read as Parquet data", id="corrupt"),
        pytest.param(not_parquet, "cannot be read as Parquet data", id="not-parquet"),
        pytest.param(bad_picture, "an image or label of the split train cannot be read", id="bad-picture"),
        pytest.param(empty_folder, "cannot be read as Parquet data", id="empty-folder"),
        pytest.param(a_file, "is a file: give the folder", id="a-file"),
        pytest.param(lambda d: None, "there is no such folder; give digits, a folder", id="missing"),
    ],
)
def test_bad_data(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "d")
    with pytest.raises(LabError, match=message) as error:
        load(str(tmp_path / "d"))
    assert "\n" not in str(error.value)


def test_made_data() -> None:
    text, quadratic, regression = (load(name) for name in ("text", "quadratic", "regression"))
    assert torch.equal(text.train_x[:, 1:], text.train_y[:, :-1])
    assert torch.equal(text.train_x[1:, 0], text.train_y[:-1, -1])
    assert int(text.train_x.max()) < text.classes
    w = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    hessian = quadratic.train_x.T @ quadratic.train_x / 100
    torch.testing.assert_close(torch.linalg.eigvalsh(hessian).flip(0)[:50], torch.logspace(0, -4, 100)[:50], rtol=1e-3, atol=1e-6)
    loss = evaluate(linear_of(w), quadratic.train_x, quadratic.train_y)
    assert loss == (pytest.approx(float(w.T @ hessian @ w / 2), rel=1e-5), None)
    best = torch.linalg.lstsq(regression.train_x, regression.train_y).solution
    assert evaluate(linear_of(best), regression.valid_x, regression.valid_y)[0] == pytest.approx(0.5, abs=0.03)


def linear_of(w: torch.Tensor) -> nn.Module:
    layer = nn.Linear(len(w), 1, bias=False)
    layer.weight.data.copy_(w.T)
    return layer
