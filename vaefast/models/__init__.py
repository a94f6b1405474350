"""Models: plain modules that take any encoder and decoder."""

from vaefast.models.dense import DenseDecoder, DenseEncoder, dense_vae
from vaefast.models.vae import VAE, VAEOutput

__all__ = ["VAE", "DenseDecoder", "DenseEncoder", "VAEOutput", "dense_vae"]
