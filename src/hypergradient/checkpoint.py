"""Checkpoints: what an optimizer needs of what it is given to go on from, whichever class, version or device it was written by."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import others
from .columns import Device, Host
from .dials import Group, Scope, read_lrs
from .directions import SGD, Adam
from .graph import enter
from .hyperparameters import HYPERPARAMETERS
from .kept import KeptGradients

#: What a copy takes with it beside torch.optim's own.
OWN: tuple[str, ...] = (
    "run",
    "capturable",
    "numbers",
    "rule",
    "adapted",
    "bounds",
    "scope",
    "horizon",
    "skipped",
    "warned",
    "hypergradients",
)
OWN += ("other_hypergradients", "memory")


def complete(opt: Any) -> None:
    """Give each group what the loop needs: the options that another class's checkpoint lacks, and a tensor lr of its own."""
    opt.params = [p for group in opt.param_groups for p in group["params"]]
    seen: list[Tensor] = []
    for group in opt.param_groups:
        for name, value in opt.defaults.items():
            group.setdefault(name, value.clone() if isinstance(value, Tensor) else value)
        group.setdefault("step_adapts", True)
        to_device(opt, group)
        if "last" in group:  # of the wrapper's checkpoint, which remembers nothing
            group["last"] = {name: group[name] for name in opt.direction.remembers} | group["last"]
        for name, fresh in (("memory", opt.rule.fresh()), ("adapted", others.fresh(opt.adapted))):
            if fresh:
                group[name] = fresh | {key: value for key, value in group.get(name, {}).items() if key in fresh}
        if opt.scope == "global":
            group.setdefault("lr_ratio", group["lr"].clone() if isinstance(group["lr"], Tensor) and opt.capturable else float(group["lr"]))
        if isinstance(group["lr"], Tensor):
            if any(group["lr"] is other for other in seen):
                group["lr"] = group["lr"].clone()
            seen.append(group["lr"])


def to_device(opt: Any, group: Group) -> None:
    """Make tensors of the numbers that stay on the device."""
    if not isinstance(opt.numbers, Device):
        return
    to: dict[str, Any] = {"dtype": opt.numbers.dtype, "device": opt.numbers.device}
    if not isinstance(group["lr"], Tensor):
        group["lr"] = torch.full((), float(group["lr"]), **to)
    for name in ("memory", "adapted"):
        if name in group:
            group[name] = {key: x if isinstance(x, Tensor) else torch.full((), float(x), **to) for key, x in group[name].items()}


def check(opt: Any, state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError where a checkpoint is not one of such an optimizer's, or of other parameters."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(f"a checkpoint is what state_dict() gives, with 'state' and 'param_groups', got {brief(state_dict)}")
    saved = [i for group in state_dict["param_groups"] for i in group.get("params", ())]
    params = [p for group in opt.param_groups for p in group["params"]]
    for i, p in zip(saved, params, strict=False):
        for name, value in state_dict["state"].get(i, {}).items():
            if name in buffers_of(opt) and isinstance(value, Tensor) and value.dim() and value.shape != p.shape:
                raise ValueError(
                    f"the checkpoint's {name!r} has shape {tuple(value.shape)}, and its parameter {tuple(p.shape)}: "
                    "it was saved with other parameters, or in another order"
                )


def brief(value: Any) -> str:
    keys = sorted(map(str, value)) if isinstance(value, Mapping) else value
    return repr(keys)[:200]


def buffers_of(opt: Any) -> tuple[str, ...]:
    return (*opt.direction.buffers, "gradient", "trace", "lr", "iterate")


def is_number(opt: Any, name: str) -> bool:
    """Whether it is a number that the loop keeps of a tensor."""
    return name in ("lr", "hypergrad_lr", "applied", *opt.direction.counts) or name.startswith("memory_")


def restore_numbers(opt: Any, state_dict: Mapping[str, Any]) -> None:
    """Undo that torch rounds the numbers of a state to the dtype of its parameter."""
    if not isinstance(opt.numbers, Device):
        return
    ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    params = [(g, p) for g, group in enumerate(opt.param_groups) for p in group["params"]]
    shared: dict[Any, Tensor] = {}
    for i, (g, p) in zip(ids, params, strict=True):
        for name, value in state_dict["state"].get(i, {}).items():
            if is_number(opt, name) and not (isinstance(value, Tensor) and value.dim()) and value is not True and value is not False:
                key = g, name, float(value) if not (isinstance(value, Tensor) and value.is_meta) else id(value)
                if key not in shared:  # one tensor for all of which a number is the same
                    shared[key] = torch.as_tensor(value, dtype=opt.numbers.dtype).to(opt.numbers.device, copy=True)
                apart = (name == "lr" and opt.scope == "tensor") or name.startswith("memory_") or name == "hypergrad_lr"
                opt.state[p][name] = shared[key].clone() if apart else shared[key]


def resume(opt: Any) -> None:
    """Go on from what an optimizer has been given: its param groups and state are those of a checkpoint or of a copy."""
    opt.kept, opt.begun, opt.last_h, opt.keeping = KeptGradients(), 0, None, set()
    if "number" not in vars(opt):  # a copy
        opt.number = enter(opt)
    opt.dials = Scope(opt.scope, opt.numbers, opt.memory)
    complete(opt)
    for group in opt.param_groups:
        if isinstance(opt.direction, SGD | Adam):  # a base's is its own
            group["capturable"] = opt.capturable
        if isinstance(opt.numbers, Host):
            to_host(opt, group)
        read_lrs(group, opt.state, opt.scope == "element")


def to_host(opt: Any, group: Group) -> None:
    """Bring the numbers of a checkpoint to the host."""
    states = [(opt.state.get(p, {}), lambda name: is_number(opt, name)) for p in group["params"]]
    kept: list[tuple[Any, Any]] = [(group, ("hypergrad_lr", "lr_ratio").__contains__)]
    kept += [(group.get(name, {}), bool) for name in ("memory", "adapted")]
    for holder, has in [*kept, *states]:
        for name, value in holder.items():
            if has(name) and isinstance(value, Tensor) and value.dim() == 0:
                holder[name] = bool(value) if name == "applied" else value.item()
    for options in (group, group.get("last", {})):
        for name in {own.option for own in HYPERPARAMETERS.values()} & options.keys():
            options[name] = on_host(options[name])


def on_host(value: Any) -> Any:
    """An option without tensors."""
    if isinstance(value, tuple | list):
        return tuple(map(on_host, value))
    return value.item() if isinstance(value, Tensor) else value
