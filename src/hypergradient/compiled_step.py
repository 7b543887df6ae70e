"""``step()`` under ``torch.compile``: one opaque operator in the graph.

The learning rate and the rule's memory are Python floats that change at every step: a compiler that traced them would recompile each time.
So the compiler sees only which parameters the step writes and which gradients it reads. When the graph runs, the operator takes the
ordinary step, and there is one loop for both.
"""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

#: Optimizers by the handle that stands for them in a graph, which keeps no optimizer alive. A copy has its own handle. Handles are counted,
#: since an address would differ between processes, and compiled code is cached on disk by its constants.
OPTIMIZERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
COUNT = itertools.count()

#: Written out, since torch 2.6 cannot infer it from the annotations.
SCHEMA = "(SymInt handle, Tensor(a!)[] params, Tensor?[] grads) -> ()"


def register(optimizer: Any) -> int:
    """The handle of a new optimizer."""
    define_operator()
    handle = next(COUNT)
    OPTIMIZERS[handle] = optimizer
    return handle


def step_in_graph(optimizer: Any, closure: Callable[[], Any] | None) -> Any:
    """What the compiler sees of ``step()``; the closure is traced as usual."""
    params = optimizer.params  # not from param_groups, whose every number the compiler would guard
    if optimizer.needs_graph_break:
        return step_eagerly(optimizer, closure)
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    with torch.no_grad():
        torch.ops.hypergradient.step(optimizer.handle, params, [p.grad for p in params])
    return loss


def step_eagerly(optimizer: Any, closure: Callable[[], Any] | None) -> Any:
    """The step outside of the graph, which breaks there."""
    return optimizer._step(closure)


def disable_compiler() -> None:
    """Exclude ``step_eagerly`` from compilation; only when needed, since it imports torch's compiler, which takes a second."""
    if not hasattr(step_eagerly, "_torchdynamo_disable"):
        globals()["step_eagerly"] = torch.compiler.disable(step_eagerly)  # type: ignore[no-untyped-call]


@cache
def define_operator() -> None:
    """Define ``torch.ops.hypergradient.step``, at the first optimizer: importing the library would take an eighth longer for it."""
    # A step may wait for the device, which a CUDA graph must not; older versions of torch lack the tag.
    tags: Any = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
    operator = torch.library.custom_op("hypergradient::step", step, mutates_args=("params",), schema=SCHEMA, **tags)
    operator.register_fake(fake_step)


def step(handle: int, params: list[Tensor], grads: list[Tensor | None]) -> None:
    """The step when the graph runs. The tensors may be copies of the parameters, which the compiler writes back at the end of the graph."""
    optimizer = OPTIMIZERS[handle]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    copies = [(p.detach(), x) for p, x in zip(own, params, strict=True) if x.data_ptr() != p.data_ptr()]
    before = [p.grad for p in own]
    optimizer.last_gradients.exclude(own)  # the graph reuses the memory of its gradients
    try:
        for p, x in copies:
            p.copy_(x)
        for p, g in zip(own, grads, strict=True):
            p.grad = g
        # Inductor's code runs with version counting switched off, and the step relies on versions.
        with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
            optimizer._step()
        optimizer.edits.versions = []  # the graph's write-back changes versions, but is no edit
    finally:
        for p, g in zip(own, before, strict=True):
            p.grad = g
        for p, x in copies:
            x.copy_(p)


def fake_step(handle: int, params: list[Tensor], grads: list[Tensor | None]) -> None:
    """Returns nothing."""
