"""Deep residual encoder and decoder, of bottleneck blocks as in VDVAE (Child 2021, section 3 and its code)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from vaefast.models import parts
from vaefast.models.parts import glorot, he
from vaefast.models.vae import VAE
from vaefast.nn import FusedSequential


class Block(nn.Module):
    """x + f(x), f: four times activation and convolution, 1x1, 3x3, 3x3 and 1x1, with `bottleneck` channels
    between them; with `norm`, a group normalisation before all of them.

    The last convolution's first weights are multiplied by 1 / sqrt(depth), depth the number of blocks in a row, so that
    the signal's variance does not grow with the depth.
    """

    def __init__(
        self, channels: int, bottleneck: int, activation: str, depth: int, kernel: int = 3, norm: bool = False
    ):
        super().__init__()
        shapes = [(channels, bottleneck, 1), *[(bottleneck, bottleneck, kernel)] * 2, (bottleneck, channels, 1)]
        convs = [he(nn.Conv2d(a, b, k, padding=k // 2)) for a, b, k in shapes]
        with torch.no_grad():
            convs[-1].weight.mul_(depth**-0.5)
        layers = [m for conv in convs for m in (parts.activation(activation), conv)]
        self.layers = nn.Sequential(*([parts.norm(channels)] if norm else []), *layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def blocks(
    count: int, channels: int, activation: str, depth: int, size: Sequence[int], norm: bool = False
) -> list[Block]:
    """`count` blocks at one resolution; where an image is 1 or 2 pixels wide, 3x3 would see zeros, and is 1x1."""
    kernel = 3 if min(size) > 2 else 1
    return [Block(channels, max(channels // 4, 1), activation, depth, kernel, norm) for _ in range(count)]


def residual_vae(
    data_shape: Sequence[int],
    latent: int = 16,
    width: int = 32,
    depth: int = 2,
    hidden: int = 64,
    activation: str = "silu",
    bounded: bool = True,
    **options,
) -> VAE:
    """A VAE of residual blocks: strided convolutions down, nearest neighbours and 1x1 convolutions up, the
    last time a transposed convolution. Blocks, and what comes after the last one, see their input normalised: a z where
    no image lies would otherwise drive the decoder's activations where no image has driven them.

    Args:
        data_shape: (channels, height, width), height or width above 7.
        latent: the size of z.
        width: channels at half the image's size; they double with every halving, up to 4 times it.
        depth: blocks at each resolution, in encoder and decoder; none at the image's own, where a block costs most.
        hidden: units of the dense layer on either side of z.
        activation: by name, one of `parts.ACTIVATIONS`.
        bounded, options: likelihood, prior and theirs, as for `parts.build`.
    """
    sizes = parts.sizes(data_shape)
    stages = [(width * min(2**i, 4), size) for i, size in enumerate(sizes[1:])]
    total = depth * len(stages)
    flat = stages[-1][0] * math.prod(stages[-1][1])

    layers, before = [], data_shape[0]
    for channels, size in stages:
        layers += [he(nn.Conv2d(before, channels, 3, 2, 1)), *blocks(depth, channels, activation, total, size, True)]
        before = channels
    encoder = FusedSequential(
        *layers,
        parts.norm(before),
        parts.activation(activation),
        nn.Flatten(),
        he(nn.Linear(flat, hidden)),
        parts.activation(activation),
        glorot(nn.Linear(hidden, 2 * latent)),
    )

    def decoder(shape):
        layers = [he(nn.Linear(latent, hidden)), parts.activation(activation)]
        layers += [he(nn.Linear(hidden, flat)), nn.Unflatten(1, (stages[-1][0], *stages[-1][1]))]
        for i, (channels, size) in reversed([*enumerate(stages)]):
            layers += blocks(depth, channels, activation, total, size, True)
            if i:
                layers += [he(nn.Conv2d(channels, stages[i - 1][0], 1)), parts.Upsample(stages[i - 1][1])]
        return FusedSequential(*layers, parts.norm(width), parts.activation(activation), *parts.last_up(width, shape))

    return parts.build(VAE, encoder, decoder, data_shape, (latent,), bounded=bounded, **options)
