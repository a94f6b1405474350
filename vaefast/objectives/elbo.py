"""The evidence lower bound, and its weighted relatives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch

from vaefast.distributions import DiagonalGaussian
from vaefast.models import VAE, VAEOutput
from vaefast.nn import Likelihood
from vaefast.ops import kl_by_dimension, ranks
from vaefast.ops.elbo import plus

Parts = dict[str, torch.Tensor]


def elbo(model: VAE, x: torch.Tensor) -> Parts:
    """-ELBO(x) = -log p(x | z) + KL(q(z | x) || p(z)), z ~ q(z | x) (Kingma and Welling 2014, equation 3), per sample.

    Returns:
        {"loss", "reconstruction", "kl"}, each [B], in nats; loss is the sum of the other two.
    """
    output, reconstruction = evaluated(model, x)
    return {"loss": reconstruction + output.kl, "reconstruction": reconstruction, "kl": output.kl}


class ELBO:
    """reconstruction + beta KL (Higgins et al. 2017), with free bits or a capacity where they are asked for.

    Args:
        beta: a number, or a tensor that an annealer fills.
        free_bits: in nats: KL becomes sum_j max(free_bits, KL_j), KL_j the batch mean of dimension j (Kingma et al.
            2016, equation 15), of the divergence to N(0, I).
        per_channel: j is a channel, the first dimension of z's event.
        capacity: C, in nats: beta KL becomes gamma |KL - C|, KL the batch mean (Burgess et al. 2018).
        gamma: of the capacity.
        group: of processes, as `torch.distributed.group.WORLD`: batch means are then those of all its ranks' rows, for
            a gradient of the sum of their losses.

    The dimensions of a ladder, whose Gaussians each depend on the z above, are its levels.

    Called with (model, x) it gives {"loss", "reconstruction", "kl"}, each [B], in nats. kl is the model's own; what the
    loss has in its place with free bits or a capacity is "regulariser", one number for the batch.

    Raises:
        ValueError: on a call with free bits for a model without a Gaussian posterior, or with a prior of its own, and
            with per_channel for a ladder.
    """

    def __init__(
        self,
        beta=1.0,
        *,
        free_bits: float | None = None,
        per_channel: bool = False,
        capacity=None,
        gamma=1000.0,
        group=None,
    ):
        self.beta, self.free_bits, self.per_channel = beta, free_bits, per_channel
        self.capacity, self.gamma, self.group = capacity, gamma, group

    def __call__(self, model: VAE, x: torch.Tensor) -> Parts:
        output, reconstruction = evaluated(model, x)
        parts = {"reconstruction": reconstruction, "kl": output.kl}
        if self.free_bits is None and self.capacity is None:
            return {"loss": plus(reconstruction, self.beta, output.kl), **parts}
        if self.free_bits is None:
            regulariser = ranks.mean(output.kl.sum(), len(x), self.group)
        else:
            regulariser = self._by_dimension(model, output).clamp(min=self.free_bits).sum()
        if self.capacity is None:
            regulariser = self.beta * regulariser
        else:
            regulariser = self.gamma * (regulariser - self.capacity).abs()
        return {"loss": reconstruction + regulariser, **parts, "regulariser": regulariser.expand_as(reconstruction)}

    def _by_dimension(self, model: VAE, output: VAEOutput) -> torch.Tensor:
        """What has free bits: [J], in nats, the mean over the batch."""
        if getattr(model, "prior", None) is not None:
            raise ValueError("free_bits are of the divergence to N(0, I), but the model has a prior of its own")
        levels = getattr(output, "kl_by_level", None)
        if levels is not None:
            if self.per_channel:
                raise ValueError("per_channel must be False for a ladder, whose free bits are those of its levels")
            return ranks.mean(levels.sum(0), len(levels), self.group)
        posterior = gaussian_posterior(output, "free_bits")
        each = kl_by_dimension(posterior.mean, posterior.logvar, per_channel=self.per_channel)[1]
        return each if self.group is None else ranks.mean(each * len(output.kl), len(output.kl), self.group)


# what the other objectives are made of


def evaluated(model: VAE, x: torch.Tensor) -> tuple[VAEOutput, torch.Tensor]:
    """(the model's output, -log p(x | z) [B])."""
    output = model(x)
    # what a mean over the batch will bring: ours write their gradient in the forward pass where they can
    hint = {"expected_grad": 1.0 / max(len(x), 1)} if isinstance(model.likelihood, Likelihood) else {}
    return output, model.likelihood(output.decoded, x, **hint)


def gaussian_posterior(output: VAEOutput, who: str) -> DiagonalGaussian:
    if output.posterior is None:
        raise ValueError(f"{who} must have a model whose posterior is a single Gaussian; this one's output has none")
    return output.posterior


@contextlib.contextmanager
def frozen(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """What is computed meanwhile sends no gradient to these parameters."""
    changed = [p for p in parameters if p.requires_grad]
    try:
        for p in changed:
            p.requires_grad_(False)
        yield
    finally:
        for p in changed:
            p.requires_grad_(True)
