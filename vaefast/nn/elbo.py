"""The loss of a VAE as a module."""

from __future__ import annotations

import torch
from torch.compiler import is_dynamo_compiling

from vaefast.nn.likelihoods import REDUCTIONS
from vaefast.ops import ELBO, _checks, elbo_loss
from vaefast.ops._whole import ExpectedLoss


class ELBOLoss(torch.nn.Module):
    """`vaefast.elbo_loss` of a likelihood: reconstruction and beta KL, reduced over the batch.

    Args:
        likelihood: a module of `vaefast.nn` with one value per sample.
        beta, free_bits, per_channel, capacity, reduction, logvar_bounds: as for `elbo_loss`. For a schedule under
            torch.compile let beta or capacity be a tensor and fill it in place: a new number is a new graph.

    The likelihood is told which gradient its values will get, so that on CPUs it writes its own in the forward pass.
    Another one, as from a GradScaler, gives the right result too. On CPUs it makes the mean or the sum with kl as well,
    where beta is a number and no more is asked for. The nll that is returned then takes a gradient of its own, but the
    loss's does not pass through it: for hooks on it, or its gradient, give an nll of your own to `elbo_loss`.

    Raises:
        TypeError, ValueError: on construction for a reduced likelihood, and a reduction or logvar_bounds that there are
            not; on call as `elbo_loss` does.
    """

    def __init__(
        self,
        likelihood: torch.nn.Module,
        *,
        beta=1.0,
        free_bits: float | None = None,
        per_channel: bool = False,
        capacity=None,
        reduction: str = "mean",
        logvar_bounds: tuple[float, float] | None = None,
    ):
        super().__init__()
        _checks.unreduced(likelihood)
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
        _checks.reduced(reduction, free_bits, capacity)
        _checks.bounds(logvar_bounds)
        self.likelihood = likelihood
        self.beta, self.capacity = beta, capacity
        self.free_bits, self.per_channel = free_bits, per_channel
        self.reduction, self.logvar_bounds = reduction, logvar_bounds

    def forward(self, parameters, x, kl=None, mu=None, logvar=None, *, weight=None) -> ELBO:
        """
        Args:
            parameters, x, weight: of the likelihood.
            kl, mu, logvar: as for `elbo_loss`.
        """
        number = isinstance(self.beta, (int, float)) and self.free_bits is None and self.capacity is None
        whole = number and self.reduction != "none" and type(kl) is torch.Tensor and mu is None and logvar is None
        if whole and kl.ndim == 1 and not is_dynamo_compiling() and torch._C._get_tracing_state() is None:
            expected = ExpectedLoss(1.0 if self.reduction == "sum" else 1.0 / max(kl.shape[0], 1), float(self.beta), kl)
        else:  # the gradient of a mean is 1 / B; of what is not reduced here, most likely a mean is taken too
            expected = 1.0 if self.reduction == "sum" else 1.0 / max(len(x), 1)
        nll = self.likelihood(parameters, x, weight, expected_grad=expected)
        loss = expected.take(nll) if type(expected) is ExpectedLoss else None
        if loss is not None:
            return ELBO(loss, nll, kl, None, None)
        return elbo_loss(
            nll,
            kl,
            mu,
            logvar,
            beta=self.beta,
            free_bits=self.free_bits,
            per_channel=self.per_channel,
            capacity=self.capacity,
            reduction=self.reduction,
            logvar_bounds=self.logvar_bounds,
        )

    def extra_repr(self) -> str:
        usual = {"beta": 1.0, "free_bits": None, "per_channel": False, "capacity": None, "reduction": "mean"}
        parts = {name: getattr(self, name) for name in usual}
        return ", ".join(f"{n}={v}" for n, v in parts.items() if isinstance(v, torch.Tensor) or v != usual[n])
