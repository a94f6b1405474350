"""Modules over the ops: what a model is put together from."""

from vaefast.nn import likelihoods
from vaefast.nn.annealers import Annealer, Capacity, Cosine, Cyclical, Linear
from vaefast.nn.elbo import ELBOLoss
from vaefast.nn.latent import GaussianLatent
from vaefast.nn.layers import FusedSequential
from vaefast.nn.likelihoods import *  # noqa: F403 - the classes of its table
from vaefast.nn.likelihoods import unit

__all__ = [
    "Annealer",
    "Capacity",
    "Cosine",
    "Cyclical",
    "ELBOLoss",
    "FusedSequential",
    "GaussianLatent",
    "Linear",
    "unit",
    *likelihoods.__all__,
]
