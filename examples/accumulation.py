"""Gradients of four small batches make one step, and are clipped."""

import torch
from torch import nn

from hypergradient import AdamWHD

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
opt = AdamWHD(model.parameters())

for _ in range(200):
    opt.zero_grad()
    for _ in range(4):
        rows = torch.randint(len(x), (16,))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        (loss / 4).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()

opt.eval()
with torch.no_grad():
    loss = nn.functional.cross_entropy(model(x), y).item()
print(f"training loss {loss:.3f}")
assert loss < 0.4
