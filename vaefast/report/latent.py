"""What a model's latent space looks like: a map in two dimensions, and what each direction does."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vaefast.metrics.collapse import posteriors
from vaefast.models import VAE
from vaefast.ops import kl_by_dimension


class Map(NamedTuple):
    """points [N, 2] of N samples; axes: what the two coordinates are; explained: their share of the variance."""

    points: torch.Tensor
    axes: tuple[str, str]
    explained: float


class Traversal(NamedTuple):
    """What `images` [steps, ...] of a walk along one direction is a walk along."""

    name: str
    images: torch.Tensor


@torch.no_grad()
def encode(model: VAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of q(z | x), [N, D] with the latent flattened, and KL(q(z | x) || N(0, I)) of each dimension, [D], the mean
    over x."""
    mean, logvar = posteriors(model, x)
    return mean, kl_by_dimension(mean, logvar)[1]


def components(means: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first principal components of `means` [N, D]: directions [count, D] and standard deviations along all."""
    centred = means - means.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    return directions[:count], singular / max(1, len(means) - 1) ** 0.5


def latent_map(means: torch.Tensor) -> Map:
    """The latent itself where it has two dimensions, else its first two principal components."""
    if means.shape[1] == 2:
        return Map(means, ("z1", "z2"), 1.0)
    if means.shape[1] == 1:
        return Map(torch.cat([means, torch.zeros_like(means)], 1), ("z1", ""), 1.0)
    directions, deviations = components(means, 2)
    explained = (deviations[:2].square().sum() / deviations.square().sum()).item()
    return Map((means - means.mean(0)) @ directions.T, ("first component", "second component"), explained)


@torch.no_grad()
def traversals(
    model: VAE, means: torch.Tensor, kls: torch.Tensor | None, *, count: int = 12, steps: int = 9
) -> list[Traversal]:
    """Walks from the latent of one sample, along one direction, the rest of it fixed.

    Where the prior is N(0, I), so that there are `kls` [D], from -3 to 3 along the dimensions with the most; where it
    is not, along those whose `means` [N, D] are spread most; of a latent with several axes along the principal
    components of its means: three standard deviations of the means to either side of 0.

    Returns:
        a Traversal for each of at most `count` directions, the most informative first.
    """
    centre = means[len(means) // 2]
    if len(model.latent_shape) == 1:
        spread = means.std(0) if kls is None else torch.ones_like(kls)
        order = (spread if kls is None else kls).argsort(descending=True)[:count].tolist()
        names = [f"z{i + 1}, " + (f"spread {spread[i]:.2f}" if kls is None else f"KL {kls[i]:.2f}") for i in order]
        directions, scales = torch.eye(len(spread))[order], spread[order]
    else:
        directions, scales = components(means, count)
        scales = scales[: len(directions)]
        names = [f"component {i + 1}" for i in range(len(directions))]
    walk = torch.linspace(-3, 3, steps)
    found = []
    for name, direction, scale in zip(names, directions, scales, strict=True):
        start = centre - (centre @ direction) * direction
        z = start + scale * walk[:, None] * direction  # [steps, D]
        found.append(Traversal(name, model.decode(z.view(steps, *model.latent_shape))))
    return found
