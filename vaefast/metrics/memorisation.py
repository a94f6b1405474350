"""Samples that copy the training data."""

from __future__ import annotations

import torch

from vaefast.metrics import estimate
from vaefast.metrics.estimate import Estimate
from vaefast.metrics.pairwise import nearest
from vaefast.metrics.reference import Reference


def authenticity(train: torch.Tensor | Reference, fake: torch.Tensor | Reference) -> Estimate:
    """The share of samples that are no copies: further from their nearest training image than that image is from its
    own nearest other one.

        |{j : |f_j - t*| >= min_{t != t*} |t* - t|}| / M,  t* the training image nearest to f_j

    Range 0...1, 0 is all copies; right is what held-out images get, far below 1. Interval over the samples. Give the
    whole training set: a copy of an image that is not given goes unseen. Alaa et al. 2022 (arXiv 2102.08921),
    section 3.

    Blind to quality: samples far from all data are authentic.

    Args:
        train, fake: features [N, F], N >= 2, and [M, F], or a Reference.
    """
    train, fake = Reference.of(train), Reference.of(fake)
    found = nearest(fake.features, train.features)
    copied, back = found.indices[:, 0].unique(return_inverse=True)
    # of the nearest two to a training image, itself is one; where it has an exact twin, the distance is 0 either way
    spacing = nearest(train.features[copied], train.features, 2).distances[:, 1]
    return estimate.proportion(found.distances[:, 0] >= spacing[back])
