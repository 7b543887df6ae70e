"""Real CIFAR-10, where it is there: colour images, whose column is called img."""

from dataclasses import replace
from pathlib import Path

import pytest

from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.data import Data, load
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import train

CIFAR = Path(__file__).parents[3] / "shared/data/cifar10"

pytestmark = [
    pytest.mark.skipif(not CIFAR.is_dir(), reason="needs ../shared/data/cifar10"),
    pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def data() -> Data:
    return load(str(CIFAR))


@pytest.fixture(scope="module")
def short(data: Data) -> Data:
    """With fewer images to validate on, whatever the training."""
    return replace(data, valid_x=data.valid_x[:2_000], valid_y=data.valid_y[:2_000])


def test_cifar(data: Data) -> None:
    assert data.train_x.shape == (50_000, 3, 32, 32)
    assert data.valid_x.shape == (10_000, 3, 32, 32)
    assert data.train_y.bincount().tolist() == [5_000] * 10
    assert data.train_x.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-3)
    assert data.train_x.std((0, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-3)


def test_cnn_learns(short: Data, tmp_path: Path) -> None:
    summary, _ = train(Config(str(CIFAR), "cnn", paper("Adam-HD"), epochs=4, limit=2_000), short, Folder(tmp_path))
    assert summary.train_loss < 1.6
    assert summary.valid_accuracy > 0.38


def test_vgg_starts_as_the_authors_did(short: Data, tmp_path: Path) -> None:
    """Their VGG's first loss was 2.305 for SGD and Adam alike, and dropout keeps it near chance for long."""
    config = Config(str(CIFAR), "vgg16", paper("SGD"), epochs=1, limit=256, batch_size=64)
    summary, history = train(config, short, Folder(tmp_path))
    assert history.iterations["loss"] == pytest.approx([2.305] * 4, abs=0.1)
    assert summary.valid_accuracy is not None
    resumed, again = train(replace(config, epochs=1), short, Folder(tmp_path), resume=True)
    assert (resumed, again) == (summary, history)
