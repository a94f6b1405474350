"""How well the model predicts held-out data."""

from __future__ import annotations

import math

import torch

from vaefast import nn
from vaefast.metrics import estimate
from vaefast.metrics.estimate import Estimate
from vaefast.ops import _checks

SAMPLES = 50
LEVELS = 256
# those that give probabilities of levels; the others give densities
_OF_LEVELS = (
    nn.Bernoulli,
    nn.BetaBinomial,
    nn.Binomial,
    nn.Categorical,
    nn.DiscretizedLogistic,
    nn.DiscretizedLogisticMixture,
    nn.NegativeBinomial,
    nn.Poisson,
    nn.ZeroInflatedNegativeBinomial,
)


@torch.no_grad()
def importance_nll(
    model: torch.nn.Module, x: torch.Tensor, samples: int = SAMPLES, *, chunk: int = 1000, seed: int = 0
) -> Estimate:
    """- log p(x) in nats per datum, by importance sampling from q.

        - mean_x log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k | x),  z_k ~ q(z | x)

    Lower is better; an upper bound in expectation, tighter as K grows (published numbers have K = 5,000). Interval over
    the data. Burda et al. 2016 (arXiv 1509.00519), equation 8.

    Blind to how samples look: Theis et al. 2016 (arXiv 1511.01844). With a Bernoulli likelihood it means something for
    binary data only.

    Args:
        model: with `log_likelihood(x, samples, *, chunk, seed)` -> [B].
        x: held-out data [N, ...].
        samples: K.
        chunk: how many z are decoded at a time.

    Raises:
        TypeError, ValueError: for samples or chunk that is no whole number from 1 up, or no data.
    """
    _checks.whole("samples", samples, 1)
    _checks.whole("chunk", chunk, 1)
    if len(x) == 0:
        raise ValueError(f"x must hold at least one datum, got shape {tuple(x.shape)}")
    together = min(samples, chunk)
    batches = x.to(next(model.parameters()).device).split(max(chunk // together, 1))
    seeds = [seed * 2**20 + i for i in range(len(batches))]
    parts = [model.log_likelihood(b, samples, chunk=together, seed=s) for b, s in zip(batches, seeds, strict=True)]
    return estimate.mean(-torch.cat(parts))


def bits_per_dimension(nll: Estimate, dimensions: int, *, levels: int | None = None) -> Estimate:
    """nll / (dimensions log 2), plus log2(levels) where the likelihood is a density of data in [0, 1].

    Lower is better; of 8-bit images range 0...8 for what beats guessing. A density integrated over a level's bin is at
    most its probability when the data has uniform noise on it (Theis et al. 2016, equation 3); without that noise, as
    here, densities of few-valued data can be as low as one likes, and compare only with each other.

    Args:
        nll: in nats per datum.
        dimensions: of a datum, C * H * W.
        levels: 256 for a density of 8-bit images in [0, 1]; None for probabilities of levels.
    """
    offset = math.log2(levels) if levels else 0.0
    return Estimate(*(nats / (dimensions * math.log(2)) + offset for nats in nll))


def density_levels(likelihood: torch.nn.Module) -> int | None:
    """The `levels` of `bits_per_dimension` for a likelihood of `vaefast.nn`: None, or 256 for a density."""
    return None if isinstance(likelihood, _OF_LEVELS) else LEVELS
