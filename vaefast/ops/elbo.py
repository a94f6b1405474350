"""The whole loss of a VAE from its parts, and KL by latent dimension."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.compiler import is_compiling

from vaefast.ops import _checks
from vaefast.ops._body import empty_like, empty_rows
from vaefast.ops._define import define, define_rows, differentiable, transformed
from vaefast.ops.gaussian import _pair
from vaefast.reference import elbo as reference
from vaefast.reference.gaussian import compute_dtype

_loss_forward = define_rows("elbo_forward", "nll kl", row_outputs=1, params=("beta", "scale"), reference=reference.elbo)


_loss_backward = define_rows(
    "elbo_backward",
    "row:grad shape:nll shape:kl",
    like="nll kl",
    params=("beta", "scale"),
    reference=reference.elbo_backward,
)
Loss = differentiable("Loss", _loss_forward, _loss_backward, saved=2)

_ACTIVE = 0.01  # the variance over x of E[z | x] above which a dimension is in use


def _fused_forward(walk, mu, logvar, per_channel, *bounds):
    terms, kl = torch.empty_like(mu, dtype=compute_dtype(mu.dtype)).contiguous(), empty_rows(mu, 1)
    walk("kl_by_dimension_forward", 1, (mu, logvar), (), (terms,), (kl,), None, bounds)
    return kl, reference.reduced(terms, per_channel)


def _fused_backward(walk, grad_kl, grad_mean, mu, logvar, per_channel, *bounds):
    grads = empty_like(mu), empty_like(logvar)
    inputs = reference.spread(grad_mean, mu), mu, logvar
    walk("kl_by_dimension_backward", 1, inputs, (grad_kl,), grads, (), None, bounds)
    return grads


_forward = define(
    "kl_by_dimension_forward(Tensor mu, Tensor logvar, bool per_channel, float lo, float hi) -> (Tensor, Tensor)",
    reference=reference.kl_by_dimension,
    fused=_fused_forward,
)
_backward = define(
    "kl_by_dimension_backward(Tensor grad_kl, Tensor grad_mean, Tensor mu, Tensor logvar, bool per_channel, float lo,"
    " float hi) -> (Tensor, Tensor)",
    reference=reference.kl_by_dimension_backward,
    fused=_fused_backward,
)
KLByDimension = differentiable("KLByDimension", _forward, _backward, saved=2)


def kl_by_dimension(mu, logvar, *, per_channel: bool = False, logvar_bounds=None) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(N(mu, exp(logvar)) || N(0, 1)) in two sums from one pass over mu and logvar.

    Args:
        mu, logvar, logvar_bounds: as for `kl_standard_normal`; [B, *event].
        per_channel: sum over all dimensions of the event but its first.

    Returns:
        (kl [B], the sum over the event; mean, the average over the batch of each element's KL, of shape event, or
        [C] if per_channel), in nats, float32 (float64 for float64 inputs).
    """
    mu, logvar, lo, hi = _pair(mu, logvar, 1, logvar_bounds)
    if transformed():
        return reference.kl_by_dimension(mu, logvar, per_channel, lo, hi)
    return KLByDimension.apply(mu, logvar, per_channel, lo, hi)


class ELBO(NamedTuple):
    """What `elbo_loss` returns.

    loss: what to minimise; a scalar, or [B] where reduction is "none".
    nll, kl: [B], the two terms before beta, free bits and capacity.
    kl_per_dimension: batch mean per element of the event (per channel where free bits are), else None without moments.
    active_units: how many elements of the event are in use, Var_x(E[z | x]) > 0.01 (Burda et al. 2016), as an int64
        scalar on the device; None without moments.
    """

    loss: torch.Tensor
    nll: torch.Tensor
    kl: torch.Tensor
    kl_per_dimension: torch.Tensor | None
    active_units: torch.Tensor | None


def elbo_loss(
    nll,
    kl=None,
    mu=None,
    logvar=None,
    *,
    beta=1.0,
    free_bits: float | None = None,
    per_channel: bool = False,
    capacity=None,
    reduction: str = "mean",
    logvar_bounds=None,
) -> ELBO:
    """-ELBO of a batch: mean of nll + beta KL (Kingma and Welling 2014; beta: Higgins et al. 2017).

    With free bits, KL is sum_j max(free_bits, KL_j), KL_j the batch mean of dimension or channel j (Kingma et al. 2016,
    equation 15). With a capacity C, beta KL becomes beta |KL - C|, KL being the batch mean (Burgess et al. 2018).

    Args:
        nll: [B], -log p(x | z), from one of the likelihoods.
        kl: [B], from `rsample_kl`, whose backward then has the KL's gradient in its own pass; computed from mu and
            logvar where it is None.
        mu, logvar: [B, *event], the moments of q(z | x). They bring kl_per_dimension and active_units; without kl or
            with free bits they carry the KL's gradient.
        beta: a number, or a tensor ([] or [B]), which a schedule may fill in place without a recompile.
        free_bits: in nats per dimension, or per channel where `per_channel`.
        capacity: a number or a scalar tensor, in nats.
        reduction: "mean", "sum" (B times the mean), or "none" (not with free bits or capacity, which are of the batch).
        logvar_bounds: what `rsample_kl` got.

    Returns:
        ELBO(loss, nll, kl, kl_per_dimension, active_units).

    Raises:
        TypeError, ValueError: for arguments that do not fit, named in the message.
    """
    _per_sample("nll", nll)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    _checks.reduced(reduction, free_bits, capacity)
    if (mu is None) != (logvar is None):
        raise ValueError("mu and logvar must be given together")
    if mu is None and (kl is None or free_bits is not None):
        raise ValueError(f"mu and logvar must be given {'without kl' if kl is None else 'with free_bits'}")
    _number("beta", beta, [(), tuple(nll.shape)])
    _number("capacity", capacity, [()], optional=True)
    _number("free_bits", free_bits, [()], optional=True)
    if mu is not None:
        _checks.floating("mu", mu)
        if len(mu) != len(nll):
            raise ValueError(f"mu must have nll's {len(nll)} samples, got shape {tuple(mu.shape)}")
    moments = _moments(mu, logvar, kl, free_bits, per_channel, logvar_bounds) if mu is not None else (kl, None, None)
    kl, by_dimension, active = moments
    _per_sample("kl", kl)
    _checks.alike("nll", nll, "kl", kl)
    if reduction == "none":
        return ELBO(plus(nll, beta, kl), nll, kl, by_dimension, active)
    if free_bits is None and capacity is None:
        return ELBO(_reduced(nll, beta, kl, reduction), nll, kl, by_dimension, active)
    regulariser = kl.mean() if free_bits is None else by_dimension.clamp(min=free_bits).sum()
    if capacity is not None:
        regulariser = (regulariser - capacity).abs()
    loss = nll.mean() + (beta * regulariser).mean()  # a beta per sample counts with its mean
    return ELBO(loss if reduction == "mean" else loss * nll.numel(), nll, kl, by_dimension, active)


def _reduced(nll: torch.Tensor, beta, kl: torch.Tensor, reduction: str) -> torch.Tensor:
    """The mean or the sum of nll + beta kl: one walk, but where a compiler or a transform has PyTorch's ops."""
    one_walk = isinstance(beta, (int, float)) and nll.dtype == kl.dtype and len(nll) > 0
    if one_walk and not is_compiling() and not transformed():
        return Loss.apply(nll, kl, 0, float(beta), 1.0 / len(nll) if reduction == "mean" else 1.0)
    loss = plus(nll, beta, kl)
    return loss.mean() if reduction == "mean" else loss.sum()


def plus(a: torch.Tensor, beta, b: torch.Tensor) -> torch.Tensor:
    """a + beta b; one op where beta is a number."""
    return torch.add(a, b, alpha=beta) if isinstance(beta, (int, float)) else a + beta * b


def _per_sample(name: str, tensor: object) -> None:
    _checks.floating(name, tensor)
    if tensor.ndim != 1:
        raise ValueError(f"{name} must have one number per sample, shape (B,), got {tuple(tensor.shape)}")


def _number(name: str, value: object, shapes: list[tuple[int, ...]], optional: bool = False) -> None:
    """A number, or a tensor of one of these shapes."""
    if isinstance(value, torch.Tensor):
        if value.shape not in shapes:
            takes = " or ".join(map(str, shapes))
            raise ValueError(f"{name} must be a number or a tensor of shape {takes}, got shape {tuple(value.shape)}")
    elif not (isinstance(value, (int, float)) or (optional and value is None)):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")


def _moments(mu, logvar, kl, free_bits, per_channel, logvar_bounds):
    """(kl, KL per dimension, active units); a gradient flows where the loss needs one, and only there."""
    needed = kl is None or free_bits is not None
    source = (mu, logvar) if needed else (mu.detach(), logvar.detach())
    total, by_dimension = kl_by_dimension(*source, per_channel=per_channel, logvar_bounds=logvar_bounds)
    means = mu.detach().to(compute_dtype(mu.dtype))
    deviation = torch.linalg.vector_norm(means - means.mean(0), dim=0)  # a sixth of the time of var(0) on a CPU
    active = (deviation > math.sqrt(_ACTIVE * max(len(mu), 1))).sum()
    return total if kl is None else kl, by_dimension, active
