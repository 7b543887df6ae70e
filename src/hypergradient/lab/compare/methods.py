"""The published hypergradient methods of ``compare --methods``: how each is set up for a base optimizer, at its own defaults."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypergradient import HDM, AdaGradRule, AdamRule, Additive, Autostep, Delayed, LionRule, Marthe, Multiplicative, Signal
from hypergradient.rules import Rule

ALL, SGD = ("adam", "adamw", "sgdn"), ("sgdn",)

#: The initial learning rates, besides its own, from which each method (and HD) also runs.
PUBLISHED_LRS = (1e-4, 1e-2)


@dataclass(frozen=True)
class Method:
    """A published method.

    Args:
        title: its name in tables and figures.
        options: returns the options of our optimizer, besides the base's own, given the name of the base.
        lr: its authors' initial learning rate; 1e-3 if they use various ones.
        bases: the base optimizers to which it applies.
        kind: the optimizer class, if it is not the base's.
        held_out: whether it adapts on a minibatch that the step does not use, by ``opt.adapt()``.
        graph: whether it differentiates the gradient, so that ``backward()`` must keep the graph.
        claim: what its paper claims.
    """

    title: str
    options: Callable[[str], dict[str, Any]]
    lr: float = 1e-3
    bases: tuple[str, ...] = ALL
    kind: Any = None
    held_out: bool = False
    graph: bool = False
    claim: str = ""


def shared_options(rule: Rule, signal: Signal | None = None, **options: Any) -> Callable[[str], dict[str, Any]]:
    """Options that are the same for every base."""
    return lambda base: {"rule": rule, "signal": signal, **options}


def additive(base: str) -> dict[str, Any]:
    return {"hypergrad_lr": 1e-3 if base == "sgdn" else 1e-7}


def first_order(base: str) -> dict[str, Any]:
    """MARTHE with the last direction only, as in adatune, which advises a β lower by 3 to 4 decades for Adam."""
    return {"rule": Marthe(1e-8 if base == "sgdn" else 1e-12)}


def second_order(rule: Rule, discount: float) -> dict[str, Any]:
    """The arguments of a method with second derivatives, on held-out data, for SGD with momentum."""
    options = shared_options(rule, Signal(discount, curvature="hessian"), nesterov=False)
    return {"options": options, "lr": 1e-2, "bases": SGD, "held_out": True, "graph": True}


#: IDBD and Autostep use the curvature of linear prediction, the squared inputs; the squared gradient replaces it here.
SQUARES = Signal(1.0, curvature="squares")

LIKE_SCHEDULES = "comparable to the best hand-crafted learning rate schedules"
TUNES_LESS = "significantly reduces the need to tune the initial learning rate"

#: The methods by name. Nothing is tuned: what neither a paper nor its code specifies is the library's default. HDM's η is that of its code
#: for unknown smoothness, without null steps, which need noiseless losses. MetaOptimize starts from 1e-3, as its package's class does, not
#: from the 1e-6 of its experiments: by steps of e^±0.001 it would get no further than 4.5e-6 in our 1,500.
PUBLISHED = {
    "additive": Method("Additive rule", additive, claim=TUNES_LESS),
    "multiplicative": Method("Multiplicative rule", shared_options(Multiplicative(0.02)), claim=TUNES_LESS),
    "hdm-rule": Method("HDM's rule, one α", shared_options(AdaGradRule(0.1), Signal(normalized=True), lr_bounds=(0, None)), lr=0.0),
    "hdm": Method(
        "HDM", lambda base: {}, lr=0.0, bases=SGD, kind=HDM, claim="outperforms other adaptive first-order methods (deterministic, convex)"
    ),
    "metaoptimize": Method("MetaOptimize", shared_options(Delayed(LionRule(1e-3, log=True)), Signal(0.9999)), claim=LIKE_SCHEDULES),
    "metaoptimize-adam": Method("MetaOptimize by Adam", shared_options(Delayed(AdamRule(1e-3, log=True)), Signal(0.9999))),
    "marthe-first": Method("MARTHE, first order", first_order, lr=1e-2, held_out=True),
    "rtho": Method("RTHO", **second_order(Additive(1e-8), 1.0)),
    "marthe": Method("MARTHE", **second_order(Marthe(auto=True), 0.99999), claim="more stable schedules, better generalization"),
    "idbd": Method("IDBD by g²", shared_options(Additive(0.01, log=True), SQUARES, scope="element")),
    "autostep": Method("Autostep by g²", shared_options(Autostep(0.01), SQUARES, scope="element"), claim="tuning-free"),
}
