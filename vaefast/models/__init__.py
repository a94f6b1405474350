"""Models: plain modules that take any encoder and decoder, any likelihood and any prior."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vaefast import _options
from vaefast.models import parts, priors
from vaefast.models.autoencoder_kl import AutoencoderKL, autoencoder_kl, from_diffusers_config
from vaefast.models.conv import conv_vae
from vaefast.models.dense import DenseDecoder, DenseEncoder, dense_vae
from vaefast.models.ladder import LadderVAE, ladder_vae
from vaefast.models.residual import residual_vae
from vaefast.models.vae import VAE, VAEOutput
from vaefast.models.vaegan import VAEGAN, ImageCritic, PatchCritic

NAMES = {
    "dense": dense_vae,
    "conv": conv_vae,
    "residual": residual_vae,
    "ladder": ladder_vae,
    "autoencoder_kl": autoencoder_kl,
}


def create(name: str, **options) -> VAE:
    """The model of this name, as the command line and a saved configuration call it. `options` are the function's.

    The model's config says them all, defaults too, as JSON can hold them: `create(**model.config)` has the same
    architecture.

    Raises:
        ValueError: for an unknown name. TypeError: for an option that it does not take.
    """
    model = _options.create("model", NAMES, name, options, _taken)
    model.config = {"name": name, **{key: _plain(value) for key, value in (_taken(NAMES[name]) | options).items()}}
    return model


def _taken(function: Callable) -> dict[str, object]:
    """{name: default} of what a model's function takes, and `parts.build` through it."""
    return _options.taken(parts.build, keyword_only=True) | _options.taken(function)


def _plain(value):
    """As JSON has it: tuples and arrays as lists, their numbers as Python's, and what is learned as {"learned": …}."""
    if isinstance(value, torch.nn.Parameter):
        return {"learned": value.tolist()}
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value


__all__ = [
    "NAMES",
    "VAE",
    "VAEGAN",
    "AutoencoderKL",
    "DenseDecoder",
    "DenseEncoder",
    "ImageCritic",
    "LadderVAE",
    "PatchCritic",
    "VAEOutput",
    "autoencoder_kl",
    "conv_vae",
    "create",
    "dense_vae",
    "from_diffusers_config",
    "ladder_vae",
    "priors",
    "residual_vae",
]
