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

from hypergradient import SGDHD, AdamHD, Adapted, Additive, Multiplicative, TuningFree
from hypergradient.rules import Level, Rule

from ..errors import LabError, first_line

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
    "prodigy-plus": "Prodigy+Schedule-Free",
    "momo": "MoMo-Adam",
    "dowg": "DoWG",
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


RULES: dict[str, Callable[[Any], Rule]] = {"additive": Additive, "multiplicative": Multiplicative, "tuning-free": TuningFree}

#: Those that can move β and the other hyperparameters too, and the β of a level above the first where it is not given: None for that of
#: the first.
LEVELS: dict[str, Callable[[float | Adapted], Level]] = {"additive": Additive, "multiplicative": Multiplicative}
LEVEL_LR = {"additive": None, "multiplicative": 0.02}

#: The most levels: their sum is a recursion.
HIGHEST = 100

#: What --adapt can move.
ADAPTABLE = {
    "sgd-hd": ("weight_decay",),
    "sgdn-hd": ("momentum", "weight_decay"),
    "adam-hd": ("beta1", "beta2", "eps", "weight_decay"),
}

HYPERGRAD_DATA = ("train", "validation")


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
        height: levels of adaptation of the -hd optimizers, from 1 to HIGHEST: 2 adapts β too, 3 the β of that, and so on.
        level: the rule of the levels above the first: ``additive`` or ``multiplicative``.
        level_lr: β >= 0 of each level above the first; None takes the first's for ``additive``, 0.02 for ``multiplicative``, and stays
            None without such levels.
        adapt: other hyperparameters of the -hd optimizers that move, NAME=RULE:β with commas, such as
            ``momentum=additive:0.01,weight_decay=multiplicative:0.02``; names as in ADAPTABLE.
        hypergrad_data: what the hypergradient is of: ``train``, the loss that a step is made of, or ``validation``, that of a minibatch
            from the last tenth of the training images, which are then not trained on.

    Raises:
        LabError: a value is out of its range, or has no meaning beside the others.
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
    height: int = 1
    level: str = "additive"
    level_lr: float | None = None
    adapt: str = ""
    hypergrad_data: str = "train"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+:\w+", self.model):
            choose("model", self.model, [*MODEL_TITLES, "package.module:factory"])
        choose("optimizer", self.optimizer, TITLES | PEERS)
        choose("rule", self.rule, RULES)
        choose("level", self.level, LEVELS)
        choose("hypergrad-data", self.hypergrad_data, HYPERGRAD_DATA)
        if self.hypergrad_lr is None:
            beta = TuningFree.beta if self.tuning_free else HYPERGRAD_LR.get(self.optimizer)
            object.__setattr__(self, "hypergrad_lr", beta)
        elif self.optimizer not in HYPERGRAD_LR:
            raise LabError(f"--hypergrad-lr has no meaning for {self.optimizer}: leave it out, or choose one of {', '.join(HYPERGRAD_LR)}")
        if self.epochs is None:
            object.__setattr__(self, "epochs", EPOCHS.get(self.model, 100))
        for name in ("lr", "hypergrad_lr", "weight_decay", "level_lr"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise LabError(f"--{name.replace('_', '-')} must be a finite number >= 0, got {value}")
        if not 0 < self.momentum < 1:
            raise LabError(f"--momentum must lie between 0 and 1, got {self.momentum}")
        for name, lowest in (("batch_size", 1), ("epochs", 1), ("seed", 0), ("limit", 1), ("iterations", 1), ("hidden", 1), ("height", 1)):
            if getattr(self, name) is not None and getattr(self, name) < lowest:
                raise LabError(f"--{name.replace('_', '-')} must be at least {lowest}, got {getattr(self, name)}")
        self._check_adaptation()
        try:
            torch.empty(0, device=self.device)
        except Exception as error:
            raise LabError(f"--device {self.device} cannot be used here ({first_line(error)}): try --device cpu") from None

    def _check_adaptation(self) -> None:
        """What belongs to towers, other hyperparameters and other data; ``level_lr`` finds its default."""
        options = {name: f"--{name.replace('_', '-')} {getattr(self, name)}" for name in ("height", "adapt", "hypergrad_data")}
        given = [text for name, text in options.items() if getattr(self, name) != getattr(Config, name)]
        if given and not self.adapts:
            raise LabError(f"{given[0]} has no meaning for {self.optimizer}: leave it out, or choose one of {', '.join(HYPERGRAD_LR)}")
        if self.tuning_free and (self.height > 1 or self.hypergrad_data != "train"):
            raise LabError(f"{given[0]} has no meaning for --rule tuning-free: leave it out, or choose one of {', '.join(LEVELS)}")
        if self.height == 1 and (self.level != Config.level or self.level_lr is not None):
            name, value = ("level", self.level) if self.level_lr is None else ("level-lr", self.level_lr)
            raise LabError(f"--{name} {value} is for the levels above the first: leave it out, or add --height 2")
        if self.height > HIGHEST:
            raise LabError(f"--height must be at most {HIGHEST}, got {self.height}")
        if self.height > 1 and self.level_lr is None:
            default = LEVEL_LR[self.level]
            object.__setattr__(self, "level_lr", self.hypergrad_lr if default is None else default)
        if self.height > 1 or self.adapt:
            self.make_optimizer(torch.nn.ParameterList([torch.zeros(1)]))

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
        return self.tuning_free or self.optimizer in ("dog", "schedule-free-adamw", "prodigy-plus")

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

    @property
    def adapted(self) -> dict[str, Level]:
        """The rules of the other hyperparameters that move, by name."""
        rules = {}
        for entry in filter(None, self.adapt.split(",")):
            name, _, rule = (part.strip() for part in entry.partition("="))
            kind, _, beta = rule.partition(":")
            try:
                if name not in ADAPTABLE[self.optimizer] or name in rules:
                    raise KeyError(name)
                rules[name] = LEVELS[kind](float(beta))
            except (KeyError, ValueError):
                raise LabError(
                    f"--adapt takes NAME=RULE:β with commas, such as weight_decay=multiplicative:0.02; for {self.optimizer} NAME is one of "
                    f"{', '.join(ADAPTABLE[self.optimizer])}, each once, RULE {' or '.join(LEVELS)}, β >= 0; got {entry!r}"
                ) from None
        return rules

    def make_rule(self) -> Rule:
        """The rule of the learning rate, with the levels above it."""
        first, above = self.hypergrad_lr or 0.0, self.level_lr or 0.0
        beta: float | Adapted = first if self.height == 1 else above
        for level in range(self.height, 1, -1):
            beta = Adapted(first if level == 2 else above, LEVELS[self.level](beta))
        return RULES[self.rule](beta)

    def make_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the model's parameters: SGDN is SGD with Nesterov momentum, as in the paper."""
        if self.optimizer in PEERS:
            from .peers import make_peer

            return make_peer(self.optimizer, model, self.lr, self.weight_decay)
        lr = None if self.averages and self.lr == 0 else self.lr  # left to the rule
        options: dict[str, Any] = {"lr": lr, "weight_decay": self.weight_decay}
        if self.optimizer.startswith("sgdn"):
            options |= {"momentum": self.momentum, "nesterov": True}
        kinds = {"sgd": torch.optim.SGD, "sgdn": torch.optim.SGD, "adam": torch.optim.Adam}
        adapting = {"sgd-hd": SGDHD, "sgdn-hd": SGDHD, "adam-hd": AdamHD}
        kind: Any = (kinds | adapting)[self.optimizer]
        try:
            if self.adapts:
                options["rule"] = self.make_rule()
            if self.adapt:
                options["adapt"] = self._others()
            optimizer: torch.optim.Optimizer = kind(model.parameters(), **options)
        except (TypeError, ValueError) as error:
            told = [f"--height {self.height}"] * (self.height > 1) + [f"--adapt {self.adapt}"] * bool(self.adapt)
            cause = first_line(error).partition(", or give bounds")[0]  # which are no option here
            raise LabError(f"{' '.join([f'--optimizer {self.optimizer}', *told])}: {cause}") from None
        return optimizer

    def _others(self) -> dict[str, Any]:
        """``adapted``, as the optimizers take it."""
        rules: dict[str, Any] = dict(self.adapted)
        pair = rules.pop("beta1", None), rules.pop("beta2", None)
        return rules | ({} if pair == (None, None) else {"betas": pair})


def choose(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise LabError(f"--{name} must be one of {', '.join(allowed)}, got {value!r}")
