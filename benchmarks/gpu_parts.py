"""The models of benchmarks.gpu: GPT-2 small on text of the machine, and ResNet-9 on CIFAR-10; both also in a tiny version."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hypergradient.lab.compare.runs import Job
from hypergradient.lab.errors import LabError
from hypergradient.lab.runs.data import Data, load
from hypergradient.lab.runs.models import RandomCropFlip
from hypergradient.lab.workloads.sequence import Gpt

from .text import FOLDERS, gather, text_data

GIVEN = (1e-5, 1e-3, 1e-1)


@dataclass(frozen=True)
class Part:
    """A model with its data, and the methods to train it with.

    Args:
        name: its name in results.
        about: a description.
        base: the base optimizer, a name of KINDS.
        lrs: learning rates of the tuned base, with cosine decay.
        peers: optimizers of other packages.
        steps: length of a run.
        batch: sequences or images per step.
        unit: the unit of speed.
        weight_decay: of matrices only if the base is "adamw", otherwise of all parameters.
        smoothing: label smoothing in all losses.
        load: returns the data.
        model: returns the model for the data, initialised by torch's generator.
    """

    name: str
    about: str
    base: str
    lrs: tuple[float, ...]
    peers: tuple[str, ...]
    steps: int
    batch: int
    unit: str
    weight_decay: float
    smoothing: float
    load: Callable[[], Data]
    model: Callable[[Data], nn.Module]

    def jobs(self, seed: int) -> Iterator[Job]:
        """All runs of a seed, the most informative first."""
        tuned = [("cosine", lr) for lr in self.lrs]
        given = [("given", lr) for lr in GIVEN]
        for method, lr in [("ours", None), *tuned, *((peer, None) for peer in self.peers), *given]:
            yield Job(self.name, self.base, method, lr, seed)


class Mixed(nn.Module):
    """A model under torch.autocast in bfloat16; outputs are float32, [cases, classes]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.model(x)
        return logits.flatten(0, -2).float()


def gpt(folders: Sequence[str] | None, device: str, small: bool) -> Part:
    """GPT-2 small without biases, with a context of 512 tokens."""
    kinds, length, width, depth, heads = (512, 32, 64, 2, 4) if small else (50_304, 512, 768, 12, 12)
    least, most = (20_000, 1_000_000) if small else (20_000_000, 100_000_000)

    def text() -> Data:
        found = folders or [folder for folder in FOLDERS if Path(folder).is_dir()]
        return text_data(gather(found, least, most), kinds, length, device)

    return Part(
        name="gpt-small" if small else "gpt",
        about=f"GPT-2, {depth} layers of width {width} with {heads} heads, context {length}, on text of the machine, {kinds:,} "
        "tokens; tied head, bfloat16 autocast, weight decay 0.1 of matrices only; the last 5 % of the text for validation",
        base="adamw",
        lrs=(3e-4, 6e-4, 1.2e-3),
        peers=("prodigy-plus", "schedule-free-adamw"),
        steps=20 if small else 700,
        batch=4 if small else 32,
        unit="tokens",
        weight_decay=0.1,
        smoothing=0.0,
        load=text,
        model=lambda _: Gpt(kinds, length, width, depth, heads),
    )


def resnet(name: str | None, device: str, small: bool) -> Part:
    """ResNet-9, thirty epochs of CIFAR-10."""
    width = 4 if small else 64

    def images() -> Data:
        if name is None and not small:
            raise LabError("--part resnet needs --data: CIFAR-10 as a folder of Parquet files, or a Hub id like uoft-cs/cifar10")
        data = load(name or "digits", device)
        return replace(data, train_x=data.train_x[:400], train_y=data.train_y[:400]) if small else data

    return Part(
        name="resnet-small" if small else "resnet",
        about=f"ResNet-9 from {width} channels on, with batch norm, on {name or 'digits'}; crops and flips, label smoothing 0.1, in all "
        "losses, weight decay 5e-4 of all parameters, bfloat16 autocast, channels last",
        base="sgdn",
        lrs=(0.2, 0.4, 0.8),
        peers=("dog",),
        steps=20 if small else 2_900,
        batch=64 if small else 512,
        unit="images",
        weight_decay=5e-4,
        smoothing=0.1,
        load=images,
        model=lambda data: ResNet9(data.train_x.shape[1], width, data.classes),
    )


def convolution(before: int, after: int, pool: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(pool))


class Added(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.both = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.both(x)
        return out


class ResNet9(nn.Module):
    """The network with which David Page trains CIFAR-10 to 94 % in 24 epochs (How to Train Your ResNet, 2018); crops and flips in front."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.vary = RandomCropFlip()
        self.body = nn.Sequential(
            convolution(channels, width),
            convolution(width, 2 * width, 2),
            Added(2 * width),
            convolution(2 * width, 4 * width, 2),
            convolution(4 * width, 8 * width, 2),
            Added(8 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, classes, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(self.vary(x).contiguous(memory_format=torch.channels_last))
        return logits / 8
