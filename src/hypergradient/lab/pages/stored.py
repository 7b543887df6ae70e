"""Reading the folder of an experiment or a run. Files may come from anywhere and are read as data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LabError
from ..experiments.run import Run, run_of
from ..runs.legacy import upgraded
from ..runs.store import DEFAULTS, Folder
from ..sweeps.index import entries


def read(root: Path) -> tuple[str, dict[str, Any], list[Run]]:
    """The experiment's name, the content of its file, and its runs.

    Raises:
        LabError: the folder contains neither an experiment nor a run, or a file cannot be read.
    """
    folder = Folder(root)
    about = folder.read_json("experiment.json")
    if about is None:
        options = folder.config()
        if options is None:
            raise LabError(f"{root} contains neither an experiment (experiment.json) nor a run (config.json): give an output folder")
        return "train", folder.read_json("config.json") or {}, [run_of(options, root, folder.summary())]
    wanted = about.get("configurations")
    if not isinstance(wanted, list) or not wanted or not all(isinstance(options, dict) for options in wanted):
        raise LabError(f"{root / 'experiment.json'} lists no configurations: run the experiment again in another --output")
    if about.get("format", 1) == 1:
        wanted = [*map(upgraded, wanted)]
    found = {key(entry.config): entry for entry in entries(root).values()}
    runs = []
    for options in wanted:
        options = DEFAULTS | options
        entry = found.get(key(options))
        runs.append(run_of(options, entry.path, entry.summary) if entry else run_of(options))
    return str(about.get("experiment")), about, runs


def key(options: Mapping[str, Any]) -> str:
    """A string that identifies a configuration."""
    return json.dumps(options, sort_keys=True)
