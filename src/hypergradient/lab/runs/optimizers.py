"""The optimizers that a run can use (the library's, torch's and those of other packages), built from calls."""

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

#: torch's optimizers, except LBFGS and SparseAdam, which need a closure or sparse gradients.
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and name not in ("Optimizer", "LBFGS", "SparseAdam")
}
OURS: dict[str, Callable[..., HypergradientOptimizer]] = {name: getattr(hypergradient, name) for name in ADAPTING}

#: What can be an argument of a call: rules, and the signal.
PARTS: dict[str, Callable[..., Any]] = {name: getattr(hypergradient, name) for name in hypergradient.__all__ if name not in OURS}


def make(call: Call, model: torch.nn.Module) -> Any:
    """Build the optimizer of a call over a model's parameters.

    Raises:
        LabError: an optimizer, rule or option is unknown, a value is out of range, or a package is missing.
    """
    if call.name in PEERS:
        options = dict(call.options)
        if call.args:
            raise LabError(f"--optimizer {call}: pass options by keyword, such as {call.name}(lr=1)")
        return readable_errors(call, lambda: make_peer(call.name, model, options))
    return readable_errors(call, lambda: optimizer(call, model.parameters()))


def optimizer(call: Call, params: ParamsT) -> Any:
    kind = (OURS | TORCH).get(call.name)
    if kind is None:
        raise LabError(f"--optimizer {shortened(call.name)} is unknown: choose from {', '.join(OURS)}, torch.optim, {', '.join(PEERS)}")
    if call.name == "Hypergradient":
        if not call.args or not isinstance(call.args[0], Call):
            raise LabError(f"--optimizer {call}: it wraps another optimizer, such as Hypergradient(RMSprop(lr=1e-3))")
        base, *rest = call.args
        return kind(optimizer(base, params), *map(build, rest), **{name: build(value) for name, value in call.options.items()})
    return kind(params, *map(build, call.args), **{name: build(value) for name, value in call.options.items()})


def build(value: Any) -> Any:
    """Build an argument of a call."""
    match value:
        case Call(name) if name in PARTS:
            return PARTS[name](*map(build, value.args), **{key: build(item) for key, item in value.options.items()})
        case Call(name):
            raise LabError(f"--optimizer: {shortened(name)} is unknown: choose from {', '.join(PARTS)}")
        case tuple():
            return tuple(map(build, value))
        case Mapping():
            return {key: build(item) for key, item in value.items()}
    return value


def readable_errors(call: Call, make: Callable[[], Any]) -> Any:
    """Call ``make``, turning a constructor's exception into a one-line error."""
    try:
        return make()
    except LabError:
        raise
    except Exception as error:  # other packages' constructors may raise anything
        raise LabError(f"--optimizer {call}: {first_line(error)}") from None
