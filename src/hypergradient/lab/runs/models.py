"""The paper's models, others for comparisons, and the user's own, for images of any size.

All are plain modules that map images [batch, channels, height, width] to logits [batch, classes]; the transformer takes text.
"""

import hashlib
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LabError, first_line
from .config import Config
from .data import Data
from .engine import loss_of

#: VGG-16's convolutions, 3x3, by their number of channels; each group ends with max pooling (Simonyan and Zisserman 2015, column D).
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def make_model(name: str, shape: Sequence[int], classes: int, seed: int, *, hidden: int = 1000) -> nn.Module:
    """Build a model whose initial weights depend only on the seed.

    Args:
        name: ``logreg``, one linear layer; ``linear``, the same without bias, initialised from N(0, 1); ``mlp``, a ReLU network
            with two hidden layers (on MNIST 784-1000-1000-10); ``cnn``, two convolutions and two linear layers; ``cnn-bn``, three
            convolutions with batch norm; ``vgg16``, with batch norm and dropout; ``transformer``, for text; or
            ``package.module:factory``, a function that takes shape and classes and returns a module.
        shape: shape of one input; for images channels, height, width.
        classes: number of output logits.
        seed: seed of the initial weights (torch's default initialisation, except for vgg16).
        hidden: width of the hidden layers of mlp.

    Raises:
        LabError: the images are too small for the model, or the factory cannot be imported or called.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in name:
            return custom_model(name, shape, classes)
        if name == "logreg":
            return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
        if name == "mlp":
            return mlp(math.prod(shape), hidden, classes)
        return {"cnn": cnn, "cnn-bn": cnn_bn, "vgg16": vgg16, "transformer": Transformer, "linear": linear}[name](shape, classes)


def model_for(config: Config, data: Data) -> nn.Module:
    """Build the model of a run, on the CPU.

    Raises:
        LabError: it cannot be built, or does not accept such data.
    """
    if ":" not in config.model and (config.model == "transformer") == data.train_x.is_floating_point():
        kind, remedy = ("not text", "--data text") if config.model == "transformer" else ("text", "--model transformer")
        raise LabError(f"--model {config.model} does not accept --data {config.data}, which is {kind}: try {remedy}")
    return make_model(config.model, data.train_x.shape[1:], data.classes, config.seed, hidden=config.hidden)


def identified(config: Config, data: Data) -> Config:
    """The configuration with the digests of its data and of the source of a custom model."""
    return replace(config, data_digest=data.digest, source_digest=source_digest(config.model) if ":" in config.model else "")


@cache
def source_digest(name: str) -> str:
    """Digest of the source files of a factory's module and of its package, as far as loaded; empty if there are none."""
    module, _ = import_factory(name)
    package = module.__name__.partition(".")[0]
    own = {found.__file__ for key, found in sys.modules.items() if key.partition(".")[0] == package and getattr(found, "__file__", None)}
    digest = hashlib.sha256()
    for file in sorted(filter(None, own)):
        with suppress(OSError):
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16] if own else ""


def check_model(config: Config, data: Data) -> None:
    """Raise LabError if the model cannot be built, or its outputs do not fit the data's targets."""
    model = model_for(config, data).to(config.device).eval()
    x, y = (part[:2] for part in (data.valid_x, data.valid_y))
    try:
        with torch.no_grad():
            outputs = model(x)
            right = outputs.shape == (y.shape if y.is_floating_point() else (*y.shape, data.classes)) and loss_of(outputs, y).dim() == 0
    except Exception as error:  # a custom model may raise anything
        raise LabError(f"--model {config.model} does not accept {tuple(x.shape)} ({type(error).__name__}: {first_line(error)})") from None
    if not right:
        raise LabError(
            f"--model {config.model} returned {tuple(outputs.shape)} for {tuple(x.shape)}: it must return logits of {data.classes} classes"
        )


def linear(shape: Sequence[int], classes: int) -> nn.Module:
    layer = nn.Linear(math.prod(shape), classes, bias=False)
    nn.init.normal_(layer.weight)
    return nn.Sequential(nn.Flatten(), layer)


def mlp(inputs: int, hidden: int, classes: int) -> nn.Module:
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def cnn(shape: Sequence[int], classes: int) -> nn.Module:
    """Convolutions of 32 and 64 channels, 3x3, each with ReLU and 2x2 max pooling, then a hidden layer of 128."""
    channels, height, width = check_image_size("cnn", shape, 4)
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, 32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    features = 64 * (height // 4) * (width // 4)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, classes))


def cnn_bn(shape: Sequence[int], classes: int) -> nn.Module:
    """Convolutions of 8, 16 and 32 channels, 3x3, each with batch norm, ReLU and 2x2 max pooling, then one linear layer."""
    channels, height, width = check_image_size("cnn-bn", shape, 8)
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, 8, 16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (height // 8) * (width // 8), classes))


class Transformer(nn.Module):
    """A causal character model: two pre-norm layers of width 64 with 4 heads; logits [batch, length, classes].

    Args:
        shape: the context length.
        classes: number of distinct characters.
    """

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        (length,) = shape
        width = 64
        self.character, self.place = nn.Embedding(classes, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=x.device)
        h = self.character(x) + self.place.weight[:length]
        logits: Tensor = self.head(self.layers(h, mask=mask, is_causal=True))
        return logits


def vgg16(shape: Sequence[int], classes: int) -> nn.Module:
    """VGG-16 with batch norm, as the paper trains it on CIFAR-10: random crop and flip first, classifier 512-512-classes with dropout.

    Convolutions have He-normal (fan-out) weights and zero biases, as in the authors' repository.
    """
    channels, height, width = check_image_size("vgg16", shape, 32)
    layers: list[nn.Module] = [RandomCropFlip()]
    for group in VGG16:
        for after in group:
            conv = nn.Conv2d(channels, after, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            with torch.no_grad():
                conv.bias.zero_()  # type: ignore[union-attr]
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
            channels = after
        layers.append(nn.MaxPool2d(2))
    features = 512 * (height // 32) * (width // 32)
    hidden = [nn.Dropout(), nn.Linear(features, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(512, classes))


class RandomCropFlip(nn.Module):
    """Random crop and flip on the device: in training each image is zero-padded, cropped at a random position, and flipped left to right
    with probability 1/2. In evaluation mode it does nothing.

    Args:
        padding: pixels on each side, of zeros, the mean colour of normalised images.
    """

    def __init__(self, padding: int = 4) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        n, channels, height, width = x.shape
        padded = nn.functional.pad(x, (self.padding,) * 4)
        top, left = torch.randint(2 * self.padding + 1, (2, n, 1), device=x.device)
        rows = top + torch.arange(height, device=x.device)
        columns = left + torch.arange(width, device=x.device)
        columns = torch.where(torch.rand(n, 1, device=x.device) < 0.5, columns.flip(1), columns)
        image, channel = torch.arange(n, device=x.device), torch.arange(channels, device=x.device)
        return padded[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def import_factory(name: str) -> tuple[Any, Callable[..., object]]:
    """Import the module and the factory of ``package.module:factory``; the working folder is on the path."""
    module_name, _, factory_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
        return module, getattr(module, factory_name)
    except (Exception, SystemExit) as error:  # importing a module may raise anything
        raise LabError(f"--model {name} cannot be imported ({type(error).__name__}: {first_line(error)})") from None


def custom_model(name: str, shape: Sequence[int], classes: int) -> nn.Module:
    """Call ``package.module:factory`` with this shape and number of classes."""
    _, factory = import_factory(name)
    try:
        model = factory(tuple(shape), classes)
    except (Exception, SystemExit) as error:
        raise LabError(f"--model {name} failed with {tuple(shape)}, {classes} ({type(error).__name__}: {first_line(error)})") from None
    if not isinstance(model, nn.Module):
        raise LabError(f"--model {name} returned a {type(model).__name__}: it must return a torch.nn.Module that outputs logits")
    return model


def check_image_size(name: str, shape: Sequence[int], side: int) -> Sequence[int]:
    """Return the shape, after checking that the image is large enough for the model's pooling."""
    if len(shape) != 3:
        raise LabError(f"--model {name} needs images, but the data has shape {tuple(shape)}: try --model mlp")
    if min(shape[1:]) < side:
        raise LabError(f"--model {name} needs images of at least {side}x{side}, but the data's are {shape[1]}x{shape[2]}: try --model mlp")
    return shape
