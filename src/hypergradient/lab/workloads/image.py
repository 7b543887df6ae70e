"""Image classification: dense, convolutional and residual networks, with group and batch norm."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ..runs.data import Data
from ..runs.models import mlp
from .problem import ADAM_SGD, ADAMW_SGD, TrainValid, Workload, built_in, fit


def images(data: Data | None, n: int = 20_000) -> TrainValid:
    """The first n training and 2,000 validation images, with labels."""
    assert data is not None
    return (data.train_x[:n], data.train_y[:n]), (data.valid_x[:2000], data.valid_y[:2000])


def halved(data: Data | None, n: int = 20_000) -> TrainValid:
    """The same at half the height and width."""
    (x, y), (valid_x, valid_y) = images(data, n)
    return (avg_pool2d(x, 2), y), (avg_pool2d(valid_x, 2), valid_y)


def convolutions(channels: tuple[int, ...], side: int, hidden: int) -> Callable[[], nn.Module]:
    """A function that builds 3x3 convolutions, each with ReLU and 2x2 max pooling, then a hidden layer, for 10 classes.

    Args:
        channels: channels of the images, then of each convolution.
        side: side length of the images.
        hidden: width of the hidden layer.
    """
    flat = channels[-1] * (side // 2 ** (len(channels) - 1)) ** 2

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    return make


class PostNorm(nn.Module):
    """A post-activation residual block (He et al. 2015): norms after convolutions, ReLU after the sum."""

    def __init__(self, before: int, after: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False), norm(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, padding=1, bias=False), norm(after)
        self.short: nn.Module = nn.Identity()
        if before != after:
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        out: Tensor = (h + self.short(x)).relu()
        return out


class PreNorm(nn.Module):
    """A pre-activation residual block (He et al. 2016): batch norm and ReLU before convolutions, nothing after the sum."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(after), nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.short = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x).relu()
        short = x if isinstance(self.short, nn.Identity) else self.short(h)
        out: Tensor = short + self.conv2(self.norm2(self.conv1(h)).relu())
        return out


def group_norm() -> nn.Module:
    """A network of two residual blocks of 16 and 32 channels."""

    def norm(width: int) -> nn.Module:
        return nn.GroupNorm(4, width)

    stem = [nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), norm(16), nn.ReLU()]
    blocks = [PostNorm(16, 16, 1, norm), PostNorm(16, 32, 2, norm)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def batch_norm() -> nn.Module:
    """A network of three pre-activation residual blocks of 16, 32 and 32 channels."""
    stem = nn.Conv2d(3, 16, 3, 2, padding=1, bias=False)
    blocks = [PreNorm(16, 16, 1), PreNorm(16, 32, 2), PreNorm(32, 32, 1)]
    return nn.Sequential(stem, *blocks, nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


#: CIFAR-10 is downsampled to 16x16 throughout.
WORKLOADS = {
    "digits": Workload("Digits, network", 330, fit(lambda: mlp(64, 100, 10), built_in("digits"), 64), ADAM_SGD),
    "mnist": Workload("MNIST, network", 600, fit(lambda: mlp(784, 128, 10), images, 128), held_out=True, data="mnist"),
    "cifar": Workload("CIFAR-10, network", 500, fit(lambda: mlp(768, 128, 10), halved, 128), ADAM_SGD, data="cifar10"),
    "resnet-gn": Workload("CIFAR-10, residual, group norm", 300, fit(group_norm, halved, 32), ADAMW_SGD, data="cifar10"),
    "resnet-bn": Workload(
        "CIFAR-10, residual, batch norm", 200, fit(batch_norm, halved, 64, norm=True), ADAMW_SGD, held_out=True, data="cifar10"
    ),
    "cnn": Workload("CIFAR-10, convolutions", 400, fit(convolutions((3, 16, 32, 32), 16, 64), halved, 32), held_out=True, data="cifar10"),
}
