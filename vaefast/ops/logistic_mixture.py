"""Mixture of discretised logistics: the likelihood of pixels in PixelCNN++, VDVAE and NVAE."""

from __future__ import annotations

import torch

from vaefast.ops import _checks
from vaefast.ops._likelihood import Likelihood
from vaefast.ops.logistic import in_range, level_params
from vaefast.reference import logistic_mixture as reference

_discretized_logistic_mixture_nll = Likelihood(
    "discretized_logistic_mixture_nll",
    "params x",
    terms=reference.discretized_logistic_mixture_nll,
    support=("in [-1, 1], or an integer level from 0", in_range),
    params=("coarse", "fine", "offset", "half_bin", "floor"),
    with_gradient=True,
    planes="params x",
)


def discretized_logistic_mixture_nll(
    params,
    x,
    n_mixtures: int,
    *,
    levels: int = 256,
    weight=None,
    batch_ndim: int = 1,
    validate: bool = False,
    expected_grad: float | None = None,
) -> torch.Tensor:
    """-log p(x | params) per sample: -log sum_k pi_k prod_c P(x_c | mean_ck, scale_ck) of each pixel, in nats, summed.

    P is the mass that a logistic gives to the bin of x, as in `discretized_logistic_nll`. Of three channels, the mean
    of green is shifted by tanh(coefficient_0) red, that of blue by tanh(coefficient_1) red + tanh(coefficient_2) green.

    Args:
        params: [*batch, 10 n, *event] for three channels: n logits of pi, then for each channel n means, n log-scales
            (-7 where they are less) and n coefficients. For one channel [*batch, 3 n, *event]: n logits, n means, n
            log-scales. NVAE's `param` is this tensor; PixelCNN++'s and VDVAE's `l`, [B, H, W, 10 n], is
            `l.movedim(-1, 1)`, which is read in place. float32, float64, float16 or bfloat16.
        x: [*batch, 3 or 1, *event]: floating, in -1…1, or integers (uint8, …), whose 0…levels - 1 stand for -1…1.
        n_mixtures: n.
        levels: how many values a channel can take, at least 2.
        weight: a mask or a weight per pixel, which broadcasts with [*batch, *event]; a pixel of weight 0 counts
            nothing, whatever its values. No gradient flows to it.
        batch_ndim: how many leading dimensions are the batch.
        validate: check x (this waits for the device).
        expected_grad: the gradient per sample that the backward pass will bring, as for `bernoulli_nll`.

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 params). Masses are exact where
        PixelCNN++'s code, below 1e-5, takes the density at the bin's centre; only the outermost levels are open bins,
        while NVAE's code opens 254 too.

    Raises:
        TypeError, ValueError: for numbers of planes that are not these, and shapes that do not broadcast.

    Gradient: to params (0 to log-scales below the floor) and floating x, of the same formula.

    Source: Salimans et al. 2017, "PixelCNN++", sections 2.1 and 2.2.
    """
    _checks.floating("params", params)
    _checks.data("x", x)
    _checks.whole("n_mixtures", n_mixtures, 1)
    _checks.batch_ndim(batch_ndim, min(params.ndim, x.ndim) - 1)
    planes, channels = params.shape[batch_ndim], x.shape[batch_ndim]
    if channels not in (1, 3):
        raise ValueError(f"x must have 1 or 3 channels in dimension {batch_ndim}, got shape {tuple(x.shape)}")
    each = 10 if channels == 3 else 3
    if planes != each * n_mixtures:
        raise ValueError(
            f"params must have {each} n_mixtures = {each * n_mixtures} planes in dimension {batch_ndim} for {channels} "
            f"channel(s), got shape {tuple(params.shape)}"
        )
    constants = level_params(x, levels, validate)
    return _discretized_logistic_mixture_nll(
        params,
        x,
        weight=weight,
        batch_ndim=batch_ndim,
        params=constants,
        validate=validate,
        expected_grad=expected_grad,
    )
