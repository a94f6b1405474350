"""Samples that repeat each other."""

from __future__ import annotations

import math

import torch

from vaefast.metrics import estimate
from vaefast.metrics.estimate import Estimate
from vaefast.metrics.reference import Reference, eigh

QUANTILE = 0.05


def duplicate_rate(
    real: torch.Tensor | Reference, fake: torch.Tensor | Reference, quantile: float = QUANTILE
) -> Estimate:
    """The share of samples whose nearest other sample is nearer than all but `quantile` of real images' nearest are:

        |{j : min_{l != j} |f_j - f_l| <= t}| / M,  t the quantile of min_{l != i} |r_i - r_l|

    Range 0...1; about `quantile` is right, more is repetition. Interval over the samples, t taken as given. The idea is
    that of the birthday paradox test (Arora and Zhang 2017, arXiv 1706.08224), with a threshold in place of a person.

    Blind to a mode that is missing, as long as what is there varies; one t serves all classes, so that those whose
    images are alike anyway (the zeros among digits) count first.

    Args:
        real, fake: features [N, F] or a Reference, as many of each: nearest neighbours are nearer in larger sets.

    Raises:
        ValueError: for different numbers of features, or a quantile that is not between 0 and 1.
    """
    real, fake = Reference.of(real), Reference.of(fake)
    if len(real) != len(fake):
        raise ValueError(f"real and fake must be equally many, got {len(real)} and {len(fake)}")
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie between 0 and 1, got {quantile}")
    threshold = real.radius(1).quantile(quantile, interpolation="lower")
    return estimate.proportion(fake.radius(1) <= threshold)


def vendi_score(fake: torch.Tensor | Reference) -> Estimate:
    """The effective number of different samples: exp of the entropy of the eigenvalues of their similarity matrix.

        exp(- sum_i l_i log l_i),  l the eigenvalues of K / M,  K_ij the cosine of features i and j

    Range 1...M, higher is more diverse; compare with what real images get. From the F x F matrix that has the same
    eigenvalues (float64, `eigh`). Interval over the samples, by linear influence of the entropy, - x' log(S) x.
    Friedman and Dieng 2023 (arXiv 2210.02410), definition 3.1.

    Blind to quality: noise is diverse. Cosines of a network's features are all near 1, so its range is narrow.

    Args:
        fake: features [M, F], or a Reference.

    Raises:
        ValueError: for a feature vector that is 0, which has no direction.
    """
    x = Reference.of(fake).features.double()
    norms = x.norm(dim=1, keepdim=True)
    if not norms.all():
        raise ValueError("features must not be 0: a zero vector has no direction to compare")
    x = x / norms
    values, vectors = eigh(x.T @ x / len(x))
    kept = values > 1e-14
    values, vectors = values[kept], vectors[:, kept]
    entropy = -float((values * values.log()).sum())
    influence = -((x @ vectors).square() @ values.log())
    return Estimate(*map(math.exp, estimate.linear(entropy, influence, minimum=0.0)))
