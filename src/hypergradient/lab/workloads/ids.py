"""Ids: embeddings of things of which few are seen often and many seldom, by Zipf's law."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from ..runs.data import Data
from .problem import Halves, Order, Problem, Workload, drawn, fit, mean_losses, parted, seeded

USERS, ITEMS, WORDS, NEGATIVES = 500, 300, 1000, 5


class Factors(nn.Module):
    """A rating by an inner product and biases of a user and an item."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = small(USERS, 9), small(ITEMS, 9)

    def forward(self, x: Tensor) -> Tensor:
        user, item = self.user(x[:, 0]), self.item(x[:, 1])
        rating: Tensor = (user[:, :8] * item[:, :8]).sum(1) + user[:, 8] + item[:, 8]
        return rating


class Pairs(nn.Module):
    """Logits that a word stands beside others."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.other = small(WORDS, 16), small(WORDS, 16)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (self.word(x[:, :1]) * self.other(x[:, 1:])).sum(2)
        return logits


def skip_gram(seed: int, _: Data | None) -> Problem:
    """Words that stand beside a word, told from five drawn by their frequency; the five are new in each step."""
    model = seeded(Pairs, seed)
    sets = words(None)
    x, y = sets[0]
    order, generator = Order(len(x), 128, seed), torch.Generator().manual_seed(seed)

    def loss(i: int) -> Tensor:
        pairs = x[order(i), :2]
        both = torch.cat([pairs, negatives(len(pairs), generator)], 1)
        return binary_cross_entropy_with_logits(model(both), y[: len(pairs)])

    return Problem(model, loss, mean_losses(model, binary_cross_entropy_with_logits, sets))


def small(n: int, width: int) -> nn.Embedding:
    layer = nn.Embedding(n, width)
    nn.init.normal_(layer.weight, std=0.1)
    return layer


def zipf(n: int) -> Tensor:
    return 1 / torch.arange(1.0, n + 1)


def negatives(n: int, generator: torch.Generator | None = None) -> Tensor:
    return torch.multinomial(zipf(WORDS) ** 0.75, n * NEGATIVES, True, generator=generator).reshape(n, NEGATIVES)


@drawn
def ratings() -> Halves:
    """Ratings of items by users."""
    n = 22_000
    user, item = (torch.multinomial(zipf(k), n, True) for k in (USERS, ITEMS))
    of_user, of_item = (torch.randn(k, 5) for k in (USERS, ITEMS))
    liking = (of_user[user, :4] * of_item[item, :4]).sum(1) / 2 + of_user[user, 4] / 2 + of_item[item, 4] / 2
    x, y = torch.stack([user, item], 1), 3 + liking + 0.5 * torch.randn(n)
    return parted(x, y, -2000)


@drawn
def words() -> Halves:
    """Words, one that stands beside each, and five that need not; 1 and five times 0 are their targets."""
    meaning, place = (torch.randn(WORDS, 4) for _ in range(2))
    n = 32_000
    word = torch.multinomial(zipf(WORDS), n, True)
    chances = zipf(WORDS) * (meaning @ place.T).exp()
    beside = torch.multinomial(chances[word], 1)
    x = torch.cat([word[:, None], beside, negatives(n)], 1)
    y = torch.tensor([1.0] + NEGATIVES * [0.0]).expand(n, -1)
    return parted(x, y, -2000)


WORKLOADS = {
    "factorisation": Workload("Ratings", 1500, fit(Factors, ratings, 64, mse_loss)),
    "skip-gram": Workload("Word vectors", 1500, skip_gram, judged=True),
}
