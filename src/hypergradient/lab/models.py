"""The paper's models, for images of any size."""

import math
from collections.abc import Sequence

import torch
from torch import nn


def make_model(name: str, shape: Sequence[int], classes: int, seed: int, *, hidden: int) -> nn.Module:
    """A model with initial weights that depend on the seed alone.

    Args:
        name: ``logreg``, one linear layer, or ``mlp``, a ReLU network with two hidden layers (on MNIST 784-1000-1000-10).
        shape: of one image: channels, height, width.
        classes: number of outputs, which are logits.
        seed: of the initial weights, torch's defaults.
        hidden: width of mlp's hidden layers.
    """
    inputs = math.prod(shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "logreg":
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
        layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
        return nn.Sequential(nn.Flatten(), *layers)
