"""Terms of a whole batch that need no pairs: the sliced Wasserstein distance and DIP-VAE's moments.

Plain PyTorch: a sort of [B, projections] and a product that gives [D, D] leave a kernel nothing to save.
"""

from __future__ import annotations

import torch

from vaefast.ops import _checks, ranks
from vaefast.ops.noise import seed_for, standard_normal
from vaefast.ops.pairs import _points


def sliced_wasserstein(x, y, projections: int = 50, *, seed=None, group=None) -> torch.Tensor:
    """The squared sliced 2-Wasserstein distance of two samples (Kolouri et al. 2019, sliced Wasserstein autoencoder):

        mean over directions θ of the integral over u in [0, 1] of (F_θ(u) - G_θ(u))^2,

    F_θ and G_θ the quantile functions of x·θ and y·θ: for samples of one size, the mean of (x·θ)_(i) - (y·θ)_(i)
    squared, the numbers sorted. θ is uniform on the sphere.

    Args:
        x, y: [B, *event], [C, *event], of D numbers each; float32, float64, float16 or bfloat16. B and C may differ.
        projections: how many directions.
        seed: of the directions, as for `standard_normal`; the same seed gives the same directions everywhere.
        group: of processes, as `torch.distributed.group.WORLD`: x and y are then those of all its ranks together, the
            directions those of its first rank, and every rank computes the whole value. `vaefast.all_gather` says what
            becomes of gradients.

    Returns:
        A 0-d tensor, float32 (float64 where an argument is), computed in that type.

    Gradient: to x and y, each number from the one that it is matched with. Memory grows as (B + C) (D + projections).

    Raises:
        TypeError, ValueError: for arguments that do not fit, named in the message.
    """
    x, y = _points(x=x, y=y)
    _checks.whole("projections", projections, 1)
    seed = seed_for(x, seed)
    if group is not None:
        x, y = (ranks.all_gather(t, group) for t in (x, y))
        seed = ranks.shared_seed(seed, group)
    for name, points in (("x", x), ("y", y)):
        if 0 in points.shape:
            raise ValueError(f"{name} must hold at least one sample of one number, got shape {tuple(points.shape)}")
    directions = standard_normal((projections, x.shape[1]), seed=seed, dtype=x.dtype)
    directions = torch.nn.functional.normalize(directions, dim=1)
    x, y = (_product(points, directions.T).sort(0).values for points in (x, y))  # [B, P], [C, P]
    if len(x) == len(y):
        return (x - y).square().mean()
    # between two steps of either quantile function, in units of 1 / (B C), both are constant
    n, m = len(x), len(y)
    steps = torch.cat([torch.arange(n + 1, device=x.device) * m, torch.arange(1, m, device=x.device) * n]).sort().values
    start, length = steps[:-1], steps.diff().to(x.dtype) / (n * m)
    return (length * (x[start // m] - y[start // n]).square().mean(1)).sum()


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.is_meta:  # torch.autocast takes no such device
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def dip_moments(mu, logvar=None, *, group=None) -> torch.Tensor:
    """The covariance that DIP-VAE draws to the identity (Kumar et al. 2018): [D, D].

    Cov_x[mu(x)], DIP-VAE-I's; with logvar Cov_q[z] = E_x[exp(logvar)] + Cov_x[mu(x)], DIP-VAE-II's. Means are over the
    batch; the covariance's divisor is B.

    Args:
        mu, logvar: [B, *event], of D numbers each; float32, float64, float16 or bfloat16.
        group: of processes, as `torch.distributed.group.WORLD`: the batch is then that of all its ranks, and every
            rank computes the whole value. `vaefast.all_gather` says what becomes of gradients.

    Returns:
        [D, D], float32 (float64 where an argument is), computed in that type.

    Raises:
        TypeError, ValueError: for arguments that do not fit, named in the message.
    """
    tensors = _points(mu=mu) if logvar is None else _points(mu=mu, logvar=logvar)
    for tensor in tensors[1:]:
        _checks.alike("mu", tensors[0], "logvar", tensor)
    if group is not None:
        tensors = [ranks.all_gather(t, group) for t in tensors]
    mu = tensors[0]
    if len(mu) == 0:
        raise ValueError("mu must hold at least one sample, got none")
    mu = mu - mu.mean(0)
    covariance = _product(mu.T, mu) / len(mu)
    return covariance if logvar is None else covariance + tensors[1].exp().mean(0).diag()


def dip_regulariser(
    mu, logvar=None, *, off_diagonal: float = 10.0, diagonal: float = 100.0, group=None
) -> torch.Tensor:
    """off_diagonal sum_{i != j} C_ij^2 + diagonal sum_i (C_ii - 1)^2, C of `dip_moments` (Kumar et al. 2018).

    Args:
        mu, logvar, group: as for `dip_moments`.
        off_diagonal, diagonal: the weights. The authors take diagonal = 10 off_diagonal for I and equal ones for II.

    Returns:
        A 0-d tensor, float32 (float64 where an argument is).
    """
    _checks.number("off_diagonal", off_diagonal)
    _checks.number("diagonal", diagonal)
    covariance = dip_moments(mu, logvar, group=group)
    variances = covariance.diagonal()
    others = covariance - variances.diag()
    return off_diagonal * others.square().sum() + diagonal * (variances - 1).square().sum()
