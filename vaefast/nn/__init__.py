"""Modules over the ops: what a model is put together from."""

from vaefast.nn.latent import GaussianLatent
from vaefast.nn.likelihood import Bernoulli, unit

__all__ = ["Bernoulli", "GaussianLatent", "unit"]
