"""What a power cut does to a command: its process is killed at random moments; and a process that ends in the middle of its work."""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from hypergradient.lab.compare.runs import Job, Result


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


def first_dies(job: Job, data: Path | None) -> Result:
    """A run of ``compare``: seed 1 ends its process."""
    if job.seed == 1:
        os._exit(7)
    return Result(job, 1.0, 2.0)
