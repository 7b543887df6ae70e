"""A learning rate per layer: each adapted alone, or all at fixed ratios."""

import torch
from torch import nn

from hypergradient import AdamWHD

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()


def train(model, opt):
    for _ in range(200):
        rows = torch.randint(len(x), (64,))
        opt.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step()
    opt.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x), y).item()
    alphas = [group["alpha"] for group in opt.param_groups]
    shown = ", ".join(f"{alpha:.4f}" for alpha in alphas)
    print(f"training loss {loss:.3f}, learning rates {shown}")
    assert loss < 0.4
    return alphas


model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
groups = [
    {"params": model[0].parameters(), "weight_decay": 0.1},
    {"params": model[2].parameters(), "weight_decay": 0.0},
]
first, last = train(model, AdamWHD(groups))
assert first != last

model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
groups = [
    {"params": model[0].parameters(), "lr": 1e-3},
    {"params": model[2].parameters(), "lr": 1e-4},
]
first, last = train(model, AdamWHD(groups, scope="global"))
assert abs(first / last - 10) < 1e-6
