"""Latent units that say nothing of the data."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from vaefast import ops
from vaefast._modes import evaluating
from vaefast.metrics import estimate
from vaefast.metrics.estimate import Estimate

ACTIVE = 0.01


class Posteriors(NamedTuple):
    """q(z | x) of N images with D latent dimensions each: mean and logvar [N, D]."""

    mean: torch.Tensor
    logvar: torch.Tensor


@torch.no_grad()
def posteriors(model: torch.nn.Module, x: torch.Tensor, *, chunk: int = 256) -> Posteriors:
    """`model.encode` of data [N, ...], a chunk at a time, latents flattened; in `eval()`, and the model is not changed.

    Raises:
        TypeError: for a model whose encode gives no Gaussian. ValueError: for no data.
    """
    if len(x) == 0:
        raise ValueError(f"x must hold at least one sample, got shape {tuple(x.shape)}")
    with evaluating(model):
        found = [model.encode(batch) for batch in x.to(next(model.parameters()).device).split(chunk)]
    if not (hasattr(found[0], "mean") and hasattr(found[0], "logvar")):
        raise TypeError(f"{type(model).__name__}.encode must give mean and logvar, got {type(found[0]).__name__}")
    return Posteriors(*(torch.cat([getattr(q, name).flatten(1) for q in found]) for name in Posteriors._fields))


def active_units(mean: torch.Tensor, threshold: float = ACTIVE) -> Estimate:
    """How many latent units' means depend on the data: |{d : Var_x(E[z_d | x]) > threshold}|.

    Range 0...D; units that are not active are wasted. The interval counts the units whose variance exceeds the
    threshold at both ends, and at either end, of its own interval. Burda et al. 2016 (arXiv 1509.00519), section 5.2.

    Blind to how much a unit says: a variance of .02 counts as one of 1 does.

    Args:
        mean: of q(z | x), [N, D].
    """
    squares = (mean.double() - mean.double().mean(0)).square()
    variance = squares.sum(0) / (len(mean) - 1)
    intervals = [estimate.linear(float(v), s) for v, s in zip(variance, squares.T, strict=True)]
    return Estimate(*(float(sum(end > threshold for end in ends)) for ends in zip(*intervals, strict=True)))


def dimension_kl(mean: torch.Tensor, logvar: torch.Tensor) -> list[Estimate]:
    """KL(q(z_d | x) || N(0, 1)) of each of the D dimensions, in nats, averaged over the data.

        (mean^2 + exp(logvar) - 1 - logvar) / 2

    Range 0...; 0 is a unit that says nothing. It has no better direction: it is the rate that the unit costs. Interval
    over the data. Kingma and Welling 2014 (arXiv 1312.6114), appendix B.

    Blind to whether what is said is new: two units that say the same cost twice.

    Args:
        mean, logvar: of q(z | x), [N, D].
    """
    return [estimate.mean(column) for column in elementwise_kl(mean, logvar).T]


def elementwise_kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """The formula of `dimension_kl` before the average: [N, D], in float64."""
    return 0.5 * (mean.double().square() + torch.expm1(logvar.double()) - logvar.double())


@torch.no_grad()
def mutual_information(mean: torch.Tensor, logvar: torch.Tensor, *, seed: int = 0) -> Estimate:
    """I(x; z) under q, in nats: one z_i drawn from q(z | x_i) for each of N images, q(z) their mixture.

        mean_i [log q(z_i | x_i) - log (1/N) sum_j q(z_i | x_j)]

    Range 0...log N, which also is what it cannot exceed: with much information take more images. Higher says more of
    the data. Interval over the images. Hoffman and Johnson 2016 ("ELBO surgery"), equation 6.

    Blind past log N, and to what the information is about.

    Args:
        mean, logvar: of q(z | x), [N, D].
    """
    z = ops.rsample(mean, logvar, seed=seed)
    ratio = ops.gaussian_nll(mean, z, logvar).neg() - ops.mixture_log_prob(z, mean, logvar)
    return Estimate(*(min(max(end, 0.0), math.log(len(z))) for end in estimate.mean(ratio)))
