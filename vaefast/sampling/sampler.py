"""What samplers have in common, and the plainest one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from vaefast._modes import evaluating
from vaefast.models import VAE
from vaefast.ops import standard_normal


class Posteriors(NamedTuple):
    """mean and std, [N, D], of q(z | x) for every x."""

    mean: torch.Tensor
    std: torch.Tensor

    def batch(self, size: int) -> torch.Tensor:
        """z [size, D], each of the posterior of an x that is drawn at random."""
        rows = torch.randint(len(self.mean), (size,), device=self.mean.device)
        return self.mean[rows] + self.std[rows] * torch.randn_like(self.mean[rows])

    def scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of z over all posteriors, [D] each; never 0."""
        variance = self.mean.var(0, correction=0) + self.std.square().mean(0)
        return self.mean.mean(0), variance.sqrt().clamp(min=1e-6)


class Sampler(torch.nn.Module):
    """`fit` once, then `sample`. A state dict holds all that was fitted; `load_state_dict` takes it into a sampler with
    the same options that was never fitted.

    Args:
        temperature: multiplies standard deviations, as the argument of `sample` does; below 1, likelier z.
    """

    def __init__(self, *, temperature: float = 1.0):
        super().__init__()
        self.temperature = temperature
        self.register_buffer("shape", None)

    def fit(self, model: VAE, x: torch.Tensor, *, batch_size: int = 500) -> Sampler:
        """Fit to q(z | x) of a data set x [N, *data_shape], encoded `batch_size` at a time in `eval()`; the model is
        not changed.

        What is random follows `torch.manual_seed`. A half type's model has its sampler in float32.

        Raises:
            TypeError, ValueError: as `check` does, and for no samples.
        """
        if len(x) == 0:
            raise ValueError(f"x must hold at least one sample, got shape {tuple(x.shape)}")
        self.check(model, len(x))
        with torch.no_grad(), evaluating(model):
            found = [model.encode(rows.to(next(model.parameters()).device)) for rows in x.split(batch_size)]
            mean, std = (torch.cat(t).flatten(1) for t in ([q.mean for q in found], [q.std for q in found]))
            mean, std = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (mean, std))
        self._begin(model.latent_shape)
        self.to(mean.device, mean.dtype)
        with torch.enable_grad():
            self._fit(Posteriors(mean, std))
        return self.eval().requires_grad_(False)

    @torch.no_grad()
    def sample(self, count: int, *, seed=None, temperature: float = 1.0) -> torch.Tensor:
        """z [count, *latent_shape], float32 (float64 of a float64 model); `seed` as for `vaefast.standard_normal`.

        Raises:
            RuntimeError: before `fit`.
        """
        if self.shape is None:
            raise RuntimeError(f"{type(self).__name__} must be fitted before it samples: call fit(model, x)")
        noise = standard_normal(
            (count, self._noises(self._size)), seed=seed, device=self.scale.device, dtype=self.scale.dtype
        )
        return self._draw(noise, temperature * self.temperature).reshape(count, *self.shape.tolist())

    def _load_from_state_dict(self, state_dict, prefix, *options):
        # here rather than in load_state_dict, which is called of the outermost module alone
        if prefix + "shape" in state_dict:
            self._begin(state_dict[prefix + "shape"].tolist())
            self.to(state_dict[prefix + "scale"].dtype)
        super()._load_from_state_dict(state_dict, prefix, *options)

    @property
    def _size(self) -> int:
        return math.prod(self.shape.tolist())

    def _begin(self, latent_shape) -> None:
        self.shape = torch.tensor(latent_shape, dtype=torch.int64)
        self.register_buffer("shift", torch.zeros(self._size))
        self.register_buffer("scale", torch.ones(self._size))
        self._build(self._size)

    def check(self, model: VAE, count: int) -> None:
        """Refuse what this sampler is not meant for: a model, or `count` samples to be fitted to.

        Raises:
            TypeError, ValueError: say what does not fit.
        """

    def _build(self, size: int) -> None:
        """Make the parameters and buffers for z of `size` numbers."""

    def _fit(self, posteriors: Posteriors) -> None:
        """Fill them."""

    def _noises(self, size: int) -> int:
        """How many normals a z takes."""
        return size

    def _draw(self, noise: torch.Tensor, temperature: float) -> torch.Tensor:
        """z [count, D] from normals."""
        return self.shift + temperature * self.scale * noise


class Normal(Sampler):
    """N(0, I), whatever the data. What a VAE samples from by itself, too, unless it has a prior of its own."""

    def check(self, model: VAE, count: int) -> None:
        if getattr(model, "hierarchical", False):
            raise TypeError("a hierarchical model's z is not N(0, I); leave the sampler out to draw from its prior")
