"""A schedule multiplies the learning rate that is adapted."""

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from hypergradient import AdamWHD

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
opt = AdamWHD(model.parameters())
warmup, decay = LinearLR(opt, 0.1, total_iters=20), CosineAnnealingLR(opt, 280)
schedule = SequentialLR(opt, [warmup, decay], milestones=[20])

for step in range(300):
    rows = torch.randint(len(x), (64,))
    opt.zero_grad()
    nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
    opt.step()
    if step % 60 == 20:
        group = opt.param_groups[0]
        factor, adapted = group["lr"], group["adapted_lr"]
        print(f"{step}: {factor:.3f} * {adapted:.4f} = {group['alpha']:.4f}")
    schedule.step()

group = opt.param_groups[0]
assert group["alpha"] < 1e-3 * group["adapted_lr"]  # the end of the cosine
with torch.no_grad():
    loss = nn.functional.cross_entropy(model(x), y).item()
print(f"training loss {loss:.3f}")
assert loss < 0.4
