"""Numbers with their 95 % intervals.

An interval tells how far the value would move with other images from the same source: of the samples for measures that
average over samples, of the real images for those that average over real images. It does not tell of training: for
that, train with several seeds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

_NORMAL = 1.959963984540054  # the 97.5 % quantile


class Estimate(NamedTuple):
    """A value, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def mean(values: torch.Tensor) -> Estimate:
    """Of values [N]: mean +- 1.96 s / sqrt(N), what bootstrapping the mean tends to."""
    return linear(float(values.double().mean()), values)


def linear(value: float, influence: torch.Tensor, *, minimum: float = -math.inf) -> Estimate:
    """Of a value to which point i of N contributes influence[i] / N in first order (the infinitesimal jackknife, Efron
    1981, which bootstrapping tends to without its hundreds of repetitions). Constants in influence do not matter."""
    half = _NORMAL * float(influence.double().std()) / math.sqrt(len(influence))
    return Estimate(value, max(value - half, minimum), value + half)


def proportion(flags: torch.Tensor) -> Estimate:
    """Of true among flags [N], with the interval of Wilson 1927, which has a width at 0 and 1 too."""
    n, p = len(flags), float(flags.double().mean())
    z2 = _NORMAL**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _NORMAL * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Estimate(p, max(centre - half, 0.0), min(centre + half, 1.0))
