"""Mixed precision: bfloat16 autocast, which needs no scaler, and float16 with GradScaler, as with torch.optim."""

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
        scaler.unscale_(opt)  # h wants true gradients, and so does clipping; scaler.step() would do it too
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        scaler.step(opt)  # a step with an inf is not taken, and teaches the rule nothing
        scaler.update()
    opt.eval()
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y).item()


for dtype, scaler in (
    (torch.bfloat16, torch.amp.GradScaler("cpu", enabled=False)),
    (torch.float16, torch.amp.GradScaler("cpu")),
):
    loss = train(dtype, scaler)
    print(f"{dtype}: training loss {loss:.3f}")
    assert loss < 0.4
