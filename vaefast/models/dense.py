"""Fully connected encoder and decoder: the introductory VAE."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from vaefast.models import parts
from vaefast.models.parts import glorot, he
from vaefast.models.vae import VAE
from vaefast.nn import FusedSequential


def _hidden(sizes: Sequence[int], activation: str) -> list[nn.Module]:
    return [m for a, b in itertools.pairwise(sizes) for m in (he(nn.Linear(a, b)), parts.activation(activation))]


class DenseEncoder(FusedSequential):
    """x [B, *data_shape] -> moments [B, 2 * latent]: hidden layers, then one head for the mean and one for the
    log-variance. Each head has weights of its own, rows of one matrix: two small products are one."""

    def __init__(
        self, data_shape: Sequence[int], latent: int, hidden: Sequence[int] = (128, 64, 32), activation: str = "relu"
    ):
        sizes = [math.prod(data_shape), *hidden]
        layers = nn.Sequential(*parts.flatten(data_shape), *_hidden(sizes, activation))
        heads = glorot(nn.Linear(sizes[-1], 2 * latent), heads=2)
        super().__init__(OrderedDict(hidden=layers, heads=heads))


class DenseDecoder(FusedSequential):
    """z [B, latent] -> likelihood parameters [B, *data_shape]."""

    def __init__(
        self,
        data_shape: Sequence[int],
        latent: int,
        hidden: Sequence[int] = (32, 64, 128, 256),
        activation: str = "relu",
    ):
        sizes = [latent, *hidden]
        last = glorot(nn.Linear(sizes[-1], math.prod(data_shape)))
        super().__init__(*_hidden(sizes, activation), last, *parts.unflatten(data_shape))


def dense_vae(
    data_shape: Sequence[int],
    latent: int,
    encoder_hidden: Sequence[int] = (128, 64, 32),
    decoder_hidden: Sequence[int] = (32, 64, 128, 256),
    activation: str = "relu",
    **options,
) -> VAE:
    """A VAE of a DenseEncoder and a DenseDecoder.

    Args:
        data_shape: shape of one sample, such as (1, 28, 28).
        latent: the size of z.
        encoder_hidden, decoder_hidden: sizes of the hidden layers, in the order in which data meets them.
        activation: of the hidden layers, by name: one of `parts.ACTIVATIONS`.
        options: likelihood, prior and theirs, as for `parts.build`.
    """

    def decoder(shape):
        return DenseDecoder(shape, latent, decoder_hidden, activation)

    return parts.build(
        VAE, DenseEncoder(data_shape, latent, encoder_hidden, activation), decoder, data_shape, (latent,), **options
    )
