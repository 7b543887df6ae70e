"""Constructor calls as text, such as ``SGDHD(lr=0.01, rule=Multiplicative(0.02))``: parsed as data, never evaluated.

A run's optimizer is described this way on the command line, in TOML files and in stored configurations. ``optimizers`` builds it.
"""

import ast
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..errors import LabError, shortened

#: The longest call, in characters.
LONGEST = 50_000

#: The names of the paper's optimizers in figures, by class; SGD with Nesterov momentum is called SGDN.
CLASSES = {"SGD": "SGD", "SGDHD": "SGD", "Adam": "Adam", "AdamHD": "Adam", "AdamW": "AdamW", "AdamWHD": "AdamW"}
ADAPTING = ("SGDHD", "HDM", "AdamHD", "AdamWHD", "Hypergradient")


@dataclass(frozen=True)
class Call:
    """A name and its arguments: numbers, strings, True, False, None, tuples, dicts and other calls."""

    name: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}({', '.join([*map(text, self.args), *(f'{name}={text(value)}' for name, value in self.options.items())])})"

    def replaced(self, **options: Any) -> "Call":
        """The same call with some options replaced; an option set to None is dropped."""
        return Call(self.name, self.args, {name: value for name, value in {**self.options, **options}.items() if value is not None})

    @property
    def adapts(self) -> bool:
        """Whether the optimizer adapts its learning rate by hypergradients."""
        return self.name in ADAPTING

    @property
    def family(self) -> str:
        """The base optimizer as the paper names it: SGD, SGDN or Adam; for others the class name."""
        found = CLASSES.get(self.name, self.name)
        return "SGDN" if found == "SGD" and self.options.get("nesterov") is True else found

    @property
    def title(self) -> str:
        """The optimizer's name in tables and figures."""
        return f"{self.family}-HD" if self.name in CLASSES and self.adapts else self.family

    @property
    def beta(self) -> float | None:
        """β, if given as ``hypergrad_lr``, ``Additive(β)`` or ``Multiplicative(β)``."""
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
    """A value as source text."""
    if isinstance(value, tuple):
        return f"({', '.join(map(text, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{text(key)}: {text(item)}' for key, item in value.items())}}}"
    return str(value) if isinstance(value, Call) else repr(value)


@lru_cache(100_000)
def parse(source: str) -> Call:
    """Parse a call; a name alone is a call without arguments.

    Raises:
        LabError: it is not a call of numbers, strings, True, False, None, tuples, dicts and calls; lists are the axes of a sweep.
    """
    calls = [*expand(source)]
    if len(calls) != 1 or "[" in source:
        raise LabError(f"--optimizer {source}: a list is an axis of a sweep: give one value, and write a pair as (0.9, 0.999)")
    return calls[0]


def expand(source: str) -> Iterator[Call]:
    """The calls of a text with axes, such as ``SGD(lr=[0.1, 0.01])``: the product of all lists in it."""
    yield from values(parse_expression(source), source)


def parse_expression(source: str) -> ast.Call | ast.Name:
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
    """The values of an expression, one for each point of the product of its axes."""
    match node:
        case ast.List(elts) if elts:
            for element in elts:
                yield from values(element, source)
        case ast.Constant(value) if isinstance(value, str | None) or fits_float32(value):
            yield value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)) if not isinstance(value, bool) and fits_float32(value):
            yield -value
        case ast.Tuple(elts):
            yield from itertools.product(*([*values(element, source)] for element in elts))
        case ast.Dict(keys, items) if are_unique_strings([key.value if isinstance(key, ast.Constant) else None for key in keys]):
            names = [key.value for key in keys]  # type: ignore[union-attr]
            for found in itertools.product(*([*values(item, source)] for item in items)):
                yield dict(zip(names, found, strict=True))
        case ast.Name(name):
            yield Call(name)
        case ast.Call(ast.Name(name), args, keywords) if are_unique_strings([keyword.arg for keyword in keywords]):
            parts = [*args, *(keyword.value for keyword in keywords)]
            for found in itertools.product(*([*values(part, source)] for part in parts)):
                options = dict(zip([str(keyword.arg) for keyword in keywords], found[len(args) :], strict=True))
                yield Call(name, found[: len(args)], options)
        case _:
            piece = ast.get_source_segment(source.strip(), node) or source
            raise LabError(
                f"--optimizer {shortened(source)}: {shortened(piece)!r} is not allowed: use numbers below 3.4e38, strings, True, "
                "False, None, tuples, dicts, and calls by name with each option once"
            )


def fits_float32(value: object) -> bool:
    """Whether it is a number within float32's range."""
    return isinstance(value, int | float) and abs(value) < 3.4e38


def are_unique_strings(names: Sequence[object]) -> bool:
    """Whether all are strings, without duplicates."""
    return all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def count(source: str) -> int:
    """The number of calls that ``expand`` yields."""

    def of(node: ast.AST) -> int:
        parts = [of(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr | ast.keyword)]
        return sum(parts) if isinstance(node, ast.List) else math.prod(parts)

    return of(parse_expression(source))
