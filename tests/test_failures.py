"""Failures of an earlier tuning-free rule, in small: digits, and a net of 32 ReLUs that too large a learning rate kills."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hypergradient import SGDHD, AdamHD

GUESSING = 2.303  # log 10

images, digits = load_digits(return_X_y=True)
X, Y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)
BLOCKS = [torch.nonzero(block == Y // 2).flatten() for block in range(5)]
OURS = {"sgdn": lambda params: SGDHD(params, momentum=0.9, nesterov=True), "adam": AdamHD}
BASES = {
    "sgdn": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9, nesterov=True),
    "adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
}


def train(make: Callable[[Any], Any], rows: Any, steps: int, labels: Callable[[int], Tensor] = lambda t: Y) -> tuple[float, float]:
    """The loss over all digits in the end, and the largest learning rate."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    opt, generator, largest = make(net.parameters()), torch.Generator().manual_seed(0), 0.0
    for t in range(steps):
        chosen = rows(t, generator)
        opt.zero_grad()
        nn.functional.cross_entropy(net(X[chosen]), labels(t)[chosen]).backward()
        opt.step()
        largest = max(largest, opt.param_groups[0]["lr"])
    if hasattr(opt, "eval"):
        opt.eval()
    with torch.no_grad():
        return nn.functional.cross_entropy(net(X), labels(steps - 1)).item(), largest


def any_rows(t: int, generator: torch.Generator) -> Tensor:
    return torch.randint(len(Y), (64,), generator=generator)


def blocks(t: int, generator: torch.Generator) -> Tensor:
    """Ten steps of two classes, then the next two."""
    own = BLOCKS[t // 10 % 5]
    return own[torch.randint(len(own), (32,), generator=generator)]


@pytest.mark.parametrize(("base", "most"), [("adam", 1.2), ("sgdn", 3.0)])  # SGD: where it loses, docs/tuning-free.md
def test_batches_in_blocks_of_two_classes(base: str, most: float) -> None:
    """The net was dead: at the loss of guessing, with α 0.15 under Adam."""
    lrs = (1e-3, 3e-3, 1e-2) if base == "adam" else (3e-3, 1e-2, 3e-2)
    best = min(train(lambda params, lr=lr: BASES[base](params, lr), blocks, 600)[0] for lr in lrs)  # type: ignore[misc]
    found, _ = train(OURS[base], blocks, 600)
    assert found < min(most * best, 0.95 * GUESSING)


@pytest.mark.parametrize(("base", "top"), [("adam", 1.0), ("sgdn", 30.0)])
def test_the_learning_rate_does_not_climb_for_ever_at_a_loss_of_0(base: str, top: float) -> None:
    """Full batch, 500 images: α was 3,000 under Adam, and the net dead; of a loss that has faded it need not learn faster."""
    found, largest = train(OURS[base], lambda t, generator: slice(0, 500), 600)
    assert largest < top
    assert found < 0.7  # the best constant learning rate ends at 0.24, since 1,297 images are not trained on


@pytest.mark.parametrize("base", OURS)
def test_other_labels_after_a_loss_near_0(base: str) -> None:
    found, _ = train(OURS[base], any_rows, 1_500, lambda t: Y if t < 1_000 else (Y + 1) % 10)
    assert found < 0.3
