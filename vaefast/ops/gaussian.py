"""The Gaussian latent, reparameterised sampling with noise made in the kernel and KL divergences; and the likelihood.

`mu` and `logvar` have one shape [*batch, *event]; the first `batch_ndim` dimensions are the batch. Noise is never
stored: backward makes it again from the seed. Either half of a `chunk` is read in place.
"""

from __future__ import annotations

import functools
import math

import torch

from vaefast.ops import _checks, ranks
from vaefast.ops._body import Body, Output
from vaefast.ops._define import define, define_rows, differentiable, distinct, hint, transformed
from vaefast.ops._likelihood import Likelihood, parameter, unit_scale
from vaefast.ops.noise import seed_for, standard_normal_op
from vaefast.reference import gaussian as reference
from vaefast.reference.gaussian import compute_dtype

_BOUNDS = ("lo", "hi")

_rsample_forward = define_rows(
    "rsample_forward", "mu logvar seed", like="mu", params=_BOUNDS, reference=reference.rsample
)
_rsample_backward = define_rows(
    "rsample_backward", "grad_z logvar seed", like="logvar", params=_BOUNDS, reference=reference.rsample_backward
)
_rsample_kl_forward = define_rows(
    "rsample_kl_forward", "mu logvar seed", like="mu", row_outputs=1, params=_BOUNDS, reference=reference.rsample_kl
)
_rsample_kl_backward = define_rows(
    "rsample_kl_backward",
    "grad_z row:grad_kl mu logvar seed",
    like="mu logvar",
    params=_BOUNDS,
    reference=reference.rsample_kl_backward,
)
_kl_standard_normal_forward = define_rows(
    "kl_standard_normal_forward", "mu logvar", row_outputs=1, params=_BOUNDS, reference=reference.kl_standard_normal
)
_kl_standard_normal_backward = define_rows(
    "kl_standard_normal_backward",
    "row:grad_kl mu logvar",
    like="mu logvar",
    params=_BOUNDS,
    reference=reference.kl_standard_normal_backward,
)
_kl_normal_forward = define_rows(
    "kl_normal_forward",
    "mu_q logvar_q mu_p logvar_p",
    row_outputs=1,
    params=_BOUNDS,
    reference=reference.kl_normal,
)
_kl_normal_backward = define_rows(
    "kl_normal_backward",
    "row:grad_kl mu_q logvar_q mu_p logvar_p",
    like="mu_q logvar_q mu_p logvar_p",
    params=_BOUNDS,
    wanted=True,
    reference=reference.kl_normal_backward,
)
_kl_normal_with_gradient = define_rows(
    "kl_normal_with_gradient",
    "row:grad_kl mu_q logvar_q mu_p logvar_p",
    like="mu_q logvar_q mu_p logvar_p",
    row_outputs=1,
    params=_BOUNDS,
    wanted=True,
    reference=reference.kl_normal_with_gradient,
)


# `rsample_kl_moments` is the same density, reading and writing the two halves of one tensor


def _reference_moments_forward(moments, seed, dim, *rest):
    return _rsample_kl_forward.reference(*moments.chunk(2, dim), seed, *rest)


def _reference_moments_backward(grad_z, grad_kl, moments, seed, dim, *rest):
    return torch.cat(_rsample_kl_backward.reference(grad_z, grad_kl, *moments.chunk(2, dim), seed, *rest), dim)


_rsample_kl_moments_forward = define(
    "rsample_kl_moments_forward(Tensor moments, Tensor seed, int dim, int batch_ndim, float lo, float hi)"
    " -> (Tensor, Tensor)",
    reference=_reference_moments_forward,
    fused=Body("rsample_kl_forward", "hsdbnn", (Output(0, form="o"),), 1),
    density="rsample_kl_forward",
)
_rsample_kl_moments_backward = define(
    "rsample_kl_moments_backward(Tensor grad_z, Tensor grad_kl, Tensor moments, Tensor seed, int dim, int batch_ndim,"
    " float lo, float hi) -> Tensor",
    reference=_reference_moments_backward,
    fused=Body("rsample_kl_backward", "erhsdbnn", (Output(2, form="h"),), 0),
    density="rsample_kl_backward",
)


class Rsample(torch.autograd.Function):
    """Not `differentiable(...)`: the gradient of mu is grad_z itself."""

    @staticmethod
    def forward(ctx, mu, logvar, seed, lo, hi):
        ctx.save_for_backward(logvar, seed)
        ctx.bounds = lo, hi
        return _rsample_forward(mu, logvar, seed, lo, hi)

    @staticmethod
    def backward(ctx, grad_z):
        backward = _rsample_backward.for_grads(grad_z)
        return grad_z, backward(grad_z, *ctx.saved_tensors, *ctx.bounds), None, None, None


RsampleKL = differentiable("RsampleKL", _rsample_kl_forward, _rsample_kl_backward, saved=3)
RsampleKLMoments = differentiable(
    "RsampleKLMoments", _rsample_kl_moments_forward, _rsample_kl_moments_backward, saved=2
)
KLStandardNormal = differentiable(
    "KLStandardNormal", _kl_standard_normal_forward, _kl_standard_normal_backward, saved=2
)
KLNormal = differentiable(
    "KLNormal", _kl_normal_forward, _kl_normal_backward, saved=4, with_gradient=_kl_normal_with_gradient
)


def _pair(mu, logvar, batch_ndim, logvar_bounds):
    """Check mu, logvar and batch_ndim; return the pair in one dtype, and the bounds."""
    if _checks.usual(batch_ndim, "ff", mu, logvar):
        return mu, logvar, *_checks.bounds(logvar_bounds)
    _checks.floating("mu", mu)
    _checks.floating("logvar", logvar)
    _checks.alike("mu", mu, "logvar", logvar)
    _checks.batch_ndim(batch_ndim, mu.ndim)
    if mu.dtype != logvar.dtype:
        dtype = torch.promote_types(mu.dtype, logvar.dtype)
        mu, logvar = mu.to(dtype), logvar.to(dtype)
    return *distinct(mu, logvar), *_checks.bounds(logvar_bounds)


def _eps(like: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    return standard_normal_op.call(seed, like.shape, compute_dtype(like.dtype))


def rsample(mu, logvar, *, seed=None, logvar_bounds=None) -> torch.Tensor:
    """Reparameterised sample z = mu + exp(logvar / 2) * eps, eps ~ N(0, 1) (Kingma and Welling 2014).

    Args:
        mu, logvar: one shape, at least 1-d; float32, float64, float16 or bfloat16 (two different types are promoted
            as `mu + logvar` would be).
        seed: an int, an int64 tensor [2] from `draw_seed`, or None: drawn, so that `torch.manual_seed` rules.
        logvar_bounds: (lo, hi) to clamp logvar to, with gradient zero outside; None for no bound.

    Returns:
        z, contiguous, of mu's shape and type. Half types are computed in float32 and rounded once.

    Gradient: dz/dmu = 1, dz/dlogvar = exp(logvar / 2) * eps / 2, eps made again from the seed.

    Raises:
        TypeError, ValueError: for another shape, type, device, seed or bounds, named in the message.
    """
    mu, logvar, lo, hi = _pair(mu, logvar, 1, logvar_bounds)
    seed = seed_for(mu, seed)
    if transformed():
        return reference.rsample(mu, logvar, _eps(mu, seed), lo, hi)
    return Rsample.apply(mu, logvar, seed, lo, hi)


def rsample_kl(mu, logvar, *, seed=None, batch_ndim: int = 1, logvar_bounds=None) -> tuple[torch.Tensor, torch.Tensor]:
    """`rsample` and `kl_standard_normal` in one pass over mu and logvar.

    Returns:
        (z, kl): z of mu's shape and type; kl of shape mu.shape[:batch_ndim], float32 (float64 for float64 inputs).

    Arguments, gradient and errors as for those two.
    """
    mu, logvar, lo, hi = _pair(mu, logvar, batch_ndim, logvar_bounds)
    seed = seed_for(mu, seed)
    if transformed():
        return reference.rsample_kl(mu, logvar, _eps(mu, seed), batch_ndim, lo, hi)
    return RsampleKL.apply(mu, logvar, seed, batch_ndim, lo, hi)


def rsample_kl_moments(
    moments, dim: int = 1, *, seed=None, batch_ndim: int = 1, logvar_bounds=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rsample_kl` of an encoder's output taken whole: `mu, logvar = moments.chunk(2, dim)`.

    The halves are read in place and the gradient is written as one tensor.

    Args:
        moments: [*batch, *event] with an even size at `dim`, which must be a dimension of the event.
        seed, batch_ndim, logvar_bounds: as for `rsample_kl`.

    Returns:
        (z, kl), where z has half of moments' size at `dim`.
    """
    axis = _checks.halved_dim(moments, dim, batch_ndim)
    lo, hi = _checks.bounds(logvar_bounds)
    seed = seed_for(moments, seed)
    if transformed():
        mu, logvar = moments.chunk(2, axis)
        return reference.rsample_kl(mu, logvar, _eps(mu, seed), batch_ndim, lo, hi)
    return RsampleKLMoments.apply(moments, seed, axis, batch_ndim, lo, hi)


def kl_standard_normal(mu, logvar, *, batch_ndim: int = 1, logvar_bounds=None) -> torch.Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) per sample: sum of (mu^2 + exp(logvar) - 1 - logvar) / 2 over the event.

    Args:
        mu, logvar, logvar_bounds: as for `rsample`.
        batch_ndim: how many leading dimensions are the batch (0: one number for all).

    Returns:
        kl of shape mu.shape[:batch_ndim], in nats; summed in and returned as float32 (float64 for float64 inputs),
        without cancellation near the prior, where mu and logvar are small.

    Gradient: dKL/dmu = mu, dKL/dlogvar = (exp(logvar) - 1) / 2.
    """
    mu, logvar, lo, hi = _pair(mu, logvar, batch_ndim, logvar_bounds)
    if transformed():
        return reference.kl_standard_normal(mu, logvar, batch_ndim, lo, hi)
    return KLStandardNormal.apply(mu, logvar, batch_ndim, lo, hi)


def kl_normal(
    mu_q,
    logvar_q,
    mu_p,
    logvar_p,
    *,
    batch_ndim: int = 1,
    logvar_bounds=None,
    expected_grad: float | None = None,
) -> torch.Tensor:
    """KL(q || p) of diagonal Gaussians per sample, in nats:
    sum of (exp(d) - 1 - d + (mu_q - mu_p)^2 / exp(logvar_p)) / 2 with d = logvar_q - logvar_p.

    Args:
        mu_q, logvar_q, mu_p, logvar_p: shapes that broadcast to one (a prior [D] against a batch [B, D] is read in
            place); types as for `rsample`. All but mu_q may be numbers or 0-d tensors.
        batch_ndim, logvar_bounds: as for `kl_standard_normal`; the bounds hold for both log-variances.
        expected_grad: the gradient per sample that the backward pass will bring, as for `bernoulli_nll`.

    Returns:
        kl of the broadcast shape's first batch_ndim dimensions; float32 (float64 for float64 inputs).

    Gradient: to all four. Equal means are at distance zero however small the variance.
    """
    tensors = mu_q, logvar_q, mu_p, logvar_p
    if not _checks.usual(batch_ndim, "ffff", *tensors):
        tensors = _quadruple(*tensors, batch_ndim)
    lo, hi = _checks.bounds(logvar_bounds)
    if transformed():
        return reference.kl_normal(*tensors, batch_ndim, lo, hi)
    tensors = distinct(*tensors)
    return KLNormal.apply(hint(expected_grad, tensors), *tensors, batch_ndim, lo, hi)


def _quadruple(mu_q, logvar_q, mu_p, logvar_p, batch_ndim):
    """Check the tensors of `kl_normal` and batch_ndim; return them in one shape and dtype."""
    tensors = mu_q, *[parameter(t, mu_q) for t in (logvar_q, mu_p, logvar_p)]
    names = "mu_q", "logvar_q", "mu_p", "logvar_p"
    for name, tensor in zip(names, tensors, strict=True):
        _checks.floating(name, tensor)
    if any([t.shape != mu_q.shape for t in tensors]):
        try:
            tensors = torch.broadcast_tensors(*tensors)
        except RuntimeError:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(names, tensors, strict=True))
            raise ValueError(f"mu_q, logvar_q, mu_p and logvar_p must broadcast to one shape, got {shapes}") from None
    for name, tensor in zip(names[1:], tensors[1:], strict=True):
        _checks.alike("mu_q", tensors[0], name, tensor)
    _checks.batch_ndim(batch_ndim, tensors[0].ndim)
    dtype = functools.reduce(torch.promote_types, [t.dtype for t in tensors])
    return [t if t.dtype == dtype else t.to(dtype) for t in tensors]


_FINITE = ("finite", torch.isfinite)
_gaussian_nll = Likelihood(
    "gaussian_nll", "mu logvar x", terms=reference.gaussian_nll, support=_FINITE, params=("scale",)
)
_squared_error = Likelihood(
    "squared_error", "mu x", terms=reference.squared_error, support=_FINITE, params=("scale", "logvar", "constant")
)


def gaussian_nll(mu, x, logvar, *, weight=None, batch_ndim: int = 1, validate: bool = False) -> torch.Tensor:
    """-log N(x | mu, exp(logvar)) per sample: sum of ((x - mu)^2 / exp(logvar) + logvar + log(2 pi)) / 2, in nats.

    Args:
        mu: [*batch, *event]; float32, float64, float16 or bfloat16.
        x: what broadcasts with mu; bytes (uint8) stand for 0…1, other types are taken as they are.
        logvar: a number, which costs no memory traffic, or a tensor that broadcasts (0-d, [B, 1], per element, …).
        weight: a mask or a weight per element, which broadcasts; an element of weight 0 counts nothing, whatever its
            values. No gradient flows to it.
        batch_ndim: how many leading dimensions are the batch.
        validate: check x (this waits for the device).

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 mu). Densities are not
        probabilities: it may be negative. Where x is mu it is finite however small the variance, where it is not, inf
        at variance 0.

    Gradient: d/dmu = (mu - x) / exp(logvar) = -d/dx, d/dlogvar = (1 - (x - mu)^2 / exp(logvar)) / 2.
    """
    options = {"weight": weight, "batch_ndim": batch_ndim, "validate": validate}
    if isinstance(logvar, (int, float)) and not isinstance(logvar, bool):
        constant = 0.5 * (logvar + math.log(2 * math.pi))
        if logvar == -math.inf:  # beside it a distance counts inf, and the constant is one half of inf - inf
            return _gaussian_nll(mu, parameter(logvar, mu), x, params=(unit_scale(x),), **options)
        return _squared_error(mu, x, params=(unit_scale(x), float(logvar), constant), **options)
    return _gaussian_nll(mu, parameter(logvar, mu), x, params=(unit_scale(x),), **options)


def optimal_sigma_nll(
    mu,
    x,
    *,
    per_sample: bool = False,
    log_sigma_min: float = -6.0,
    weight=None,
    batch_ndim: int = 1,
    validate: bool = False,
    group=None,
) -> torch.Tensor:
    """-log N(x | mu, sigma^2) per sample with the sigma that is best for this batch, the root mean squared error, as in
    the optimal σ-VAE (Rybkin, Daniilidis and Levine 2021, "Simple and Effective VAE Training with Calibrated
    Decoders", section 4.1). It needs no weight beside the KL term.

    The logarithm of the error is softly clipped at log_sigma_min, as in that paper's code:
    log sigma = log_sigma_min + softplus(log rmse - log_sigma_min), which is sigma = rmse + exp(log_sigma_min).

    Args:
        per_sample: one sigma for each sample instead of one for the whole batch.
        log_sigma_min: float.
        mu, x, weight, batch_ndim, validate: as for `gaussian_nll`; the weights count in the mean as well.
        group: of processes, as `torch.distributed.group.WORLD`: sigma is then that of all its ranks' errors, for a
            gradient of the sum of their losses.

    Returns:
        nll of shape [*batch]; float32 (float64 for float64 mu). One pass over mu and x; the rest is PyTorch's
        arithmetic on a number per sample, whose sum over more than 32,767 of them depends on the number of threads.

    Gradient: flows through sigma too. A batch without any error has gradient 0.
    """
    options = {"weight": weight, "batch_ndim": batch_ndim, "validate": validate}
    half_error, count = half_squared_error(mu, x, **options)
    return reference.optimal_sigma_nll(
        half_error, count, *squared_error_total(half_error, count, per_sample, group), log_sigma_min
    )


def squared_error_total(half_error, count, per_sample: bool, group) -> tuple[torch.Tensor, torch.Tensor]:
    """(half the squared error, the number of elements) of which sigma is made."""
    if per_sample:
        return half_error, count
    sums = half_error.sum(), count.sum()
    return sums if group is None else tuple(ranks.total(torch.stack(sums), group))


def half_squared_error(mu, x, *, weight, batch_ndim: int, validate: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(half the squared error, the number of elements or their weight), each [*batch], as `optimal_sigma_nll` takes
    them."""
    params = (unit_scale(x), 0.0, 0.0)
    half_error = _squared_error(mu, x, weight=weight, batch_ndim=batch_ndim, params=params, validate=validate)
    shape = torch.broadcast_shapes(*[t.shape for t in (mu, x, weight) if t is not None])
    if weight is None:
        return half_error, torch.full_like(half_error, math.prod(shape[batch_ndim:]))
    count = weight.to(half_error.dtype).expand(shape)
    return half_error, count.flatten(batch_ndim).sum(-1) if len(shape) > batch_ndim else count
