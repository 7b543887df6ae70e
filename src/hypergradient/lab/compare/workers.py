"""A pool of processes that run one job at a time; if one dies, only its job fails."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from ..runs.engine import flush_denormals
from ..workloads import WORKLOADS
from .runs import Job, Result, run_job

READY = "ready"


def prepare() -> None:
    """Configure torch as in all worker processes: one thread, denormals flushed."""
    torch.set_num_threads(1)
    flush_denormals()


def serve(link: Connection, function: Callable[..., Any]) -> None:
    """The main loop of a worker process: run jobs until the other end closes. Its output is discarded."""
    prepare()
    warnings.simplefilter("ignore")
    logging.disable()
    with suppress(EOFError, BrokenPipeError), Path(os.devnull).open("w") as sys.stdout:
        link.send(READY)
        while True:
            link.send(function(*link.recv()))


class Workers:
    """A pool of at most ``max_workers`` processes, each started when there is work for it.

    Args:
        max_workers: the largest number of processes.
        files: the data files of workloads, by name, as read by ``runs.load_data_file``.
        function: called with a job and its data file; must be importable.
    """

    def __init__(self, max_workers: int, files: Mapping[str, Path], function: Callable[[Job, Path | None], Result] = run_job) -> None:
        self.max_workers, self.files, self.function = max_workers, files, function
        self.busy: dict[Connection, Job] = {}
        self.idle: list[Connection] = []
        self.processes: dict[Connection, BaseProcess] = {}
        self.ready: set[Connection] = set()

    @property
    def free(self) -> int:
        return self.max_workers - len(self.busy)

    def submit(self, job: Job) -> None:
        """Start a job on a free process."""
        link = self.idle.pop() if self.idle else self._begin()
        self.busy[link] = job
        with suppress(BrokenPipeError):  # it has died, which collect reports
            link.send((job, self.files.get(WORKLOADS[job.workload].data or "")))

    def collect(self, timeout: float) -> list[Result]:
        """The results of finished jobs, waiting at most ``timeout`` seconds; an error for a job whose process died.

        Raises:
            RuntimeError: a process could not start.
        """
        ended = []
        for link in wait([*self.busy], timeout):
            assert isinstance(link, Connection)
            try:
                found = link.recv()
            except (EOFError, ConnectionError):
                found = Result(self.busy[link], error=self._died(link))
            if found == READY:
                self.ready.add(link)
                continue
            del self.busy[link]
            ended.append(found)
            if link in self.processes:
                self.idle.append(link)
        return ended

    def close(self) -> None:
        """Terminate all processes."""
        for link, process in self.processes.items():
            process.terminate()
            process.join()
            link.close()

    def _begin(self) -> Connection:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.function), daemon=True)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: only the command handles Ctrl-C
        process.start()
        signal.signal(signal.SIGINT, before)
        theirs.close()
        self.processes[ours] = process
        return ours

    def _died(self, link: Connection) -> str:
        process = self.processes.pop(link)
        process.join()
        link.close()
        if link not in self.ready:
            raise RuntimeError(f"a worker process could not start (exit status {process.exitcode})")
        return f"the process died with exit status {process.exitcode}"
