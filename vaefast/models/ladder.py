"""A hierarchical VAE: latents at several resolutions, each drawn given those above it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from vaefast.models import parts
from vaefast.models.parts import glorot, he
from vaefast.models.residual import blocks
from vaefast.models.vae import VAE
from vaefast.ops import draw_seed, gaussian_nll, kl_normal, rsample, standard_normal
from vaefast.ops._checks import seed as seed_tensor


class LadderOutput(NamedTuple):
    """As VAEOutput, with z [B, D] all levels' numbers side by side, the top's first; kl_by_level [B, L], whose sum kl
    is; and no posterior, since no single Gaussian is one: each level's depends on the z above it."""

    decoded: torch.Tensor
    z: torch.Tensor
    kl: torch.Tensor
    posterior: None
    kl_by_level: torch.Tensor


class Level(nn.Module):
    """p(z_l | h) = N(mu, exp(logvar)) of the top-down state h, and q(z_l | x, h) = N(mu + dmu, exp(logvar + dlogvar)),
    with the deltas from h and the bottom-up features: where these say nothing, q is p (Vahdat and Kautz 2020, section
    3.2)."""

    def __init__(self, channels: int, latent: int, activation: str, depth: int, total: int, size: Sequence[int]):
        super().__init__()
        self.shape = (latent, *size)
        act = parts.activation(activation)
        self.prior = nn.Sequential(act, _small(nn.Conv2d(channels, 2 * latent, 1)))
        self.delta = nn.Sequential(
            he(nn.Conv2d(2 * channels, channels, 1)), act, _small(nn.Conv2d(channels, 2 * latent, 1))
        )
        self.project = glorot(nn.Conv2d(latent, channels, 1))
        self.blocks = nn.Sequential(*blocks(depth, channels, activation, total, size))

    def p(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _bounded(self.prior(h))

    def q(self, h: torch.Tensor, features: torch.Tensor, p: tuple[torch.Tensor, torch.Tensor]):
        mean, logvar = _bounded(self.delta(torch.cat([h, features], 1)))
        return p[0] + mean, p[1] + logvar

    def down(self, h: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.blocks(h + self.project(z))


def _small(layer: nn.Conv2d) -> nn.Conv2d:
    """A last layer that starts near 0: p starts near N(0, 1), and q near p."""
    with torch.no_grad():
        glorot(layer).weight.mul_(0.1)
    return layer


def _bounded(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, log-variance within ±8): a sum of levels that overflows ends a training."""
    mean, logvar = moments.chunk(2, 1)
    return mean, 8 * torch.tanh(logvar / 8)


class LadderVAE(VAE):
    """Bottom-up features of x, then top-down: at each level z_l ~ q(z_l | x, z above) where x is known, and ~ p(z_l |
    z above) where it is not (Sønderby et al. 2016; the residual posterior of NVAE). The KL is exact at each level,
    given the z above it, and `output.kl_by_level` keeps the levels apart for free bits.

    Args:
        encoder: modules, one per level, from the image to 1x1.
        levels: top first.
        ups: what brings the state to each level's channels and size.
        decoder: from the last state to what is said of x.

    z is [B, D], all levels side by side. `encode` gives the Gaussians of all levels when each level above takes its
    mean, and `decode` runs down any z.
    """

    hierarchical = True

    def __init__(self, encoder, levels: Sequence[Level], ups: Sequence[nn.Module], decoder, likelihood):
        size = sum(math.prod(level.shape) for level in levels)
        super().__init__(nn.ModuleList(encoder), decoder, (size,), likelihood)
        self.levels = nn.ModuleList(levels)
        self.ups = nn.ModuleList(ups)
        self.start = nn.Parameter(torch.randn(1, levels[0].project.out_channels, 1, 1))

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The encoder's, top first."""
        h, found = self.seen(x), []
        for stage in self.encoder:
            h = stage(h)
            found.append(h)
        return found[::-1]

    def _walk(self, batch: int, choose) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Down the levels, where choose(i, level, h) gives z_l: (the last state, every z_l)."""
        h, chosen = self.start.expand(batch, -1, -1, -1), []
        for i, (level, up) in enumerate(zip(self.levels, self.ups, strict=True)):
            h = up(h)
            chosen.append(choose(i, level, h))
            h = level.down(h, chosen[-1])
        return h, chosen

    def _posterior_walk(self, features: list[torch.Tensor], seed):
        """(h, z [B, D], [(q, p) of each level])."""
        seed = draw_seed(features[0].device) if seed is None else seed_tensor(seed, features[0].device)
        found = []

        def choose(i, level, h):
            p = level.p(h)
            q = level.q(h, features[i], p)
            found.append((q, p))
            # a key for each level; the chunks of log_likelihood count offsets
            return rsample(*q, seed=torch.stack([seed[0] + _step(i), seed[1]]))

        h, chosen = self._walk(len(features[0]), choose)
        return h, chosen, found

    def draw(self, x: torch.Tensor, *, seed=None) -> tuple[torch.Tensor, torch.Tensor, None]:
        output = self(x, seed=seed)
        return output.z, output.kl, None

    def forward(self, x: torch.Tensor, *, seed=None) -> LadderOutput:
        h, chosen, found = self._posterior_walk(self.features(x), seed)
        kl_by_level = torch.stack([kl_normal(*q, *p) for q, p in found], 1)
        return LadderOutput(self.decoder(h), _flat(chosen), kl_by_level.sum(1), None, kl_by_level)

    def moments(self, x: torch.Tensor) -> torch.Tensor:
        features, found = self.features(x), []

        def choose(i, level, h):
            found.append(level.q(h, features[i], level.p(h)))
            return found[-1][0]

        self._walk(len(x), choose)
        return torch.cat([_flat([mean for mean, _ in found]), _flat([logvar for _, logvar in found])], 1)

    def parameters_of(self, z: torch.Tensor):
        pieces = z.split([math.prod(level.shape) for level in self.levels], 1)
        h, _ = self._walk(len(z), lambda i, level, h: pieces[i].unflatten(1, level.shape))
        return self.decoder(h)

    def log_prior(self, z: torch.Tensor) -> torch.Tensor:
        pieces, total = z.split([math.prod(level.shape) for level in self.levels], 1), []

        def choose(i, level, h):
            mean, logvar = level.p(h)
            value = pieces[i].unflatten(1, level.shape)
            total.append(-gaussian_nll(mean, value, logvar))
            return value

        self._walk(len(z), choose)
        return sum(total)

    def sample_prior(self, count: int, *, seed=None, temperature: float = 1.0) -> torch.Tensor:
        like = self.start
        noise = standard_normal((count, *self.latent_shape), seed=seed, device=like.device, dtype=like.dtype)
        pieces = noise.split([math.prod(level.shape) for level in self.levels], 1)

        def choose(i, level, h):
            mean, logvar = level.p(h)
            return mean + temperature * torch.exp(0.5 * logvar) * pieces[i].unflatten(1, level.shape)

        return _flat(self._walk(count, choose)[1])

    def importance_state(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.features(x)

    def importance_sample(self, features: list[torch.Tensor], count: int, seed):
        repeated = [f.repeat_interleave(count, 0) for f in features]
        h, chosen, found = self._posterior_walk(repeated, seed)
        log_ratio = 0
        for z, (q, p) in zip(chosen, found, strict=True):
            log_ratio = log_ratio + gaussian_nll(q[0], z, q[1]) - gaussian_nll(p[0], z, p[1])
        return self.decoder(h), log_ratio.unflatten(0, (-1, count))


def _step(level: int) -> int:
    """From the key of level 0 to that of this level, of 64 bits that wrap: multiples of 2^64 divided by the golden
    ratio lie far apart, so that levels of neighbouring seeds do not meet."""
    return (level * 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63


def _flat(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([piece.flatten(1) for piece in pieces], 1)


def ladder_vae(
    data_shape: Sequence[int],
    latent: int = 16,
    width: int = 32,
    depth: int = 1,
    level_latent: int = 2,
    activation: str = "elu",
    bounded: bool = True,
    **options,
) -> LadderVAE:
    """A LadderVAE of one level at 1x1 and one at each of the image's halvings, of `residual.Block`s.

    Args:
        data_shape: (channels, height, width), height or width above 7.
        latent: channels of the top level's z, which has one pixel.
        width: channels at half the image's size; they double with every halving, up to 4 times it.
        depth: blocks at each level, on the way up and on the way down.
        level_latent: channels of the other levels' z.
        activation: by name, one of `parts.ACTIVATIONS`.
        bounded, options: likelihood, as for `parts.build`; the prior is the hierarchy's own.

    Raises:
        ValueError: for a prior.
    """
    if options.get("prior") is not None:
        raise ValueError(f"prior must be None for a ladder, which has one of its own, got {options['prior']!r}")
    sizes = parts.sizes(data_shape)
    stages = [(width * min(2**i, 4), size) for i, size in enumerate(sizes[1:])]
    total = depth * (len(stages) + 1)

    encoder, before = [], data_shape[0]
    for channels, size in stages:
        down = he(nn.Conv2d(before, channels, 3, 2, 1))
        encoder.append(nn.Sequential(down, *blocks(depth, channels, activation, total, size)))
        before = channels
    top = he(nn.Conv2d(before, before, stages[-1][1]))
    encoder.append(nn.Sequential(parts.activation(activation), top))

    levels = [Level(before, latent, activation, depth, total, (1, 1))]
    ups = [nn.Identity()]
    for channels, size in reversed(stages):
        levels.append(Level(channels, level_latent, activation, depth, total, size))
        ups.append(nn.Sequential(he(nn.Conv2d(before, channels, 1)), parts.Upsample(size)))
        before = channels

    def decoder(shape):
        return nn.Sequential(parts.activation(activation), *parts.last_up(width, shape))

    def vae(encoder, decoder, latent_shape, likelihood, prior):
        return LadderVAE(encoder, levels, ups, decoder, likelihood).to(memory_format=torch.channels_last)

    return parts.build(vae, nn.ModuleList(encoder), decoder, data_shape, (), bounded=bounded, **options)
