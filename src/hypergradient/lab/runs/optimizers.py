"""The optimizers that a run can have: the library's, torch's, and those of other packages; what a call of one of them makes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

import hypergradient
from hypergradient.optimizer import HypergradientOptimizer

from ..errors import LabError, first_line, shortened
from .calls import ADAPTING, Call
from .peers import PEERS, make_peer

#: torch's own, but for LBFGS and SparseAdam, which need more than a gradient that is dense.
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and name not in ("Optimizer", "LBFGS", "SparseAdam")
}
OURS: dict[str, Callable[..., HypergradientOptimizer]] = {name: getattr(hypergradient, name) for name in ADAPTING}

#: What stands inside of the calls: rules, and the signal.
PARTS: dict[str, Callable[..., Any]] = {name: getattr(hypergradient, name) for name in hypergradient.__all__ if name not in OURS}


def make(call: Call, model: torch.nn.Module) -> Any:
    """The optimizer over a model's parameters.

    Raises:
        LabError: there is no such optimizer, rule or option, a value is out of its range, or a package is missing.
    """
    if call.name in PEERS:
        options = dict(call.options)
        if call.args:
            raise LabError(f"--optimizer {call}: name the options, such as {call.name}(lr=1)")
        return refused(call, lambda: make_peer(call.name, model, options))
    return refused(call, lambda: optimizer(call, model.parameters()))


def optimizer(call: Call, params: ParamsT) -> Any:
    kind = (OURS | TORCH).get(call.name)
    if kind is None:
        raise LabError(f"--optimizer {shortened(call.name)} is none of {', '.join(OURS)}, of torch.optim, and {', '.join(PEERS)}")
    if call.name == "Hypergradient":
        if not call.args or not isinstance(call.args[0], Call):
            raise LabError(f"--optimizer {call}: it goes around another, such as Hypergradient(RMSprop(lr=1e-3))")
        base, *rest = call.args
        return kind(optimizer(base, params), *map(part, rest), **{name: part(value) for name, value in call.options.items()})
    return kind(params, *map(part, call.args), **{name: part(value) for name, value in call.options.items()})


def part(value: Any) -> Any:
    """What stands inside of a call, made."""
    match value:
        case Call(name) if name in PARTS:
            return PARTS[name](*map(part, value.args), **{key: part(item) for key, item in value.options.items()})
        case Call(name):
            raise LabError(f"--optimizer: {shortened(name)} is none of {', '.join(PARTS)}")
        case tuple():
            return tuple(map(part, value))
        case Mapping():
            return {key: part(item) for key, item in value.items()}
    return value


def refused(call: Call, make: Callable[[], Any]) -> Any:
    """What ``make`` gives; where the constructor refuses, in one line."""
    try:
        return make()
    except LabError:
        raise
    except Exception as error:  # TypeError and ValueError of a constructor, and whatever those of other packages raise
        raise LabError(f"--optimizer {call}: {first_line(error)}") from None
