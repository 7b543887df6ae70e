"""The public API as a user writes it, for `make types`: pyright in strict mode, on the installed package. It is read and not run."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import hypergradient
from hypergradient import (
    HDM,
    SGDHD,
    AdaGradRule,
    AdamHD,
    AdamRule,
    AdamWHD,
    Adapted,
    Additive,
    Autostep,
    Decay,
    Delayed,
    Hypergradient,
    LionRule,
    Marthe,
    Multiplicative,
    Signal,
    Transition,
    TuningFree,
)
from hypergradient.integrations import averaged, metrics, use_average, use_iterate
from hypergradient.integrations.lightning import HypergradientCallback as LightningCallback
from hypergradient.integrations.transformers import HypergradientCallback as TransformersCallback

version: str = hypergradient.__version__
model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
params = list(model.parameters())

# Optimizers: parameters, named parameters, param groups; every option.
sgd = SGDHD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, hypergrad_lr=1e-4)
adam = AdamHD(model.named_parameters())
adamw = AdamWHD([{"params": params[:2], "lr": 1e-3}, {"params": params[2:]}], weight_decay=0.1)
hdm = HDM(params, momentum=0.9, monotone=True)
wrapped = Hypergradient(torch.optim.RMSprop(params, lr=1e-3), rule=Multiplicative(0.02))
every = AdamHD(
    params,
    lr=torch.tensor(1e-3),
    betas=(0.9, 0.99),
    eps=1e-8,
    weight_decay=1e-2,
    maximize=False,
    rule=Additive(1e-8),
    horizon=5,
    scope="tensor",
    lr_bounds=(0.0, None),
    bounds={"eps": (1e-10, 1e-4)},
    fused=False,
    capturable=False,
    process_group=None,
)

# Rules, and hyperparameters with a rule each.
rules: list[hypergradient.Additive | hypergradient.Multiplicative] = [Additive(1e-4), Multiplicative(Adapted(0.02, Additive(1e-3)))]
learners = [AdaGradRule(0.1), AdamRule(1e-3, log=True), LionRule(1e-3), Autostep(0.01), Marthe(1e-4)]
schedules = [Transition(TuningFree(), alpha_inf=1e-3), Decay(TuningFree(), total_steps=100), Delayed(Additive(1e-4))]
several = SGDHD(
    params,
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-3,
    adapt={"lr": Multiplicative(0.02), "momentum": Multiplicative(0.01), "weight_decay": Additive(1.0)},
    signal=Signal(discount=0.9, normalized=True),
)


def closure() -> Tensor:
    sgd.zero_grad()
    loss = model(torch.ones(4, 8)).sum()
    loss.backward()
    return loss


# What torch.optim's have, and what is added.
as_torch: torch.optim.Optimizer = sgd
scheduler = LambdaLR(sgd, lambda t: 1 / (1 + t))
sgd.step()
loss = sgd.step(closure)
make: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = AdamHD
state = sgd.state_dict()
sgd.load_state_dict(state)
sgd.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.01})
lr = float(sgd.param_groups[0]["lr"])
several.adapt(model(torch.ones(4, 8)).sum())
several.adapt([p.grad for p in params])
adam.eval()
adam.train()
with adam.averaged():
    weights = model.state_dict()
rows: list[dict[str, float]] = adam.summary()
skipped = int(adam.skipped)
hypergradients = [float(h) for h in adam.hypergradients]
others = [float(h) for group in several.other_hypergradients for h in group.values()]

# Trainers.
batches = [torch.ones(4, 8) for _ in range(50)]
with averaged(adam, model, batches):
    model(batches[0])
use_average(adam, model, batches)
use_iterate(adam, model)
logged: dict[str, float] = metrics([adam, adamw])
callbacks = [LightningCallback(batches), LightningCallback()]
trainer_callbacks = [TransformersCallback(), TransformersCallback(batches)]
