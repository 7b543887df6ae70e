"""Results that are stored and not computed twice: runs of the lab in folders, and results of a function in a file."""

import json
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hypergradient.lab.compare.workers import prepare
from hypergradient.lab.runs.config import Config
from hypergradient.lab.runs.data import Data
from hypergradient.lab.runs.models import identified
from hypergradient.lab.runs.store import History
from hypergradient.lab.sweeps.sweep import folder_of, sweep

from .report import write


def histories(configs: Sequence[Config], data: Data, root: Path) -> list[History]:
    """The histories of runs, trained one after the other; runs already in the folder are not repeated."""
    own = [identified(config, data) for config in configs]
    sweep(own, data, root, engine="sequential", watch=lambda ended, *_: print(f"{ended} of {len(own)} runs", end="\r", flush=True))
    return [folder_of(root, config).history() for config in own]


def answers(file: Path, works: Mapping[str, Any], do: Callable[[Any], Any], processes: int) -> dict[str, Any]:
    """The results of ``do`` by name, saved in a JSON file as they are found; those already in it are not computed again."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    missing = {name: work for name, work in works.items() if name not in found}
    with get_context("spawn").Pool(processes, prepare) as pool:
        for name, answer in zip(missing, pool.imap(do, missing.values()), strict=True):
            found[name] = answer
            write(file, found)
            print(name, answer, flush=True)
    return found
