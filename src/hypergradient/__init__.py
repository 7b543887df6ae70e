"""Hypergradient descent for PyTorch: optimizers that adapt their own learning rate (Baydin et al., ICLR 2018)."""

from .optimizers import SGDHD, AdamHD, AdamWHD
from .rules import Adapted, Additive, Multiplicative
from .schedules import Decay, Transition
from .tuning import TuningFree
from .wrapper import Hypergradient

__all__ = [
    "SGDHD",
    "AdamHD",
    "AdamWHD",
    "Adapted",
    "Additive",
    "Decay",
    "Hypergradient",
    "Multiplicative",
    "Transition",
    "TuningFree",
]
__version__ = "0.1.0"
