"""The β-TCVAE and the FactorVAE: codes whose dimensions are independent of each other."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn.functional import softplus

from vaefast.models import VAE
from vaefast.nn import FusedSequential
from vaefast.objectives.elbo import Parts, evaluated, frozen, gaussian_posterior
from vaefast.ops import total_correlation
from vaefast.ops.ranks import Gather, layout


class BetaTCVAE:
    """reconstruction + alpha MI + beta TC + gamma dimension KL (Chen et al. 2018, equation 4): the three parts of the
    KL divergence to N(0, I), by `vaefast.total_correlation`.

    Args:
        dataset_size: N, how many samples the training set has.
        beta, alpha, gamma: numbers, or tensors that an annealer fills; the authors' setting is beta = 6, the others 1.
        estimator, group: as for `total_correlation`.

    Called with (model, x) it gives {"loss", "reconstruction", "kl", "mutual_information", "total_correlation",
    "dimension_kl"}, each [B], in nats.

    Raises:
        ValueError: on a call for a model without a Gaussian posterior, or with more samples than dataset_size.
    """

    def __init__(self, dataset_size: int, beta=6.0, *, alpha=1.0, gamma=1.0, estimator="weighted", group=None):
        self.dataset_size = dataset_size
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.estimator, self.group = estimator, group

    def __call__(self, model: VAE, x: torch.Tensor) -> Parts:
        output, reconstruction = evaluated(model, x)
        q = gaussian_posterior(output, "BetaTCVAE")
        options = {"estimator": self.estimator, "group": self.group}
        parts = total_correlation(output.z, q.mean, q.logvar, self.dataset_size, **options)
        weighted = self.alpha * parts[0] + self.beta * parts[1] + self.gamma * parts[2]
        loss = reconstruction + weighted
        return {"loss": loss, "reconstruction": reconstruction, "kl": output.kl, **parts._asdict()}


def permute_dimensions(z: torch.Tensor, *, group=None) -> torch.Tensor:
    """z [B, *event] with each element of the event permuted over the batch on its own: a sample of the product of
    q(z)'s marginals (Kim and Mnih 2018, algorithm 1).

    With `group`, a process group, the batch is the rows of all its ranks, and each keeps as many as it gave.
    """
    where = None if group is None else layout(z, group)
    everyone = z if where is None else Gather.apply(z, where)
    noise = torch.rand(everyone.shape, device=z.device)
    if where is not None:  # one order for all ranks
        torch.distributed.broadcast(noise, group=group, group_src=0)
    first = 0 if where is None else where.first
    return everyone.gather(0, noise.argsort(0)[first : first + len(z)])


class FactorVAE(nn.Module):
    """reconstruction + KL + gamma TC, TC by a critic's density ratio (Kim and Mnih 2018, equation 2, algorithm 2):

        total_correlation = log D(z) / (1 - D(z)), the critic's logit        z ~ q(z | x)
        critic            = -(log D(z) + log(1 - D(z'))) / 2                 z' = permute_dimensions(z)

    The authors take z' from a second batch, and the critic's two-class softmax is one logit here; both are the same in
    what they estimate.

    Args:
        latent: D, the numbers of a z.
        gamma: a number, or a tensor that an annealer fills; the authors' best for dSprites is 35.
        width, layers: of the critic, linear layers with LeakyReLU(0.2); or critic: z [B, D] -> logits [B] or [B, 1].
        group: as for `permute_dimensions`.

    Called with (model, x) it gives {"loss", "reconstruction", "kl", "total_correlation"}, each [B], in nats.
    """

    def __init__(
        self,
        latent: int,
        gamma=35.0,
        *,
        width: int = 1000,
        layers: int = 6,
        critic: nn.Module | None = None,
        group=None,
    ):
        super().__init__()
        self.gamma, self.group = gamma, group
        if critic is None:
            sizes = [latent, *[width] * layers]
            hidden = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
            critic = FusedSequential(*hidden, nn.Linear(sizes[-1], 1))
        self.critic = critic

    def forward(self, model: VAE, x: torch.Tensor) -> Parts:
        output, reconstruction = evaluated(model, x)
        with frozen(self.critic.parameters()):
            ratio = self._logit(output.z)
        loss = reconstruction + output.kl + self.gamma * ratio
        return {"loss": loss, "reconstruction": reconstruction, "kl": output.kl, "total_correlation": ratio}

    def critic_loss(self, model: VAE, x: torch.Tensor) -> Parts:
        """{"loss", "accuracy"}, each [B], of a fresh z ~ q(z | x); nothing flows to the model."""
        with torch.no_grad():
            z = model.draw(x)[0]
            permuted = permute_dimensions(z, group=self.group)
        joint, product = self._logit(z), self._logit(permuted)
        loss = 0.5 * (softplus(-joint) + softplus(product))
        accuracy = 0.5 * ((joint > 0).to(loss.dtype) + (product <= 0).to(loss.dtype))
        return {"loss": loss, "accuracy": accuracy}

    def _logit(self, z: torch.Tensor) -> torch.Tensor:
        return self.critic(z.flatten(1)).reshape(len(z))
