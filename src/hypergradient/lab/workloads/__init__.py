"""The workloads on which optimizers are compared, in families, with a fixed split into development and held-out workloads."""

from . import dense, fine_tuning, full_batch, games, ids, image, regimes, sequence, streams, tabular
from .problem import Problem, Workload

#: All workloads, by family and name.
BY_FAMILY = {
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
WORKLOADS: dict[str, Workload] = {name: workload for workloads in BY_FAMILY.values() for name, workload in workloads.items()}
FAMILIES = {family: [*workloads] for family, workloads in BY_FAMILY.items()}

__all__ = ["FAMILIES", "WORKLOADS", "Problem", "Workload"]
