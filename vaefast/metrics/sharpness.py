"""Blur."""

from __future__ import annotations

import torch
from torch.nn import functional

from vaefast.metrics import estimate
from vaefast.metrics.estimate import Estimate
from vaefast.metrics.images import as_images, unit_images

_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow's "L" is


def laplacian_variance(source, *, chunk: int = 512) -> torch.Tensor:
    """Of each grey image in [0, 1], the variance of its 4-neighbour Laplacian over the inner pixels: [N], in float64.

    Range 0...; Pech-Pacheco et al. 2000, section 2 (there a measure of focus). Images as for `as_images`.
    """
    source = as_images(source)
    return torch.cat([_variance(source[start : start + chunk]) for start in range(0, len(source), chunk)])


def _variance(batch: torch.Tensor) -> torch.Tensor:
    x = unit_images(batch).double()
    if x.shape[1] == 3:
        x = (x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return functional.conv2d(x, x.new_tensor(_LAPLACIAN).view(1, 1, 3, 3)).flatten(1).var(1)


def sharpness_ratio(real: torch.Tensor, fake: torch.Tensor) -> Estimate:
    """Mean Laplacian variance of the samples over that of real images.

    Range 0...; 1 is right: blur lowers it and noise raises it, so higher is not better. Interval over the samples.

    Blind to what is sharp: noise on blurred images can make it 1.

    Args:
        real, fake: the `laplacian_variance` of each image, [N] and [M].
    """
    return estimate.mean(fake.double() / real.double().mean())
