"""What a run is: every option that decides its result, checked, with the paper's settings as defaults."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath
from typing import Any

import torch

from hypergradient import SGDHD, AdamHD, Additive, Multiplicative, TuningFree
from hypergradient.rules import Rule

#: The paper's optimizers, those of other packages that promise to need no learning rate, and the models:
#: how figures write their names.
TITLES = {"sgd": "SGD", "sgd-hd": "SGD-HD", "sgdn": "SGDN", "sgdn-hd": "SGDN-HD", "adam": "Adam", "adam-hd": "Adam-HD"}
PEERS = {
    "prodigy": "Prodigy",
    "dadapt-adam": "D-Adaptation Adam",
    "dadapt-sgd": "D-Adaptation SGD",
    "dog": "DoG",
    "mechanic": "Mechanic",
    "schedule-free-adamw": "Schedule-Free AdamW",
}
MODEL_TITLES = {
    "logreg": "Logistic regression",
    "mlp": "ReLU network",
    "cnn": "CNN",
    "cnn-bn": "CNN with batch norm",
    "vgg16": "VGG-16",
    "transformer": "Transformer",
    "linear": "Linear model",
}

#: The authors' β (run.sh of their repository) and numbers of epochs; cnn's is ours.
HYPERGRAD_LR = {"sgd-hd": 1e-3, "sgdn-hd": 1e-3, "adam-hd": 1e-7}
EPOCHS = {"logreg": 10, "mlp": 100, "cnn": 50, "vgg16": 100}


RULES: dict[str, Callable[[float], Rule]] = {"additive": Additive, "multiplicative": Multiplicative, "tuning-free": TuningFree}

SCHEDULES = ("constant", "cosine")


class LabError(Exception):
    """Something the user can mend: one line that names the value, what is allowed, and the mend."""


@dataclass(frozen=True)
class Config:
    """One training run. Two runs with equal configurations have equal histories on one machine.

    Args:
        data: ``digits`` (scikit-learn's), a folder in the Hugging Face Parquet layout, a Hub id, or one of data.MADE.
        model: ``logreg``, ``mlp``, ``cnn``, ``cnn-bn``, ``vgg16``, ``transformer``, ``linear``, or ``package.module:factory`` (see
            models.py). A factory is imported and called.
        optimizer: one of ``sgd``, ``sgdn``, ``adam``, ``sgd-hd``, ``sgdn-hd``, ``adam-hd``, or of PEERS.
        lr: initial learning rate α_0 >= 0. 0 lets the tuning-free rule find its own start, and gives peers their default.
        hypergrad_lr: β >= 0 of the -hd optimizers; None takes the authors' (1e-3, for Adam-HD 1e-7; 1 for the tuning-free rule), and stays
            None for the others.
        momentum: μ of sgdn and sgdn-hd, in (0, 1).
        weight_decay: coupled L2 penalty >= 0.
        batch_size: images a step.
        epochs: passes over the training set; None takes 10 for logreg, 50 for cnn, 100 for all else.
        seed: of the initial weights, the order of the images, and what is random in the model (dropout, crops).
        device: where torch computes, such as ``cpu`` or ``cuda``.
        rule: of the -hd optimizers: ``additive``, ``multiplicative`` or ``tuning-free``.
        limit: train on the first so many images, and validate on the first so many; None takes all.
        iterations: stop after so many steps, with status "cap"; None for no cap.
        threshold: stop when the loss of a minibatch reaches it, with status "reached", and do not validate; None for none.
        hidden: width of mlp's two hidden layers.
        schedule: of an optimizer that does not adapt: ``constant``, or ``cosine``, α_t = α_0 (1 + cos(π t/T)) / 2.
        final: evaluate on the whole training set too, once, at the end.

    Raises:
        LabError: a value is out of its range.
    """

    data: str = "digits"
    model: str = "logreg"
    optimizer: str = "sgd-hd"
    lr: float = 1e-3
    hypergrad_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 128
    epochs: int | None = None
    seed: int = 1
    device: str = "cpu"
    rule: str = "additive"
    limit: int | None = None
    iterations: int | None = None
    threshold: float | None = None
    hidden: int = 1000
    schedule: str = "constant"
    final: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+:\w+", self.model):
            choose("model", self.model, [*MODEL_TITLES, "package.module:factory"])
        choose("optimizer", self.optimizer, TITLES | PEERS)
        choose("rule", self.rule, RULES)
        choose("schedule", self.schedule, SCHEDULES)
        if self.schedule != "constant" and (self.adapts or self.optimizer in PEERS):
            raise LabError(f"--schedule {self.schedule} has no meaning for {self.optimizer}, which finds its learning rates: leave it out")
        if self.hypergrad_lr is None:
            beta = TuningFree.beta if self.tuning_free else HYPERGRAD_LR.get(self.optimizer)
            object.__setattr__(self, "hypergrad_lr", beta)
        elif self.optimizer not in HYPERGRAD_LR:
            raise LabError(f"--hypergrad-lr has no meaning for {self.optimizer}: leave it out, or choose one of {', '.join(HYPERGRAD_LR)}")
        if self.epochs is None:
            object.__setattr__(self, "epochs", EPOCHS.get(self.model, 100))
        for name in ("lr", "hypergrad_lr", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise LabError(f"--{name.replace('_', '-')} must be a finite number >= 0, got {value}")
        if not 0 < self.momentum < 1:
            raise LabError(f"--momentum must lie between 0 and 1, got {self.momentum}")
        for name, lowest in (("batch_size", 1), ("epochs", 1), ("seed", 0), ("limit", 1), ("iterations", 1), ("hidden", 1)):
            if getattr(self, name) is not None and getattr(self, name) < lowest:
                raise LabError(f"--{name.replace('_', '-')} must be at least {lowest}, got {getattr(self, name)}")
        try:
            torch.empty(0, device=self.device)
        except Exception as error:
            raise LabError(f"--device {self.device} cannot be used here ({first_line(error)}): try --device cpu") from None

    @property
    def adapts(self) -> bool:
        """Whether the learning rate is adapted."""
        return self.optimizer in HYPERGRAD_LR

    @property
    def tuning_free(self) -> bool:
        """Whether the learning rate is adapted by the tuning-free rule."""
        return self.adapts and self.rule == "tuning-free"

    @property
    def averages(self) -> bool:
        """Whether the optimizer has an average of its iterates, which is evaluated (``opt.eval()``)."""
        return self.tuning_free or self.optimizer in ("dog", "schedule-free-adamw")

    @property
    def family(self) -> str:
        """The optimizer whose direction the run steps along: sgd, sgdn or adam; a peer is its own."""
        return self.optimizer.removesuffix("-hd")

    @property
    def title(self) -> str:
        """How figures name the model."""
        return MODEL_TITLES.get(self.model, self.model)

    @property
    def data_title(self) -> str:
        """How figures name the data."""
        return PurePath(self.data).name

    @property
    def name(self) -> str:
        """A name that no other configuration has: a hash of what is not default, so that it lasts as options come."""
        options = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) != field.default}
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, from 0, of ``steps``, where the optimizer does not adapt it."""
        return self.lr * (1 + math.cos(math.pi * step / steps)) / 2 if self.schedule == "cosine" else self.lr

    def make_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the model's parameters: SGDN is SGD with Nesterov momentum, as in the paper."""
        if self.optimizer in PEERS:
            from .peers import make_peer

            return make_peer(self.optimizer, model, self.lr, self.weight_decay)
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimizer.startswith("sgdn"):
            options |= {"momentum": self.momentum, "nesterov": True}
        if self.adapts:
            options["rule"] = RULES[self.rule](self.hypergrad_lr or 0.0)
        kinds = {"sgd": torch.optim.SGD, "sgdn": torch.optim.SGD, "adam": torch.optim.Adam}
        adapting = {"sgd-hd": SGDHD, "sgdn-hd": SGDHD, "adam-hd": AdamHD}
        kind: Any = (kinds | adapting)[self.optimizer]
        optimizer: torch.optim.Optimizer = kind(model.parameters(), **options)
        return optimizer


def choose(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise LabError(f"--{name} must be one of {', '.join(allowed)}, got {value!r}")


def first_line(error: BaseException) -> str:
    """An exception in one short line, for messages that quote it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
