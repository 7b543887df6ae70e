"""The options of an optimizer as a whole: validation, and what they mean together."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from .checks import check_bounds, check_flag, check_lr, check_number
from .direction import Direction
from .directions import SGD, Adam
from .group_lr import Group
from .hyperparameters import check_adapt, check_values, split_betas
from .learning_rates import SCOPES, ScopeName
from .ranks import Ranks
from .rules import Adapted, Additive, Level, Rule
from .runner import Runner
from .scalars import DeviceScalars, HostScalars
from .setup import Setup
from .signal import Signal
from .tuning import TuningFree

#: Options of the whole optimizer, the same for all param groups.
SHARED_OPTIONS = ("rule", "adapt", "bounds", "horizon", "signal", "scope", "process_group")


def resolve(optimizer: str, params: Any, direction: Direction, given: Mapping[str, Any]) -> Setup:
    """The parts of an optimizer with these options.

    Raises:
        ValueError: an option is out of its range, or two contradict each other.
        TypeError: ``rule`` is not a Rule.
    """
    rules = split_betas("adapt", {} if given["adapt"] is None else given["adapt"], direction, optimizer)
    rule = _rule(params, rules, given)
    scope, horizon = given["scope"], given["horizon"]
    if not isinstance(scope, str) or scope not in SCOPES:
        raise ValueError(f'scope must be "group", "global", "tensor" or "element", got {scope!r}')
    if scope == "element" and (not isinstance(rule, Level) or isinstance(rule.beta, Adapted)):
        raise ValueError(
            f'scope="element" takes Additive, Multiplicative or a learner such as AdaGradRule(0.1), with a constant beta, got {rule!r}'
        )
    if horizon is not None:
        check_number("horizon", horizon, low=2 if rule.averages else 1)
    signal = _signal(rule, direction, scope, given)
    if signal.discount:
        horizon = 1 / (1 - signal.discount) if signal.discount < 1 else math.inf
    for name in ("fused", "capturable"):
        check_flag(name, given[name], none=True)
    bounds = check_adapt(rules, split_betas("bounds", {} if given["bounds"] is None else given["bounds"], direction, optimizer), direction)
    device = device_of(params)
    on_device = device.type != "cpu" if given["capturable"] is None else given["capturable"]
    scalars = DeviceScalars(device) if on_device else HostScalars()
    if rule.averages and not rules:  # adapted hyperparameters need the momentum itself
        direction = direction.without_momentum()
    applied_key = "applied_lr" if "alpha" in given["options"] else "alpha"
    run, ranks = Runner(bool(given["fused"])), Ranks(given["process_group"])
    return Setup(direction, rule, rules, bounds, cast(ScopeName, scope), horizon, signal, scalars, run, ranks, applied_key)


def _signal(rule: Rule, direction: Direction, scope: str, given: Mapping[str, Any]) -> Signal:
    """The signal, checked against rule, direction and scope."""
    signal = Signal() if given["signal"] is None else given["signal"]
    if not isinstance(signal, Signal):
        raise TypeError(f"signal must be a Signal such as Signal(discount=0.99), got {signal!r}")
    if given["signal"] is not None and given["horizon"] is not None:
        raise ValueError(f"give horizon or signal, not both: got horizon={given['horizon']!r} and signal={signal!r}")
    if given["signal"] is not None and rule.averages:
        raise ValueError(f"{type(rule).__name__} has its own signal: leave signal out, or give another rule, got {signal!r}")
    if signal.part == "gradient" and not isinstance(direction, SGD | Adam):
        raise ValueError('part="gradient" is known for SGDHD, AdamHD and AdamWHD only, got another optimizer: leave part out')
    if signal.curvature == "hessian" and (not isinstance(direction, SGD) or scope == "element"):
        raise ValueError('curvature="hessian" takes SGDHD, with scope "group", "global" or "tensor": give curvature=None or "squares"')
    if rule.uses_curvature and (scope != "element" or signal.curvature is None):
        raise ValueError(
            f'{type(rule).__name__} takes scope="element" and a signal such as Signal(1.0, curvature="squares"), got scope={scope!r} '
            f"and {signal!r}"
        )
    return signal


def _rule(params: Any, rules: dict[str, Any], given: Mapping[str, Any]) -> Rule:
    """The rule of the learning rate, removed from ``rules``."""
    rule, hypergrad_lr = given["rule"], given["hypergrad_lr"]
    if rule is not None and hypergrad_lr is not None:
        raise ValueError(f"give hypergrad_lr or rule, not both: got hypergrad_lr={hypergrad_lr!r} and rule={rule!r}")
    if "lr" in rules and (rule is not None or hypergrad_lr is not None):
        raise ValueError(
            f'give the rule of the learning rate once, by rule, hypergrad_lr or adapt["lr"], got adapt["lr"]={rules["lr"]!r} too'
        )
    rule = rules.pop("lr", rule)
    if rule is None and hypergrad_lr is None:
        if given["adapt"] is not None:  # adapt names all that is adapted
            rule = Additive(0.0)
        elif isinstance(params, Tensor) or not any("hypergrad_lr" in group for group in params if isinstance(group, dict)):
            rule = TuningFree()
    if rule is None:
        beta = given["default"] if hypergrad_lr is None else hypergrad_lr
        check_number("hypergrad_lr", beta)
        rule = Additive(beta)
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a Rule such as Additive(1e-6) or Multiplicative(0.01), got {rule!r}")
    return rule


def device_of(params: Any) -> torch.device:
    """The device of the first parameter."""
    for group in [] if isinstance(params, Tensor) else params:
        tensors = group.get("params", ()) if isinstance(group, dict) else [group]
        if isinstance(tensors, Iterator):  # it can be read only once
            tensors = group["params"] = list(tensors)
        for entry in [tensors] if isinstance(tensors, Tensor) else tensors:
            p = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
            if isinstance(p, Tensor):
                return p.device
    return torch.device("cpu")


def check_param_group(group: Group, defaults: Group, setup: Setup, given: Mapping[str, Any] | None) -> None:
    """Fill in a param group's bounds; raise ValueError if an option is out of its range, or applies to the whole optimizer.

    Args:
        group: the param group.
        defaults: default options.
        setup: the optimizer's parts.
        given: the options of the whole optimizer, during construction.
    """
    options, rule = {**defaults, **group}, setup.rule
    ours = {"fused": setup.run.fused, "capturable": setup.scalars.on_device}
    own = {name: given.get(name) for name in SHARED_OPTIONS} if given is not None else {}  # ZeroRedundancyOptimizer repeats these per group
    own |= ours if isinstance(setup.direction, SGD | Adam) else {}  # a base's options are not ours
    for name in {*SHARED_OPTIONS, *own} & group.keys():
        if name not in own or (group[name] is not own[name] and group[name] not in (None, own[name])):
            raise ValueError(f"{name} applies to the whole optimizer: give it to the constructor, not to a param group")
    for name in SHARED_OPTIONS:
        group.pop(name, None)
    group["lr_bounds"] = check_bounds(options["lr_bounds"])
    lr = options["lr"]
    frozen = rule.averages and lr is not False and not (isinstance(lr, Tensor) and (lr.is_meta or lr.numel() != 1)) and bool(lr == 0)
    check_lr(options["lr"], (None, None) if frozen or options.get("lr_free") else options["lr_bounds"])
    if frozen:
        group["lr_frozen"] = True
    check_number("hypergrad_lr", options["hypergrad_lr"])
    if not (isinstance(options["lr"], Tensor) and options["lr"].is_meta):
        rule.check_lr(float(options["lr"]))
    setup.direction.check(options)
    if setup.signal.curvature == "hessian" and (options["nesterov"] or options["dampening"]):
        raise ValueError('curvature="hessian" takes plain momentum: leave nesterov and dampening out')
    check_values(setup.bounds, options)
