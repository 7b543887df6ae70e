"""The lab: the paper's experiments as commands. Installed with ``pip install hypergradient[lab]``; the library never imports it."""

import sys
from importlib.util import find_spec


def main() -> None:
    """The command ``hypergradient``, or a line that says what is missing."""
    needed = ("datasets", "matplotlib", "numpy", "plotly", "pyarrow", "rich", "sklearn", "tensorboard", "typer")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        sys.exit(complain(f"the lab needs {', '.join(missing)}: pip install 'hypergradient[lab]'"))
    from .cli.app import run

    run()


def complain(message: str) -> int:
    """One line on stderr; returns the exit status of an error that the user can mend."""
    print(f"hypergradient: {' '.join(message.split())}", file=sys.stderr)
    return 2
