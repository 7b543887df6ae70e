"""The running average and what a rule sees, in the trainers that people have. Each needs its own package; this one needs torch alone."""

from .average import averaged, metrics, use_average, use_iterate

__all__ = ["averaged", "metrics", "use_average", "use_iterate"]
