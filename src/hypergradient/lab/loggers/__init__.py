"""Loggers by their own libraries, behind ``--log tensorboard,wandb,mlflow,trackio``.

Each writes to a folder of its name, and none asks a network.
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
from ..runs.engine import Saved
from .base import Log

#: A module here and a package each.
NAMES = ("tensorboard", "wandb", "mlflow", "trackio")

# Without these W&B and MLflow would tell their makers, and MLflow refuse files; they are read when the packages are imported.
os.environ |= {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}


class Loggers:
    """The loggers of ``names``, each under ``root/NAME``; to be used by the one process that writes the store, as a context.

    Raises:
        LabError: as ``check`` does; and from then on where one of them cannot write.
    """

    def __init__(self, names: Sequence[str], root: Path) -> None:
        self.root = root.absolute()
        self.kinds: dict[str, type[Log]] = {}
        self.logs: dict[tuple[str, str], Log] = {}
        for name in check(names):
            with self.guarded(name):
                self.kinds[name] = import_module(f".{name}", __name__).Run

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        """Close what is open; an error that is on its way is not replaced by another."""
        with suppress(*([LabError] if kind else [])):
            self.close()

    def write(self, saved: Saved) -> None:
        """Log what is new of a run; to be called each time that it is saved."""
        for name, kind in self.kinds.items():
            key = name, saved.config.name
            with self.guarded(name):
                if key not in self.logs:
                    self.logs[key] = kind(self.root / name, saved.config)
                self.logs[key].write(saved)
                if saved.summary is not None:
                    del self.logs[key]

    def close(self) -> None:
        """Close the runs that have not ended, and leave no process behind."""
        with ExitStack() as stack:
            for name, kind in self.kinds.items():
                stack.enter_context(self.guarded(name))
                stack.callback(kind.leave)
            for (name, _), log in self.logs.items():
                stack.enter_context(self.guarded(name))
                stack.callback(log.end, None)
            self.logs = {}

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Let a package say nothing itself; what it raises is told in a line."""
        said = io.StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings(action="ignore"):
                yield
        except LabError:
            raise
        except Exception as error:
            folder = self.root / name
            raise LabError(f"--log {name} cannot write to {folder} ({first_line(error)}): make room, or leave {name} out") from None


def check(names: Sequence[str]) -> list[str]:
    """The names of the loggers, each once; several can stand in one text, with commas between.

    Raises:
        LabError: there is no such logger, or its package is not installed.
    """
    found = list(dict.fromkeys(name.strip() for name in ",".join(names).split(",") if name.strip()))
    for name in found:
        if name not in NAMES:
            raise LabError(f"--log takes {', '.join(NAMES)}, with commas between, got {name[:100]!r}")
        if getattr(find_spec(name), "origin", None) is None:  # a folder of that name alone would be found, too
            raise LabError(f"--log {name} needs the package {name}: pip install 'hypergradient[loggers]'")
    return found
