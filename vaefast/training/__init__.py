"""Training: the loop, checkpoints, pictures, and the run that `vaefast train` makes of them."""

from vaefast.training.ema import EMA
from vaefast.training.job import load, run
from vaefast.training.recipes import RECIPES
from vaefast.training.settings import Settings, SettingsError
from vaefast.training.trainer import NotFiniteError, Trainer

__all__ = ["EMA", "RECIPES", "NotFiniteError", "Settings", "SettingsError", "Trainer", "load", "run"]
