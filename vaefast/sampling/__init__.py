"""Samplers of the latent space, fitted after training: where the posteriors of the data really lie.

sampler = sampling.create("gmm").fit(model, x_train)
images = model.sample(64, sampler=sampler)
"""

from __future__ import annotations

import torch

from vaefast import _options
from vaefast.data import spread
from vaefast.models import VAE
from vaefast.sampling.flow import Flow
from vaefast.sampling.gmm import GaussianMixture
from vaefast.sampling.sampler import Normal, Sampler
from vaefast.sampling.two_stage import TwoStage

PRIOR = "prior"  # where a sampler is named: none, but the model's own prior
NAMES = {"normal": Normal, "gmm": GaussianMixture, "two_stage": TwoStage, "flow": Flow}
CHOICES = (PRIOR, *NAMES)


def create(name: str, **options) -> Sampler:
    """The sampler of this name, not fitted yet; `options` are the class's.

    Raises:
        ValueError: for an unknown name. TypeError: for an option that it does not take.
    """
    return _options.create("sampler", NAMES, name, options)


def fitted(name: str, model: VAE, data, *, seed: int, **options) -> Sampler | None:
    """The sampler of this name, fitted to at most 20,000 rows spread over `data`, which need not be a tensor; None for
    "prior". The global random state of the CPU is not touched.

    Raises:
        ValueError: for an unknown name. TypeError: for a sampler that is not meant for this model, or an option that it
            does not take.
    """
    if name == PRIOR:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(name, **options).fit(model, spread(data, 20_000))


__all__ = ["CHOICES", "NAMES", "PRIOR", "Flow", "GaussianMixture", "Normal", "Sampler", "TwoStage", "create", "fitted"]
