"""Conversion of configurations stored by versions before 0.2, which named optimizers and listed their options flatly."""

from collections.abc import Mapping
from typing import Any

from .calls import Call
from .peers import PEER_CLASSES

#: Optimizer classes by their earlier names.
CLASS_NAMES = {"sgd": "SGD", "sgdn": "SGD", "adam": "Adam", "sgd-hd": "SGDHD", "sgdn-hd": "SGDHD", "adam-hd": "AdamHD", **PEER_CLASSES}
UNCHANGED = ("data", "model", "batch_size", "epochs", "seed", "device", "limit", "iterations", "threshold", "hidden", "hypergrad_data")
DEFAULTS = {"hypergrad_lr": None, "momentum": 0.9, "weight_decay": 1e-4, "rule": "additive", "height": 1, "level": "additive", "adapt": ""}
RULES = {"additive": "Additive", "multiplicative": "Multiplicative"}


def upgraded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert old options to those of config.Config; unexpected values are passed on unchanged."""
    found = DEFAULTS | dict(options)
    name = str(found.get("optimizer"))
    own: dict[str, Any] = {"lr": found.get("lr") or None, "weight_decay": found["weight_decay"]}
    if name.startswith("sgdn"):
        own |= {"momentum": found["momentum"], "nesterov": True}
    if name.endswith("-hd"):
        own |= rule_of(found)
        if found["adapt"]:
            own["adapt"] = adapt_option(str(found["adapt"]))
    own = {key: value for key, value in own.items() if value is not None}
    return {key: found[key] for key in UNCHANGED if key in found} | {"optimizer": str(Call(CLASS_NAMES.get(name, name), (), own))}


def rule_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """The learning rate's rule with the levels above it, or just β if that is all."""
    rule, first, height = found["rule"], found["hypergrad_lr"], found["height"]
    if rule not in RULES or not isinstance(height, int) or not 1 <= height <= 100:
        return {}
    if rule == "additive" and height == 1:
        return {"hypergrad_lr": first}
    above = found.get("level_lr")
    beta: Any = first if height == 1 else above
    for level in range(height, 1, -1):
        beta = Call("Adapted", (first if level == 2 else above, Call(RULES.get(found["level"], "Additive"), (beta,))))
    return {"rule": Call(RULES[rule], (beta,))}


def number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def adapt_option(text: str) -> dict[str, Any]:
    """Parse the option adapt, comma-separated NAME=RULE:β, to rules by hyperparameter."""
    rules: dict[str, Any] = {}
    for entry in text.split(","):
        name, _, rule = (part.strip() for part in entry.partition("="))
        kind, _, beta = rule.partition(":")
        rules[name] = Call(RULES.get(kind, "Additive"), (number(beta),))
    pair = rules.pop("beta1", None), rules.pop("beta2", None)
    return rules | ({} if pair == (None, None) else {"betas": pair})
