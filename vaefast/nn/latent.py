"""The stochastic layer between encoder and decoder."""

from __future__ import annotations

import torch

from vaefast.ops import _checks, kl_standard_normal, rsample_kl_moments


class GaussianLatent(torch.nn.Module):
    """Moments of a diagonal Gaussian in, (z, kl) out: one pass, and one gradient tensor, with no stored noise.

    mean, logvar = moments.chunk(2, dim);  z = mean + exp(logvar / 2) * eps;
    kl = KL(N(mean, exp(logvar)) || N(0, 1)) per sample, in nats.

    Args:
        dim: the dimension of the event that holds the mean, then the log-variance.
        batch_ndim: how many leading dimensions are the batch.
        logvar_bounds: (lo, hi) to clamp logvar to, with gradient zero outside; None for no bound.
        sample_in_eval: False makes `eval()` return the mean as z, so that a model's output has no noise; kl is the
            same as in training.

    Shape: moments [*batch, *event] with an even size at `dim`; z has half of it there, and moments' type; kl has the
    shape of the batch, in float32 (float64 for float64 moments).

    Raises:
        TypeError, ValueError: on construction for an argument of the wrong kind, on call for moments that do not fit.
    """

    def __init__(
        self,
        dim: int = 1,
        *,
        batch_ndim: int = 1,
        logvar_bounds: tuple[float, float] | None = None,
        sample_in_eval: bool = True,
    ):
        super().__init__()
        _checks.whole("dim", dim)
        _checks.whole("batch_ndim", batch_ndim)
        _checks.bounds(logvar_bounds)
        self.dim = dim
        self.batch_ndim = batch_ndim
        self.logvar_bounds = logvar_bounds
        self.sample_in_eval = sample_in_eval

    def forward(self, moments: torch.Tensor, *, seed=None) -> tuple[torch.Tensor, torch.Tensor]:
        """(z, kl); `seed` as for `vaefast.rsample`."""
        if self.training or self.sample_in_eval:
            return rsample_kl_moments(
                moments, self.dim, seed=seed, batch_ndim=self.batch_ndim, logvar_bounds=self.logvar_bounds
            )
        mean, logvar = halves(moments, self.dim, self.batch_ndim)
        kl = kl_standard_normal(mean, logvar, batch_ndim=self.batch_ndim, logvar_bounds=self.logvar_bounds)
        return mean.contiguous(), kl

    def extra_repr(self) -> str:
        parts = [f"dim={self.dim}"]
        if self.batch_ndim != 1:
            parts.append(f"batch_ndim={self.batch_ndim}")
        if self.logvar_bounds is not None:
            parts.append(f"logvar_bounds={self.logvar_bounds}")
        if not self.sample_in_eval:
            parts.append("sample_in_eval=False")
        return ", ".join(parts)


def halves(moments: torch.Tensor, dim: int = 1, batch_ndim: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, logvar), views of the two halves of `moments` along `dim`, a dimension of the event.

    Raises:
        TypeError, ValueError: for moments that have no such dimension, or an odd size there.
    """
    axis = _checks.halved_dim(moments, dim, batch_ndim)
    mean, logvar = moments.tensor_split(2, axis)
    return mean, logvar
