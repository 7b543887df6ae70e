"""The running average during evaluation, with batch norm's statistics for it, and the values to log.

While the average is swapped in, the optimizer holds what training resumes from: the iterate in its state, batch norm's statistics in its
first param group. So if model and optimizer are saved then, the model is the average and the optimizer has all that a resumed run needs,
in whichever file format a trainer uses.
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

#: The key in the first param group for the batch norm statistics of the iterates.
STATISTICS = "iterate_statistics"


def unwrap(optimizer: Any) -> HypergradientOptimizer:
    """The optimizer itself, unwrapped from Accelerate, Lightning or the like.

    Raises:
        TypeError: it is not, and does not wrap, an optimizer of this library.
    """
    found = optimizer
    while not isinstance(found, HypergradientOptimizer):
        if not hasattr(found, "optimizer"):
            raise TypeError(f"optimizer must be one of hypergradient such as AdamWHD, or wrap one, got {type(optimizer).__name__}")
        found = found.optimizer
    return found


def use_average(optimizer: Any, model: nn.Module | None = None, batches: Iterable[Any] | None = None) -> None:
    """Swap the running average into the parameters, as ``optimizer.eval()`` does, and compute batch norm's statistics for it.

    Args:
        optimizer: an optimizer of this library, or a wrapper of one such as Accelerate's.
        model: the model whose batch norm statistics are to be those of the average. Default: none.
        batches: what to compute them from: some fifty training batches, as a DataLoader or list that can be iterated repeatedly. A mapping
            is passed to the model as keyword arguments; of a tuple or list the first entry is passed. Default: batch norm is left as it is.

    Raises:
        TypeError: ``optimizer`` is not of this library.
        ValueError: ``batches`` are given without ``model``.

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
        >>> use_average(opt, model, batches)  # validate, save model and optimizer
        >>> use_iterate(opt, model)  # continue training
    """
    if batches is not None and model is None:
        raise ValueError("batches are for the batch norm of a model: pass model too, or leave batches out")
    opt = unwrap(optimizer)
    opt.eval()
    if model is None or batches is None or STATISTICS in opt.param_groups[0] or not is_average(opt.state):
        return
    statistics = {name: buffer.clone() for name, buffer in batch_norm_buffers(model)}
    if statistics:
        refresh_batch_norm(model, batches)
        opt.param_groups[0][STATISTICS] = statistics


def use_iterate(optimizer: Any, model: nn.Module | None = None) -> None:
    """Restore parameters and statistics, bit for bit, to continue training; also after both were loaded from a checkpoint.

    Args:
        optimizer: as given to ``use_average``.
        model: likewise.

    Raises:
        TypeError: ``optimizer`` is not of this library.
        ValueError: there are statistics to restore and ``model`` is not given.
    """
    opt = unwrap(optimizer)
    if STATISTICS in opt.param_groups[0] and model is None:
        raise ValueError("use_average() changed the batch norm statistics of a model: pass the model to use_iterate() too, to restore them")
    opt.train()
    statistics = opt.param_groups[0].pop(STATISTICS, {})
    with torch.no_grad():
        for name, buffer in batch_norm_buffers(model) if statistics and model is not None else ():
            buffer.copy_(statistics[name])


@contextmanager
def averaged(optimizer: Any, model: nn.Module | None = None, batches: Iterable[Any] | None = None) -> Iterator[None]:
    """Context manager: ``use_average`` on entry, ``use_iterate`` on exit. If the average is already swapped in on entry, it stays.

    Args:
        optimizer: as for ``use_average``.
        model: likewise.
        batches: likewise.

    Raises:
        TypeError: ``optimizer`` is not of this library.
        ValueError: ``batches`` are given without ``model``.

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
    """The buffers of batch norm layers, by name."""
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return [(f"{name}.{key}", buffer) for name, module in norms for key, buffer in module.named_buffers(recurse=False)]


class BatchCaller(nn.Module):
    """Calls a model with a batch of any kind."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return self.model(**{name: self.to_device(value) for name, value in batch.items()})
        return self.model(self.to_device(batch))

    def to_device(self, value: Any) -> Any:
        """The value on the device of the model."""
        return value.to(next(self.model.parameters()).device) if isinstance(value, Tensor) else value


@torch.no_grad()
def refresh_batch_norm(model: nn.Module, batches: Iterable[Any]) -> None:
    """``torch.optim.swa_utils.update_bn`` that restores training modes and random state, so that a run does not depend on it."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            update_bn(batches, BatchCaller(model))
    finally:
        for module, training in modes:
            module.training = training


def metrics(optimizers: Any) -> dict[str, float]:
    """The learning rate of the last step and what the rule sees, as scalars to log.

    Args:
        optimizers: an optimizer of this library, a wrapper of one, or a sequence of these.

    Returns:
        ``alpha``, the applied learning rate, and the entries of ``summary()``. With several param groups the names end in "/0", "/1", ...;
        with several optimizers they begin with the index of the optimizer and "/". With ``scope="tensor"`` or ``"element"`` only ``alpha``,
        the mean.

    Raises:
        TypeError: an optimizer is not of this library.

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
