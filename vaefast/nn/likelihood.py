"""Likelihoods: what a decoder's output says about the data."""

from __future__ import annotations

import torch


def unit(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Data as floating point: uint8 levels are divided by 255, other types are taken as they are.

    Images stay uint8 (a quarter of the memory traffic) until somebody computes with them.
    """
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


class Bernoulli(torch.nn.Module):
    """p(x | z) = prod p^x (1 - p)^(1 - x), p = sigmoid(logits).

    Grey levels between 0 and 1 count as probabilities of a white pixel: the value is then the expected negative
    log-likelihood of the image's random binarisations.
    """

    def forward(self, logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """-log p(x | z) per sample, in nats, computed and summed in float32 (float64 for float64 logits).

        Args:
            logits: [B, *event].
            x: the same shape, levels in [0, 1], or uint8 from 0 to 255.

        Returns:
            [B].
        """
        dtype = torch.promote_types(logits.dtype, torch.float32)
        nll = torch.nn.functional.binary_cross_entropy_with_logits(logits.to(dtype), unit(x, dtype), reduction="none")
        return nll.flatten(1).sum(1)

    def mean(self, logits: torch.Tensor) -> torch.Tensor:
        """E[x | z], in [0, 1]."""
        return torch.sigmoid(logits)
