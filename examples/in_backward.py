"""Step in the backward pass: each tensor as soon as its gradient is ready."""

from contextlib import ExitStack

import torch
from torch import nn

from hypergradient import AdamWHD
from hypergradient.integrations import averaged

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
optimizers = {p: AdamWHD([p]) for p in model.parameters()}


def step(p):
    optimizers[p].step()
    optimizers[p].zero_grad()


for p in model.parameters():
    p.register_post_accumulate_grad_hook(step)

for _ in range(200):
    rows = torch.randint(len(x), (64,))
    nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
    assert all(p.grad is None for p in model.parameters())

with ExitStack() as average, torch.no_grad():
    for opt in optimizers.values():
        average.enter_context(averaged(opt))
    loss = nn.functional.cross_entropy(model(x), y).item()
alphas = [opt.param_groups[0]["alpha"] for opt in optimizers.values()]
print(f"training loss {loss:.3f}")
print("learning rates", ", ".join(f"{alpha:.4f}" for alpha in alphas))
assert loss < 0.4
