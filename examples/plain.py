"""A plain loop: no learning rate, save the average, resume bit for bit."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from hypergradient import AdamWHD

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()
valid_x = torch.randn(256, 20)
valid_y = (valid_x[:, 0] * valid_x[:, 1] > 0).long()


def make():
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    return model, AdamWHD(model.parameters())


def train(model, opt, steps):
    for step in steps:
        torch.manual_seed(step)
        rows = torch.randint(len(x), (64,))
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        opt.step()


model, opt = make()
train(model, opt, range(100))

opt.eval()  # swaps in the average: validate, and save model and optimizer
path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, path)
opt.train()
train(model, opt, range(100, 300))

resumed, its_opt = make()
checkpoint = torch.load(path)
resumed.load_state_dict(checkpoint["model"])  # the average, ready to use
its_opt.load_state_dict(checkpoint["optimizer"])
its_opt.train()  # restores the iterate, to continue training
train(resumed, its_opt, range(100, 300))
for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
    assert torch.equal(p, q)

opt.eval()
loss = nn.functional.cross_entropy(model(valid_x), valid_y).item()
alpha = opt.param_groups[0]["alpha"]
print(f"validation loss {loss:.3f}, learning rate {alpha:.2g}")
assert loss < 0.5
