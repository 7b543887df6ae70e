"""Sweeps on a Ray cluster: each part is a task that gives back what is to be written; the process that started it alone writes.

A task whose worker died is started again from what was last written of it.
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
from ..runs.engine import Save, StoppedError, flush_denormals, stop_signals
from .work import Work

#: How often a part may lose its worker without having given anything in between.
DEATHS = 4


def on_ray(
    plan: Callable[[int], list[Work]],
    load: Callable[[Work], Work],
    data: Data,
    address: str | None,
    stopped: Event,
    every: float,
) -> Iterator[tuple[Work, Save]]:
    """Do all of a plan, and give what is to be written as it comes.

    Args:
        plan: the parts, for a number of processes.
        load: a part with what was saved of it.
        data: for all of them, on any device.
        address: of the cluster, or "auto" for the one that is found; None starts one on this machine.
        stopped: ends it.
        every: seconds between two writings of a part.

    Raises:
        LabError: there is no such cluster, or a part lost its worker too often.
        StoppedError: ``stopped`` was set.
    """
    connect(address)
    try:
        device = str(data.train_x.device)
        needs: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(device.startswith("cuda")), "max_retries": 0}
        shared = ray.put({field.name: portable(getattr(data, field.name)) for field in fields(data)})
        task = ray.remote(**needs)(work_on)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        works = plan(int(max(1, resources.get("GPU" if needs["num_gpus"] else "CPU", 1))))
        under_way: dict[Any, tuple[Work, int]] = {task.remote(load(work), shared, device, every): (work, 0) for work in works}
        while under_way:
            ready: list[Any] = ray.wait(list(under_way), timeout=0.2, fetch_local=False)[0]
            if stopped.is_set():
                raise StoppedError(0)
            for part in ready:
                work, deaths = under_way.pop(part)
                try:
                    save: Save = ray.get(next(part))
                except StopIteration:
                    continue
                except RayTaskError as error:
                    raise error.cause if isinstance(error.cause, LabError) else error from None
                except RayError as error:
                    if deaths + 1 == DEATHS:
                        raise LabError(f"a Ray worker died {DEATHS} times at the same place ({first_line(error)})") from None
                    under_way[task.remote(load(work), shared, device, every)] = (work, deaths + 1)
                    continue
                yield work, save
                under_way[part] = (work, 0)
    finally:
        ray.shutdown()


def connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray will do
    try:
        if address and ":" in address:  # Ray itself waits for minutes where nothing listens
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        options: dict[str, Any] = {} if address else {"include_dashboard": False}
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # ConnectionError, ValueError and more
        mend = "leave --address out to start one here, or set RAY_AUTH_MODE=token where it has a token" if address else "try --engine auto"
        raise LabError(f"no Ray cluster at {address or 'this machine'} ({first_line(error)}): {mend}") from None


def portable(value: Any) -> Any:
    """A tensor as an array, which the processes of one machine share."""
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value


def work_on(work: Work, shared: dict[str, Any], device: str, every: float) -> Iterator[Save]:
    """What a worker does."""
    flush_denormals()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        columns: dict[str, Any] = {key: torch.from_numpy(x).to(device) if isinstance(x, np.ndarray) else x for key, x in shared.items()}
    with stop_signals() as stopped:
        yield from work.go(Data(**columns), stopped, every)
