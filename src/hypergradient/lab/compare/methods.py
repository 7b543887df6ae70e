"""What stands beside ours: the optimizers of other packages, and, with ``compare --methods``, the published hypergradient methods, and what
makes each of a base, with its own defaults."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypergradient import HDM, AdaGradRule, AdamRule, Additive, Autostep, Delayed, LionRule, Marthe, Multiplicative, Signal
from hypergradient.rules import Rule

from ..runs.peers import STORED

#: The optimizers of other packages, by the names under which runs of them are stored: their classes.
OTHERS = STORED

ALL, SGD = ("adam", "adamw", "sgdn"), ("sgdn",)

#: The learning rates that the methods are given beside their own, and ours.
FIELD_GIVEN = (1e-4, 1e-2)


@dataclass(frozen=True)
class Method:
    """A method of the field.

    Args:
        title: how tables and figures name it.
        options: of our optimizer of a base, beside the base's own, by the name of the base.
        lr: where it starts, by its authors; 1e-3 where they start their optimizers anywhere.
        bases: those that it is for.
        kind: the optimizer, where it is another than that of the base.
        held_out: whether its learning rate follows a minibatch that the step is not made of, by ``opt.adapt()``.
        graph: whether it differentiates the gradient, of which ``backward()`` must keep a graph then.
        says: what its paper says of it.
    """

    title: str
    options: Callable[[str], dict[str, Any]]
    lr: float = 1e-3
    bases: tuple[str, ...] = ALL
    kind: Any = None
    held_out: bool = False
    graph: bool = False
    says: str = ""


def moved_by(rule: Rule, signal: Signal | None = None, **options: Any) -> Callable[[str], dict[str, Any]]:
    """Options that are the same for every base."""
    return lambda base: {"rule": rule, "signal": signal, **options}


def additive(base: str) -> dict[str, Any]:
    return {"hypergrad_lr": 1e-3 if base == "sgdn" else 1e-7}


def first_order(base: str) -> dict[str, Any]:
    """Against the last direction alone, as adatune has it; β is lower for Adam: by 3 to 4 decades, says that."""
    return {"rule": Marthe(1e-8 if base == "sgdn" else 1e-12)}


def exact(rule: Rule, discount: float) -> dict[str, Any]:
    """The further arguments of a method with second derivatives, on held-out data, of SGD with momentum."""
    options = moved_by(rule, Signal(discount, curvature="hessian"), nesterov=False)
    return {"options": options, "lr": 1e-2, "bases": SGD, "held_out": True, "graph": True}


#: The curvature in IDBD and Autostep is that of linear prediction, the squared inputs, for which the squared gradient stands in.
SQUARES = Signal(1.0, curvature="squares")

LIKE_SCHEDULES = "comparable to the best hand-crafted learning rate schedules"
TUNES_LESS = "significantly reduces the need to tune the initial learning rate"

#: Their names, and what they are. Nothing is tuned: what neither a paper nor its code says is as the library has it. HDM's η is that of its
#: code while the smoothness is not known, and there are no null steps, which need losses without noise. MetaOptimize starts from 1e-3, as
#: its package's class does, not from the 1e-6 of its experiments: by steps of e^±0.001 it would get no further than 4.5e-6 in our 1,500.
FIELD = {
    "additive": Method("Additive rule", additive, says=TUNES_LESS),
    "multiplicative": Method("Multiplicative rule", moved_by(Multiplicative(0.02)), says=TUNES_LESS),
    "hdm-rule": Method("HDM's rule, one α", moved_by(AdaGradRule(0.1), Signal(normalized=True), lr_bounds=(0, None)), lr=0.0),
    "hdm": Method(
        "HDM", lambda base: {}, lr=0.0, bases=SGD, kind=HDM, says="outperforms other adaptive first-order methods (deterministic, convex)"
    ),
    "metaoptimize": Method("MetaOptimize", moved_by(Delayed(LionRule(1e-3, log=True)), Signal(0.9999)), says=LIKE_SCHEDULES),
    "metaoptimize-adam": Method("MetaOptimize by Adam", moved_by(Delayed(AdamRule(1e-3, log=True)), Signal(0.9999))),
    "marthe-first": Method("MARTHE, first order", first_order, lr=1e-2, held_out=True),
    "rtho": Method("RTHO", **exact(Additive(1e-8), 1.0)),
    "marthe": Method("MARTHE", **exact(Marthe(auto=True), 0.99999), says="more stable schedules, better generalization"),
    "idbd": Method("IDBD by g²", moved_by(Additive(0.01, log=True), SQUARES, scope="element")),
    "autostep": Method("Autostep by g²", moved_by(Autostep(0.01), SQUARES, scope="element"), says="tuning-free"),
}
