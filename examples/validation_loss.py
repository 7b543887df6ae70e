"""Hyperparameters adapted on your own loss: weight decay on held-out data, since training data cannot choose it."""

import torch
from torch import nn

from hypergradient import SGDHD, Multiplicative

torch.manual_seed(0)
truth = torch.zeros(100)
truth[0] = 1.0
x, held_out, test = torch.randn(60, 100), torch.randn(200, 100), torch.randn(1000, 100)
y, held_out_y = (data @ truth + torch.randn(len(data)) for data in (x, held_out))


def train(adapts):
    model = nn.Linear(100, 1, bias=False)
    nn.init.zeros_(model.weight)
    rule = {"adapt": {"weight_decay": Multiplicative(0.02)}} if adapts else {"hypergrad_lr": 0.0}
    opt = SGDHD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2, **rule)
    for _ in range(500):
        if adapts:  # between two steps, with the parameters as they are
            opt.adapt(nn.functional.mse_loss(model(held_out).squeeze(1), held_out_y))
        opt.zero_grad()
        nn.functional.mse_loss(model(x).squeeze(1), y).backward()
        opt.step()
    with torch.no_grad():
        return nn.functional.mse_loss(model(test).squeeze(1), test @ truth).item(), opt.param_groups[0]["weight_decay"]


constant, _ = train(adapts=False)
adapted, found = train(adapts=True)
print(f"test error {constant:.3f} at weight decay 0.01, {adapted:.3f} at the {found:.3f} that it found")
assert adapted < 0.8 * constant
