"""Terms of every pair of two sets of points, in plain PyTorch: the [I, J, D] tensors that the `pairs` walk never holds.

i is a row, j a col, d a dimension; the tensors are float32 or float64.
"""

from __future__ import annotations

import math

import torch

from vaefast.reference.gaussian import _product


def _log_sum_exp(x: torch.Tensor, dim: int) -> torch.Tensor:
    """log sum exp(x); -inf with gradient 0, where torch.logsumexp's is NaN, where every x is -inf."""
    largest = torch.finfo(x.dtype).max
    top = x.detach().amax(dim, keepdim=True).clamp(-largest, largest)
    total = torch.exp(x - top).sum(dim)
    nothing = total == 0
    return torch.where(nothing, -math.inf, torch.log(torch.where(nothing, 1, total)) + top.squeeze(dim))


def _share(x: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
    """exp(x - log_sum): the gradient of log sum exp(x); 0 where the sum is of nothing."""
    largest = torch.finfo(x.dtype).max
    return torch.exp(x - log_sum.clamp(min=-largest))


def _distance(z, mu, logvar):
    """(z - mu) / sigma: [I, J, D]."""
    largest = torch.finfo(z.dtype).max
    return (z[:, None] - mu) * torch.exp(-0.5 * logvar).clamp(max=largest)


def _log_density(u, logvar):
    """log N(z | mu, exp(logvar)) of u = (z - mu) / sigma: [I, J, D]."""
    return -0.5 * (u * u + logvar + math.log(2 * math.pi))


def _pull(slope, u, logvar):
    """The gradients of z, mu and logvar, from `slope`, that of the log densities: [I, J, D]."""
    largest = torch.finfo(u.dtype).max
    u = u.clamp(-largest, largest)
    pull = _product(slope, u) * torch.exp(-0.5 * logvar).clamp(max=largest)
    return -pull.sum(1), pull.sum(0), 0.5 * _product(slope, u * u - 1).sum(0)


def mixture_log_prob(z, mu, logvar, log_weights):
    """log sum_j exp(log_weights_j) N(z_i | mu_j, exp(logvar_j)): [I]."""
    return _log_sum_exp(log_weights + _log_density(_distance(z, mu, logvar), logvar).sum(-1), 1)


def mixture_log_prob_backward(grad, z, mu, logvar, log_weights, log_prob):
    """With p_ij = component j's share of sample i: each component's gradient, by grad_i p_ij."""
    u = _distance(z, mu, logvar)
    slope = grad[:, None] * _share(log_weights + _log_density(u, logvar).sum(-1), log_prob[:, None])
    return *_pull(slope[..., None].expand_as(u), u, logvar), slope.sum(0)


def pair_log_weights(z, mu, every, own, next_, first):
    """[I, J]: every, plus own at (i, first + i), plus next_ at (i, first + i + 1 mod J)."""
    col = torch.arange(len(mu), device=z.device)
    own_col = first + torch.arange(len(z), device=z.device)[:, None]
    is_own, is_next = (col == own_col).to(z.dtype), (col == (own_col + 1) % len(mu)).to(z.dtype)
    return every + own * is_own + next_ * is_next


def total_correlation(z, mu, logvar, every, own, next_, first):
    """log q(z_i) = log sum_j w_ij prod_d q(z_id | x_j): [I]; and of each dimension on its own: [I, D]."""
    terms = _log_density(_distance(z, mu, logvar), logvar)
    weights = pair_log_weights(z, mu, every, own, next_, first)
    return _log_sum_exp(weights + terms.sum(-1), 1), _log_sum_exp(weights[..., None] + terms, 1)


def total_correlation_backward(grad, grads, z, mu, logvar, log_q, log_qs, every, own, next_, first):
    """Each pair's gradient by its share of log q(z_i), and of log q(z_id)."""
    u = _distance(z, mu, logvar)
    terms = _log_density(u, logvar)
    weights = pair_log_weights(z, mu, every, own, next_, first)
    whole = grad[:, None] * _share(weights + terms.sum(-1), log_q[:, None])
    slope = whole[..., None] + grads[:, None] * _share(weights[..., None] + terms, log_qs[:, None])
    return _pull(slope, u, logvar)


def _imq(q, scale):
    """Value and derivative of scale / (scale + q)."""
    term = scale / (scale + q)
    return term, -term / (scale + q)


def _rbf(q, scale):
    """Value and derivative of exp(-q / scale)."""
    term = torch.exp(-q / scale)
    return term, -term / scale


KERNELS = {"imq": _imq, "rbf": _rbf}


def mmd_means(x, y, unbiased):
    """The three means of kernels: ((a, b, the weight of a pair, what (i, i) has beyond that in such weights), …)."""
    n, m = len(x), len(y)
    own = -1 if unbiased else 0
    return (x, x, 1 / (n * (n + own)), own), (y, y, 1 / (m * (m + own)), own), (x, y, -2 / (n * m), 0)


def _pairs(kernel, which, a, b, weight, own, scales):
    """The weighted kernels of a's and b's points, or their derivatives by |a - b|^2: [I, J]."""
    q = (a[:, None] - b).square().sum(-1)
    total = sum(KERNELS[kernel](q, scale)[which] for scale in scales)
    return total * weight * (1 + own * torch.eye(*q.shape, dtype=q.dtype, device=q.device))


def mmd(kernel, x, y, scales, unbiased):
    """mean k(x, x') + mean k(y, y') - 2 mean k(x, y): a number."""
    return sum(_pairs(kernel, 0, *mean, scales).sum() for mean in mmd_means(x, y, unbiased))


def mmd_backward(kernel, grad, x, y, scales, unbiased, wanted):
    """Each pair pulls its points along the line between them."""
    pulls = []
    for a, b, *weights in mmd_means(x, y, unbiased):
        slope = grad * _pairs(kernel, 1, a, b, *weights, scales)
        pull = 2 * slope[..., None] * (a[:, None] - b)
        pulls.append((pull.sum(1), -pull.sum(0)))
    (xx, of_xx), (yy, of_yy), (xy, of_xy) = pulls
    grads = xx + of_xx + xy, yy + of_yy + of_xy
    return tuple([g if want else g.new_empty(0) for g, want in zip(grads, wanted, strict=True)])


def mmd_with_gradient(kernel, x, y, scales, unbiased, wanted):
    """The number, and its gradients."""
    value = mmd(kernel, x, y, scales, unbiased)
    return value, *mmd_backward(kernel, torch.ones_like(value), x, y, scales, unbiased, wanted)
