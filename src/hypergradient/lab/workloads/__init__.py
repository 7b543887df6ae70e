"""What optimizers are compared on: workloads in families, split once into those that a rule may be made on and those that judge it."""

from .problem import Problem, Workload

__all__ = ["Problem", "Workload"]
