"""Weight decay that follows the loss on held-out data."""

import torch
from torch import nn

from hypergradient import SGDHD, Multiplicative

torch.manual_seed(0)
truth = torch.zeros(100)
truth[0] = 1.0
x, valid, test = (torch.randn(rows, 100) for rows in (60, 200, 1000))
y, valid_y = (data @ truth + torch.randn(len(data)) for data in (x, valid))


def error(model, x, y):
    return nn.functional.mse_loss(model(x).squeeze(1), y)


def train(adapts, **options):
    model = nn.Linear(100, 1, bias=False)
    nn.init.zeros_(model.weight)
    sgd = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}
    opt = SGDHD(model.parameters(), **sgd, **options)
    for _ in range(500):
        if adapts:  # between two steps, with the parameters as they are
            opt.adapt(error(model, valid, valid_y))
        opt.zero_grad()
        error(model, x, y).backward()
        opt.step()
    with torch.no_grad():
        found = opt.param_groups[0]["weight_decay"]
        return error(model, test, test @ truth).item(), found


constant, decay = train(adapts=False, hypergrad_lr=0.0)
print(f"test error {constant:.3f} at the constant weight decay {decay:.3f}")
rule = {"weight_decay": Multiplicative(0.02)}
adapted, decay = train(adapts=True, adapt=rule)
print(f"test error {adapted:.3f} with the weight decay adapted, to {decay:.3f}")
assert adapted < 0.8 * constant
