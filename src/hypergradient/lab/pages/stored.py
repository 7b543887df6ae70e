"""What the folder of an experiment or a run holds, read as data, whoever wrote it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LabError
from ..experiments.run import Run, run_of
from ..runs.old import modern
from ..runs.store import DEFAULTS, Folder
from ..sweeps.index import entries


def read(root: Path) -> tuple[str, dict[str, Any], list[Run]]:
    """The experiment's name, what its file says of it, and its runs.

    Raises:
        LabError: there is neither an experiment nor a run, or a file cannot be read.
    """
    folder = Folder(root)
    about = folder.read_json("experiment.json")
    if about is None:
        options = folder.config()
        if options is None:
            raise LabError(f"{root} holds neither an experiment (experiment.json) nor a run (config.json): give the --output of a command")
        return "train", folder.read_json("config.json") or {}, [run_of(options, root, folder.summary())]
    wanted = about.get("configurations")
    if not isinstance(wanted, list) or not wanted or not all(isinstance(options, dict) for options in wanted):
        raise LabError(f"{root / 'experiment.json'} holds no configurations: run the experiment again, into another --output")
    if about.get("format", 1) == 1:
        wanted = [*map(modern, wanted)]
    found = {key(entry.config): entry for entry in entries(root).values()}
    runs = []
    for options in wanted:
        options = DEFAULTS | options
        entry = found.get(key(options))
        runs.append(run_of(options, entry.path, entry.summary) if entry else run_of(options))
    return str(about.get("experiment")), about, runs


def key(options: Mapping[str, Any]) -> str:
    """What tells runs apart."""
    return json.dumps(options, sort_keys=True)
