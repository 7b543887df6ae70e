"""The plain loop without a learning rate: validation and checkpoint of the average, and a resumed run equal to one that never stopped."""

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
        rows = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(step))
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        opt.step()


model, opt = make()
train(model, opt, range(100))

opt.eval()  # the parameters are the average now: validate and save, the model with its optimizer
path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, path)
opt.train()
train(model, opt, range(100, 300))

resumed, its_opt = make()
checkpoint = torch.load(path)
resumed.load_state_dict(checkpoint["model"])  # the average, to be used as it is, or
its_opt.load_state_dict(checkpoint["optimizer"])
its_opt.train()  # to go on from what it is the average of
train(resumed, its_opt, range(100, 300))
assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))

opt.eval()
loss = nn.functional.cross_entropy(model(valid_x), valid_y).item()
print(f"validation loss {loss:.3f}, learning rate {opt.param_groups[0]['alpha']:.2g}")
assert loss < 0.5
