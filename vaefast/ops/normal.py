"""The normal distribution by location and scale: what `vaefast.patch` puts under torch.distributions.Normal."""

from __future__ import annotations

import torch

from vaefast.ops._define import define_rows, differentiable, transformed
from vaefast.ops.gaussian import _eps
from vaefast.ops.noise import draw_seed
from vaefast.reference import normal as reference

_rsample_forward = define_rows("normal_rsample_forward", "loc scale seed", like="loc", reference=reference.rsample)
_rsample_backward = define_rows(
    "normal_rsample_backward", "grad_z seed", like="grad_z", reference=reference.rsample_backward
)
_kl_forward = define_rows("normal_kl_forward", "loc_q scale_q loc_p scale_p", like="loc_q", reference=reference.kl)
_kl_backward = define_rows(
    "normal_kl_backward",
    "grad_kl loc_q scale_q loc_p scale_p",
    like="loc_q scale_q loc_p scale_p",
    reference=reference.kl_backward,
)
NormalKL = differentiable("NormalKL", _kl_forward, _kl_backward, saved=4)


class NormalRsample(torch.autograd.Function):
    """Not `differentiable(...)`: the gradient of loc is grad_z itself, and the seed is all that is saved."""

    @staticmethod
    def forward(ctx, loc, scale, seed):
        ctx.save_for_backward(seed)
        return _rsample_forward(loc, scale, seed)

    @staticmethod
    def backward(ctx, grad_z):
        return grad_z, _rsample_backward.for_grads(grad_z)(grad_z, *ctx.saved_tensors), None


def normal_rsample(loc, scale) -> torch.Tensor:
    """loc + scale eps, for loc and scale of one shape and type; the noise is not stored."""
    seed = draw_seed(loc.device)
    if transformed():
        return reference.rsample(loc, scale, _eps(loc, seed))
    return NormalRsample.apply(loc, scale, seed)


def normal_kl(loc_q, scale_q, loc_p, scale_p) -> torch.Tensor:
    """Elementwise KL(N(loc_q, scale_q) || N(loc_p, scale_p)), for tensors of one shape and type."""
    if transformed():
        return reference.kl(loc_q, scale_q, loc_p, scale_p)
    return NormalKL.apply(loc_q, scale_q, loc_p, scale_p)
