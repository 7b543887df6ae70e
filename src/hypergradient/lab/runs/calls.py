"""Constructor calls as text, ``SGDHD(lr=0.01, rule=Multiplicative(0.02))``: read as data, never evaluated.

This is how a run's optimizer is described, on the command line, in TOML and in what is stored. What a call means is in ``optimizers``.
"""

import ast
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..errors import LabError, shortened

#: Characters of a call at most.
LONGEST = 50_000

#: How figures name the optimizers of the paper, by class; SGD is SGDN with Nesterov momentum.
CLASSES = {"SGD": "SGD", "SGDHD": "SGD", "Adam": "Adam", "AdamHD": "Adam", "AdamW": "AdamW", "AdamWHD": "AdamW"}
ADAPTING = ("SGDHD", "HDM", "AdamHD", "AdamWHD", "Hypergradient")


@dataclass(frozen=True)
class Call:
    """A name, and what it is called with: numbers, texts, True, False, None, tuples, dicts and other calls."""

    name: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}({', '.join([*map(text, self.args), *(f'{name}={text(value)}' for name, value in self.options.items())])})"

    def but(self, **options: Any) -> "Call":
        """The same with other options, without those that are None here."""
        return Call(self.name, self.args, {name: value for name, value in {**self.options, **options}.items() if value is not None})

    @property
    def adapts(self) -> bool:
        """Whether it is an optimizer that adapts its learning rate by hypergradients."""
        return self.name in ADAPTING

    @property
    def family(self) -> str:
        """The optimizer whose direction it steps along, as the paper names it: SGD, SGDN, Adam; its own name where it is no such one."""
        found = CLASSES.get(self.name, self.name)
        return "SGDN" if found == "SGD" and self.options.get("nesterov") is True else found

    @property
    def title(self) -> str:
        """How tables and figures name the optimizer."""
        return f"{self.family}-HD" if self.name in CLASSES and self.adapts else self.family

    @property
    def beta(self) -> float | None:
        """β of a rule that is given by ``hypergrad_lr``, or as ``Additive(β)`` or ``Multiplicative(β)``, if it is one of these."""
        found: Any = self.options.get("hypergrad_lr", self.options.get("rule"))
        while isinstance(found, Call):
            found = found.args[0] if found.args else found.options.get("beta", found.options.get("value"))
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None

    @property
    def style(self) -> str:
        """``baseline``, ``additive`` (the paper's rule), ``multiplicative``, or ``other``."""
        if not self.adapts:
            return "baseline"
        rule = self.options.get("rule")
        name = rule.name if isinstance(rule, Call) else "Additive" if "hypergrad_lr" in self.options else "TuningFree"
        return {"Additive": "additive", "Multiplicative": "multiplicative"}.get(name, "other")


def text(value: Any) -> str:
    """A value as it is written in a call."""
    if isinstance(value, tuple):
        return f"({', '.join(map(text, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{text(key)}: {text(item)}' for key, item in value.items())}}}"
    return str(value) if isinstance(value, Call) else repr(value)


@lru_cache(100_000)
def read(source: str) -> Call:
    """The call that a text is; a name alone is a call without options.

    Raises:
        LabError: it is none, or holds what is no number, text, True, False, None, tuple, dict or call; lists are the axes of a sweep.
    """
    calls = [*expand(source)]
    if len(calls) != 1 or "[" in source:
        raise LabError(f"--optimizer {source}: a list is the axis of a sweep; give one value here, and write a pair as (0.9, 0.999)")
    return calls[0]


def expand(source: str) -> Iterator[Call]:
    """The calls that a text with axes stands for: each list in it is an axis, ``SGD(lr=[0.1, 0.01])``; in the order of their product."""
    yield from values(tree_of(source), source)


def tree_of(source: str) -> ast.Call | ast.Name:
    try:
        tree = ast.parse(source.strip(), mode="eval").body if len(source) <= LONGEST else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if not isinstance(tree, ast.Call | ast.Name):
        raise LabError(
            f"--optimizer takes a constructor call of at most {LONGEST:,} characters, such as 'AdamHD(lr=1e-3)', got {shortened(source)!r}"
        )
    return tree


def values(node: ast.expr, source: str) -> Iterator[Any]:
    """What an expression can be, one value for each place on its axes."""
    match node:
        case ast.List(elts) if elts:
            for element in elts:
                yield from values(element, source)
        case ast.Constant(value) if isinstance(value, str | None) or fits(value):
            yield value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)) if not isinstance(value, bool) and fits(value):
            yield -value
        case ast.Tuple(elts):
            yield from itertools.product(*([*values(element, source)] for element in elts))
        case ast.Dict(keys, items) if once([key.value if isinstance(key, ast.Constant) else None for key in keys]):
            names = [key.value for key in keys]  # type: ignore[union-attr]
            for found in itertools.product(*([*values(item, source)] for item in items)):
                yield dict(zip(names, found, strict=True))
        case ast.Name(name):
            yield Call(name)
        case ast.Call(ast.Name(name), args, keywords) if once([keyword.arg for keyword in keywords]):
            parts = [*args, *(keyword.value for keyword in keywords)]
            for found in itertools.product(*([*values(part, source)] for part in parts)):
                options = dict(zip([str(keyword.arg) for keyword in keywords], found[len(args) :], strict=True))
                yield Call(name, found[: len(args)], options)
        case _:
            piece = ast.get_source_segment(source.strip(), node) or source
            raise LabError(
                f"--optimizer {shortened(source)}: {shortened(piece)!r} is no number below 3.4e38, text, True, False, None, "
                "tuple, dict or call of a name with each option once"
            )


def fits(value: object) -> bool:
    """Whether it is a number that float32 holds."""
    return isinstance(value, int | float) and abs(value) < 3.4e38


def once(names: Sequence[object]) -> bool:
    """Whether they are texts, each of which comes once."""
    return all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def count(source: str) -> int:
    """How many calls ``expand`` gives."""

    def of(node: ast.AST) -> int:
        parts = [of(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr | ast.keyword)]
        return sum(parts) if isinstance(node, ast.List) else math.prod(parts)

    return of(tree_of(source))
