"""Images: networks, convolutions, residual networks with group and batch norm."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from ..runs.data import Data, Split, load
from ..runs.models import mlp
from .problem import Problem, Workload, seeded, supervised


def images(data: Data | None, n: int = 20_000) -> tuple[Split, Split]:
    """n training and 2,000 validation images and their labels."""
    assert data is not None
    return (data.train_x[:n], data.train_y[:n]), (data.valid_x[:2000], data.valid_y[:2000])


def halved(data: Data | None, n: int = 20_000) -> tuple[Split, Split]:
    """The same, of half their height and width."""
    (x, y), (valid_x, valid_y) = images(data, n)
    return (avg_pool2d(x, 2), y), (avg_pool2d(valid_x, 2), valid_y)


def convolutions(channels: tuple[int, ...], side: int, hidden: int) -> nn.Module:
    """3x3 convolutions, each with ReLU and 2x2 max pooling, then a hidden layer, to 10 classes.

    Args:
        channels: of the images, then of each convolution.
        side: of the images.
        hidden: width of the hidden layer.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        side //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class PostNorm(nn.Module):
    """A residual block as He et al. first drew it: norms after convolutions, ReLU after the sum."""

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
    """A residual block of He et al.'s second kind: batch norm and ReLU before convolutions, nothing after the sum."""

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


def residual_group_norm() -> nn.Module:
    def norm(width: int) -> nn.Module:
        return nn.GroupNorm(4, width)

    stem = [nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), norm(16), nn.ReLU()]
    blocks = [PostNorm(16, 16, 1, norm), PostNorm(16, 32, 2, norm)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def residual_batch_norm() -> nn.Module:
    stem = nn.Conv2d(3, 16, 3, 2, padding=1, bias=False)
    blocks = [PreNorm(16, 16, 1), PreNorm(16, 32, 2), PreNorm(32, 32, 1)]
    return nn.Sequential(stem, *blocks, nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def digits_network(seed: int, _: Data | None) -> Problem:
    data = load("digits")
    model = seeded(lambda: mlp(64, 100, 10), seed)
    return supervised(model, cross_entropy, (data.train_x, data.train_y), (data.valid_x, data.valid_y), 64, seed)


def mnist_network(seed: int, data: Data | None) -> Problem:
    """784-128-128-10, ReLU."""
    return supervised(seeded(lambda: mlp(784, 128, 10), seed), cross_entropy, *images(data), 128, seed)


def cifar_network(seed: int, data: Data | None) -> Problem:
    """768-128-128-10, ReLU, of images halved to 16x16."""
    return supervised(seeded(lambda: mlp(768, 128, 10), seed), cross_entropy, *halved(data), 128, seed)


def cifar_group_norm(seed: int, data: Data | None) -> Problem:
    """Two residual blocks of 16 and 32 channels with group norm, of images halved to 16x16."""
    return supervised(seeded(residual_group_norm, seed), cross_entropy, *halved(data), 32, seed)


def cifar_batch_norm(seed: int, data: Data | None) -> Problem:
    """Three pre-activation residual blocks of 16, 32 and 32 channels with batch norm, of images halved to 16x16."""
    return supervised(seeded(residual_batch_norm, seed), cross_entropy, *halved(data), 64, seed, norm=True)


def cifar_convolutions(seed: int, data: Data | None) -> Problem:
    """Convolutions of 16, 32 and 32 channels and a hidden layer of 64, without normalisation, of images halved to 16x16."""
    return supervised(seeded(lambda: convolutions((3, 16, 32, 32), 16, 64), seed), cross_entropy, *halved(data), 32, seed)


WORKLOADS = {
    "digits": Workload("Digits, network", "image", 330, digits_network, ("adam", "sgdn")),
    "mnist": Workload("MNIST, network", "image", 600, mnist_network, judged=True, data="mnist"),
    "cifar": Workload("CIFAR-10, network", "image", 500, cifar_network, ("adam", "sgdn"), data="cifar10"),
    "resnet-gn": Workload("CIFAR-10, residual, group norm", "image", 300, cifar_group_norm, ("adamw", "sgdn"), data="cifar10"),
    "resnet-bn": Workload("CIFAR-10, residual, batch norm", "image", 200, cifar_batch_norm, ("adamw", "sgdn"), judged=True, data="cifar10"),
    "cnn": Workload("CIFAR-10, convolutions", "image", 400, cifar_convolutions, judged=True, data="cifar10"),
}
