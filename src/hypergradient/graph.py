"""``step()`` under ``torch.compile``: one operator of the graph, which the compiler does not look into.

The learning rate and what the rule keeps are Python floats that change at every step. If the compiler traced them it would compile anew
each time, and so it is to see nothing of a step but which parameters are written and which gradients are read. When the graph runs, the
operator takes the ordinary step: there is one loop for both.
"""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

#: Optimizers by the number that stands for them in a graph. A graph keeps no optimizer alive, and a copy has a number of its own. They are
#: counted, as an address would be another one in each process, and compiled code is kept on disk by its constants.
OPTIMIZERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
COUNT = itertools.count()

#: Written out, as torch 2.6 does not read it from the annotations.
SCHEMA = "(SymInt number, Tensor(a!)[] params, Tensor?[] grads) -> ()"


def enter(optimizer: Any) -> int:
    """The number of an optimizer that is new."""
    register()
    number = next(COUNT)
    OPTIMIZERS[number] = optimizer
    return number


def step_in_graph(optimizer: Any, closure: Callable[[], Any] | None) -> Any:
    """What the compiler sees of ``step()``; the closure it sees as it is."""
    params = optimizer.params  # not from its param_groups, where the compiler looks at every number, and compiles anew when one changes
    if optimizer.outside:
        return step_outside(optimizer, closure)
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    with torch.no_grad():
        torch.ops.hypergradient.step(optimizer.number, params, [p.grad for p in params])
    return loss


def step_outside(optimizer: Any, closure: Callable[[], Any] | None) -> Any:
    """The step between two graphs."""
    return optimizer._step(closure)


def keep_outside() -> None:
    """Let the compiler leave ``step_outside`` alone: torch imports it for that, which takes a second, so not before it is needed."""
    if not hasattr(step_outside, "_torchdynamo_disable"):
        globals()["step_outside"] = torch.compiler.disable(step_outside)  # type: ignore[no-untyped-call]


@cache
def register() -> None:
    """Define the operator: at the first optimizer, as importing the library would take an eighth longer for it."""
    # Where torch has such a tag: a step waits for the device, which no CUDA graph may.
    tags: Any = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
    operator = torch.library.custom_op("hypergradient::step", step, mutates_args=("params",), schema=SCHEMA, **tags)
    operator.register_fake(fake)


def step(number: int, params: list[Tensor], grads: list[Tensor | None]) -> None:
    """The step when the graph runs. What it is given may be copies of the parameters, which the compiler writes back at the graph's end."""
    optimizer = OPTIMIZERS[number]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    copies = [(p.detach(), x) for p, x in zip(own, params, strict=True) if x.data_ptr() != p.data_ptr()]
    before = [p.grad for p in own]
    optimizer.kept.refuse(own)  # the graph writes over the memory of its gradients later
    try:
        for p, x in copies:
            p.copy_(x)
        for p, g in zip(own, grads, strict=True):
            p.grad = g
        # Inductor's code runs where no change of a tensor is counted, and the step asks whether there was one.
        with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
            optimizer._step()
        optimizer.edits.versions = []  # what the graph does at its end counts as a change, and is none
    finally:
        for p, g in zip(own, before, strict=True):
            p.grad = g
        for p, x in copies:
            x.copy_(p)


def fake(number: int, params: list[Tensor], grads: list[Tensor | None]) -> None:
    """It gives nothing."""
