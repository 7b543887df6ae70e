"""Sequence modelling: recurrent networks and transformers on characters, and a memory task."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention

from ..runs.data import Data, Split, load
from .problem import ADAM_SGD, ADAMW, Problem, TrainValid, Workload, fit, seeded, supervised


def next_character(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), y.flatten())


def on_characters(make: Callable[[int], nn.Module], length: int, batch: int) -> Callable[..., Problem]:
    """Next-character prediction by a model, built for a number of distinct characters; evaluated on 16,000 characters.

    The text is the Python language reference, in shuffled sequences of ``length``, a divisor of 64.
    """

    def problem(seed: int, _: Data | None) -> Problem:
        text = load("text")

        def pieces(*both: Tensor) -> Split:
            x, y = (z.reshape(-1, length) for z in both)
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
            return x[order], y[order]

        sets = pieces(text.train_x, text.train_y), pieces(text.valid_x, text.valid_y)
        return supervised(seeded(lambda: make(text.classes), seed), next_character, sets, batch, seed, eval_size=16_000 // length)

    return problem


class Lstm(nn.Module):
    """One LSTM layer on characters; logits [batch, length, kinds]."""

    def __init__(self, kinds: int, width: int) -> None:
        super().__init__()
        self.character, self.lstm, self.head = nn.Embedding(kinds, 32), nn.LSTM(32, width, batch_first=True), nn.Linear(width, kinds)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.character(x))[0])
        return logits


class Gru(nn.Module):
    """One GRU layer that outputs one number after the last vector."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(inputs, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.gru(x)[0][:, -1])
        return answer


class Block(nn.Module):
    """A transformer block: pre-norm causal attention and a GELU network of four times the width, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.gelu = nn.LayerNorm(width), nn.LayerNorm(width), nn.GELU()
        self.qkv, self.mix = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        n, length, width = h.shape
        q, k, v = self.qkv(self.norm1(h)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.mix(attended.transpose(1, 2).reshape(n, length, width))
        out: Tensor = h + self.down(self.gelu(self.up(self.norm2(h))))
        return out


class Gpt(nn.Module):
    """A GPT-2 on characters, with its initialisation and tied embeddings; logits [batch, length, kinds]."""

    def __init__(self, kinds: int, length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.character, self.place = nn.Embedding(kinds, width), nn.Embedding(length, width)
        self.blocks, self.norm = nn.Sequential(*(Block(width, heads) for _ in range(depth))), nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if name.endswith(("mix.weight", "down.weight")) else 0.02)

    def forward(self, x: Tensor) -> Tensor:
        h = self.character(x) + self.place.weight[: x.shape[1]]
        logits: Tensor = self.norm(self.blocks(h)) @ self.character.weight.T
        return logits


def adding(_: Data | None) -> TrainValid:
    """The adding problem of Hochreiter and Schmidhuber: 16 numbers in [0, 1], one marked in each half, [n, 16, 2], and the sum of the
    marked two, [n, 1]. A constant output has loss 1/6."""

    def cases(n: int) -> Split:
        numbers, marks = torch.rand(n, 16), torch.zeros(n, 16)
        for half in (0, 8):
            marks.scatter_(1, half + torch.randint(8, (n, 1)), 1.0)
        return torch.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdim=True)

    return seeded(lambda: cases(10_000), 0), seeded(lambda: cases(2000), 1)


WORKLOADS = {
    "lstm": Workload("Characters, LSTM", 300, on_characters(lambda n: Lstm(n, 64), 64, 16), ADAM_SGD, held_out=True),
    "gpt": Workload(
        "Characters, transformer", 400, on_characters(lambda n: Gpt(n, 32, 48, 2, 4), 32, 8), ADAMW, weight_decay=0.1, one_group=True
    ),
    "gpt-groups": Workload(
        "Characters, transformer, groups",
        300,
        on_characters(lambda n: Gpt(n, 32, 32, 3, 2), 32, 16),
        ADAMW,
        held_out=True,
        weight_decay=0.1,
    ),
    "gpt-long": Workload("Characters, transformer, long", 5000, on_characters(lambda n: Gpt(n, 16, 24, 1, 2), 16, 8), ADAMW, held_out=True),
    "gru": Workload("Adding problem, GRU", 500, fit(lambda: Gru(2, 32), adding, 64, mse_loss)),
}
