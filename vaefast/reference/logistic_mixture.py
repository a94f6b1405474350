"""Mixture of discretised logistics (Salimans et al. 2017, PixelCNN++, equations 2 and 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vaefast.reference.logistic import discretized_logistic_nll


class Parts(NamedTuple):
    """Params [P, *] of n logistics for each of C channels: n logits of pi, then for each channel n means, n log-scales
    and, where C is 3, n coefficients: of red for green, of red for blue, of green for blue, here through their tanh."""

    logits: torch.Tensor  # [n, *]
    means: torch.Tensor  # [C, n, *], of a channel given that those before it are 0
    log_scales: torch.Tensor  # [C, n, *]
    coefficients: torch.Tensor | None  # [3, n, *]; None where C is 1

    def conditional_means(self, red: torch.Tensor, green: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The means [n, *] of each channel, given the channels before."""
        if self.coefficients is None:
            return (self.means[0],)
        green_by_red, blue_by_red, blue_by_green = self.coefficients
        red_mean, green_mean, blue_mean = self.means
        return red_mean, green_mean + green_by_red * red, blue_mean + (blue_by_red * red + blue_by_green * green)


def parts(params: torch.Tensor, n: int) -> Parts:
    channels = 1 if len(params) == 3 * n else 3
    rest = params[n:].unflatten(0, (channels, -1, n))  # [C, 2 or 3, n, *]
    return Parts(params[:n], rest[:, 0], rest[:, 1], torch.tanh(rest[:, 2]) if channels == 3 else None)


def discretized_logistic_mixture_nll(params, x, coarse, fine, offset, half_bin, floor):
    """-log sum_k pi_k prod_c p(x_c | mean_ck, log_scale_ck), for params [P, *], which `Parts` describes, and x [C, *].

    p is the mass of x's bin, of which and of the constants vaefast/reference/logistic.py says more.
    """
    x = x.to(params.dtype)
    mixture = parts(params, len(params) // (10 if len(x) == 3 else 3))
    values = x * coarse + offset + x * fine
    means = torch.stack(mixture.conditional_means(values[0], values[len(x) // 2]))
    constants = (coarse, fine, offset, half_bin, floor)
    terms = discretized_logistic_nll(means, mixture.log_scales, x.unsqueeze(1), *constants).sum(0)  # [n, *]
    return -torch.logsumexp(torch.log_softmax(mixture.logits, 0) - terms, 0)


def mean(params, n):
    """E[x] [C, *], of the logistics before they are cut into bins, and before what lies past ±1 counts as ±1."""
    mixture = parts(params, n)
    red = mixture.means[0]
    green = mixture.conditional_means(red, red)[len(mixture.means) // 2]  # within one logistic, E is linear
    means = torch.stack(mixture.conditional_means(red, green))
    return (torch.softmax(mixture.logits, 0) * means).sum(1)
