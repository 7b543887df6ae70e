"""A run's configuration: every option that affects its result, with type, range and default. The defaults are the paper's settings."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property, lru_cache
from pathlib import PurePath
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter, Token
from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, TypeAdapter
from pydantic.dataclasses import dataclass

from hypergradient.optimizer import HypergradientOptimizer

from ..errors import LabError, first_line, shortened
from .calls import Call, parse, text
from .optimizers import make
from .peers import PEERS

#: The models with their names in figures, and their default epochs: the authors' (run.sh in their repository), except cnn's.
MODELS = {
    "logreg": "Logistic regression",
    "mlp": "ReLU network",
    "cnn": "CNN",
    "cnn-bn": "CNN with batch norm",
    "vgg16": "VGG-16",
    "transformer": "Transformer",
    "linear": "Linear model",
}
EPOCHS = {"logreg": 10, "mlp": 100, "cnn": 50, "vgg16": 100}

#: The paper's optimizers, and the authors' β.
PAPER = ("SGD", "SGD-HD", "SGDN", "SGDN-HD", "Adam", "Adam-HD")
BETA = {"SGD-HD": 1e-3, "SGDN-HD": 1e-3, "Adam-HD": 1e-7}


def paper(title: str, lr: float = 1e-3, hypergrad_lr: float | None = None, **options: Any) -> str:
    """The call of one of the paper's optimizers at its settings: momentum 0.9 for SGDN, coupled L2 penalty 1e-4, the authors' β."""
    family, adapts = title.removesuffix("-HD"), title.endswith("-HD")
    name = ("Adam" if family == "Adam" else "SGD") + "HD" * adapts
    momentum = {"momentum": 0.9, "nesterov": True} if family == "SGDN" else {}
    beta = {"hypergrad_lr": BETA[title] if hypergrad_lr is None else hypergrad_lr} if adapts and "rule" not in options else {}
    return str(Call(name, (), {"lr": lr, **beta, **momentum, "weight_decay": 1e-4, **options}))


def usable(device: str) -> str:
    """Check that torch can compute on a device.

    Raises:
        LabError: it cannot.
    """
    try:
        computes = torch.empty(0, device=device).device.type != "meta"
    except Exception as error:
        raise LabError(f"--device {shortened(device)} is not available ({first_line(error)}): try --device cpu") from None
    if not computes:
        raise LabError(f"--device {device} cannot compute: try --device cpu")
    return device


def number(kind: Any, tokens: Sequence[Token]) -> Any:
    """Parse a command-line number by pydantic, which accepts neither 0x10 nor 1.5 as an integer, nor None for a default."""
    return TypeAdapter(kind).validate_python(tokens[0].value)


#: The types of options. Ranges are checked on the command line, in TOML files and in Python alike.
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1), Parameter(converter=number)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), Parameter(converter=number)]
Hidden = Annotated[int, Field(ge=1, le=16_384), Parameter(converter=number)]
Device = Annotated[str, AfterValidator(usable)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Config:
    """The configuration of one training run. Equal configurations give equal histories on the same machine.

    Args:
        data: digits (scikit-learn's), text, quadratic, regression, a folder of Parquet files, or a Hub id such as ylecun/mnist.
        model: logreg, mlp, cnn, cnn-bn, vgg16, transformer, linear, or your own as package.module:factory, which is imported and called.
        optimizer: Constructor call without the parameters, such as 'AdamHD(lr=1e-3)': SGDHD, AdamHD, AdamWHD, HDM or Hypergradient of this
            library with any rule, any class of torch.optim, or another package's: Prodigy, DoG, AdamWScheduleFree ...
        batch_size: Minibatch size.
        epochs: Number of epochs. Default: 10 for logreg, 50 for cnn, 100 for others.
        seed: Seed of initial weights, minibatch order, dropout and crops.
        device: Torch device: cpu, cuda, cuda:1, mps.
        limit: Use only the first N training and the first N validation images. Default: all.
        iterations: Stop after N steps. Default: no limit.
        threshold: Stop once the loss of a minibatch is at most this, and do not validate. Default: none.
        hidden: Width of the two hidden layers of mlp.
        hypergrad_data: Loss whose hypergradient is followed: train, the step's own; or validation, that of a minibatch from the last tenth
            of the training images, which are then not trained on. The reported validation loss stays that of the untouched validation set.
        data_digest: digest of the content of ``data``, known once it is loaded.
        source_digest: digest of the source of a model of your own.

    Raises:
        pydantic.ValidationError: a value has the wrong type or is out of range.
        LabError: a value is invalid, or contradicts another option.
    """

    data: Text = "digits"
    model: Annotated[str, Field(max_length=200)] = "logreg"
    optimizer: str = paper("SGD-HD")
    batch_size: Count = 128
    epochs: Count | None = None
    seed: Seed = 1
    device: Device = "cpu"
    limit: Count | None = None
    iterations: Count | None = None
    threshold: FiniteFloat | None = None
    hidden: Hidden = 1000
    hypergrad_data: Literal["train", "validation"] = "train"
    data_digest: Annotated[str, Parameter(parse=False)] = ""
    source_digest: Annotated[str, Parameter(parse=False)] = ""

    def __post_init__(self) -> None:
        if self.model not in MODELS and not re.fullmatch(r"[\w.]+:\w+", self.model):
            raise LabError(f"--model must be one of {', '.join(MODELS)}, package.module:factory, got {shortened(self.model)!r}")
        object.__setattr__(self, "optimizer", str(self.call))
        if self.epochs is None:
            object.__setattr__(self, "epochs", EPOCHS.get(self.model, 100))
        if not follows(self.optimizer) and self.hypergrad_data == "validation":
            raise LabError(f"--hypergrad-data validation needs a rule other than TuningFree, got {self.optimizer}: leave it out")

    @cached_property
    def call(self) -> Call:
        """The optimizer's call, parsed."""
        return parse(self.optimizer)

    @property
    def title(self) -> str:
        """The model's name in figures."""
        return MODELS.get(self.model, self.model)

    @property
    def data_title(self) -> str:
        """The data set's name in figures."""
        return PurePath(self.data).name

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on: the non-default options (so that new options change nothing), and digests."""
        options = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) != field.default}
        return {name: value for name, value in options.items() if name != "data" or not self.data_digest}

    @cached_property
    def name(self) -> str:
        """A hash of the identity: the name of the run's folder."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in NAMES}

    def make_optimizer(self, model: torch.nn.Module) -> Any:
        """Build the optimizer of the model's parameters."""
        return make(self.call, model)


#: The names of the options.
NAMES = tuple(field.name for field in fields(Config))


@lru_cache(100_000)
def follows(text: str) -> bool:
    """Whether the optimizer of a call can follow the hypergradient of any loss.

    Raises:
        LabError: the optimizer cannot be built.
    """
    optimizer = make(parse(text), torch.nn.ParameterList([torch.zeros(1)]))
    return isinstance(optimizer, HypergradientOptimizer) and not optimizer.setup.rule.averages


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as table columns: the optimizer's name, and each of its arguments, rules as source text."""
    try:
        call = parse(str(options.get("optimizer")))
    except LabError:  # a file may hold anything
        return {**options}
    own = {name: text(value) if isinstance(value, Call | tuple | dict) else value for name, value in call.options.items()}
    if call.args:
        own["base"] = ", ".join(map(str, call.args))
    title = PEERS[call.name][0] if call.name in PEERS else call.title
    return {"data": None, "model": None, **options, "optimizer": title, **{name: own[name] for name in own if name not in options}}
