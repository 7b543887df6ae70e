"""The running average and what a rule sees, in the trainers that people have. Each needs its own package; this one needs torch alone."""

from .average import averaged, put_average, put_iterate, readings

__all__ = ["averaged", "put_average", "put_iterate", "readings"]
