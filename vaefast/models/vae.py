"""The variational autoencoder, of any encoder, decoder and likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vaefast.distributions import DiagonalGaussian
from vaefast.models.pretrained import Pretrained
from vaefast.nn import Bernoulli, GaussianLatent, unit
from vaefast.ops import standard_normal


class VAEOutput(NamedTuple):
    """decoded: what the decoder says of x, the likelihood's parameters; z: the latent; kl: [B], in nats."""

    decoded: torch.Tensor
    z: torch.Tensor
    kl: torch.Tensor


class VAE(Pretrained, torch.nn.Module):
    """q(z | x) = N(mean, exp(logvar)), p(z) = N(0, I), p(x | z) = likelihood(decoder(z)) (Kingma and Welling 2014).

    Args:
        encoder: x [B, ...] -> moments [B, 2 * latent_shape[0], *latent_shape[1:]], the mean, then the log-variance.
        decoder: z [B, *latent_shape] -> parameters of the likelihood.
        latent_shape: shape of one z.
        likelihood: a module of `vaefast.nn` that has `forward(parameters, x) -> [B]` and `mean(parameters)`; by
            default Bernoulli.

    Data is floating point, or uint8 images, which the encoder sees divided by 255.
    """

    def __init__(
        self,
        encoder: torch.nn.Module,
        decoder: torch.nn.Module,
        latent_shape: Sequence[int],
        likelihood: torch.nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.latent = GaussianLatent(logvar_bounds=DiagonalGaussian.logvar_bounds)
        self.decoder = decoder
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self.latent_shape = tuple(latent_shape)

    def moments(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(unit(x, next(self.parameters()).dtype))

    def forward(self, x: torch.Tensor, *, seed=None) -> VAEOutput:
        """Encode, draw z, decode; `seed` as for `vaefast.rsample`."""
        z, kl = self.latent(self.moments(x), seed=seed)
        return VAEOutput(self.decoder(z), z, kl)

    def encode(self, x: torch.Tensor) -> DiagonalGaussian:
        """q(z | x)."""
        return DiagonalGaussian(self.moments(x))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """E[x | z]."""
        return self.likelihood.mean(self.decoder(z))

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """E[x | z] at the mean of q(z | x): the same for every call."""
        return self.decode(self.encode(x).mode())

    def sample(self, count: int, *, seed=None) -> torch.Tensor:
        """E[x | z] for `count` draws of z from the prior; `seed` as for `vaefast.standard_normal`."""
        like = next(self.parameters())
        shape = count, *self.latent_shape
        return self.decode(standard_normal(shape, seed=seed, device=like.device, dtype=like.dtype))
