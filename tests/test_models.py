"""The models: their sizes, their initial weights, what is random in them, and those of users."""

import sys
from pathlib import Path
from threading import Event

import pytest
import torch

from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.models import RandomCropFlip, cnn_bn, make_model
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import Run, train
from hypergradient.lab.sweeps.sweep import sweep

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)

OWN = """
from torch import nn
from hypergradient.lab.runs.models import RandomCropFlip


def small(shape, classes):
    features = shape[0] * shape[1] * shape[2]
    return nn.Sequential(RandomCropFlip(1), nn.BatchNorm2d(shape[0]), nn.Flatten(), nn.Dropout(), nn.Linear(features, classes))


def broken(shape, classes):
    raise RuntimeError("no luck")


def text(shape, classes):
    return "model"
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module own_models in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    (tmp_path / "own_models.py").write_text(OWN)


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        pytest.param("logreg", MNIST, 784 * 10 + 10, id="logreg"),
        pytest.param("mlp", MNIST, 785 * 1000 + 1001 * 1000 + 1001 * 10, id="mlp"),
        pytest.param("cnn", CIFAR, 28 * 32 + (32 * 9 + 1) * 64 + (4096 + 1) * 128 + 129 * 10, id="cnn"),
        pytest.param("vgg16", CIFAR, 14_714_688 + 2 * 4224 + 2 * 513 * 512 + 513 * 10, id="vgg16"),  # convolutions, norms, classifier
    ],
)
def test_models(name: str, shape: tuple, size: int) -> None:
    before = torch.get_rng_state()
    model, twin, other = (make_model(name, shape, 10, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(p.numel() for p in model.parameters()) == size
    assert model.eval()(torch.randn(2, *shape)).shape == (2, 10)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert not torch.equal(next(model.parameters()), next(other.parameters()))


def test_vgg_starts_with_he_weights() -> None:
    convolutions = [layer for layer in make_model("vgg16", CIFAR, 10, 1).modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    for layer in convolutions:
        assert layer.weight.std().item() == pytest.approx((2 / (9 * layer.out_channels)) ** 0.5, rel=0.05)
        assert not layer.bias.any()


def test_crops_and_flips_are_those_of_the_padded_image() -> None:
    torch.manual_seed(0)
    x = torch.rand(600, 2, 3, 5) + 1
    found = RandomCropFlip(2)(x)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    counts: dict[tuple[int, int, bool], int] = {}
    for image, result in zip(padded, found, strict=True):
        views = {(i, j, flip): image[:, i : i + 3, j : j + 5] for i in range(5) for j in range(5) for flip in (False, True)}
        (which,) = [key for key, view in views.items() if torch.equal(view.flip(2) if key[2] else view, result)]
        counts[which] = counts.get(which, 0) + 1
    assert len(counts) == 50  # every place, flipped and not
    assert sum(n for key, n in counts.items() if key[2]) == pytest.approx(300, abs=50)
    assert RandomCropFlip().eval()(x) is x


@pytest.mark.parametrize("name", ["own", "vgg16"])
def test_random_model_goes_on_bit_for_bit(own: None, tmp_path: Path, name: str) -> None:
    """Dropout, crops and batch norm: stopped within an epoch, with other random numbers drawn meanwhile."""
    if name == "vgg16":  # images of 32 pixels
        data = load("digits")
        data = type(data)(*(x.repeat(1, 1, 4, 4)[:24] for x in (data.train_x,)), data.train_y[:24], data.valid_x.repeat(1, 1, 4, 4)[:8],
                          data.valid_y[:8], 10)  # fmt: skip
        config = Config("digits", "vgg16", paper("Adam-HD"), epochs=2, batch_size=8)
    else:
        data, config = load("digits"), Config("digits", "own_models:small", paper("SGDN-HD", hypergrad_lr=1e-4), epochs=2)
    whole, history = train(config, data, Folder(tmp_path / "whole"))
    folder = Folder(tmp_path / "stopped")
    folder.start(config, resume=False)
    saves = Run(config, data).go(Event(), every=0)
    for _ in range(2):
        next(saves).runs[0].write(folder)
    torch.manual_seed(99)
    resumed, again = train(config, data, folder, resume=True)
    assert again == history
    assert resumed.valid_loss == whole.valid_loss
    assert len(set(history.iterations["loss"])) == whole.iterations


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param("no_such_module:f", "cannot be imported .ModuleNotFoundError: No module named", id="no-module"),
        pytest.param("own_models:tree", "cannot be imported .AttributeError: .* has no attribute 'tree'", id="no-factory"),
        pytest.param("own_models:broken", r"failed with \(1, 8, 8\), 10 .RuntimeError: no luck", id="raises"),
        pytest.param("own_models:text", "returned a str: it must return a torch.nn.Module", id="no-model"),
        pytest.param("vgg16", "--model vgg16 needs images of at least 32x32, but the data's are 8x8: try --model mlp", id="too-small"),
    ],
)
def test_model_that_cannot_be_made(own: None, tmp_path: Path, model: str, message: str) -> None:
    data, folder = load("digits"), tmp_path / "run"
    with pytest.raises(LabError, match=message):
        train(Config("digits", model), data, Folder(folder))
    with pytest.raises(LabError, match=message):
        sweep([Config("digits", model)], data, folder)
    assert not folder.exists()


@pytest.mark.parametrize("model", ["tree", "a:b:c", "a b:c", ":f", "own_models:"])
def test_model_name_that_is_none(model: str) -> None:
    with pytest.raises(LabError, match=r"--model must be one of logreg, mlp, .*, package\.module:factory"):
        Config("digits", model)


def test_transformer_does_not_see_what_follows() -> None:
    model = make_model("transformer", (16,), 20, 1).eval()
    x = torch.randint(20, (3, 16), generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 20
    before, after = model(x), model(other)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, 9], after[:, 9])


def test_cnn_needs_no_bias_before_batch_norm() -> None:
    assert [name for name, _ in cnn_bn((3, 32, 32), 10).named_parameters() if "bias" in name] == ["1.bias", "5.bias", "9.bias", "13.bias"]
