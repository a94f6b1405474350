"""Samplers of the latent space, fitted after training: where the posteriors of the data really lie.

sampler = sampling.create("gmm").fit(model, x_train)
images = model.sample(64, sampler=sampler)
"""

from __future__ import annotations

from vaefast import _options
from vaefast.sampling.flow import Flow
from vaefast.sampling.gmm import GaussianMixture
from vaefast.sampling.sampler import Normal, Sampler
from vaefast.sampling.two_stage import TwoStage

NAMES = {"normal": Normal, "gmm": GaussianMixture, "two_stage": TwoStage, "flow": Flow}


def create(name: str, **options) -> Sampler:
    """The sampler of this name, not fitted yet; `options` are the class's.

    Raises:
        ValueError: for an unknown name. TypeError: for an option that it does not take.
    """
    return _options.create("sampler", NAMES, name, options)


__all__ = ["NAMES", "Flow", "GaussianMixture", "Normal", "Sampler", "TwoStage", "create"]
