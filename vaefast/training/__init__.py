"""Training: the loop, checkpoints, pictures, and the run that `vaefast train` makes of them."""

from vaefast.training.job import Settings, SettingsError, load, run
from vaefast.training.trainer import NotFiniteError, Trainer

__all__ = ["NotFiniteError", "Settings", "SettingsError", "Trainer", "load", "run"]
