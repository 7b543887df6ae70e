"""Mixed precision: bfloat16 autocast, and float16 with GradScaler."""

import torch
from torch import nn

from hypergradient import AdamHD

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()


def train(dtype, scaler):
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    opt = AdamHD(model.parameters())
    for _ in range(200):
        opt.zero_grad()
        rows = torch.randint(len(x), (64,))
        with torch.autocast("cpu", dtype=dtype):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        scaler.scale(loss).backward()
        scaler.unscale_(opt)  # to clip; otherwise scaler.step() does it
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        scaler.step(opt)  # skips gradients with an inf; alpha stays as it is
        scaler.update()
    opt.eval()
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y).item()


for dtype in (torch.bfloat16, torch.float16):
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    loss = train(dtype, scaler)
    print(f"{dtype}: training loss {loss:.3f}")
    assert loss < 0.4
