"""What a run is: every option that decides its result, with its type, range and default; the paper's settings are the defaults."""

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
from .calls import Call, read, text
from .optimizers import make
from .peers import PEERS

#: The models, as figures name them, and numbers of epochs: the authors' (run.sh of their repository), but for cnn's.
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
    """The call of one of the paper's optimizers, with its settings: μ = 0.9 of SGDN, coupled L2 penalty 1e-4, and the authors' β."""
    family, adapts = title.removesuffix("-HD"), title.endswith("-HD")
    name = ("Adam" if family == "Adam" else "SGD") + "HD" * adapts
    momentum = {"momentum": 0.9, "nesterov": True} if family == "SGDN" else {}
    beta = {"hypergrad_lr": BETA[title] if hypergrad_lr is None else hypergrad_lr} if adapts and "rule" not in options else {}
    return str(Call(name, (), {"lr": lr, **beta, **momentum, "weight_decay": 1e-4, **options}))


def usable(device: str) -> str:
    """A device that torch can compute on here.

    Raises:
        LabError: there is none of that name.
    """
    try:
        computes = torch.empty(0, device=device).device.type != "meta"
    except Exception as error:
        raise LabError(f"--device {shortened(device)} cannot be used here ({first_line(error)}): try --device cpu") from None
    if not computes:
        raise LabError(f"--device {device} computes nothing: try --device cpu")
    return device


def number(kind: Any, tokens: Sequence[Token]) -> Any:
    """A number of the command line, as pydantic reads it: neither 0x10 nor 1.5 is a whole one, nor is None left to its default."""
    return TypeAdapter(kind).validate_python(tokens[0].value)


#: The types of options; what is beyond a range is refused wherever it comes from.
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1), Parameter(converter=number)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), Parameter(converter=number)]
Hidden = Annotated[int, Field(ge=1, le=16_384), Parameter(converter=number)]
Device = Annotated[str, AfterValidator(usable)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Config:
    """One training run. Two runs with equal configurations have equal histories on one machine.

    Args:
        data: digits (scikit-learn's), text, quadratic, regression, a folder of Parquet files, or a Hub id such as ylecun/mnist.
        model: logreg, mlp, cnn, cnn-bn, vgg16, transformer, linear, or your own, package.module:factory, which is imported and called.
        optimizer: The constructor's call, without parameters: SGDHD, AdamHD, AdamWHD, HDM or Hypergradient of this library with any rule,
            any of torch.optim, or another package's: Prodigy, DoG, AdamWScheduleFree ...
        batch_size: Images a step.
        epochs: Passes over the training data. Default: 10 for logreg, 50 for cnn, else 100.
        seed: Of the initial weights, the order of the images, dropout and crops.
        device: Where torch computes: cpu, cuda, cuda:1, mps.
        limit: Train and validate on the first so many images. Default: all.
        iterations: Stop after so many steps. Default: no limit.
        threshold: Stop when the loss of a minibatch reaches it, and do not validate. Default: none.
        hidden: Width of mlp's two hidden layers.
        hypergrad_data: What the hypergradient is of: train, the loss of the step, or validation, that of a minibatch from the last tenth of
            the training images, which are then not trained on. The validation loss stays that of images that nothing has seen.
        data_digest: of what ``data`` holds; known when it has been loaded.
        source_digest: of the source of a model of your own.

    Raises:
        pydantic.ValidationError: a value has the wrong type, or is out of its range.
        LabError: it has no meaning beside the others.
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
            raise LabError(f"--hypergrad-data validation needs a hypergradient that follows one loss, got {self.optimizer}: leave it out")

    @cached_property
    def call(self) -> Call:
        """The optimizer as it is described."""
        return read(self.optimizer)

    @property
    def title(self) -> str:
        """How figures name the model."""
        return MODELS.get(self.model, self.model)

    @property
    def data_title(self) -> str:
        """How figures name the data."""
        return PurePath(self.data).name

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on: the options that are not default, so that it lasts as options come, and what stands behind names."""
        options = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) != field.default}
        return {name: value for name, value in options.items() if name != "data" or not self.data_digest}

    @cached_property
    def name(self) -> str:
        """A name that no run has with another identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in NAMES}

    def make_optimizer(self, model: torch.nn.Module) -> Any:
        """The optimizer over the model's parameters."""
        return make(self.call, model)


#: Of the options.
NAMES = tuple(field.name for field in fields(Config))


@lru_cache(100_000)
def follows(text: str) -> bool:
    """Whether the optimizer of a call has a hypergradient that may be that of any loss.

    Raises:
        LabError: there is no such optimizer.
    """
    optimizer = make(read(text), torch.nn.ParameterList([torch.zeros(1)]))
    return isinstance(optimizer, HypergradientOptimizer) and not optimizer.setup.rule.averages


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the columns of a table: the optimizer as the paper names it, and then each of its own, rules as they are written."""
    try:
        call = read(str(options.get("optimizer")))
    except LabError:  # of a stranger's file
        return {**options}
    own = {name: text(value) if isinstance(value, Call | tuple | dict) else value for name, value in call.options.items()}
    if call.args:
        own["base"] = ", ".join(map(str, call.args))
    title = PEERS[call.name][0] if call.name in PEERS else call.title
    return {"data": None, "model": None, **options, "optimizer": title, **{name: own[name] for name in own if name not in options}}
