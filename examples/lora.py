"""LoRA with peft: only the adapters are trained, and their average is saved."""

import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hypergradient import AdamWHD
from hypergradient.integrations import averaged

torch.manual_seed(0)
x = torch.randn(512, 20)
old, new = (x[:, 0] > 0).long(), (x[:, 0] + x[:, 1] > 0).long()


def train(model, y, steps):
    opt = AdamWHD(p for p in model.parameters() if p.requires_grad)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        opt.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step()
    return opt


base = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
train(base, old, 100).eval()
weights = [p.clone() for p in base.parameters()]
before = nn.functional.cross_entropy(base(x), new).item()

model = get_peft_model(base, LoraConfig(r=4, target_modules=["0", "2"]))
opt = train(model, new, 200)
folder = tempfile.mkdtemp()
with averaged(opt):
    model.save_pretrained(folder)
    loss = nn.functional.cross_entropy(model(x), new).item()

base = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
with torch.no_grad():
    for p, weight in zip(base.parameters(), weights, strict=True):
        p.copy_(weight)
loaded = PeftModel.from_pretrained(base, folder)
print(f"loss on the new task {before:.3f} before, {loss:.3f} with the adapters")
assert loss < 0.3 * before
assert abs(nn.functional.cross_entropy(loaded(x), new).item() - loss) < 1e-6
