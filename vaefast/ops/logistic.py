"""Discretised logistic likelihood, of data on equally spaced levels."""

from __future__ import annotations

import torch

from vaefast.ops import _checks
from vaefast.ops._likelihood import Likelihood, parameter
from vaefast.reference import logistic as reference

LOG_SCALE_FLOOR = -7.0


def in_range(x: torch.Tensor) -> torch.Tensor:
    return x.abs() <= 1 if x.is_floating_point() else x >= 0


def level_params(x: object, levels: int, validate: bool) -> tuple[float, float, float, float, float]:
    """The constants of the reference: x's factor (coarse, fine) and offset, half a bin, the least log-scale."""
    _checks.whole("levels", levels, 2)
    half_bin = 1 / (levels - 1)
    if not isinstance(x, torch.Tensor) or x.is_floating_point():
        return 1.0, 0.0, 0.0, half_bin, LOG_SCALE_FLOOR
    if validate and bool((x.long() >= levels).any()):  # of bytes, 256 would wrap to 0
        raise _checks.SupportError(f"x must be less than levels = {levels} where it is an integer, got {x.max()}")
    coarse = round(2 * half_bin * 2**22) / 2**22  # times a level it has at most float32's 24 bits
    return coarse, 2 * half_bin - coarse, -1.0, half_bin, LOG_SCALE_FLOOR


_discretized_logistic_nll = Likelihood(
    "discretized_logistic_nll",
    "mu log_scale x",
    terms=reference.discretized_logistic_nll,
    support=("in [-1, 1], or an integer level from 0", in_range),
    params=("coarse", "fine", "offset", "half_bin", "floor"),
)


def discretized_logistic_nll(
    mu, x, log_scale, *, levels: int = 256, weight=None, batch_ndim: int = 1, validate: bool = False
) -> torch.Tensor:
    """-log of the mass that a logistic distribution gives to the bin of x, summed over the event, in nats (Salimans et
    al. 2017, "PixelCNN++", section 2.1): sigmoid((x - mu + h) / s) - sigmoid((x - mu - h) / s), s = exp(log_scale),
    h = 1 / (levels - 1). The outermost bins reach to infinity.

    Args:
        mu: [*batch, *event], on the scale of -1…1; float32, float64, float16 or bfloat16.
        x: what broadcasts with mu: floating, in -1…1, or integers (uint8, …), whose 0…levels - 1 stand for -1…1.
        log_scale: a number, or a tensor that broadcasts (0-d, per channel, per element, …); -7 where it is less.
        levels: how many values x can take, at least 2.
        weight: a mask or a weight per element, which broadcasts; an element of weight 0 counts nothing, whatever its
            values. No gradient flows to it.
        batch_ndim: how many leading dimensions are the batch.
        validate: check x (this waits for the device).

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 mu). The mass is never taken as a
        difference: narrow bins and far tails are exact where PixelCNN++'s code falls back on a density.

    Gradient: to mu, log_scale (0 below the floor) and floating x, of the same formula.
    """
    return _discretized_logistic_nll(
        mu,
        parameter(log_scale, mu),
        x,
        weight=weight,
        batch_ndim=batch_ndim,
        params=level_params(x, levels, validate),
        validate=validate,
    )
