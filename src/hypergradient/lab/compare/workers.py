"""Processes that do one job at a time; one that dies costs its job alone."""

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
from .runs import Job, Result, attempt

READY = "ready"


def prepare() -> None:
    """Let this process compute as all that runs are made in: on one thread, and without denormals."""
    torch.set_num_threads(1)
    flush_denormals()


def serve(link: Connection, do: Callable[..., Any]) -> None:
    """A process: does what it is sent until the other end is closed. What is printed meanwhile is for nobody."""
    prepare()
    warnings.simplefilter("ignore")
    logging.disable()
    with suppress(EOFError, BrokenPipeError), Path(os.devnull).open("w") as sys.stdout:
        link.send(READY)
        while True:
            link.send(do(*link.recv()))


class Workers:
    """So many processes at most, each begun when there is work for it.

    Args:
        most: how many.
        files: the data of workloads by name, as ``runs.stored`` reads it.
        do: what is done, given a job and its file; a function of a module.
    """

    def __init__(self, most: int, files: Mapping[str, Path], do: Callable[[Job, Path | None], Result] = attempt) -> None:
        self.most, self.files, self.do = most, files, do
        self.busy: dict[Connection, Job] = {}
        self.idle: list[Connection] = []
        self.processes: dict[Connection, BaseProcess] = {}
        self.ready: set[Connection] = set()

    @property
    def free(self) -> int:
        return self.most - len(self.busy)

    def put(self, job: Job) -> None:
        """Let a free process begin a job."""
        link = self.idle.pop() if self.idle else self._begin()
        self.busy[link] = job
        with suppress(BrokenPipeError):  # it has died, which get tells
            link.send((job, self.files.get(WORKLOADS[job.workload].data or "")))

    def get(self, timeout: float) -> list[Result]:
        """What came of the jobs that have ended, after so many seconds at most; an error where its process died.

        Raises:
            RuntimeError: a process could not begin.
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
        """End all processes, whatever they do."""
        for link, process in self.processes.items():
            process.terminate()
            process.join()
            link.close()

    def _begin(self) -> Connection:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.do), daemon=True)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits: Ctrl-C is for the command alone
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
            raise RuntimeError(f"a process of the comparison ended before it began, with exit status {process.exitcode}")
        return f"the process ended with exit status {process.exitcode}"
