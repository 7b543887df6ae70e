"""A model and data generated on the spot, and the checks that all trainers share."""

from typing import Any

import torch
from torch import Tensor, nn

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(192, 8, generator=GENERATOR)
Y = (X[:, 0] > 0).long()
BATCHES = [X[:64], X[64:128], X[128:]]


class Tiny(nn.Module):
    """With batch norm, whose statistics must follow the average and come back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.net(x)
        return logits if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def equal(one: nn.Module, other: nn.Module) -> bool:
    """To the bit, parameters and statistics."""
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def refreshed(state: dict[str, Tensor]) -> bool:
    """Whether statistics are those of the model's own parameters on BATCHES; ``net.`` may be preceded by anything."""
    with torch.random.fork_rng():
        model = Tiny()
    model.load_state_dict({name[name.index("net.") :]: value for name, value in state.items()})
    hidden = torch.cat([model.net[0](x) for x in BATCHES])
    return torch.allclose(model.net[1].running_mean, hidden.mean(0), atol=1e-5)
