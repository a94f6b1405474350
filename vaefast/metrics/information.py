"""What codes tell of data and of its factors: the aggregate posterior q(z) = 1/N sum_n q(z | x_n) of a whole data set.

Every figure is a mean over samples of q(z) of log-densities that are exact, sums over all N posteriors, streamed: S
samples of D numbers cost S N D exponentials and memory of S D.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from vaefast.ops import _checks, gaussian_nll, rsample
from vaefast.ops.noise import seed_for
from vaefast.ops.pairs import _points, aggregate_posterior

_ROWS = 1024  # samples that one call of the walk takes


def aggregate_log_prob(
    z, mean, logvar, *, chunk: int = 16_384, on_chunk: Callable[[int], None] = lambda pairs: None
) -> tuple[torch.Tensor, torch.Tensor]:
    """log q(z) and log q(z_d), q(z) = 1/N sum_n N(z | mean_n, exp(logvar_n)), in one pass and without gradients.

    Args:
        z: [S, *event]; float32, float64, float16 or bfloat16.
        mean, logvar: [N, *event], of D numbers each.
        chunk: how many posteriors are taken at a time; their sums are added in float64. Beside what it is given and
            returns, a call takes 16 bytes a number of a chunk, for float32 on a CPU.
        on_chunk: told now and then how many pairs of z and n have been taken since.

    Returns:
        (log q(z) [S], log q(z_d) [S, D]), float64.

    Raises:
        TypeError, ValueError: for arguments that do not fit, named in the message.
    """
    z, mean, logvar = _points(z=z, mean=mean, logvar=logvar)
    _checks.alike("mean", mean, "logvar", logvar)
    if len(mean) == 0:
        raise ValueError("mean must hold at least one posterior, got none")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    results = tuple([z.new_full(shape, -math.inf, dtype=torch.float64) for shape in (z.shape[:1], z.shape)])
    with torch.no_grad():
        for among in zip(mean.split(chunk), logvar.split(chunk), strict=True):
            for first in range(0, len(z), _ROWS):
                rows = slice(first, first + _ROWS)
                found = aggregate_posterior(z[rows], *among, -math.log(len(mean)))
                for result, part in zip(results, found, strict=True):
                    result[rows] = torch.logaddexp(result[rows], part.double())
                on_chunk(len(z[rows]) * len(among[0]))
    return results


class Information(NamedTuple):
    """What `information` found, in nats.

    mutual_information: I(x; z), at most log N.
    total_correlation: KL(q(z) || prod_d q(z_d)).
    marginal_kl: KL(q(z) || p(z)), p(z) = N(0, I) (Hoffman and Johnson 2016): total_correlation + dimension_kl's sum.
    dimension_kl: [D], KL(q(z_d) || p(z_d)).
    entropy: [D], H(z_d), differential.
    error: the standard error of mutual_information, over the samples.

    Of factors, else None:
    factor_entropy: [K], H(v_k).
    factor_information: [K, D], I(z_d; v_k).
    gap: [K], how much more the best dimension tells of v_k than the second does, as a share of H(v_k).
    mig: the mean of gap, from 0 to 1: the mutual information gap (Chen et al. 2018, section 4).
    """

    mutual_information: float
    total_correlation: float
    marginal_kl: float
    dimension_kl: torch.Tensor
    entropy: torch.Tensor
    error: float
    factor_entropy: torch.Tensor | None = None
    factor_information: torch.Tensor | None = None
    gap: torch.Tensor | None = None
    mig: float | None = None


def information(
    mean,
    logvar,
    factors=None,
    *,
    samples: int = 10_000,
    chunk: int = 16_384,
    seed: int | torch.Tensor | None = None,
    progress: bool = False,
) -> Information:
    """Mutual information of data and codes, the KL of the aggregate posterior, and of known factors the MIG.

    The samples are z ~ q(z | x_n) of so many x_n drawn without replacement, 10,000 as in the MIG's published code.
    I(z_d; v_k) is the mean over them of log q(z_d | v_k) - log q(z_d), q(z_d | v_k) the mixture of the x_n that share
    the sample's v_k. The published code takes 10,000 samples for each value of each factor instead: the same quantity
    at 6 times the work in place of 1.6 on dSprites, and without the difference's pairing, which takes out most of its
    noise.

    Args:
        mean, logvar: [N, *event], the moments of q(z | x_n) of a whole data set.
        factors: [N, K], integers, each column with at least two values; z then has at least two dimensions.
        samples: at least 1; more than N are N.
        chunk: as for `aggregate_log_prob`.
        seed: of the samples, as for `vaefast.rsample`.
        progress: show a bar (tqdm).

    Returns:
        Information; its tensors are float64, on mean's device.

    Raises:
        TypeError, ValueError: for arguments that do not fit, named in the message.
    """
    mean, logvar = (t.detach() for t in _points(mean=mean, logvar=logvar))
    _checks.alike("mean", mean, "logvar", logvar)
    for name, value in (("mean's length", len(mean)), ("samples", samples)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    groups = [] if factors is None else _groups(factors, mean)
    seed = seed_for(mean, seed)
    order = torch.randperm(len(mean), generator=torch.Generator().manual_seed(int(seed[0]))).to(mean.device)
    chosen = order[:samples]
    z = rsample(mean[chosen], logvar[chosen], seed=seed)
    sizes = [group.bincount() for group in groups]
    alike = sum(int(n[group[chosen]].sum()) for group, n in zip(groups, sizes, strict=True))
    with _bar(len(z) * len(mean) + alike, progress) as on_chunk:
        log_q, log_qs = aggregate_log_prob(z, mean, logvar, chunk=chunk, on_chunk=on_chunk)
        told = [
            (_log_conditional(z, group[chosen], mean, logvar, group, chunk, on_chunk) - log_qs).mean(0)
            for group in groups
        ]
    log_ps = -0.5 * (z.double().square() + math.log(2 * math.pi))
    gained = -gaussian_nll(mean[chosen], z, logvar[chosen]).double() - log_q
    found = Information(
        mutual_information=gained.mean().item(),
        total_correlation=(log_q - log_qs.sum(1)).mean().item(),
        marginal_kl=(log_q - log_ps.sum(1)).mean().item(),
        dimension_kl=(log_qs - log_ps).mean(0),
        entropy=-log_qs.mean(0),
        error=gained.std(correction=0).item() / math.sqrt(len(z)),
    )
    if not groups:
        return found
    share = [n / n.sum(dtype=torch.float64) for n in sizes]
    entropy = torch.stack([-torch.special.xlogy(p, p).sum() for p in share])
    told = torch.stack(told)
    best = told.clamp(min=0).topk(2).values  # an estimate of nothing may lie below 0
    gap = (best[:, 0] - best[:, 1]) / entropy
    return found._replace(factor_entropy=entropy, factor_information=told, gap=gap, mig=gap.mean().item())


def mig(mean, logvar, factors, **options) -> float:
    """The mutual information gap alone; all as for `information`."""
    return information(mean, logvar, factors, **options).mig


def _groups(factors: torch.Tensor, mean: torch.Tensor) -> list[torch.Tensor]:
    """For each factor, which of its values each x_n has, from 0."""
    if not isinstance(factors, torch.Tensor) or factors.is_floating_point() or factors.is_complex():
        got = factors.dtype if isinstance(factors, torch.Tensor) else type(factors).__name__
        raise TypeError(f"factors must be a tensor of integers, got {got}")
    if factors.ndim != 2 or len(factors) != len(mean) or factors.shape[1] == 0:
        raise ValueError(f"factors must have shape ({len(mean)}, K), K at least 1, got {tuple(factors.shape)}")
    if mean.shape[1] < 2:
        raise ValueError("mean must have at least two dimensions for a gap between them, got one")
    groups = [column.unique(return_inverse=True)[1] for column in factors.to(mean.device).unbind(1)]
    for k, group in enumerate(groups):
        if not group.any():
            raise ValueError(f"factors must take at least two values each, column {k} takes one")
    return groups


def _log_conditional(z, of_z, mean, logvar, group, chunk, on_chunk) -> torch.Tensor:
    """log q(z_d | v), v the value that each z's own x has: [S, D]."""
    result = z.new_empty(z.shape, dtype=torch.float64)
    for value in of_z.unique():
        asked, among = of_z == value, group == value
        _, log_qs = aggregate_log_prob(z[asked], mean[among], logvar[among], chunk=chunk, on_chunk=on_chunk)
        result[asked] = log_qs
    return result


@contextlib.contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """What counts pairs, in a bar where one is wanted."""
    if not shown:
        yield lambda pairs: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="pair", unit_scale=True, dynamic_ncols=True) as bar:
        yield bar.update
