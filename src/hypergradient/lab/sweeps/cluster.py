"""Sweeps on a Ray cluster: each part is a task that yields what is to be written; only the starting process writes.

A task whose worker died is restarted from its last checkpoint.
"""

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from threading import Event
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from ..errors import LabError, first_line
from ..runs.data import Data
from ..runs.engine import SaveRequest, StoppedError, flush_denormals, stop_signals
from .work import Work

#: How often a part may lose its worker without progress in between.
DEATHS = 4


def run_on_ray(
    plan: Callable[[int], list[Work]],
    load: Callable[[Work], Work],
    data: Data,
    address: str | None,
    stopped: Event,
    every: float,
) -> Iterator[tuple[Work, SaveRequest]]:
    """Execute a plan, and yield what is to be written as it arrives.

    Args:
        plan: returns the parts, given the number of processes.
        load: returns a part with its saved state.
        data: the data set of all parts, on any device.
        address: address of the cluster, or "auto" to find one; None starts one on this machine.
        stopped: stops the sweep when set.
        every: seconds between two checkpoints of a part.

    Raises:
        LabError: the cluster cannot be reached, or a part lost its worker too often.
        StoppedError: ``stopped`` was set.
    """
    connect(address)
    try:
        device = str(data.train_x.device)
        needs: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(device.startswith("cuda")), "max_retries": 0}
        shared = ray.put({field.name: portable(getattr(data, field.name)) for field in fields(data)})
        task = ray.remote(**needs)(run_part)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        works = plan(int(max(1, resources.get("GPU" if needs["num_gpus"] else "CPU", 1))))
        running: dict[Any, tuple[Work, int]] = {task.remote(load(work), shared, device, every): (work, 0) for work in works}
        while running:
            ready: list[Any] = ray.wait(list(running), timeout=0.2, fetch_local=False)[0]
            if stopped.is_set():
                raise StoppedError(0)
            for part in ready:
                work, deaths = running.pop(part)
                try:
                    save: SaveRequest = ray.get(next(part))
                except StopIteration:
                    continue
                except RayTaskError as error:
                    raise error.cause if isinstance(error.cause, LabError) else error from None
                except RayError as error:
                    if deaths + 1 == DEATHS:
                        raise LabError(f"a Ray worker died {DEATHS} times at the same point ({first_line(error)})") from None
                    running[task.remote(load(work), shared, device, every)] = (work, deaths + 1)
                    continue
                yield work, save
                running[part] = (work, 0)
    finally:
        ray.shutdown()


def connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default of Ray
    try:
        if address and ":" in address:  # Ray itself would wait for minutes if nothing listens
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        options: dict[str, Any] = {} if address else {"include_dashboard": False}
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # ConnectionError, ValueError and more
        remedy = "leave out --address to start one here, or set RAY_AUTH_MODE=token if it uses a token" if address else "try --engine auto"
        raise LabError(f"no Ray cluster at {address or 'this machine'} ({first_line(error)}): {remedy}") from None


def portable(value: Any) -> Any:
    """A tensor as an array, which processes on one machine can share."""
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value


def run_part(work: Work, shared: dict[str, Any], device: str, every: float) -> Iterator[SaveRequest]:
    """The task of a worker: train one part."""
    flush_denormals()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        columns: dict[str, Any] = {key: torch.from_numpy(x).to(device) if isinstance(x, np.ndarray) else x for key, x in shared.items()}
    with stop_signals() as stopped:
        yield from work.go(Data(**columns), stopped, every)
