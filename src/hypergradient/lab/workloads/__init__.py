"""What optimizers are compared on: workloads in families, split once into those that a rule may be made on and those that judge it."""

from . import batch, decay, dense, fine_tuning, full_batch, games, ids, image, labels, sequence, short, streams, tabular
from .problem import Problem, Workload

_ROOMS = (image, sequence, dense, tabular, full_batch, decay, batch, short, streams, labels, fine_tuning, ids, games)

#: All of them by name, and the names of each family.
WORKLOADS: dict[str, Workload] = {name: workload for room in _ROOMS for name, workload in room.WORKLOADS.items()}
FAMILIES: dict[str, list[str]] = {}
for _name, _workload in WORKLOADS.items():
    FAMILIES.setdefault(_workload.family, []).append(_name)

__all__ = ["FAMILIES", "WORKLOADS", "Problem", "Workload"]
