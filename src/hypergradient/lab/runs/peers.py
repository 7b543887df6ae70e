"""The optimizers of other packages that promise to need no learning rate, with the defaults and the companions that those advise."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..errors import LabError

MODULES = {
    "prodigy": "prodigyopt",
    "dadapt-adam": "dadaptation",
    "dadapt-sgd": "dadaptation",
    "dog": "dog",
    "mechanic": "mechanic_pytorch",
    "schedule-free-adamw": "schedulefree",
    "prodigy-plus": "prodigyplus",
    "momo": "momo",
    "dowg": "dowg",
}

#: Those whose step is made from the loss too.
NEED_LOSS = ("momo", "dowg")


def check_peer(name: str) -> None:
    """Raise LabError where the peer's package is missing."""
    if find_spec(MODULES[name]) is None:
        raise LabError(f"--optimizer {name} needs the package {MODULES[name]}: pip install 'hypergradient[peers]'")


def make_peer(
    name: str, model: nn.Module, lr: float, weight_decay: float, groups: list[dict[str, Any]] | None = None
) -> torch.optim.Optimizer:
    """The peer over the model's parameters.

    Args:
        name: one of config.PEERS.
        model: DoG averages the whole of it.
        lr: 0 for the package's default.
        weight_decay: as the package takes it; as AdamW's where there is a choice and ``groups`` are given. DoWG has none.
        groups: param groups; None for all parameters.

    Raises:
        LabError: its package is missing.
    """
    check_peer(name)
    params: Any = groups or model.parameters()
    options: dict[str, Any] = {"weight_decay": weight_decay} | ({"lr": lr} if lr else {})
    if name == "dog":
        return averaged_dog(model, params, options)
    if name == "mechanic":
        options = {"lr": 1.0} | options
    elif name == "dadapt-adam":
        options["decouple"] = groups is not None
    optimizer: torch.optim.Optimizer = class_of(name)(params, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def class_of(name: str) -> Any:
    """What makes a peer, but for DoG. DoWG is the scalar one, as its paper's: the package's other never leaves its first step size."""
    if name == "prodigy":
        from prodigyopt import Prodigy as Found
    elif name == "dadapt-adam":
        from dadaptation import DAdaptAdam as Found
    elif name == "dadapt-sgd":
        from dadaptation import DAdaptSGD as Found
    elif name == "mechanic":
        from mechanic_pytorch import mechanize

        return mechanize(torch.optim.AdamW)
    elif name == "schedule-free-adamw":
        from schedulefree import AdamWScheduleFree as Found
    elif name == "prodigy-plus":
        from prodigyplus import ProdigyPlusScheduleFree as Found
    elif name == "momo":
        from momo import MomoAdam as Found
    else:
        from dowg import ScalarDoWG as Found
    return Found


def step_of(name: str, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """A step of an optimizer by name, a peer or not, whose gradients are there."""
    if name in NEED_LOSS:
        optimizer.step(lambda: loss)  # type: ignore[arg-type, return-value]
    else:
        optimizer.step()


def averaged_dog(model: nn.Module, params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """DoG with the average of its package, without which it "must" not be used, behind the eval() and train() of Schedule-Free."""
    from dog import DoG, PolynomialDecayAverager

    class AveragedDoG(DoG):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(params, **options)
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
