"""A scheduler multiplies the adapted learning rate: warm-up and decay as with any optimizer, and still no learning rate to choose."""

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from hypergradient import AdamWHD

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
opt = AdamWHD(model.parameters())
schedule = SequentialLR(opt, [LinearLR(opt, 0.1, total_iters=20), CosineAnnealingLR(opt, 280)], milestones=[20])

for step in range(300):
    rows = torch.randint(len(x), (64,))
    opt.zero_grad()
    nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
    opt.step()
    if step % 60 == 20:
        group = opt.param_groups[0]
        print(f"step {step}: factor {group['lr']:.3f} x adapted {group['adapted_lr']:.4f} -> applied {group['alpha']:.4f}")
    schedule.step()

assert opt.param_groups[0]["alpha"] < 1e-3 * opt.param_groups[0]["adapted_lr"]  # the end of the cosine
with torch.no_grad():
    loss = nn.functional.cross_entropy(model(x), y).item()
print(f"training loss {loss:.3f}")
assert loss < 0.4
