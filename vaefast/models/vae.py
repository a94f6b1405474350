"""The variational autoencoder, of any encoder, decoder, likelihood and prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from vaefast.distributions import DiagonalGaussian
from vaefast.models.pretrained import Pretrained
from vaefast.nn import Bernoulli, GaussianLatent, unit
from vaefast.ops import _checks, draw_seed, gaussian_nll, rsample_log_ratio, standard_normal


class VAEOutput(NamedTuple):
    """decoded: what the decoder says of x, the likelihood's parameters; z: the latent; kl: [B], in nats; posterior:
    q(z | x)."""

    decoded: torch.Tensor
    z: torch.Tensor
    kl: torch.Tensor
    posterior: DiagonalGaussian | None = None


class VAE(Pretrained, torch.nn.Module):
    """q(z | x) = N(mean, exp(logvar)), p(z) = N(0, I), p(x | z) = likelihood(decoder(z)) (Kingma and Welling 2014).

    Args:
        encoder: x [B, ...] -> moments [B, 2 * latent_shape[0], *latent_shape[1:]], the mean, then the log-variance.
        decoder: z [B, *latent_shape] -> parameters of the likelihood.
        latent_shape: shape of one z.
        likelihood: a module of `vaefast.nn` that has `forward(parameters, x) -> [B]` and `mean(parameters)`; by
            default Bernoulli.
        prior: one of `vaefast.models.priors`; by default N(0, I).

    Data is floating point, or uint8 images, which the encoder sees divided by 255. Of counts without an upper end (a
    Poisson or negative binomial likelihood) it sees log(1 + x), as in scVI (Lopez et al. 2018).

    kl is the divergence in closed form for N(0, I), and with another prior log q(z | x) - log p(z) of the z drawn.
    config is what `models.create` made the model from, None for one put together by hand.

    Raises:
        ValueError: for a likelihood that is reduced over the batch.
    """

    config: dict | None = None

    def __init__(
        self,
        encoder: torch.nn.Module,
        decoder: torch.nn.Module,
        latent_shape: Sequence[int],
        likelihood: torch.nn.Module | None = None,
        prior: torch.nn.Module | None = None,
    ):
        super().__init__()
        _checks.unreduced(likelihood)
        self.encoder = encoder
        self.latent = GaussianLatent(logvar_bounds=DiagonalGaussian.logvar_bounds)
        self.decoder = decoder
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self.latent_shape = tuple(latent_shape)
        self.prior = prior

    def moments(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.seen(x))

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        """x as the encoder takes it."""
        if self._data_is("counts"):
            return torch.log1p(x.to(next(self.parameters()).dtype))
        return self.unit(x)

    def unit(self, x: torch.Tensor) -> torch.Tensor:
        """x in the parameters' type, bytes divided by 255."""
        return unit(x, next(self.parameters()).dtype)

    def parameters_of(self, z: torch.Tensor):
        """What the decoder says: the likelihood's parameters."""
        return self.decoder(z)

    def forward(self, x: torch.Tensor, *, seed=None) -> VAEOutput:
        """Encode, draw z, decode; `seed` as for `vaefast.rsample`."""
        z, kl, posterior = self.draw(x, seed=seed)
        return VAEOutput(self.parameters_of(z), z, kl, posterior)

    def draw(self, x: torch.Tensor, *, seed=None) -> tuple[torch.Tensor, torch.Tensor, DiagonalGaussian]:
        """`forward` without the decoder: (z, kl, posterior)."""
        moments = self.moments(x)
        z, kl = self.latent(moments, seed=seed)
        posterior = DiagonalGaussian(moments)
        if self.prior is not None:
            kl = -gaussian_nll(posterior.mean, z, posterior.logvar) - self.log_prior(z)
        return z, kl, posterior

    def encode(self, x: torch.Tensor) -> DiagonalGaussian:
        """q(z | x)."""
        return DiagonalGaussian(self.moments(x))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """E[x | z]; of likelihoods whose values lie in -1…1 (discretised ones), as uint8 / 255, in 0…1."""
        return self.expectation(self.parameters_of(z))

    def expectation(self, decoded) -> torch.Tensor:
        """E[x | the likelihood's parameters], on the scale of `decode`."""
        mean = self.likelihood.mean(decoded)
        return ((mean + 1) / 2).clamp(0, 1) if self._data_is("signed") else mean

    def _data_is(self, kind: str) -> bool:
        """Whether the likelihood is one of ours, and of data of this kind."""
        return getattr(getattr(self.likelihood, "row", None), kind, False)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """E[x | z] at the mean of q(z | x): the same for every call."""
        return self.decode(self.encode(x).mode())

    def log_prior(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z), [B], in nats."""
        if self.prior is None:
            return -gaussian_nll(z, torch.zeros_like(z), 0.0)
        return self.prior.log_prob(z, encode=self.moments)

    def sample_prior(self, count: int, *, seed=None, temperature: float = 1.0) -> torch.Tensor:
        """z [count, *latent_shape] ~ p(z), standard deviations multiplied by temperature."""
        if self.prior is not None:
            return self.prior.sample(count, seed=seed, temperature=temperature, encode=self.moments)
        like = next(self.parameters())
        shape = count, *self.latent_shape
        return temperature * standard_normal(shape, seed=seed, device=like.device, dtype=like.dtype)

    def sample(self, count: int, *, seed=None, temperature: float = 1.0, sampler=None) -> torch.Tensor:
        """E[x | z] for `count` draws of z.

        Args:
            seed: as for `vaefast.standard_normal`.
            temperature: multiplies z's standard deviation; below 1, likelier and more alike.
            sampler: a fitted one of `vaefast.sampling`; by default z comes from the prior.
        """
        draw = self.sample_prior if sampler is None else sampler.sample
        z = draw(count, seed=seed, temperature=temperature)
        return self.decode(z.to(next(self.parameters()).dtype))

    def interpolate(self, a: torch.Tensor, b: torch.Tensor, steps: int, *, method: str = "slerp") -> torch.Tensor:
        """E[x | z] on the way from the means of q(z | a) to those of q(z | b), both ends included.

        Args:
            a, b: [B, *data_shape].
            steps: at least 2.
            method: "slerp", along the great circle, which stays where N(0, I) has its mass; "lerp", a straight line.

        Returns:
            [B, steps, *data_shape].
        """
        if steps < 2:
            raise ValueError(f"steps must be at least 2, got {steps}")
        if method not in ("slerp", "lerp"):
            raise ValueError(f"method must be 'slerp' or 'lerp', got {method!r}")
        start, end = (self.encode(x).mode().flatten(1) for x in (a, b))
        t = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)[:, None]
        z = (slerp if method == "slerp" else torch.lerp)(start[:, None], end[:, None], t)  # [B, steps, D]
        return self.decode(z.reshape(-1, *self.latent_shape)).unflatten(0, (len(start), steps))

    @torch.no_grad()
    def log_likelihood(self, x: torch.Tensor, samples: int, *, chunk: int = 100, seed=None) -> torch.Tensor:
        """log 1/K sum_k p(x, z_k) / q(z_k | x), z_k ~ q(z | x): a lower bound of log p(x) that closes as K grows (Burda
        et al. 2016, equation 8). x is encoded once; the sum is streamed, so memory grows as `chunk`, not as K.

        Args:
            x: [B, *data_shape].
            samples: K.
            chunk: how many samples of each x are decoded at a time.
            seed: as for `vaefast.rsample`; with one chunk size the same seed gives the same numbers.

        Returns:
            [B], in nats, float32 (float64 for a float64 model).
        """
        for name, value in (("samples", samples), ("chunk", chunk)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        state = self.importance_state(x)
        device = next(self.parameters()).device
        seed = draw_seed(device) if seed is None else _checks.seed(seed, device)
        total = None
        for part, start in enumerate(range(0, samples, chunk)):
            count = min(chunk, samples - start)
            decoded, log_ratio = self.importance_sample(state, count, torch.stack([seed[0], seed[1] + part]))
            log_w = log_ratio - self.likelihood(decoded, x.repeat_interleave(count, 0)).unflatten(0, (len(x), count))
            log_sum = log_w.logsumexp(1)
            total = log_sum if total is None else torch.logaddexp(total, log_sum)
        return total - math.log(samples)

    def importance_state(self, x: torch.Tensor):
        """What `importance_sample` needs to know of x."""
        return self.encode(x)

    def importance_sample(self, posterior: DiagonalGaussian, count: int, seed) -> tuple[torch.Tensor, torch.Tensor]:
        """(decoded of B * count draws of z ~ q(z | x), log p(z) - log q(z | x) [B, count])."""
        mean, logvar = posterior.mean, posterior.logvar
        z, log_ratio = rsample_log_ratio(mean, logvar, count, seed=seed)
        z = z.flatten(0, 1)
        if self.prior is not None:
            plain = -gaussian_nll(z, torch.zeros_like(z), 0.0)
            log_ratio = log_ratio + (self.log_prior(z) - plain).unflatten(0, log_ratio.shape)
        return self.parameters_of(z), log_ratio

    @property
    def last_layer(self) -> torch.nn.Parameter:
        """The weight of the decoder's last layer, where a VAE-GAN compares its gradients."""
        return [p for p in self.decoder.parameters() if p.ndim > 1][-1]


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(sin((1 - t) w) a + sin(t w) b) / sin w, w the angle between a and b [..., D] (Shoemake 1985); a straight line
    where it is 0 or π."""
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1).unsqueeze(-1)
    straight = 1 - cosine.square() < 1e-8
    angle = torch.where(straight, 0, cosine).acos()  # whose slope at 1 is infinite
    sine = angle.sin()
    arc = torch.sin((1 - t) * angle) / sine * a + torch.sin(t * angle) / sine * b
    return torch.where(straight, torch.lerp(a, b, t), arc)
