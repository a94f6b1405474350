"""A second VAE, of the first one's z (Dai and Wipf 2019, "Diagnosing and enhancing VAE models", section 4)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from vaefast.models import VAE
from vaefast.models.parts import glorot, he
from vaefast.nn import FusedSequential, OptimalSigmaGaussian
from vaefast.ops import _checks
from vaefast.sampling.sampler import Posteriors, Sampler


class _Skip(nn.Module):
    """Hidden layers; the last one sees the input beside them."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int):
        super().__init__()
        sizes = [inputs, *hidden]
        layers = [m for a, b in itertools.pairwise(sizes) for m in (he(nn.Linear(a, b)), nn.ReLU())]
        self.hidden = FusedSequential(*layers)
        self.last = glorot(nn.Linear(sizes[-1] + inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.hidden(x), x], 1))


class TwoStage(Sampler):
    """z = decoder(u) + sigma eps, u ~ N(0, I): a VAE of draws from the posteriors, u as large as z, with the sigma that
    is best for it. Its own posterior matches N(0, I) better than the first stage's does.

    Args:
        hidden: units of encoder and decoder.
        steps, batch_size, lr: of Adam; the learning rate is halved after each of `halvings` equal parts but the last,
            1 part at least.
            The paper trains for 800 epochs at 1e-4; the default is for a few thousand images and a few seconds.
    """

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (1024, 1024, 1024),
        steps: int = 400,
        batch_size: int = 128,
        lr: float = 1e-3,
        halvings: int = 4,
        temperature: float = 1.0,
    ):
        super().__init__(temperature=temperature)
        _checks.whole("halvings", halvings, 1)
        self.hidden, self.steps, self.batch_size, self.lr, self.halvings = hidden, steps, batch_size, lr, halvings

    def _build(self, size: int) -> None:
        encoder, decoder = _Skip(size, self.hidden, 2 * size), _Skip(size, self.hidden, size)
        self.vae = VAE(encoder, decoder, (size,), OptimalSigmaGaussian())

    def _fit(self, posteriors: Posteriors) -> None:
        self.shift, self.scale = posteriors.scale()
        optimizer = torch.optim.Adam(self.vae.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(self.steps // self.halvings, 1), 0.5)
        self.vae.train()
        for _ in range(self.steps):
            z = (posteriors.batch(self.batch_size) - self.shift) / self.scale
            output = self.vae(z)
            loss = (self.vae.likelihood(output.decoded, z) + output.kl).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def _noises(self, size: int) -> int:
        return 2 * size

    def _draw(self, noise: torch.Tensor, temperature: float) -> torch.Tensor:
        u, eps = (temperature * noise).chunk(2, 1)
        return self.shift + self.scale * (self.vae.decode(u) + self.vae.likelihood.sigma * eps)
