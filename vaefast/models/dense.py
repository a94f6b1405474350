"""Fully connected encoder and decoder: the introductory VAE."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from vaefast.models.vae import VAE

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "elu": nn.ELU, "tanh": nn.Tanh}


def _linear(fan_in: int, fan_out: int, initialise: Callable = nn.init.xavier_uniform_) -> nn.Linear:
    linear = nn.Linear(fan_in, fan_out)
    initialise(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _hidden(sizes: Sequence[int], activation: str) -> list[nn.Module]:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    # He et al. 2015 keeps the signal's size through the depth; PyTorch's default shrinks it at every layer, and the
    # decoder then learns to ignore z before it learns to read it
    he = functools.partial(nn.init.kaiming_normal_, nonlinearity="relu")
    return [layer for pair in itertools.pairwise(sizes) for layer in (_linear(*pair, he), ACTIVATIONS[activation]())]


class DenseEncoder(nn.Module):
    """x [B, *data_shape] -> moments [B, 2 * latent]: hidden layers, then one head for the mean and one for the
    log-variance."""

    def __init__(
        self, data_shape: Sequence[int], latent: int, hidden: Sequence[int] = (128, 64, 32), activation: str = "relu"
    ):
        super().__init__()
        sizes = [math.prod(data_shape), *hidden]
        self.hidden = nn.Sequential(nn.Flatten(), *_hidden(sizes, activation))
        self.mean = _linear(sizes[-1], latent)
        self.logvar = _linear(sizes[-1], latent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.hidden(x)
        return torch.cat([self.mean(h), self.logvar(h)], 1)


class DenseDecoder(nn.Sequential):
    """z [B, latent] -> likelihood parameters [B, *data_shape]."""

    def __init__(
        self,
        data_shape: Sequence[int],
        latent: int,
        hidden: Sequence[int] = (32, 64, 128, 256),
        activation: str = "relu",
    ):
        sizes = [latent, *hidden]
        last = _linear(sizes[-1], math.prod(data_shape))
        super().__init__(*_hidden(sizes, activation), last, nn.Unflatten(1, tuple(data_shape)))


def dense_vae(
    data_shape: Sequence[int],
    latent: int,
    encoder_hidden: Sequence[int] = (128, 64, 32),
    decoder_hidden: Sequence[int] = (32, 64, 128, 256),
    activation: str = "relu",
) -> VAE:
    """A VAE of a DenseEncoder and a DenseDecoder, with a Bernoulli likelihood.

    Args:
        data_shape: shape of one sample, such as (1, 28, 28).
        latent: the size of z.
        encoder_hidden, decoder_hidden: sizes of the hidden layers, in the order in which data meets them.
        activation: of the hidden layers: "relu", "silu", "gelu", "elu" or "tanh".
    """
    encoder = DenseEncoder(data_shape, latent, encoder_hidden, activation)
    return VAE(encoder, DenseDecoder(data_shape, latent, decoder_hidden, activation), (latent,))
