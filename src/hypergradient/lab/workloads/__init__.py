"""What optimizers are compared on: workloads in families, split once into those that a rule may be made on and those that judge it."""

from . import dense, fine_tuning, full_batch, games, ids, image, regimes, sequence, streams, tabular
from .problem import Problem, Workload

#: All of them, by family and name.
ROOMS = {
    "image": image.WORKLOADS,
    "sequence": sequence.WORKLOADS,
    "dense": dense.WORKLOADS,
    "tabular": tabular.WORKLOADS,
    "full batch": full_batch.WORKLOADS,
    "decay": regimes.DECAY,
    "batch": regimes.BATCH,
    "short": regimes.SHORT,
    "streams": streams.WORKLOADS,
    "labels": regimes.LABELS,
    "fine-tuning": fine_tuning.WORKLOADS,
    "ids": ids.WORKLOADS,
    "games": games.WORKLOADS,
}
WORKLOADS: dict[str, Workload] = {name: workload for room in ROOMS.values() for name, workload in room.items()}
FAMILIES = {family: [*room] for family, room in ROOMS.items()}

__all__ = ["FAMILIES", "WORKLOADS", "Problem", "Workload"]
