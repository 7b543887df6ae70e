"""The average in the parameters, with batch norm's statistics of it, and what a rule sees as numbers to log.

While it is there the optimizer keeps what it is to go on from: the parameters in its state, the statistics in its first param group. So
model and optimizer that are saved then are the average and all that a resumed run needs, in whichever file format a trainer has.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from ..average import is_average
from ..optimizer import HypergradientOptimizer

#: The key of the first param group for the statistics of the iterates.
STATISTICS = "iterate_statistics"


def unwrap(optimizer: Any) -> HypergradientOptimizer:
    """The optimizer itself, of one that Accelerate, Lightning or the like has wrapped.

    Raises:
        TypeError: there is none of this library in it.
    """
    found = optimizer
    while not isinstance(found, HypergradientOptimizer):
        if not hasattr(found, "optimizer"):
            raise TypeError(f"optimizer must be one of hypergradient such as AdamWHD, or wrap one, got {type(optimizer).__name__}")
        found = found.optimizer
    return found


def use_average(optimizer: Any, model: nn.Module | None = None, batches: Iterable[Any] | None = None) -> None:
    """Put the running average into the parameters, as ``optimizer.eval()`` does, and give batch norm the statistics of it.

    Args:
        optimizer: one of this library, or a wrapper of one such as Accelerate's.
        model: whose batch norm is to have the average's statistics. Default: none.
        batches: what these are computed from, some fifty training batches, as a DataLoader or list that can be read again and again. A
            mapping is given to the model as keywords; of a tuple or list the first. Default: batch norm stays as it is.

    Raises:
        TypeError: ``optimizer`` is not one of this library.
        ValueError: ``batches`` were given without ``model``.

    Examples:
        >>> import torch
        >>> from hypergradient import SGDHD
        >>> from hypergradient.integrations import use_average, use_iterate
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        >>> opt, batches = SGDHD(model.parameters()), [torch.randn(8, 4) for _ in range(5)]
        >>> for x in batches:
        ...     opt.zero_grad()
        ...     (model(x) - 1).square().mean().backward()
        ...     opt.step()
        >>> use_average(opt, model, batches)  # validate, save both
        >>> use_iterate(opt, model)  # go on
    """
    if batches is not None and model is None:
        raise ValueError("batches are for the batch norm of a model: give model too, or leave batches out")
    opt = unwrap(optimizer)
    opt.eval()
    if model is None or batches is None or STATISTICS in opt.param_groups[0] or not is_average(opt.state):
        return
    statistics = {name: buffer.clone() for name, buffer in batch_norm_buffers(model)}
    if statistics:
        refresh_batch_norm(model, batches)
        opt.param_groups[0][STATISTICS] = statistics


def use_iterate(optimizer: Any, model: nn.Module | None = None) -> None:
    """Put parameters and statistics back, bit for bit, to go on training; also after both were loaded from a checkpoint.

    Args:
        optimizer: as ``use_average`` was given it.
        model: likewise.

    Raises:
        TypeError: ``optimizer`` is not one of this library.
        ValueError: statistics are to be put back, and ``model`` was not given.
    """
    opt = unwrap(optimizer)
    if STATISTICS in opt.param_groups[0] and model is None:
        raise ValueError("use_average() was given a model whose batch norm is to be put back: give use_iterate() the model too")
    opt.train()
    statistics = opt.param_groups[0].pop(STATISTICS, {})
    with torch.no_grad():
        for name, buffer in batch_norm_buffers(model) if statistics and model is not None else ():
            buffer.copy_(statistics[name])


@contextmanager
def averaged(optimizer: Any, model: nn.Module | None = None, batches: Iterable[Any] | None = None) -> Iterator[None]:
    """The average in the parameters inside ``with``; where it is there already, it stays.

    Args:
        optimizer: as in ``use_average``.
        model: likewise.
        batches: likewise.

    Raises:
        TypeError: ``optimizer`` is not one of this library.
        ValueError: ``batches`` were given without ``model``.

    Examples:
        >>> import torch
        >>> from hypergradient import SGDHD
        >>> from hypergradient.integrations import averaged
        >>> model = torch.nn.Linear(4, 1)
        >>> opt = SGDHD(model.parameters())
        >>> with averaged(opt):
        ...     loss = model(torch.ones(4))
    """
    there = is_average(unwrap(optimizer).state)
    use_average(optimizer, model, batches)
    try:
        yield
    finally:
        if not there:
            use_iterate(optimizer, model)


def batch_norm_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers of batch norm, by name."""
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return [(f"{name}.{key}", buffer) for name, module in norms for key, buffer in module.named_buffers(recurse=False)]


class BatchCaller(nn.Module):
    """A model that takes a batch of whichever kind, and is called with it as its kind asks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return self.model(**{name: self.to_device(value) for name, value in batch.items()})
        return self.model(self.to_device(batch))

    def to_device(self, value: Any) -> Any:
        """On the device of the model."""
        return value.to(next(self.model.parameters()).device) if isinstance(value, Tensor) else value


@torch.no_grad()
def refresh_batch_norm(model: nn.Module, batches: Iterable[Any]) -> None:
    """``torch.optim.swa_utils.update_bn`` that leaves modes and random numbers as they were: a run is the same whether it is refreshed."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            update_bn(batches, BatchCaller(model))
    finally:
        for module, training in modes:
            module.training = training


def metrics(optimizers: Any) -> dict[str, float]:
    """What the last step used and what its rule sees, as numbers to log.

    Args:
        optimizers: one of this library, or a wrapper of one, or several.

    Returns:
        ``alpha``, the learning rate that was applied, and what ``summary()`` has, with "/0", "/1", ... behind it where there are several
        param groups, and the optimizer's number and "/" before it where there are several optimizers. Where each tensor or element has a
        learning rate of its own, ``alpha`` alone, their mean.

    Raises:
        TypeError: an optimizer is not one of this library.

    Examples:
        >>> import torch
        >>> from hypergradient import AdamHD
        >>> from hypergradient.integrations import metrics
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> opt = AdamHD([w])
        >>> for _ in range(3):
        ...     opt.zero_grad()
        ...     (w**2).sum().backward()
        ...     opt.step()
        >>> sorted(metrics(opt))
        ['alpha', 'climbing', 'horizon', 'hypergradient', 'lr', 'noise', 'signal']
    """
    found: dict[str, float] = {}
    several = [unwrap(optimizer) for optimizer in (optimizers if isinstance(optimizers, Sequence) else [optimizers])]
    for i, opt in enumerate(several):
        before = f"{i}/" if len(several) > 1 else ""
        groups = opt.param_groups
        rows = [{"alpha": float(group[opt.setup.applied_key])} for group in groups]
        seen = opt.summary() if opt.setup.scope in ("group", "global") else []
        for k, row in enumerate(rows):
            own = seen[k] if len(seen) == len(rows) else seen[0] if seen and k == 0 else {}
            behind = f"/{k}" if len(groups) > 1 else ""
            found |= {f"{before}{name}{behind}": value for name, value in {**row, **own}.items()}
    return found
