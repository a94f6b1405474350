"""A Gaussian mixture of full covariances."""

from __future__ import annotations

import torch

from vaefast.models import VAE
from vaefast.sampling.sampler import Posteriors, Sampler


class GaussianMixture(Sampler):
    """A mixture of `components` Gaussians with full covariances, fitted by scikit-learn's EM to the posterior *means*
    (Ghosh et al. 2020, "From variational to deterministic autoencoders", section 4, with 10).

    Args:
        components: from 1 to the number of samples.
        on: "mean" for the posterior means, "sample" for one draw from every posterior.

    Raises:
        ModuleNotFoundError: by `fit`, without scikit-learn.
    """

    def __init__(self, components: int = 10, *, on: str = "mean", temperature: float = 1.0):
        super().__init__(temperature=temperature)
        if on not in ("mean", "sample"):
            raise ValueError(f"on must be 'mean' or 'sample', got {on!r}")
        if not isinstance(components, int) or isinstance(components, bool) or components < 1:
            raise ValueError(f"components must be a whole number from 1 up, got {components!r}")
        self.components, self.on = components, on

    def check(self, model: VAE, count: int) -> None:
        if count < 2:
            raise ValueError(f"x must hold at least 2 samples for a covariance, got {count}")
        if self.components > count:
            raise ValueError(f"components must be at most the number of samples {count}, got {self.components}")

    def _build(self, size: int) -> None:
        self.register_buffer("weights", torch.zeros(self.components))
        self.register_buffer("means", torch.zeros(self.components, size))
        self.register_buffer("factors", torch.zeros(self.components, size, size))  # lower, of the covariances

    def _fit(self, posteriors: Posteriors) -> None:
        from sklearn import mixture

        z = posteriors.mean
        if self.on == "sample":
            z = z + posteriors.std * torch.randn_like(z)
        state = int(torch.randint(2**31, ()))
        fitted = mixture.GaussianMixture(self.components, random_state=state).fit(z.double().cpu().numpy())
        factors = torch.linalg.cholesky(torch.from_numpy(fitted.covariances_))
        for buffer, value in ((self.weights, fitted.weights_), (self.means, fitted.means_), (self.factors, factors)):
            buffer.copy_(torch.as_tensor(value))

    def _noises(self, size: int) -> int:
        return 1 + size

    def _draw(self, noise: torch.Tensor, temperature: float) -> torch.Tensor:
        uniform = torch.special.ndtr(noise[:, 0].contiguous())
        chosen = torch.searchsorted(self.weights.cumsum(0), uniform).clamp(max=self.components - 1)
        return self.means[chosen] + temperature * (self.factors[chosen] @ noise[:, 1:, None])[..., 0]
