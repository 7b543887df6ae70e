"""Loggers for ``--log tensorboard,wandb,mlflow,trackio``, each through its own package.

Each writes to a folder of its name; none needs a network.
"""

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import LabError, first_line
from ..runs.engine import Snapshot
from .base import Log

#: Each is a module here, and the name of its package.
NAMES = ("tensorboard", "wandb", "mlflow", "trackio")

# Disable telemetry, and enable MLflow's file store; the packages read these when they are imported.
os.environ |= {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}


class Loggers:
    """The loggers ``names``, each under ``root/NAME``; a context manager for the process that writes the store.

    Raises:
        LabError: as ``check`` does, and later if one of them cannot write.
    """

    def __init__(self, names: Sequence[str], root: Path) -> None:
        self.root = root.absolute()
        self.kinds: dict[str, type[Log]] = {}
        self.logs: dict[tuple[str, str], Log] = {}
        for name in check(names):
            with self.silenced(name):
                self.kinds[name] = import_module(f".{name}", __name__).Run

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        """Close all loggers, without replacing an exception already raised."""
        with suppress(*([LabError] if kind else [])):
            self.close()

    def write(self, saved: Snapshot) -> None:
        """Log what is new in a run; call it whenever the run is saved."""
        for name, kind in self.kinds.items():
            key = name, saved.config.name
            with self.silenced(name):
                if key not in self.logs:
                    self.logs[key] = kind(self.root / name, saved.config)
                self.logs[key].write(saved)
                if saved.summary is not None:
                    del self.logs[key]

    def close(self) -> None:
        """Close unfinished runs, and stop the loggers' processes."""
        with ExitStack() as stack:
            for name, kind in self.kinds.items():
                stack.enter_context(self.silenced(name))
                stack.callback(kind.shut_down)
            for (name, _), log in self.logs.items():
                stack.enter_context(self.silenced(name))
                stack.callback(log.end, None)
            self.logs = {}

    @contextmanager
    def silenced(self, name: str) -> Iterator[None]:
        """Silence a package, and turn its exceptions into a one-line error."""
        output = io.StringIO()
        try:
            with redirect_stdout(output), redirect_stderr(output), warnings.catch_warnings(action="ignore"):
                yield
        except LabError:
            raise
        except Exception as error:
            folder = self.root / name
            raise LabError(f"--log {name} cannot write to {folder} ({first_line(error)}): free some space, or leave out {name}") from None


def check(names: Sequence[str]) -> list[str]:
    """The names of the loggers, without duplicates; a string may contain several, comma-separated.

    Raises:
        LabError: a logger is unknown, or its package is not installed.
    """
    found = list(dict.fromkeys(name.strip() for name in ",".join(names).split(",") if name.strip()))
    for name in found:
        if name not in NAMES:
            raise LabError(f"--log takes comma-separated names from {', '.join(NAMES)}; got {name[:100]!r}")
        if getattr(find_spec(name), "origin", None) is None:  # find_spec also finds a mere folder of that name
            raise LabError(f"--log {name} needs the package {name}: pip install 'hypergradient[loggers]'")
    return found
