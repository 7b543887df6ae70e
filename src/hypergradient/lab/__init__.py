"""The lab: the paper's experiments as commands. Install it with ``pip install 'hypergradient[lab]'``; the library never imports it."""

import os
import sys
from importlib.util import find_spec

NEEDED = (
    *("cyclopts", "datasets", "filelock", "jinja2", "matplotlib", "numpy", "pandas"),
    *("platformdirs", "plotly", "pyarrow", "pydantic", "rich", "sklearn"),
)


def main() -> None:
    """Run the command ``hypergradient``, or name the packages that are missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(f"hypergradient: the lab needs {', '.join(missing)}: pip install 'hypergradient[lab]'", file=sys.stderr)
        sys.exit(2)
    try:
        from .cli.app import run

        run()
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os._exit(1)
    except KeyboardInterrupt:
        print("hypergradient: stopped", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)
