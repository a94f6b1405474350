"""What z is drawn from where N(0, I) is too plain: modules with `log_prob` and `sample`, trained with the model.

Each is called with `encode`, the model's x -> moments, which the VampPrior needs; it is an argument rather than an
attribute so that the encoder is registered once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from vaefast.distributions import DiagonalGaussian
from vaefast.nn import FusedSequential
from vaefast.ops import gaussian_nll, mixture_log_prob, standard_normal


class Prior(nn.Module):
    """p(z) of z [*latent_shape]."""

    def __init__(self, latent_shape: Sequence[int]):
        super().__init__()
        self.latent_shape = tuple(latent_shape)

    def _noise(self, count: int, seed, choice: bool = False) -> torch.Tensor:
        """[count, D]; with a choice [count, 1 + D] and at least float32, as `draw_mixture` takes it."""
        like = next(self.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32) if choice else like.dtype
        shape = count, choice + math.prod(self.latent_shape)
        return standard_normal(shape, seed=seed, device=like.device, dtype=dtype)


def draw_mixture(noise: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor, log_weights: torch.Tensor):
    """z [B, *event] of sum_k w_k N(mu_k, exp(logvar_k)), mu and logvar [K, *event], from standard normals [B, 1 + D]:
    the first of each row chooses the component, through its own distribution function. Noise and weights are float32
    or float64, since half types have fewer numbers than a choice among hundreds takes; z has the wider type of noise
    and mu."""
    edges = log_weights.to(noise.dtype).softmax(0).cumsum(0)
    chosen = torch.searchsorted(edges, torch.special.ndtr(noise[:, 0].contiguous())).clamp(max=len(mu) - 1)
    return mu[chosen] + torch.exp(0.5 * logvar[chosen]) * noise[:, 1:].reshape(-1, *mu.shape[1:])


def _scaled(logvar: torch.Tensor, temperature: float) -> torch.Tensor:
    """The log-variance of a standard deviation multiplied by temperature."""
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    return logvar + 2 * math.log(temperature) if temperature else torch.full_like(logvar, -math.inf)


class MixturePrior(Prior):
    """p(z) = sum_k w_k N(z | mu_k, exp(logvar_k)), everything learned.

    Args:
        latent_shape: shape of one z.
        components: K, at least 1.

    The means start as draws from N(0, I), the variances at 1, the weights alike.
    """

    def __init__(self, latent_shape: Sequence[int], components: int = 50):
        super().__init__(latent_shape)
        self.mean = nn.Parameter(torch.randn(components, *self.latent_shape))
        self.logvar = nn.Parameter(torch.zeros(components, *self.latent_shape))
        self.logits = nn.Parameter(torch.zeros(components))

    def log_prob(self, z: torch.Tensor, encode: Callable | None = None) -> torch.Tensor:
        """[B]."""
        return mixture_log_prob(z, self.mean, self.logvar, self.logits.log_softmax(0))

    def sample(
        self, count: int, *, seed=None, temperature: float = 1.0, encode: Callable | None = None
    ) -> torch.Tensor:
        """[count, *latent_shape]; temperature multiplies each component's standard deviation."""
        noise = self._noise(count, seed, choice=True)
        z = draw_mixture(noise, self.mean, _scaled(self.logvar, temperature), self.logits)
        return z.to(self.mean.dtype)


class VampPrior(Prior):
    """p(z) = 1/K sum_k q(z | u_k), the posteriors of learned pseudo-inputs (Tomczak and Welling 2018, equation 9).

    Args:
        latent_shape: shape of one z.
        data_shape: shape of one x.
        components: K; the paper has 500, and each step encodes as many.

    Pseudo-inputs lie in 0…1: sigmoid(pseudo_inputs), which start grey with noise. The paper clips instead, and a value
    that was clipped has no gradient any more.
    """

    def __init__(self, latent_shape: Sequence[int], data_shape: Sequence[int], components: int = 100):
        super().__init__(latent_shape)
        self.pseudo_inputs = nn.Parameter(torch.randn(components, *data_shape))

    def _components(self, encode: Callable) -> DiagonalGaussian:
        return DiagonalGaussian(encode(torch.sigmoid(self.pseudo_inputs)))

    def log_prob(self, z: torch.Tensor, encode: Callable) -> torch.Tensor:
        """[B]; the gradient reaches the encoder and the pseudo-inputs."""
        q = self._components(encode)
        return mixture_log_prob(z, q.mean, q.logvar)

    def sample(self, count: int, *, seed=None, temperature: float = 1.0, encode: Callable) -> torch.Tensor:
        q = self._components(encode)
        logvar, noise = _scaled(q.logvar, temperature), self._noise(count, seed, choice=True)
        z = draw_mixture(noise, q.mean, logvar, noise.new_zeros(len(logvar)))
        return z.to(self.pseudo_inputs.dtype)  # under autocast the encoder's is another


class _Coupling(nn.Module):
    """Half of z is shifted and scaled by what a small network says of the other half; identity at the start."""

    def __init__(self, size: int, hidden: int, swap: bool):
        super().__init__()
        self.kept, self.swap = size - size // 2 if swap else size // 2, swap
        self.net = FusedSequential(
            nn.Linear(self.kept, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 2 * (size - self.kept)),
        )  # fmt: skip
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def _parts(self, z: torch.Tensor):
        """(kept, moved, shift, log-scale within ±2)."""
        kept, moved = z.split([self.kept, z.shape[1] - self.kept], 1)
        shift, raw = self.net(kept).chunk(2, 1)
        return kept, moved, shift, 2 * torch.tanh(raw / 2)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept, moved, shift, log_scale = self._parts(z.flip(1) if self.swap else z)
        z = torch.cat([kept, (moved - shift) * torch.exp(-log_scale)], 1)
        return z.flip(1) if self.swap else z, -log_scale.sum(1)

    def inverse(self, u: torch.Tensor) -> torch.Tensor:
        kept, moved, shift, log_scale = self._parts(u.flip(1) if self.swap else u)
        u = torch.cat([kept, moved * torch.exp(log_scale) + shift], 1)
        return u.flip(1) if self.swap else u


def _put_orders(flow: FlowPrior, incompatible_keys: object = None) -> None:
    """The buffers of the orders, beside the parameters: neither `to_empty` nor a state dict brings what they hold."""
    for name, order in flow._orders.items():
        buffer, device = getattr(flow, name), next(flow.parameters()).device
        if buffer.device != device:
            setattr(flow, name, torch.tensor(order, device=device))
        elif device.type != "meta":
            buffer.copy_(torch.tensor(order, device="cpu"))  # in place, for CUDA graphs


class FlowPrior(Prior):
    """A RealNVP (Dinh et al. 2017): log p(z) = log N(u | 0, I) + log |du/dz|, exactly, u and z each in one pass.

    Args:
        latent_shape: shape of one z, of at least 2 numbers.
        layers: affine couplings, in pairs that move either half; each pair has an order of the numbers of its own.
        hidden: units of each of the two hidden layers of a coupling.

    At the start u is z in another order, so that p(z) = N(0, I).
    """

    def __init__(self, latent_shape: Sequence[int], layers: int = 6, hidden: int = 64):
        super().__init__(latent_shape)
        size = math.prod(self.latent_shape)
        if size < 2:
            raise ValueError(f"latent_shape must hold at least 2 numbers for a flow, got {self.latent_shape}")
        self.couplings = nn.ModuleList(_Coupling(size, hidden, bool(i % 2)) for i in range(layers))
        # the second of a pair moves what the first one kept
        self._orders = {
            f"order_{i}": torch.randperm(size, generator=torch.Generator().manual_seed(i), device="cpu").tolist()
            for i in range(0, layers, 2)
        }
        for name, order in self._orders.items():
            self.register_buffer(name, torch.tensor(order), persistent=False)
        self.register_load_state_dict_post_hook(_put_orders)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        _put_orders(self)
        return self

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z [B, *latent_shape] -> (u [B, D], log |det du/dz| [B])."""
        u, log_det = z.flatten(1), 0
        for i, coupling in enumerate(self.couplings):
            u, log_scale = coupling(u if i % 2 else u[:, getattr(self, f"order_{i}")])
            log_det = log_det + log_scale
        return u, log_det

    def inverse(self, u: torch.Tensor) -> torch.Tensor:
        """u [B, D] -> z [B, *latent_shape]."""
        for i in reversed(range(len(self.couplings))):
            u = self.couplings[i].inverse(u)
            u = u if i % 2 else u[:, getattr(self, f"order_{i}").argsort()]
        return u.reshape(-1, *self.latent_shape)

    def log_prob(self, z: torch.Tensor, encode: Callable | None = None) -> torch.Tensor:
        """[B]."""
        u, log_det = self(z)
        return log_det - gaussian_nll(u, torch.zeros_like(u), 0.0)

    def sample(
        self, count: int, *, seed=None, temperature: float = 1.0, encode: Callable | None = None
    ) -> torch.Tensor:
        """[count, *latent_shape]; temperature multiplies u."""
        return self.inverse(temperature * self._noise(count, seed))


NAMES = {"mixture": MixturePrior, "vamp": VampPrior, "flow": FlowPrior}
