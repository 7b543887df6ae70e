"""The house: imports of the lab go one way, from room to room, and no module imports itself by a detour."""

import ast
from pathlib import Path

import pytest

import hypergradient

LAB = Path(hypergradient.__file__).parent / "lab"

#: Each room may import from those before it.
ROOMS = ("errors", "runs", "loggers", "sweeps", "experiments", "workloads", "compare", "pages", "cli")


def imports(file: Path) -> set[str]:
    """The modules of the lab that a file imports, anywhere in it."""
    package = ["lab", *file.relative_to(LAB).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
            for name in node.names:
                path = LAB.joinpath(*filter(None, base[1:]), name.name)
                found.add(".".join(filter(None, [*base[1:], *([name.name] if path.with_suffix(".py").exists() or path.is_dir() else [])])))
    return {name for name in found if name}


MODULES = {".".join(file.relative_to(LAB).with_suffix("").parts): imports(file) for file in LAB.rglob("*.py") if file.parent != LAB}


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_from_those_before_them(module: str) -> None:
    room = ROOMS.index(module.split(".")[0])
    assert not {name for name in MODULES[module] if ROOMS.index(name.split(".")[0]) > room}


def test_there_are_no_circles() -> None:
    left = {module.removesuffix(".__init__"): {name for name in names if name in MODULES} for module, names in MODULES.items()}
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]
    assert not left
