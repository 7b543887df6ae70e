"""Checkpoints: save and load the state of an optimizer, whichever class, version or device wrote it."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import hyperparameter_update
from .average import HALF_DTYPES, fingerprint, is_average, restart_from_average
from .compiled_step import disable_compiler, register
from .directions import SGD, Adam
from .external_edits import ExternalEdits
from .group_lr import Group
from .hyperparameters import HYPERPARAMETERS
from .last_gradients import LastGradients
from .learning_rates import Scope
from .ranks import local
from .setup import Setup
from .tensors import make_buffer, real

#: Attributes that are copied and pickled, beyond those of torch.optim.Optimizer.
COPIED = ("setup", "given", "lr_free", "skipped", "warned", "warned_overwrite", "warned_of_ranks", "hypergradients", "other_hypergradients")

#: Options that a device stores as tensors in a param group, and the host as floats.
HOST_SCALARS = ("hypergrad_lr", "lr_ratio", *{own.option for own in HYPERPARAMETERS.values()})


def fill_defaults(opt: Any) -> None:
    """Complete the param groups: options that another class's checkpoint lacks, and scalars moved to the host or to the device."""
    setup, scalars = opt.setup, opt.setup.scalars
    opt.params = [p for group in opt.param_groups for p in group["params"]]
    setup.ranks.inspect(opt.params)
    opt.needs_graph_break = any(p.is_complex() or hasattr(p, "to_local") for p in opt.params)  # no custom operator can write to these
    if opt.needs_graph_break:
        disable_compiler()
    seen: list[Tensor] = []
    for group in opt.param_groups:
        for name, value in opt.defaults.items():
            if name == "differentiable":  # torch adds it on every copy and load
                continue
            group.setdefault(name, value.clone() if isinstance(value, Tensor) else value)
        group.setdefault("step_adapts", True)
        group.setdefault("lr_free", False)
        for name, first in (("memory", setup.initial_memory(group)), ("adapted", hyperparameter_update.initial_memory(setup.other_rules))):
            if first:
                group[name] = {key: scalars.cast(group.get(name, {}).get(key, value)) for key, value in first.items()}
        if "last" in group:  # empty in a checkpoint of the wrapper
            group["last"] = {name: group[name] for name in setup.direction.remembered_options} | group["last"]
        for holder in (group, group.get("last", {})):
            own = ("lr", "factor", "adapted_lr", "square") if scalars.on_device else ("lr", "square") * (holder is not group) + HOST_SCALARS
            for name in (*own, setup.applied_key):
                if name in holder:
                    holder[name] = scalars.cast(holder[name])
        if setup.scope == "global":
            group.setdefault("lr_ratio", group["lr"].clone() if scalars.on_device else float(group["lr"]))
        if isinstance(group["lr"], Tensor):
            if any(group["lr"] is other for other in seen):
                group["lr"] = group["lr"].clone()
            seen.append(group["lr"])
        lr = 0.0 if group.get("lr_free") else group.get("adapted_lr", group["lr"])
        group.setdefault(setup.applied_key, scalars.cast(lr.clone() if isinstance(lr, Tensor) else lr))


def check(opt: Any, state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError if a checkpoint is not from such an optimizer, or belongs to other parameters."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(f"a checkpoint must be a dict from state_dict(), with 'state' and 'param_groups', got {brief(state_dict)}")
    saved = [i for group in state_dict["param_groups"] for i in group.get("params", ())]
    params = [p for group in opt.param_groups for p in group["params"]]
    for i, p in zip(saved, params, strict=False):
        for name, value in state_dict["state"].get(i, {}).items():
            if name in buffers_of(opt) and isinstance(value, Tensor) and value.dim() and value.shape != p.shape:
                raise ValueError(
                    f"the checkpoint's {name!r} has shape {tuple(value.shape)}, but its parameter has shape {tuple(p.shape)}: "
                    "load it with the parameters it was saved with, in the same order"
                )


def brief(value: Any) -> str:
    keys = sorted(map(str, value)) if isinstance(value, Mapping) else value
    return repr(keys)[:200]


def buffers_of(opt: Any) -> tuple[str, ...]:
    return (*opt.setup.direction.buffers, "gradient", "trace", "trace_momentum", "rest", "lr", "iterate", *opt.setup.element_memory)


def is_scalar_state(opt: Any, name: str) -> bool:
    """Whether ``name`` is a scalar that this library stores in a tensor's state."""
    own = name.startswith("memory_") and name not in opt.setup.element_memory
    return own or name in ("lr", "hypergrad_lr", "applied", *opt.setup.direction.counters)


def restore(opt: Any, state_dict: Mapping[str, Any]) -> None:
    """Restore the scalars of tensors as saved, since torch casts them to the parameter's dtype, and move them to where they are kept."""
    setup, shared = opt.setup, dict[Any, Any]()
    groups = zip(opt.param_groups, state_dict["param_groups"], strict=True)
    for g, (i, p) in [(g, pair) for g, (own, saved) in enumerate(groups) for pair in zip(saved["params"], own["params"], strict=True)]:
        for name, value in state_dict["state"].get(i, {}).items():
            if name == "applied":
                opt.state[p][name] = bool(opt.state[p][name])  # as loaded: the wrapper has set some to False
            elif name.startswith("trace") and setup.float32_trace and p.dtype in HALF_DTYPES:
                opt.state[p][name] = value.to(p.device, torch.float32)
            elif name in setup.element_memory and isinstance(value, Tensor) and value.shape == p.shape:
                opt.state[p][name] = value.to(p.device)  # in its saved dtype
            elif name in setup.element_memory or (name == "rest" and p.dtype not in HALF_DTYPES):
                del opt.state[p][name]
            elif is_scalar_state(opt, name) and not (isinstance(value, Tensor) and value.dim()):
                if not setup.scalars.on_device:
                    opt.state[p][name] = int(value) if name in setup.direction.counters else setup.scalars.cast(value)
                    continue
                # Tensors with an equal count share one tensor for it, unless each has its own learning rate.
                apart = setup.scope == "tensor" or (isinstance(value, Tensor) and value.is_meta)
                key = g, name, id(p) if apart else float(value)
                if key not in shared:
                    shared[key] = torch.as_tensor(value, dtype=setup.scalars.dtype).to(setup.scalars.device, copy=True)
                opt.state[p][name] = shared[key]
    opt.saved = [group.pop("saved", None) for group in opt.param_groups]
    for group, given in zip(opt.param_groups, state_dict["param_groups"], strict=True):
        if setup.direction.averaging and "largest" in given.get("memory", ()):  # version 0.1 kept momentum under TuningFree
            group["older"] = True
        restore_lrs(opt, group)
    fill_defaults(opt)


def restore_lrs(opt: Any, group: Group) -> None:
    """Convert the learning rates of the last step to this optimizer's scope: per element, per tensor, or per param group."""
    elements, apart, last = opt.setup.per_element, opt.setup.scope in ("tensor", "element"), group.get("last", {})
    if not elements:
        group.pop("lr_left", None)
    for own, p in ((opt.state[p], p) for p in group["params"] if p in opt.state):
        lr = own.pop("lr", last.get("lr") if own.get("applied") else None)
        if lr is None:
            continue
        by_element = isinstance(lr, Tensor) and lr.shape == p.shape and p.dim() > 0
        if by_element and not elements:
            lr, own["applied"] = real(lr).double().mean().item(), False  # the last step had no single learning rate
        if elements and not by_element:
            make_buffer(own, "lr", p, lr)
        elif apart:
            own["lr"] = lr.clone() if isinstance(lr, Tensor) else lr
        elif own.get("applied"):
            own["applied"] = bool(last.setdefault("lr", lr) == lr)
    if last and not apart:
        last.setdefault("lr", group["lr"])


@contextmanager
def loading(opt: Any, state_dict: Any) -> Iterator[None]:
    """Check what is loaded and undo torch's casts; hooks that users registered run before and after, and see the restored state."""
    if not isinstance(state_dict, Mapping):
        check(opt, state_dict)
    found: list[Group] = []

    def before_load(_: Any, given: Group) -> None:
        check(opt, given)
        found.append(given)

    own = [
        opt.register_load_state_dict_pre_hook(before_load),
        opt.register_load_state_dict_post_hook(lambda _: restore(opt, found[0]), prepend=True),
    ]
    try:
        yield
    finally:
        for hook in own:
            hook.remove()


def with_fingerprint(opt: Any, found: Group) -> Group:
    """A state dict with a ``fingerprint`` of the parameters in each param group; under a rule that averages, in one process only."""
    alone = not (opt.setup.ranks.is_sharded or opt.setup.ranks.is_replicated() or any(p.is_meta for p in opt.params))
    if opt.setup.rule.averages and alone and not is_average(opt.state):
        for group, own in zip(found["param_groups"], opt.param_groups, strict=True):
            group["saved"] = fingerprint(own["params"], opt.state)
    return found


def check_fingerprint(opt: Any, stacklevel: int) -> None:
    """Once after loading a checkpoint: find out whether the parameters loaded with it are the average, and warn if they are."""
    saved, opt.saved = opt.saved, []
    if all(saved) and restart_from_average(saved, opt.param_groups[: len(saved)], opt.state):
        warnings.warn(
            "the model was saved under eval() and the optimizer under train(): training continues from the average. Save both inside "
            "opt.averaged(), or both outside, to resume the run exactly",
            stacklevel=stacklevel,
        )


@torch.no_grad()
def convert_momentum(opt: Any) -> None:
    """Convert a checkpoint of version 0.1, whose gradients were taken at the iterate: interpolate towards the average, drop momentum."""
    for group in opt.param_groups:
        if group.pop("older", False):
            b = opt.setup.direction.interpolation(group)
            for p, own in ((local(real(p)), opt.state[p]) for p in group["params"] if "trace" in opt.state.get(p, ())):
                z = local(real(own["trace"]))
                p.add_(z, alpha=b)
                z.mul_(1 - b)
                for name in ("exp_avg", "momentum_buffer") if isinstance(opt.setup.direction, SGD | Adam) else ():  # a base's buffers stay
                    own.pop(name, None)


def make_scope(setup: Setup) -> Scope:
    """The learning rates of an optimizer before its first step."""
    return Scope(setup.scope, setup.scalars, setup.memory_columns, setup.applied_key, setup.ranks)


def resume(opt: Any) -> None:
    """Reset what is not part of a checkpoint, after the param groups and the state were loaded or copied."""
    opt.last_gradients, opt.edits, opt.steps_seen, opt.last_hypergradients, opt.saved = LastGradients(), ExternalEdits(), 0, None, []
    if "handle" not in vars(opt):  # a copy
        opt.handle = register(opt)
    opt.scope = make_scope(opt.setup)
    fill_defaults(opt)
    for group in opt.param_groups if isinstance(opt.setup.direction, SGD | Adam) else ():  # a base's option is not ours
        group["capturable"] = opt.setup.scalars.on_device
