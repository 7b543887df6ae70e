"""The published hypergradient methods that ``compare --methods`` stands beside ours: what makes each of a base, with its own defaults."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypergradient import Additive, Multiplicative

ALL, SGD = ("adam", "adamw", "sgdn"), ("sgdn",)

#: The learning rates that the methods are given, and ours beside them.
FIELD_GIVEN = (1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Method:
    """A method of the field.

    Args:
        title: how tables and figures name it.
        options: of our optimizer of a base, beside the base's own, by the name of the base.
        lr: where it starts, by its authors; 1e-3 where they start their optimizers anywhere.
        bases: those that it is for.
        given: whether it also runs from given learning rates.
        kind: the optimizer, where it is another than that of the base.
        held_out: whether its learning rate follows a minibatch that the step is not made of, by ``opt.adapt()``.
        graph: whether it differentiates the gradient, of which ``backward()`` must keep a graph then.
        says: what its paper says of it.
    """

    title: str
    options: Callable[[str], dict[str, Any]]
    lr: float = 1e-3
    bases: tuple[str, ...] = ALL
    given: bool = True
    kind: Any = None
    held_out: bool = False
    graph: bool = False
    says: str = ""


def moved_by(rule: Any, **options: Any) -> Callable[[str], dict[str, Any]]:
    """Options that are the same for every base."""
    return lambda base: {"rule": rule, **options}


def additive(base: str) -> dict[str, Any]:
    return {"hypergrad_lr": 1e-3 if base == "sgdn" else 1e-7}


#: Their names, and what they are. Nothing of them is tuned: whatever is not said by a paper or its code is the library's default.
FIELD = {
    "additive": Method("Additive rule", additive),
    "multiplicative": Method("Multiplicative rule", moved_by(Multiplicative(0.02))),
}
