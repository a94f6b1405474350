"""Inconsistency with the data, all in one number: distances between the distributions of features."""

from __future__ import annotations

import torch

from vaefast.metrics import estimate
from vaefast.metrics.estimate import Estimate
from vaefast.metrics.reference import Reference, eigh

_RANK = 1e-12  # eigenvalues below this share of the largest one are rounding


def frechet_distance(real: torch.Tensor | Reference, fake: torch.Tensor | Reference) -> Estimate:
    """Squared Fréchet (2-Wasserstein) distance of the Gaussians fitted to two sets of features.

        |m_r - m_f|^2 + tr S_r + tr S_f - 2 tr (S_r^1/2 S_f S_r^1/2)^1/2

    Range 0..., lower is better; of two real sets it is not 0 but falls as they grow, so compare equal numbers only.
    In float64, the roots by `eigh` of symmetric matrices: they are real whatever the rank. The interval is of `fake`,
    by linear influence: (x - m_f)' (I - T)(x - m_f) + 2 (m_f - m_r)'(x - m_f), T the optimal transport of fake to real.
    It is the FID where features are Inception's, and only there. Heusel et al. 2017 (arXiv 1706.08500), equation 6.

    Blind to which complaint it is, and to memorisation: a copy of the data scores best of all.

    Args:
        real, fake: features [N, F] and [M, F], N, M >= 2, or a Reference, whose root is computed once.
    """
    real, fake = Reference.of(real), Reference.of(fake)
    values, vectors = eigh(real.root @ fake.covariance @ real.root)
    values = values.clamp(min=0)
    shift = fake.mean - real.mean
    distance = shift.square().sum() + real.covariance.trace() + fake.covariance.trace() - 2 * values.sqrt().sum()
    kept = values > _RANK * values[-1]
    centred = fake.features - fake.mean
    transported = centred @ (real.root @ vectors[:, kept]) / values[kept].pow(0.25)
    influence = centred.square().sum(1) - transported.square().sum(1) + 2 * centred @ shift
    return estimate.linear(max(float(distance), 0.0), influence, minimum=0.0)


def kernel_distance(real: torch.Tensor | Reference, fake: torch.Tensor | Reference) -> Estimate:
    """Squared maximum mean discrepancy under the kernel k(x, y) = (x.y / F + 1)^3, without bias.

        mean_{i != j} k(r_i, r_j) + mean_{i != j} k(f_i, f_j) - 2 mean_{i, j} k(r_i, f_j)

    Range about 0..., lower is better; unlike the Fréchet distance its expectation does not depend on the sizes, and is
    0 for equal distributions, so it may come out below. Over all pairs, not over random subsets of 1,000, whose mean
    estimates the same. The interval is of `fake` (jackknife). It is the KID where features are Inception's.
    Binkowski et al. 2018 (arXiv 1801.01401), section 4.

    Blind to memorisation, and less sensitive than the Fréchet distance to a rare class that is missing.

    Args:
        real, fake: features [N, F] and [M, F], N, M >= 3, or a Reference.
    """
    r, f = (Reference.of(each).features.double() for each in (real, fake))
    n, m = len(r), len(f)
    if min(n, m) < 3:
        raise ValueError(f"real and fake must hold at least 3 features each, got {n} and {m}")
    own_r, own_f, cross = _kernel_sums(r, r).sum(), _kernel_sums(f, f), _kernel_sums(f, r)
    own_r -= _kernel(r, r).sum()
    own_f -= _kernel(f, f)  # [M], each point's sum over the others
    between = own_r / (n * (n - 1))
    value = between + own_f.sum() / (m * (m - 1)) - 2 * cross.sum() / (n * m)
    without = (own_f.sum() - 2 * own_f) / ((m - 1) * (m - 2)) - 2 * (cross.sum() - cross) / (n * (m - 1))
    return estimate.linear(float(value), without * (1 - m))


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((x * y).mean(-1) + 1) ** 3


def _kernel_sums(x: torch.Tensor, y: torch.Tensor, chunk: int = 512) -> torch.Tensor:
    """sum_j k(x_i, y_j): [N]."""
    return torch.cat([(rows @ y.T / x.shape[1] + 1).pow_(3).sum(1) for rows in x.split(chunk)])
