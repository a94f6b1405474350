"""Whether each latent dimension stands for one known factor of the data (see `information` for the MIG).

Factors are integers [N, K], such as the generated sprites' shape, scale, orientation and place. scikit-learn fits what
has to be fitted: `pip install "vaefast[metrics]"`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from vaefast.metrics import estimate
from vaefast.metrics.estimate import Estimate

_HELD_OUT_EVERY = 5


class DCI(NamedTuple):
    """The three scores, and importance [D, K] of each latent dimension for each factor, columns summing to 1."""

    disentanglement: Estimate
    completeness: Estimate
    informativeness: Estimate
    importance: torch.Tensor


def dci(latents: torch.Tensor, factors: torch.Tensor, *, trees: int = 50, seed: int = 0) -> DCI:
    """Disentanglement, completeness and informativeness.

    Random forests predict each factor k from all latents; R[d, k] is dimension d's importance.

        disentanglement  sum_d w_d (1 - H_K(R[d] / sum R[d])),  w_d = sum_k R[d, k] / sum R
        completeness     mean_k (1 - H_D(R[:, k]))
        informativeness  mean_k accuracy on the fifth of the rows that the forests did not see

    H_K is the entropy to base K. Range 0...1, higher is better. Intervals: over the dimensions, the factors, and the
    rows held out. Eastwood and Williams 2018 (ICLR, "A framework for the quantitative evaluation of disentangled
    representations"), section 2, with accuracy in place of the error.

    Blind to a rotation within one factor: two dimensions that share a factor lower completeness alone.

    Args:
        latents: means of q(z | x), [N, D].
        factors: integers [N, K].

    Raises:
        ValueError: for shapes that do not fit.
    """
    from sklearn.ensemble import RandomForestClassifier

    z, y = _checked(latents, factors)
    held_out = torch.arange(len(z)) % _HELD_OUT_EVERY == 0
    columns, right = [], []
    for k in range(y.shape[1]):
        # every split sees every dimension: forests that see a few give importance to those that say nothing
        forest = RandomForestClassifier(trees, max_features=None, random_state=seed)
        forest.fit(z[~held_out].numpy(), y[~held_out, k].numpy())
        columns.append(torch.from_numpy(forest.feature_importances_))
        right.append(torch.from_numpy(forest.predict(z[held_out].numpy())) == y[held_out, k])
    importance = torch.stack(columns, 1)
    weights = importance.sum(1) / importance.sum()
    by_dimension = 1 - _entropy(importance / importance.sum(1, keepdim=True).clamp(min=1e-30), 1)
    disentanglement = float((weights * by_dimension).sum())
    return DCI(
        _clipped(estimate.linear(disentanglement, len(weights) * weights * (by_dimension - disentanglement))),
        _clipped(estimate.mean(1 - _entropy(importance, 0))),
        estimate.proportion(torch.cat(right)),
        importance,
    )


def sap(latents: torch.Tensor, factors: torch.Tensor, *, seed: int = 0) -> Estimate:
    """Separated attribute predictability: how much better the best dimension alone tells a factor than the second best.

        mean_k (S[(1), k] - S[(2), k]),  S[d, k] the balanced accuracy of a linear classifier of factor k on z_d

    Accuracy on the fifth of the rows that the classifier did not see. Range 0...1, higher is better. Interval over the
    factors. Kumar et al. 2018 (arXiv 1711.00848), section 3, with every factor taken as categorical.

    Blind to whether the best dimension tells other factors too.

    Args, Raises: as for `dci`, with D >= 2.
    """
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.svm import LinearSVC

    z, y = _checked(latents, factors)
    if z.shape[1] < 2:
        raise ValueError(f"latents must have at least 2 dimensions to compare, got {z.shape[1]}")
    held_out = torch.arange(len(z)) % _HELD_OUT_EVERY == 0
    gaps = []
    for k in range(y.shape[1]):
        scores = []
        for d in range(z.shape[1]):
            machine = LinearSVC(C=0.01, class_weight="balanced", random_state=seed)
            machine.fit(z[~held_out, d : d + 1].numpy(), y[~held_out, k].numpy())
            predicted = machine.predict(z[held_out, d : d + 1].numpy())
            scores.append(balanced_accuracy_score(y[held_out, k].numpy(), predicted))
        second, first = sorted(scores)[-2:]
        gaps.append(first - second)
    return _clipped(estimate.mean(torch.tensor(gaps)))


def _checked(latents: torch.Tensor, factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if latents.ndim != 2 or factors.ndim != 2 or len(latents) != len(factors):
        raise ValueError(
            f"latents and factors must be [N, D] and [N, K], got {list(latents.shape)} and {list(factors.shape)}"
        )
    return latents.double().cpu(), factors.cpu()


def _clipped(found: Estimate) -> Estimate:
    return Estimate(*(min(max(end, 0.0), 1.0) for end in found))


def _entropy(p: torch.Tensor, dim: int) -> torch.Tensor:
    """Of distributions along `dim`, to the base of its size; 0 for a size of 1."""
    base = torch.tensor(max(p.shape[dim], 2), dtype=p.dtype).log()
    return -torch.special.xlogy(p, p).sum(dim) / base
