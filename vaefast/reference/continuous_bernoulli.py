"""Continuous Bernoulli likelihood from logits (Loaiza-Ganem and Cunningham 2019)."""

from __future__ import annotations

import torch

from vaefast.reference.gaussian import compute_dtype

# B_2k / (2k)!, k = 1, 2, …: log(sinh(h / 2) / (h / 2)) = sum of these times h^2k / 2k
_SERIES = (
    1 / 12,
    -1 / 720,
    1 / 30240,
    -1 / 1209600,
    1 / 47900160,
    -691 / 1307674368000,
    1 / 74724249600,
    -3617 / 10670622842880000,
    43867 / 5109094217170944000,
    -174611 / 802857662698291200000,
    77683 / 14101100039391805440000,
)


def continuous_bernoulli_nll(logits, x, scale):
    """Elementwise -log p(x | logits) = log((exp(logits) - 1) / logits) - x logits, the density on [0, 1] that is
    proportional to exp(x logits) (x is multiplied by `scale` first).

    This is the Bernoulli's -log p minus the log of the normaliser, equation 4 there; written by the logits, its
    removable singularity is at 0. Near it: (1/2 - x) logits + log(sinh(logits / 2) / (logits / 2)), by its series.
    Away from it, with a = |logits|: max(logits, 0) - x logits + log((1 - exp(-a)) / a).
    """
    x = x.to(logits.dtype) * scale
    near = logits.abs() <= 1
    small = torch.where(near, logits, 0)
    square, series = small * small, 0.0
    for k in range(len(_SERIES), 0, -1):
        series = series * square + _SERIES[k - 1] / (2 * k)
    around_0 = (0.5 - x) * small + series * square

    large = torch.where(near, 2, logits)
    coefficient = torch.where(large > 0, 1 - x, -x)
    linear = coefficient * torch.where((coefficient == 0) & large.isinf(), 0, large)
    a = large.abs()
    normaliser = torch.log(a / -torch.expm1(-a))
    return torch.where(near, around_0, linear - torch.where(linear.isinf(), 0, normaliser))


def mean(logits):
    """E[x | logits] = 1 / (1 - exp(-logits)) - 1 / logits, the derivative of the log of the normaliser; near 0 by its
    series."""
    given, logits = logits.dtype, logits.to(compute_dtype(logits.dtype))
    near = logits.abs() <= 1
    small = torch.where(near, logits, 0)
    series = 0.0
    for coefficient in reversed(_SERIES):
        series = series * small * small + coefficient
    a = torch.where(near, 2, logits).abs()
    below = 1 / a + torch.exp(-a) / torch.expm1(-a)  # the mean for -a
    away = torch.where(logits > 0, 1 - below, below)
    return torch.where(near, 0.5 + series * small, away).to(given)
