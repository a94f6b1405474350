"""Discriminators of images, and a VAE together with one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from vaefast.models import parts
from vaefast.models.parts import glorot, he
from vaefast.models.vae import VAE
from vaefast.nn import FusedSequential


class PatchCritic(nn.Module):
    """PatchGAN (Isola et al. 2017): x [B, C, H, W] in 0…1 -> (features, logits [B, 1, h, w]), a logit for each patch.

    `layers` convolutions 4x4 of stride 2, one of stride 1, and the logits'. A patch is 16, 34 or 70 pixels wide for 1,
    2 or 3 layers; by default the most that the image is as wide as, and at most 3, which is 1 for 28x28.

    Args:
        data_shape: (C, H, W), H and W at least 7.
        width: channels of the first layer, doubled by each of the next three.
        layers: from 0.

    Raises:
        ValueError: for an image that is smaller than a patch.
    """

    def __init__(self, data_shape: Sequence[int], width: int = 32, layers: int | None = None):
        super().__init__()
        channels, *size = data_shape
        if layers is None:
            layers = max((n for n in range(4) if self.patch(n) <= min(size)), default=0)
        if self.patch(layers) > min(size):
            raise ValueError(
                f"data_shape must be at least as wide as a patch, {self.patch(layers)} for {layers} layers, "
                f"got {tuple(data_shape)}"
            )
        self.layers = layers
        widths = [channels, *[width * min(2**i, 8) for i in range(layers + 1)]]
        found = []
        for i in range(layers + 1):
            found += [he(nn.Conv2d(widths[i], widths[i + 1], 4, 2 if i < layers else 1, 1))]
            found += [parts.norm(widths[i + 1])] if i else []
            found += [nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*found).to(memory_format=torch.channels_last)
        self.logits = glorot(nn.Conv2d(widths[-1], 1, 4, 1, 1))

    @staticmethod
    def patch(layers: int) -> int:
        """How many pixels wide a patch is."""
        return 9 * 2**layers - 2

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(x)
        return features, self.logits(features)


class ImageCritic(nn.Module):
    """A discriminator of whole images: x [B, C, H, W] in 0…1 -> (features, logits [B]).

    The features, in which Larsen et al. compare reconstructions, are those of the last convolution.

    Args:
        data_shape: (C, H, W), H or W above 7.
        width: channels of the first convolution, doubled at each halving, up to 4 times it.
        hidden: units of the dense layer before the logit.
    """

    def __init__(self, data_shape: Sequence[int], width: int = 32, hidden: int = 128):
        super().__init__()
        sizes = parts.sizes(data_shape)
        widths = [data_shape[0], *[width * min(2**i, 4) for i in range(len(sizes) - 1)]]
        found = []
        for i in range(len(sizes) - 1):
            found += [he(nn.Conv2d(widths[i], widths[i + 1], 3, 2, 1))]
            found += [parts.norm(widths[i + 1])] if i else []
            found += [nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*found).to(memory_format=torch.channels_last)
        flat = widths[-1] * math.prod(sizes[-1])
        self.logit = FusedSequential(
            nn.Flatten(), he(nn.Linear(flat, hidden)), nn.LeakyReLU(0.2), glorot(nn.Linear(hidden, 1)), nn.Flatten(0)
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(x)
        return features, self.logit(features)


class VAEGAN(nn.Module):
    """A VAE and its discriminator, so that one state dict holds both; every other name is the VAE's own.

    objective = objectives.create("vaegan", critic=model.critic)
    trainer = Trainer(model.vae, objective, torch.optim.Adam(model.vae.parameters()),
                      critic_optimizer=torch.optim.Adam(model.critic.parameters()))
    """

    def __init__(self, vae: VAE, critic: nn.Module):
        super().__init__()
        self.vae = vae
        self.critic = critic

    def forward(self, x: torch.Tensor, *, seed=None):
        return self.vae(x, seed=seed)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "vae":  # before __init__ set it, as in copy.deepcopy
                raise
            return getattr(self.vae, name)
