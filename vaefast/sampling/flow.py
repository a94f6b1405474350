"""A normalising flow."""

from __future__ import annotations

import torch

from vaefast.models import VAE
from vaefast.models.priors import FlowPrior
from vaefast.sampling.sampler import Posteriors, Sampler


class Flow(Sampler):
    """`FlowPrior`'s flow, fitted to draws from the posteriors by maximum likelihood, after they were standardised.

    Args:
        layers, hidden: of the flow.
        steps, batch_size, lr: of Adam; the learning rate falls to 0 along a cosine.
    """

    def __init__(
        self,
        *,
        layers: int = 6,
        hidden: int = 64,
        steps: int = 1000,
        batch_size: int = 256,
        lr: float = 2e-3,
        temperature: float = 1.0,
    ):
        super().__init__(temperature=temperature)
        self.layers, self.hidden = layers, hidden
        self.steps, self.batch_size, self.lr = steps, batch_size, lr

    def check(self, model: VAE, count: int) -> None:
        FlowPrior(model.latent_shape, 0)

    def _build(self, size: int) -> None:
        self.flow = FlowPrior((size,), self.layers, self.hidden)

    def _fit(self, posteriors: Posteriors) -> None:
        self.shift, self.scale = posteriors.scale()
        optimizer = torch.optim.Adam(self.flow.parameters(), self.lr, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            z = (posteriors.batch(self.batch_size) - self.shift) / self.scale
            loss = -self.flow.log_prob(z).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def _draw(self, noise: torch.Tensor, temperature: float) -> torch.Tensor:
        return self.shift + self.scale * self.flow.inverse(temperature * noise)
