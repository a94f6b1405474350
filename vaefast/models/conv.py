"""Convolutional encoder and decoder: a halving per stage, down to 7x7 or less."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from vaefast.models import parts
from vaefast.models.parts import glorot, he
from vaefast.models.vae import VAE
from vaefast.nn import FusedSequential


def conv_vae(
    data_shape: Sequence[int],
    latent: int = 16,
    width: int = 32,
    hidden: int = 64,
    activation: str = "relu",
    bounded: bool = True,
    **options,
) -> VAE:
    """A VAE of strided convolutions 4x4 and their transposes, with one dense hidden layer on either side of z.

    Args:
        data_shape: (channels, height, width), height or width above 7.
        latent: the size of z.
        width: channels of the first stage; they double with every halving, up to 4 times it.
        hidden: units of the dense layers.
        activation: by name, one of `parts.ACTIVATIONS`.
        bounded, options: likelihood, prior and theirs, as for `parts.build`.
    """
    sizes = parts.sizes(data_shape)
    channels = [data_shape[0], *[width * min(2**i, 4) for i in range(len(sizes) - 1)]]
    flat = channels[-1] * math.prod(sizes[-1])

    layers = []
    for (a, b), size in zip(itertools.pairwise(channels), sizes, strict=False):
        odd = [s % 2 for s in size]  # a row more, so that halves are rounded up
        layers += [
            nn.ZeroPad2d((1, 1 + odd[1], 1, 1 + odd[0])),
            he(nn.Conv2d(a, b, 4, 2)),
            parts.activation(activation),
        ]
    encoder = FusedSequential(
        *layers,
        nn.Flatten(),
        he(nn.Linear(flat, hidden)),
        parts.activation(activation),
        glorot(nn.Linear(hidden, 2 * latent)),
    )

    def decoder(shape):
        layers = [
            he(nn.Linear(latent, hidden)),
            parts.activation(activation),
            he(nn.Linear(hidden, flat)),
            parts.activation(activation),
            nn.Unflatten(1, (channels[-1], *sizes[-1])),
        ]
        for i in reversed(range(2, len(channels))):
            odd = [s % 2 for s in sizes[i - 1]]
            layers.append(he(nn.ConvTranspose2d(channels[i], channels[i - 1], 4, 2, 1)))
            layers += [nn.ZeroPad2d((0, -odd[1], 0, -odd[0]))] if any(odd) else []
            layers.append(parts.activation(activation))
        return FusedSequential(*layers, *parts.last_up(width, shape))

    return parts.build(VAE, encoder, decoder, data_shape, (latent,), bounded=bounded, **options)
