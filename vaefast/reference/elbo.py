"""The loss of a batch; KL by latent dimension, for free bits and for watching collapse, in plain PyTorch."""

from __future__ import annotations

import torch

from vaefast.reference import gaussian
from vaefast.reference.gaussian import compute_dtype


def elbo(nll, kl, batch_ndim, beta, scale):
    """scale * sum (nll + beta kl) over all that is no batch: a batch's mean has none, and scale 1 / B."""
    nll, kl = (t.to(compute_dtype(t.dtype)) for t in (nll, kl))
    return ((nll + beta * kl) * scale).flatten(batch_ndim).sum(-1)


def elbo_backward(grad, nll, kl, batch_ndim, beta, scale):
    """To each sample the same."""
    grad_nll = (grad * scale).reshape(grad.shape + (1,) * (nll.ndim - batch_ndim)).expand_as(nll)
    return grad_nll.to(nll.dtype), (beta * grad_nll).to(kl.dtype)


def reduced(terms: torch.Tensor, per_channel: bool) -> torch.Tensor:
    """The batch mean of terms [B, *event]: per element of the event, or per channel, summed over what follows it."""
    mean = terms.sum(0) / max(terms.shape[0], 1)
    return mean.flatten(1).sum(1) if per_channel and mean.ndim > 1 else mean


def spread(grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The gradient of `reduced`: to each term of `like`'s shape, as an expanded view."""
    grad = grad / max(like.shape[0], 1)
    return grad.reshape(grad.shape + (1,) * (like.ndim - 1 - grad.ndim)).expand(like.shape)


def kl_by_dimension(mu, logvar, per_channel, lo, hi):
    """KL(N(mu, exp(logvar)) || N(0, 1)) in two sums: per sample [B], and the batch mean per dimension or channel."""
    terms = gaussian.kl_standard_normal(mu, logvar, mu.ndim, lo, hi)
    return terms.flatten(1).sum(1), reduced(terms, per_channel)


def kl_by_dimension_backward(grad_kl, grad_mean, mu, logvar, per_channel, lo, hi):
    """The gradient of a term is the sum of what its sample and what its dimension bring."""
    grad_kl = grad_kl.reshape(grad_kl.shape + (1,) * (mu.ndim - 1))
    grad = (grad_kl + spread(grad_mean, mu)).to(compute_dtype(mu.dtype))
    return gaussian.kl_standard_normal_backward(grad, mu, logvar, mu.ndim, lo, hi)
