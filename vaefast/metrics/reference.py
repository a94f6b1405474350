"""Features of a set of images with what several measures derive from them, each computed when first asked for."""

from __future__ import annotations

import functools

import numpy as np
import torch

from vaefast.metrics.pairwise import nearest


def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(eigenvalues, eigenvectors) of a symmetric matrix: PyTorch's, or NumPy's where it finds none, as MKL's for one in
    a hundred matrices of low rank with rows of zeros, which features of a collapsed model have."""
    try:
        return tuple(torch.linalg.eigh(matrix))
    except torch.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix.cpu().numpy())
        return torch.from_numpy(values).to(matrix.device), torch.from_numpy(vectors).to(matrix.device)


class Reference:
    """Features [N, F] as the extractor gave them, which take half the memory of float64.

    Attributes:
        mean: [F]; covariance, and its symmetric root: [F, F]; in float64.

    Raises:
        ValueError: for what is not [N, F] with N >= 2, or not finite.
    """

    def __init__(self, features: torch.Tensor):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features must be [N, F] with N >= 2, got {list(features.shape)}")
        self.features = features
        if not self.features.isfinite().all():
            raise ValueError("features must be finite, got inf or NaN among them")

    @classmethod
    def of(cls, features: torch.Tensor | Reference) -> Reference:
        return features if isinstance(features, cls) else cls(features)

    def __len__(self) -> int:
        return len(self.features)

    @functools.cached_property
    def mean(self) -> torch.Tensor:
        return self.features.mean(0, dtype=torch.float64)

    @functools.cached_property
    def covariance(self) -> torch.Tensor:
        centred = self.features - self.mean  # float64, since the mean is
        return centred.T @ centred / (len(self) - 1)

    @functools.cached_property
    def root(self) -> torch.Tensor:
        values, vectors = eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    @functools.cached_property
    def _near(self) -> torch.Tensor:
        return nearest(self.features, k=min(8, len(self) - 1)).distances

    def radius(self, k: int) -> torch.Tensor:
        """Distance of each point to its k-th nearest other point: [N].

        Raises:
            ValueError: for a k that is not from 1 to N - 1.
        """
        if not 1 <= k < len(self):
            raise ValueError(f"k must be from 1 to {len(self) - 1}, the other points, got {k}")
        near = self._near if k <= self._near.shape[1] else nearest(self.features, k=k).distances
        return near[:, k - 1]
