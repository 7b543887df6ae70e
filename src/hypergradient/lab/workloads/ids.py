"""Embeddings of ids whose frequencies follow Zipf's law: few are frequent, many are rare."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from ..runs.data import Data
from .problem import Order, Problem, TrainValid, Workload, fit, mean_losses, seeded, split_at, synthetic

USERS, ITEMS, WORDS, NEGATIVES = 500, 300, 1000, 5


class Factors(nn.Module):
    """Ratings by matrix factorisation: inner product and biases of user and item."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = small_embedding(USERS, 9), small_embedding(ITEMS, 9)

    def forward(self, x: Tensor) -> Tensor:
        user, item = self.user(x[:, 0]), self.item(x[:, 1])
        rating: Tensor = (user[:, :8] * item[:, :8]).sum(1) + user[:, 8] + item[:, 8]
        return rating


class Pairs(nn.Module):
    """Logits for words to occur next to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.other = small_embedding(WORDS, 16), small_embedding(WORDS, 16)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (self.word(x[:, :1]) * self.other(x[:, 1:])).sum(2)
        return logits


def skip_gram(seed: int, _: Data | None) -> Problem:
    """Skip-gram with five negative samples per pair, drawn by frequency, new in each step."""
    model = seeded(Pairs, seed)
    sets = words(None)
    x, y = sets[0]
    order, generator = Order(len(x), 128, seed), torch.Generator().manual_seed(seed)

    def loss(i: int) -> Tensor:
        pairs = x[order(i), :2]
        both = torch.cat([pairs, negatives(len(pairs), generator)], 1)
        return binary_cross_entropy_with_logits(model(both), y[: len(pairs)])

    return Problem(model, loss, mean_losses(model, binary_cross_entropy_with_logits, sets))


def small_embedding(n: int, width: int) -> nn.Embedding:
    layer = nn.Embedding(n, width)
    nn.init.normal_(layer.weight, std=0.1)
    return layer


def zipf(n: int) -> Tensor:
    return 1 / torch.arange(1.0, n + 1)


def negatives(n: int, generator: torch.Generator | None = None) -> Tensor:
    return torch.multinomial(zipf(WORDS) ** 0.75, n * NEGATIVES, True, generator=generator).reshape(n, NEGATIVES)


@synthetic
def ratings() -> TrainValid:
    """Ratings of items by users."""
    n = 22_000
    user, item = (torch.multinomial(zipf(k), n, True) for k in (USERS, ITEMS))
    of_user, of_item = (torch.randn(k, 5) for k in (USERS, ITEMS))
    liking = (of_user[user, :4] * of_item[item, :4]).sum(1) / 2 + of_user[user, 4] / 2 + of_item[item, 4] / 2
    x, y = torch.stack([user, item], 1), 3 + liking + 0.5 * torch.randn(n)
    return split_at(x, y, -2000)


@synthetic
def words() -> TrainValid:
    """Words, each with a neighbour (target 1) and five negative samples (target 0)."""
    meaning, place = (torch.randn(WORDS, 4) for _ in range(2))
    n = 32_000
    word = torch.multinomial(zipf(WORDS), n, True)
    chances = zipf(WORDS) * (meaning @ place.T).exp()
    neighbour = torch.multinomial(chances[word], 1)
    x = torch.cat([word[:, None], neighbour, negatives(n)], 1)
    y = torch.tensor([1.0] + NEGATIVES * [0.0]).expand(n, -1)
    return split_at(x, y, -2000)


WORKLOADS = {
    "factorisation": Workload("Ratings", 1500, fit(Factors, ratings, 64, mse_loss)),
    "skip-gram": Workload("Word vectors", 1500, skip_gram, held_out=True),
}
