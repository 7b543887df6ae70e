"""Accelerate: prepare() wraps the optimizer, and averaged() unwraps it."""

import tempfile

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hypergradient import AdamWHD
from hypergradient.integrations import averaged, metrics

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, 0] * x[:, 1] > 0).long()
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
norm = nn.BatchNorm1d(64)
model = nn.Sequential(nn.Linear(20, 64), norm, nn.ReLU(), nn.Linear(64, 2))
opt = AdamWHD(model.parameters())
schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, total_iters=200)
loader = DataLoader(TensorDataset(x, y), 32, shuffle=True)
model, opt, schedule, loader = accelerator.prepare(model, opt, schedule, loader)

for _ in range(25):
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            schedule.step()
            opt.zero_grad()

batches = [x[:256], x[256:]]  # training data, for batch norm's statistics
with averaged(opt, model, batches), torch.no_grad():
    accelerator.save_state(tempfile.mkdtemp())
    # To resume: load_state(), then use_iterate(opt, model).
    loss = nn.functional.cross_entropy(model.eval()(x), y).item()
print(f"training loss {loss:.3f}")
for name, value in metrics(opt).items():
    print(f"{name} {value:.4f}")
assert loss < 0.4
