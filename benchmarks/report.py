"""Shared by the benchmarks: command lines, and writing data, figures, pages and tables."""

import json
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from cyclopts import App, Parameter
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

import hypergradient
from hypergradient.lab.compare.table import markdown
from hypergradient.lab.errors import LabError

#: The templates of pages.
PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "pages"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)


def app(main: Callable[..., object]) -> App:
    """A benchmark's command line: the options are the parameters of its ``main``, the help is its module's docstring."""
    found = App(help=main.__globals__["__doc__"], help_format="plaintext", default_parameter=Parameter(negative=(), consume_multiple=True))
    found.default(main)
    return found


def command(main: Callable[..., object]) -> None:
    """Run a benchmark."""
    try:
        app(main)()
    except LabError as error:
        sys.exit(str(error))


def made(doc: str | None) -> str:
    """The line of a page that names the command in the script's docstring."""
    found = next(line.strip() for line in (doc or "").splitlines() if line.startswith("    python"))
    return f"Made by `{found}`."


def machine() -> str:
    return (
        f"hypergradient {hypergradient.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{(n := torch.get_num_threads())} thread{'s' * (n != 1)} on {platform.machine()}."
    )


def page(name: str, doc: str | None, **values: Any) -> str:
    """Render a template of pages/ with the given values, ``made`` and ``machine``."""
    return PAGES.get_template(name).render(made=made(doc), machine=machine(), **values)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(markdown(heads, rows))


def write(path: Path, what: Any, indent: int | None = 1) -> None:
    """Write a figure, a text, or data as JSON, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(what, Figure):
        what.savefig(path, dpi=130)
    else:
        path.write_text(what if isinstance(what, str) else json.dumps(what, indent=indent, ensure_ascii=False) + "\n")


def publish(docs: Path, name: str, doc: str | None, data: dict[str, Any], text: str) -> None:
    """Write data as results/NAME.json, and Markdown between ``<!-- name -->`` and ``<!-- /name -->`` in performance.md."""
    write(docs / "results" / f"{name}.json", {"machine": machine(), **data})
    print(text)
    fill(docs / "performance.md", name.replace("-", "_"), f"{made(doc)}\n{machine()}\n\n{text}")


def fill(file: Path, name: str, text: str) -> None:
    """Markdown between the comments ``<!-- name -->`` and ``<!-- /name -->`` of a page."""
    before, rest = file.read_text().split(f"<!-- {name} -->")
    after = rest.split(f"<!-- /{name} -->")[1]
    write(file, f"{before}<!-- {name} -->\n\n{text}\n\n<!-- /{name} -->{after}")
