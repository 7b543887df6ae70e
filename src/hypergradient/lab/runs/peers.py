"""The tuning-free optimizers of other packages, set up with the defaults and companions that their authors advise."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..errors import LabError

#: By class name: the name in tables, and the package. DoWG is the scalar version, as in its paper: the package's other version never
#: leaves its initial step size.
PEERS = {
    "Prodigy": ("Prodigy", "prodigyopt"),
    "DAdaptAdam": ("D-Adaptation Adam", "dadaptation"),
    "DAdaptSGD": ("D-Adaptation SGD", "dadaptation"),
    "DoG": ("DoG", "dog"),
    "Mechanic": ("Mechanic", "mechanic_pytorch"),
    "AdamWScheduleFree": ("Schedule-Free AdamW", "schedulefree"),
    "ProdigyPlusScheduleFree": ("Prodigy+Schedule-Free", "prodigyplus"),
    "MomoAdam": ("MoMo-Adam", "momo"),
    "ScalarDoWG": ("DoWG", "dowg"),
}

#: Their classes by the names that comparisons, and versions before 0.2, use in stored runs.
PEER_CLASSES = {
    "prodigy": "Prodigy",
    "dadapt-adam": "DAdaptAdam",
    "dadapt-sgd": "DAdaptSGD",
    "dog": "DoG",
    "mechanic": "Mechanic",
    "schedule-free-adamw": "AdamWScheduleFree",
    "prodigy-plus": "ProdigyPlusScheduleFree",
    "momo": "MomoAdam",
    "dowg": "ScalarDoWG",
}

#: Those whose step needs the loss.
NEED_LOSS = ("MomoAdam", "ScalarDoWG")


def check_peer(name: str) -> None:
    """Raise LabError if the peer's package is missing."""
    if find_spec(PEERS[name][1]) is None:
        raise LabError(f"--optimizer {name} needs the package {PEERS[name][1]}: pip install 'hypergradient[peers]'")


def make_peer(name: str, model: nn.Module, options: Mapping[str, Any], groups: list[dict[str, Any]] | None = None) -> torch.optim.Optimizer:
    """Build a peer over the model's parameters.

    Args:
        name: one of PEERS.
        model: the model (DoG averages all of it).
        options: keyword arguments of its class. Mechanic wraps torch's AdamW, by default with lr=1, as its authors advise.
        groups: param groups; None for all parameters.

    Raises:
        LabError: its package is missing.
    """
    check_peer(name)
    params: Any = groups or model.parameters()
    module = import_module(PEERS[name][1])
    if name == "DoG":
        return averaged_dog(module, model, params, options)
    if name == "Mechanic":
        return module.mechanize(torch.optim.AdamW)(params, **{"lr": 1.0, **options})  # type: ignore[no-any-return]
    optimizer: torch.optim.Optimizer = getattr(module, name)(params, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def take_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, needs_loss: bool) -> None:
    """Take a step after ``backward()``, passing the loss to optimizers that need it."""
    if needs_loss:
        optimizer.step(lambda: loss)  # type: ignore[arg-type, return-value]
    else:
        optimizer.step()


def averaged_dog(module: Any, model: nn.Module, params: Any, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """DoG with its package's averaging, which its authors require, behind eval() and train() as in Schedule-Free."""

    class AveragedDoG(module.DoG):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(params, **options)
            self.averager = module.PolynomialDecayAverager(model)
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
