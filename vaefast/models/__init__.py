"""Models: plain modules that take any encoder and decoder."""

from __future__ import annotations

from vaefast.models.dense import DenseDecoder, DenseEncoder, dense_vae
from vaefast.models.vae import VAE, VAEOutput

NAMES = {"dense": dense_vae}


def create(name: str, **options):
    """The model of this name, as the command line and a saved configuration call it. `options` are the function's.

    Raises:
        ValueError: for an unknown name. TypeError: for an option that it does not take.
    """
    if name not in NAMES:
        raise ValueError(f"model must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    return NAMES[name](**options)


__all__ = ["NAMES", "VAE", "DenseDecoder", "DenseEncoder", "VAEOutput", "create", "dense_vae"]
