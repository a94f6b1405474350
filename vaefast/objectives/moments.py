"""Regularisers of the aggregate posterior: InfoVAE and WAE-MMD draw it to the prior, DIP-VAE its covariance to the
identity."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vaefast.models import VAE
from vaefast.objectives.elbo import Parts, evaluated, gaussian_posterior
from vaefast.ops import dip_regulariser, mmd, ranks
from vaefast.reference.gaussian import compute_dtype


class _MMD:
    """What InfoVAE and WAE-MMD have in common: the discrepancy of z's sample and one of the prior."""

    def __init__(self, kernel: str, scales: Sequence[float] | None, unbiased: bool, group):
        self.options, self.group = {"kernel": kernel, "scales": scales, "unbiased": unbiased}, group

    def _discrepancy(self, model: VAE, z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            prior = model.sample_prior(len(z))
        rows = len(z)
        if self.group is not None:
            z, prior = (ranks.all_gather(each, self.group) for each in (z, prior))
        if len(z) == 1 and self.options["unbiased"]:
            return z.new_zeros(rows, dtype=compute_dtype(z.dtype))
        return mmd(z, prior, **self.options).expand(rows)


class InfoVAE(_MMD):
    """reconstruction + (1 - alpha) KL + (alpha + lambda - 1) MMD(q(z), p(z)) (Zhao et al. 2019, with the
    mutual information's weight alpha); alpha = 0 is the MMD-VAE beside a whole ELBO, alpha = 1 leaves the MMD alone.

    Args:
        alpha: a number; lambda_: a number above 1 - alpha.
        kernel, scales, unbiased, group: as for `vaefast.mmd`.

    Called with (model, x) it gives {"loss", "reconstruction", "kl", "mmd"}, each [B]; mmd is one number for the batch,
    and 0 for a batch of one sample, of which there is no unbiased estimate. A prior with parameters gets its gradient
    from KL alone.
    """

    def __init__(self, alpha=0.0, lambda_=1000.0, *, kernel="imq", scales=None, unbiased=True, group=None):
        super().__init__(kernel, scales, unbiased, group)
        self.alpha, self.lambda_ = alpha, lambda_

    def __call__(self, model: VAE, x: torch.Tensor) -> Parts:
        output, reconstruction = evaluated(model, x)
        discrepancy = self._discrepancy(model, output.z)
        loss = reconstruction + (1 - self.alpha) * output.kl + (self.alpha + self.lambda_ - 1) * discrepancy
        return {"loss": loss, "reconstruction": reconstruction, "kl": output.kl, "mmd": discrepancy}


class WAEMMD(_MMD):
    """reconstruction + weight MMD(q(z), p(z)) (Tolstikhin et al. 2018, algorithm 2); KL is reported, not in the loss.

    Args:
        weight: a number; the authors' λ is 10 for MNIST and 100 for CelebA.
        kernel, scales, unbiased, group: as for `vaefast.mmd`.

    Called with (model, x) it gives {"loss", "reconstruction", "kl", "mmd"}, each [B]; mmd is one number for the batch,
    and 0 for a batch of one sample, of which there is no unbiased estimate.
    """

    def __init__(self, weight=10.0, *, kernel="imq", scales=None, unbiased=True, group=None):
        super().__init__(kernel, scales, unbiased, group)
        self.weight = weight

    def __call__(self, model: VAE, x: torch.Tensor) -> Parts:
        output, reconstruction = evaluated(model, x)
        discrepancy = self._discrepancy(model, output.z)
        loss = reconstruction + self.weight * discrepancy
        return {"loss": loss, "reconstruction": reconstruction, "kl": output.kl, "mmd": discrepancy}


class DIPVAE:
    """reconstruction + KL + `vaefast.dip_regulariser` (Kumar et al. 2018).

    Args:
        kind: "I", the covariance of the posterior's means; "II", that of z.
        off_diagonal: a number.
        diagonal: a number; None for the authors' ratio, 10 off_diagonal for I and off_diagonal for II.
        group: as for `vaefast.dip_moments`.

    Called with (model, x) it gives {"loss", "reconstruction", "kl", "regulariser"}, each [B]; regulariser is one number
    for the batch.

    Raises:
        ValueError: for another kind; on a call for a model without a Gaussian posterior.
    """

    def __init__(self, kind: str = "I", *, off_diagonal=10.0, diagonal=None, group=None):
        if kind not in ("I", "II"):
            raise ValueError(f"kind must be 'I' or 'II', got {kind!r}")
        self.kind, self.group = kind, group
        self.off_diagonal = off_diagonal
        self.diagonal = off_diagonal * (10 if kind == "I" else 1) if diagonal is None else diagonal

    def __call__(self, model: VAE, x: torch.Tensor) -> Parts:
        output, reconstruction = evaluated(model, x)
        q = gaussian_posterior(output, "DIPVAE")
        weights = {"off_diagonal": self.off_diagonal, "diagonal": self.diagonal}
        logvar = q.logvar if self.kind == "II" else None
        regulariser = dip_regulariser(q.mean, logvar, **weights, group=self.group).expand_as(reconstruction)
        loss = reconstruction + output.kl + regulariser
        return {"loss": loss, "reconstruction": reconstruction, "kl": output.kl, "regulariser": regulariser}
