"""Inconsistency and repetition apart: balls around each point stand for where a distribution lives."""

from __future__ import annotations

import torch

from vaefast.metrics import estimate
from vaefast.metrics.estimate import Estimate
from vaefast.metrics.pairwise import distances
from vaefast.metrics.reference import Reference

K_MANIFOLD = 3  # Kynkäänniemi et al. 2019
K_DENSITY = 5  # Naeem et al. 2020
_INSIDE = 1 - 1e-9  # of a radius: a twin of the point that it leads to lies at it, not inside, however both are rounded


def prdc(
    real: torch.Tensor | Reference, fake: torch.Tensor | Reference, *, k: int = K_MANIFOLD, k_density: int = K_DENSITY
) -> dict[str, Estimate]:
    """`precision`, `recall`, `density` and `coverage` by name, in one pass over the pairs.

    Args:
        real, fake: features [N, F] and [M, F], or a Reference, whose radii are computed once. Take N = M: balls shrink
            as sets grow.
        k: of precision and recall; k_density: of density and coverage.

    Raises:
        ValueError: for a k that is not smaller than its set.
    """
    real, fake = Reference.of(real), Reference.of(fake)
    r, r_density, f = (_INSIDE * radius for radius in (real.radius(k), real.radius(k_density), fake.radius(k)))
    inside = torch.zeros(len(fake), dtype=torch.bool, device=f.device)
    counts = torch.zeros_like(f)
    recalled, covered = [], []
    for rows, block in distances(real.features, fake.features):
        inside |= (block < r[rows, None]).any(0)
        counts += (block < r_density[rows, None]).sum(0)
        recalled.append((block < f).any(1))
        covered.append((block < r_density[rows, None]).any(1))
    return {
        "precision": estimate.proportion(inside),
        "recall": estimate.proportion(torch.cat(recalled)),
        "density": estimate.mean(counts / k_density),
        "coverage": estimate.proportion(torch.cat(covered)),
    }


def precision(real: torch.Tensor | Reference, fake: torch.Tensor | Reference, k: int = K_MANIFOLD) -> Estimate:
    """The share of samples that lie where data lies: |{j : some i has |r_i - f_j| < radius_k(r_i)}| / M.

    radius_k(r_i) is the distance of r_i to its k-th nearest other real point. Range 0...1, higher is better, up to what
    real data gets. Interval over the samples. Kynkäänniemi et al. 2019 (arXiv 1904.06991), equation 2.

    Blind to repetition (one good sample a thousand times scores 1), and one real outlier's large ball forgives much.
    """
    return prdc(real, fake, k=k, k_density=k)["precision"]


def recall(real: torch.Tensor | Reference, fake: torch.Tensor | Reference, k: int = K_MANIFOLD) -> Estimate:
    """The share of data that lies where samples lie: |{i : some j has |r_i - f_j| < radius_k(f_j)}| / N.

    Range 0...1, higher is better. Interval over the real points. Kynkäänniemi et al. 2019, equation 2.

    Blind to bad samples: scattered ones have large balls, and raise it.
    """
    return prdc(real, fake, k=k, k_density=k)["recall"]


def density(real: torch.Tensor | Reference, fake: torch.Tensor | Reference, k: int = K_DENSITY) -> Estimate:
    """How many real balls a sample lies in, over k: sum_ij [|r_i - f_j| < radius_k(r_i)] / (k M).

    Range 0..., 1 expected of real data; higher is better up to there. Interval over the samples. An outlier's ball
    counts as one, not as all. Naeem et al. 2020 (arXiv 2002.09797), equation 3.

    Blind to repetition, and past 1 it tells of samples that crowd where data is densest.
    """
    return prdc(real, fake, k=1, k_density=k)["density"]


def coverage(real: torch.Tensor | Reference, fake: torch.Tensor | Reference, k: int = K_DENSITY) -> Estimate:
    """The share of real balls with a sample in them: |{i : min_j |r_i - f_j| < radius_k(r_i)}| / N.

    Range 0...1, higher is better; 1 - 2^-k is expected of real data, N = M. Interval over the real points. Naeem et al.
    2020, equation 4.

    Blind to bad samples beside good ones: it asks only whether some sample is near.
    """
    return prdc(real, fake, k=1, k_density=k)["coverage"]
