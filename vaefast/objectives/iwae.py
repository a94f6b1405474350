"""Importance-weighted bounds: K samples of z for each x, which is encoded once and never repeated."""

from __future__ import annotations

import torch

from vaefast.models import VAE
from vaefast.nn import Likelihood
from vaefast.objectives.elbo import Parts, frozen
from vaefast.ops import _checks, ciwae_bound, draw_seed, iwae_bound, miwae_bound, piwae_bounds


class IWAE:
    """-log 1/K sum_k p(x, z_k) / q(z_k | x) (Burda et al. 2016, equation 8).

    Args:
        samples: K, at least 1; 1 is the ELBO with a sampled KL.

    Called with (model, x) it gives {"loss", "reconstruction", "kl"}, each [B], in nats; the last two are means over the
    samples, of -log p(x | z) and of log q(z | x) - log p(z).
    """

    def __init__(self, samples: int = 50):
        _checks.whole("samples", samples, 1)
        self.samples = samples

    def __call__(self, model: VAE, x: torch.Tensor) -> Parts:
        nll, log_ratio = _terms(model, x, self.samples)
        return _parts(-self._bound(log_ratio - nll), nll, log_ratio)

    def _bound(self, log_w: torch.Tensor) -> torch.Tensor:
        return iwae_bound(log_w)


class CIWAE(IWAE):
    """-(beta ELBO + (1 - beta) IWAE) (Rainforth et al. 2018, equation 8).

    Args:
        samples: K, at least 1.
        beta: from 0 to 1.

    Called as IWAE is.
    """

    def __init__(self, samples: int = 50, beta: float = 0.5):
        super().__init__(samples)
        self.beta = beta

    def _bound(self, log_w: torch.Tensor) -> torch.Tensor:
        return ciwae_bound(log_w, self.beta)


class MIWAE(IWAE):
    """-(1/M) sum_m IWAE of K samples (ibid., equation 7).

    Args:
        repeats: M, at least 1.
        samples: K, at least 1.

    Called as IWAE is.
    """

    def __init__(self, repeats: int = 8, samples: int = 8):
        _checks.whole("repeats", repeats, 1)
        _checks.whole("samples", samples, 1)
        self.repeats, self.each = repeats, samples
        super().__init__(repeats * samples)

    def _bound(self, log_w: torch.Tensor) -> torch.Tensor:
        return miwae_bound(self._grouped(log_w))

    def _grouped(self, log_w: torch.Tensor) -> torch.Tensor:
        return log_w.unflatten(1, (self.repeats, self.each))


class PIWAE(MIWAE):
    """The encoder trained by MIWAE, all else by IWAE of the same M K samples (ibid., section 4), in one backward.

    The loss's value is -IWAE, its gradient that of either target for the parameters that it is for. A gradient of two
    targets passes the decoder twice, so it is evaluated twice, with the same z, either time without the gradients that
    nobody wants: half as much again as MIWAE's step.

    Args:
        repeats, samples: M and K, at least 1.

    Called as IWAE is; the model has its encoder in `encoder`.
    """

    def __call__(self, model: VAE, x: torch.Tensor) -> Parts:
        encoder = list(model.encoder.parameters())
        own = {id(p) for p in encoder}
        seed = draw_seed(next(model.parameters()).device)
        with frozen(p for p in model.parameters() if id(p) not in own):
            nll, log_ratio = _terms(model, x, self.samples, seed)
            inference = piwae_bounds(self._grouped(log_ratio - nll)).inference
        with frozen(encoder):
            nll, log_ratio = _terms(model, x, self.samples, seed)
            generative = piwae_bounds(self._grouped(log_ratio - nll)).generative
        return _parts(inference.detach() - inference - generative, nll, log_ratio)


def _parts(loss: torch.Tensor, nll: torch.Tensor, log_ratio: torch.Tensor) -> Parts:
    return {"loss": loss, "reconstruction": nll.mean(1), "kl": -log_ratio.mean(1)}


def _terms(model: VAE, x: torch.Tensor, samples: int, seed=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(-log p(x | z_k), log p(z_k) - log q(z_k | x)), each [B, K]."""
    decoded, log_ratio = model.importance_sample(model.importance_state(x), samples, seed)
    shape = len(x), samples
    if not isinstance(model.likelihood, Likelihood):  # someone's own, which knows one dimension of samples
        return model.likelihood(decoded, x.repeat_interleave(samples, 0)).unflatten(0, shape), log_ratio
    each = [p.unflatten(0, shape) for p in (decoded if isinstance(decoded, tuple) else (decoded,))]
    return model.likelihood(each[0] if len(each) == 1 else tuple(each), x[:, None], batch_ndim=2), log_ratio
