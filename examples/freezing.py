"""A layer that is frozen first, and finds its learning rate when it thaws."""

import torch
from torch import nn

from hypergradient import AdamWHD

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
body, head = model[0], model[2]
body.requires_grad_(False)
opt = AdamWHD(head.parameters())


def train(steps):
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        opt.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step()
    opt.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x), y).item()
    opt.train()
    return loss


before = body.weight.clone()
frozen = train(100)
assert torch.equal(body.weight, before)

body.requires_grad_(True)
opt.add_param_group({"params": body.parameters()})
thawed = train(200)
print(f"training loss {frozen:.3f} frozen, {thawed:.3f} thawed")
for name, group in zip(("head", "body"), opt.param_groups, strict=True):
    print(f"learning rate of the {name}: {group['alpha']:.3f}")
assert not torch.equal(body.weight, before)
assert thawed < 0.8 * frozen

body.requires_grad_(False)  # frozen again: no gradient, no update
before = body.weight.clone()
train(20)
assert torch.equal(body.weight, before)
