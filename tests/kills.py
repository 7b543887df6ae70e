"""What a power cut does to a command: its process is killed at random moments."""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path


def kill_often(run: Callable[[Path], None], path: Path, times: int) -> None:
    """Start ``run`` as a process so often, and kill it after a while that grows."""
    chance, context = random.Random(0), multiprocessing.get_context("fork")
    for kill in range(times):
        child = context.Process(target=run, args=(path,))
        child.start()
        child.join(chance.uniform(0.05, 0.15) * (1 + kill))
        if child.exitcode is None:
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
