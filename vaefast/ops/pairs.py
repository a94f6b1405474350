"""Terms of every pair of two sets of points, streamed: mixtures, the total correlation, the maximum mean discrepancy.

Forward and backward take memory that grows as the points do, not as their pairs. Half types are computed in float32,
and their gradients rounded once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.compiler import is_compiling

from vaefast.ops import _checks, ranks
from vaefast.ops._body import empty_like
from vaefast.ops._define import define, differentiable, distinct, transformed
from vaefast.ops.gaussian import gaussian_nll
from vaefast.reference import pairs as reference
from vaefast.reference.gaussian import compute_dtype

# The walk is called with (points, centres, logvar, log_weights, value, values, the gradients of those two, the
# gradients of the first four), None for what a density does not have; then with what is added to the weights of pairs,
# with the density's own numbers, with whether centres are the points (then the first gradient is that of both), and
# with the col that is the first row's own.
_NONE = (None,) * 4


def _contiguous(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.contiguous() for t in tensors]


def _fused_mixture(walk, *inputs):
    log_prob = inputs[0].new_empty(inputs[0].shape[:1])
    walk("mixture_log_prob_forward", (*_contiguous(*inputs), log_prob, None, None, None, *_NONE))
    return log_prob


def _fused_mixture_backward(walk, grad, *saved):
    grad, *inputs, log_prob = _contiguous(grad, *saved)
    grads = tuple(map(empty_like, inputs))
    walk("mixture_log_prob_backward", (*inputs, log_prob, None, grad, None, *grads))
    return grads


def _fused_total_correlation(walk, z, mu, logvar, every, own, next_, first):
    log_q, log_qs = z.new_empty(z.shape[:1]), empty_like(z)
    tensors = (*_contiguous(z, mu, logvar), None, log_q, log_qs, None, None, *_NONE)
    walk("total_correlation_forward", tensors, every, own, next_, first=first)
    return log_q, log_qs


def _fused_total_correlation_backward(walk, *args):
    grad, grads, *inputs, log_q, log_qs = _contiguous(*args[:7])
    result = tuple(map(empty_like, inputs))
    tensors = (*inputs, None, log_q, log_qs, grad, grads, *result, None)
    walk("total_correlation_backward", tensors, *args[7:10], first=args[10])
    return result


_SUM = 32767  # numbers that PyTorch adds up in one thread, however many there are


def _fused_mmd(kernel, walk, x, y, scales, unbiased, wanted):
    x, y = _contiguous(x, y)
    grads = [empty_like(t) if want else None for t, want in zip((x, y), wanted, strict=True)]

    same_x, same_y, between = reference.mmd_means(x, y, unbiased)
    sums = x.new_empty(2 * len(x) + len(y))  # one for each row of the three
    ones = torch.ones_like(sums) if any(wanted) else None

    def add(mean, at, symmetric, grad_a, grad_b):
        a, b, weight, own = mean
        grad = None if grad_a is None and grad_b is None else ones
        tensors = a, b, None, None, sums[at : at + len(a)], None, grad, None, grad_a, grad_b, None, None
        density = f"{kernel}_mmd_{'forward' if grad is None else 'backward'}"
        walk(density, tensors, weight, own * weight, 0, tuple(scales), symmetric)

    add(between, 0, False, *grads)
    for mean, at, grad in zip((same_x, same_y), (len(x), 2 * len(x)), grads, strict=True):
        part = None if grad is None else empty_like(grad)
        add(mean, at, True, part, None)
        if grad is not None:
            grad.add_(part)
    # the means cancel
    parts = sums.split(_SUM) if len(sums) > _SUM else (sums,)
    value = functools.reduce(torch.add, [part.sum(dtype=torch.float64) for part in parts])
    return value.to(x.dtype), *[x.new_empty(0) if g is None else g for g in grads]


_INPUTS = "Tensor z, Tensor mu, Tensor logvar"
_WEIGHTS = "float every, float own, float next, int first"
_mixture_forward = define(
    f"mixture_log_prob_forward({_INPUTS}, Tensor log_weights) -> Tensor",
    walk="pairs",
    reference=reference.mixture_log_prob,
    fused=_fused_mixture,
)
_mixture_backward = define(
    f"mixture_log_prob_backward(Tensor grad, {_INPUTS}, Tensor log_weights, Tensor log_prob)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    walk="pairs",
    reference=reference.mixture_log_prob_backward,
    fused=_fused_mixture_backward,
)
MixtureLogProb = differentiable("MixtureLogProb", _mixture_forward, _mixture_backward, saved=4, results=True)

_total_correlation_forward = define(
    f"total_correlation_forward({_INPUTS}, {_WEIGHTS}) -> (Tensor, Tensor)",
    walk="pairs",
    reference=reference.total_correlation,
    fused=_fused_total_correlation,
)
_total_correlation_backward = define(
    f"total_correlation_backward(Tensor grad, Tensor grads, {_INPUTS}, Tensor log_q, Tensor log_qs, {_WEIGHTS})"
    " -> (Tensor, Tensor, Tensor)",
    walk="pairs",
    reference=reference.total_correlation_backward,
    fused=_fused_total_correlation_backward,
)
AggregatePosterior = differentiable(
    "AggregatePosterior", _total_correlation_forward, _total_correlation_backward, saved=3, results=True
)


def _define_mmd(kernel: str) -> type[torch.autograd.Function]:
    """`<kernel>_mmd`, the value with its gradients (tensors of no elements where not wanted), and its Function."""
    op = define(
        f"{kernel}_mmd(Tensor x, Tensor y, float[] scales, bool unbiased, bool[] wanted) -> (Tensor, Tensor, Tensor)",
        walk="pairs",
        density=f"{kernel}_mmd_backward",
        reference=functools.partial(reference.mmd_with_gradient, kernel),
        fused=functools.partial(_fused_mmd, kernel),
    )

    class MMD(torch.autograd.Function):
        """Not `differentiable(...)`: the value is a number, so its gradient is made beside it, up to a factor."""

        @staticmethod
        def forward(ctx, x, y, scales, unbiased, wanted):
            value, *grads = op(x, y, scales, unbiased, wanted)
            ctx.save_for_backward(x, y, *grads)
            ctx.constants = scales, unbiased
            return value

        @staticmethod
        def backward(ctx, grad):
            x, y, *grads = ctx.saved_tensors
            wanted = ctx.needs_input_grad[:2]
            if torch.is_grad_enabled() and not is_compiling():  # create_graph=True: plain PyTorch is differentiated on
                grads = reference.mmd_backward(kernel, grad, x, y, *ctx.constants, wanted)
            else:
                grads = [grad * g if want else g for g, want in zip(grads, wanted, strict=True)]
            return *[g if want else None for g, want in zip(grads, wanted, strict=True)], None, None, None

    return MMD


_MMD = {kernel: _define_mmd(kernel) for kernel in reference.KERNELS}
_SCALES = {"imq": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), "rbf": (1.0,)}


def _points(**tensors) -> list[torch.Tensor]:
    """Tensors [*, *event] of one event, on one device, as [*, D] in one type to compute in."""
    for name, tensor in tensors.items():
        _checks.floating(name, tensor)
    first, *others = tensors.items()
    for name, tensor in others:
        if tensor.shape[1:] != first[1].shape[1:]:
            event, got = tuple(first[1].shape[1:]), tuple(tensor.shape[1:])
            raise ValueError(f"{name} must have {first[0]}'s event shape {event}, got {got}")
        if tensor.device != first[1].device:
            raise ValueError(f"{name} must be on {first[0]}'s device {first[1].device}, got {tensor.device}")
    dtype = compute_dtype(functools.reduce(torch.promote_types, [t.dtype for t in tensors.values()]))
    whole = distinct(*[t.to(dtype) for t in tensors.values()])
    return [t if t.ndim == 2 else t.reshape(len(t), math.prod(t.shape[1:])) for t in whole]


def mixture_log_prob(z, mu_k, logvar_k, log_weights=None, *, group=None) -> torch.Tensor:
    """log sum_k w_k N(z | mu_k, exp(logvar_k)) per sample, in nats: a mixture prior, the VampPrior (Tomczak and Welling
    2018, equation 9, with the encoder's mu and logvar of the pseudo-inputs), or the aggregate posterior of a data set.

    Args:
        z: [B, *event]; float32, float64, float16 or bfloat16.
        mu_k, logvar_k: [K, *event], K at least 1.
        log_weights: [K], log w_k as they are, not normalised; -inf leaves a component out. None: all are 1 / K.
        group: of processes, as `torch.distributed.group.WORLD`: the components of all its ranks make one mixture, K
            being their number; each rank asks for its own z. `vaefast.all_gather` says what becomes of gradients.

    Returns:
        [B], float32 (float64 where an argument is). -inf, with gradient 0, where every w_k is 0.

    Gradient: to all arguments. With p_k = the share of component k, d/dz = sum_k p_k (mu_k - z) / exp(logvar_k), and
    d/dlog_weights = p_k. Memory grows as (B + K) D, never as B K.

    Raises:
        TypeError, ValueError: for arguments that do not fit, named in the message.
    """
    z, mu, logvar = _points(z=z, mu_k=mu_k, logvar_k=logvar_k)
    _checks.alike("mu_k", mu, "logvar_k", logvar)
    if log_weights is not None:
        _checks.floating("log_weights", log_weights)
        if log_weights.shape != mu.shape[:1]:
            raise ValueError(f"log_weights must have shape ({len(mu)},), got {tuple(log_weights.shape)}")
        if log_weights.device != mu.device:
            raise ValueError(f"log_weights must be on z's device {z.device}, got {log_weights.device}")
        log_weights = log_weights.to(mu.dtype)
    if group is not None:
        where = ranks.layout(mu, group)
        mu, logvar = _gather_together(where, mu, logvar)
        log_weights = None if log_weights is None else ranks.Gather.apply(log_weights, where)
    if len(mu) == 0:
        raise ValueError("mu_k must hold at least one component, got none")
    if log_weights is None:
        log_weights = mu.new_full(mu.shape[:1], -math.log(len(mu)))
    if transformed():
        return reference.mixture_log_prob(z, mu, logvar, log_weights)
    return MixtureLogProb.apply(z, mu, logvar, log_weights)


def _gather_together(where: ranks.Layout, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All ranks' rows of two [b, D], in one message."""
    return ranks.Gather.apply(torch.cat([a, b], 1), where).tensor_split(2, 1)


class TotalCorrelation(NamedTuple):
    """KL(q(z | x) || p(z)) in three parts, each [B], whose mean over the batch estimates the part."""

    mutual_information: torch.Tensor
    total_correlation: torch.Tensor
    dimension_kl: torch.Tensor


def total_correlation(z, mu, logvar, dataset_size: int, *, estimator: str = "weighted", group=None) -> TotalCorrelation:
    """The β-TCVAE's parts of the KL divergence to N(0, 1) (Chen et al. 2018, equation 2), per sample, in nats:

        mutual_information = log q(z_i | x_i) - log q(z_i)
        total_correlation  = log q(z_i) - sum_d log q(z_id)
        dimension_kl       = sum_d log q(z_id) - log p(z_i)

    with q(z_i) estimated by sum_j w_ij q(z_i | x_j) over the batch, and q(z_id) likewise. They add up to
    log q(z | x) - log p(z). The loss is reconstruction + MI + β TC + dimension KL.

    Args:
        z, mu, logvar: [B, *event], z ~ N(mu, exp(logvar)); float32, float64, float16 or bfloat16.
        dataset_size: N, of the data that the batch is drawn from, at least B.
        estimator: "weighted": w_ij = 1 / (B N) (ibid., equation 3), biased: q(z) comes too small.
            "stratified": with M = B - 1, w_ii = 1 / N, w_ij = (N - M) / (N M) for j = i + 1 (the last sample's is the
            first), else 1 / M (ibid., appendix C.2): q(z) is unbiased. B is at least 2. The authors' code, and what
            was copied from it, gives the first two weights to the columns 0 and 1 instead.

    Returns:
        A named tuple of [B], float32 (float64 where an argument is).

    Gradient: to z, mu and logvar, each of which takes part in B^2 pairs; memory grows as B D, never as B^2.

    Raises:
        TypeError, ValueError: for arguments that do not fit, named in the message.
    """
    tensors = _points(z=z, mu=mu, logvar=logvar)
    _checks.alike("z", tensors[0], "mu", tensors[1])
    _checks.alike("z", tensors[0], "logvar", tensors[2])
    z, mu, logvar = tensors
    first, others = 0, (mu, logvar)
    if group is not None:
        where = ranks.layout(z, group)
        first, others = where.first, _gather_together(where, mu, logvar)
    weights = _pair_weights(len(others[0]), dataset_size, estimator)
    log_q, log_qs = aggregate_posterior(z, *others, *weights, first)
    log_conditional, log_prior = -gaussian_nll(mu, z, logvar), -gaussian_nll(z, z.new_zeros(1), 0.0)
    log_product = log_qs.sum(1)
    return TotalCorrelation(log_conditional - log_q, log_q - log_product, log_product - log_prior)


def aggregate_posterior(z, mu, logvar, every=0.0, own=0.0, next_=0.0, first=0) -> tuple[torch.Tensor, torch.Tensor]:
    """log sum_j w_ij q(z_i | x_j), [I], and of each dimension on its own, [I, D], for z [I, D], mu and logvar [J, D] of
    one type to compute in; log w_ij = every, plus own for j = first + i, plus next_ for j = first + i + 1 mod J."""
    arguments = z, mu, logvar, every, own, next_, first
    return reference.total_correlation(*arguments) if transformed() else AggregatePosterior.apply(*arguments)


def _pair_weights(batch: int, dataset_size: int, estimator: str) -> tuple[float, float, float]:
    """Log weights: of every pair, and what (i, i) and (i, i + 1) have beyond it."""
    _checks.whole("dataset_size", dataset_size)
    least = {"weighted": 1, "stratified": 2}
    if estimator not in least:
        raise ValueError(f"estimator must be 'weighted' or 'stratified', got {estimator!r}")
    if batch < least[estimator]:
        raise ValueError(f"z must hold at least {least[estimator]} samples for {estimator!r}, got {batch}")
    if dataset_size < batch:
        raise ValueError(f"dataset_size must be at least the batch's {batch} samples, got {dataset_size}")
    if estimator == "weighted":
        return -math.log(batch * dataset_size), 0.0, 0.0
    others = batch - 1
    return -math.log(others), math.log(others / dataset_size), math.log((dataset_size - others) / dataset_size)


def mmd(
    x, y, kernel: str = "imq", scales: Sequence[float] | None = None, *, unbiased: bool = True, group=None
) -> torch.Tensor:
    """The squared maximum mean discrepancy of two samples (Gretton et al. 2012):
    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), as in WAE-MMD (Tolstikhin et al. 2018) and InfoVAE.

    Args:
        x, y: [B, *event], [C, *event]; of D numbers each; float32, float64, float16 or bfloat16.
        kernel: "imq": sum over s of c / (c + |x - y|^2); "rbf": of exp(-|x - y|^2 / c), where c = 2 D s. All scales in
            one walk.
        scales: s, positive; by default 0.1, 0.2, 0.5, 1, 2, 5, 10 for "imq" and 1 for "rbf".
        unbiased: leave k(x_i, x_i) out (ibid., equation 3), which takes two of each and may be below 0; else the means
            are over all pairs (equation 5).
        group: of processes, as `torch.distributed.group.WORLD`: x and y are then those of all its ranks together, and
            every rank computes the whole value. `vaefast.all_gather` says what becomes of gradients.

    Returns:
        A 0-d tensor, float32 (float64 where an argument is). Near 0 the means cancel: its error is that of the means.

    Gradient: to x and y. Memory grows as (B + C) D, never as B C.

    Raises:
        TypeError, ValueError: for arguments that do not fit, named in the message.
    """
    if kernel not in _MMD:
        raise ValueError(f"kernel must be {' or '.join(map(repr, _MMD))}, got {kernel!r}")
    try:
        scales = tuple(map(float, _SCALES[kernel] if scales is None else scales))
    except (TypeError, ValueError):
        raise TypeError(f"scales must be a sequence of numbers, got {scales!r}") from None
    if not scales or not all(0 < s < math.inf for s in scales):
        raise ValueError(f"scales must be positive numbers, at least one, got {scales!r}")
    points = dict(zip("xy", _points(x=x, y=y), strict=True))
    if group is not None:
        points = {name: ranks.all_gather(p, group) for name, p in points.items()}
    for name, p in points.items():
        if len(p) < 1 + unbiased:
            raise ValueError(f"{name} must hold at least {1 + unbiased} samples, got {len(p)}")
        if p.shape[1] == 0:
            raise ValueError(f"{name} must have at least one number a sample, got shape {tuple(p.shape)}")
    x, y = points.values()
    scales = tuple([2 * x.shape[1] * s for s in scales])
    if transformed():
        return reference.mmd(kernel, x, y, scales, unbiased)
    wanted = [torch.is_grad_enabled() and t.requires_grad for t in (x, y)]
    return _MMD[kernel].apply(x, y, scales, unbiased, wanted)
