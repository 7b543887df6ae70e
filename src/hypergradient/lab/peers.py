"""The optimizers of other packages that promise to need no learning rate, with the defaults and the companions that those advise."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from .config import LabError

MODULES = {
    "prodigy": "prodigyopt",
    "dadapt-adam": "dadaptation",
    "dadapt-sgd": "dadaptation",
    "dog": "dog",
    "mechanic": "mechanic_pytorch",
    "schedule-free-adamw": "schedulefree",
}


def check_peer(name: str) -> None:
    """Raise LabError where the peer's package is missing."""
    if find_spec(MODULES[name]) is None:
        raise LabError(f"--optimizer {name} needs the package {MODULES[name]}: pip install 'hypergradient[peers]'")


def make_peer(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """The peer over the model's parameters.

    Args:
        name: one of config.PEERS.
        model: DoG averages the whole of it.
        lr: 0 for the package's default.
        weight_decay: as the package takes it.

    Raises:
        LabError: its package is missing.
    """
    check_peer(name)
    options: dict[str, Any] = {"weight_decay": weight_decay} | ({"lr": lr} if lr else {})
    optimizer: torch.optim.Optimizer
    if name == "prodigy":
        from prodigyopt import Prodigy

        optimizer = Prodigy(model.parameters(), **options)
    elif name == "dadapt-adam":
        from dadaptation import DAdaptAdam

        optimizer = DAdaptAdam(model.parameters(), **options)
    elif name == "dadapt-sgd":
        from dadaptation import DAdaptSGD

        optimizer = DAdaptSGD(model.parameters(), **options)
    elif name == "mechanic":
        from mechanic_pytorch import mechanize

        optimizer = mechanize(torch.optim.AdamW)(model.parameters(), **({"lr": 1.0} | options))
    elif name == "schedule-free-adamw":
        from schedulefree import AdamWScheduleFree

        optimizer = AdamWScheduleFree(model.parameters(), **options)
        optimizer.train()  # type: ignore[attr-defined]
    else:
        optimizer = averaged_dog(model, options)
    return optimizer


def averaged_dog(model: nn.Module, options: dict[str, Any]) -> torch.optim.Optimizer:
    """DoG with the average of its package, without which it "must" not be used, behind the eval() and train() of Schedule-Free."""
    from dog import DoG, PolynomialDecayAverager

    class AveragedDoG(DoG):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(model.parameters(), **options)
            self.averager = PolynomialDecayAverager(model)
            self.iterate: dict[str, torch.Tensor] | None = None

        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            self.averager.step()
            return loss

        def eval(self) -> None:
            self.iterate = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(self.averager.av_model.state_dict())

        def train(self) -> None:
            assert self.iterate is not None
            model.load_state_dict(self.iterate)

    dog: torch.optim.Optimizer = AveragedDoG()
    return dog
