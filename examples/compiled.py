"""opt.step() in a compiled function: one operator, never recompiled."""

import torch
from torch import nn

from hypergradient import AdamWHD

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
opt = AdamWHD(model.parameters())
compilations = 0


def backend(graph, inputs):  # counts; leave it out to use Inductor
    global compilations
    compilations += 1
    return graph.forward


@torch.compile(backend=backend, fullgraph=True)
def step():
    opt.step()


@torch.compile(backend="aot_eager")
def loss_of(x, y):
    return nn.functional.cross_entropy(model(x), y)


for _ in range(200):
    rows = torch.randint(len(x), (64,))
    opt.zero_grad()
    loss_of(x[rows], y[rows]).backward()
    step()

opt.eval()
with torch.no_grad():
    loss = nn.functional.cross_entropy(model(x), y).item()
print(f"training loss {loss:.3f}, {compilations} compilation of the step")
assert loss < 0.4
assert compilations == 1
