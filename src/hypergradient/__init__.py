"""Hypergradient descent for PyTorch: optimizers that adapt their own learning rate (Baydin et al., ICLR 2018)."""

from .learners import AdaGradRule, AdamRule, Autostep, LionRule, Marthe
from .optimizers import HDM, SGDHD, AdamHD, AdamWHD
from .rules import Adapted, Additive, Multiplicative
from .schedules import Decay, Delayed, Transition
from .signal import Signal
from .tuning import TuningFree
from .wrapper import Hypergradient

__all__ = [
    "HDM",
    "SGDHD",
    "AdaGradRule",
    "AdamHD",
    "AdamRule",
    "AdamWHD",
    "Adapted",
    "Additive",
    "Autostep",
    "Decay",
    "Delayed",
    "Hypergradient",
    "LionRule",
    "Marthe",
    "Multiplicative",
    "Signal",
    "Transition",
    "TuningFree",
]
__version__ = "0.2.0"
