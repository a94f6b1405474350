"""The ops under test, one row each: a new op is one row here, and everything in test_ops.py and test_compile.py, the
layouts, the gradients, opcheck, the transforms, holds for it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable

import torch
from torch.distributions import Binomial, NegativeBinomial, Poisson
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

import vaefast
from vaefast.reference import (
    bernoulli,
    categorical,
    continuous_bernoulli,
    counts,
    gaussian,
    laplace,
    logistic,
    logistic_mixture,
)
from vaefast.reference.noise import standard_normal

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALF)


def tuple_of(value) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@dataclasses.dataclass(frozen=True)
class Row:
    """One public op.

    name: vaefast.<name>.
    tensors: its tensor arguments, all of one shape (but for planes).
    reference: the mathematics, called with (*tensors, *more, [eps], [batch_ndim], [lo, hi]), what the op takes of them.
    plain: the same in the PyTorch that people write, called with the same arguments but the bounds. It is a second
        opinion in float64, and its error in half precision is the error to stay under.
    halves: the tensors are `moments`: twice as long in their last dimension, where the op splits them.
    planes: the tensors whose elements hold several numbers, and how many. The row has these numbers in the last
        dimension; `call` moves it to where the op expects it, after the batch, and `truth` to the front.
    more: the op's arguments that come after the tensors and are not under test, made from the tensors.
    ranges: for each tensor that is not any number, the interval its values lie in.
    density: the name of its ops, where it is not the op's own.
    signed: the terms of a sum may be negative, as minus the logarithm of a density may.
    couples: a sample's value depends on the whole batch, through PyTorch's arithmetic on a number per sample.
    """

    name: str
    tensors: tuple[str, ...]
    reference: Callable
    plain: Callable
    halves: bool = False
    planes: dict[str, int] = dataclasses.field(default_factory=dict)
    more: Callable = lambda *tensors: ()
    ranges: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    density: str = ""
    signed: bool = False
    couples: bool = False

    @property
    def ops(self) -> list[str]:
        name = self.density or self.name
        return [f"{name}_forward", f"{name}_backward"]

    def takes(self, argument: str) -> bool:
        return argument in inspect.signature(getattr(vaefast, self.name)).parameters

    def call(self, *tensors, seed, batch_ndim=1, bounds=None):
        """The op; a tuple of its outputs."""
        options = {"seed": seed, "batch_ndim": batch_ndim, "logvar_bounds": bounds, "dim": -1}
        options = {name: value for name, value in options.items() if self.takes(name)}
        return tuple_of(getattr(vaefast, self.name)(*self.arguments(tensors, batch_ndim), **options))

    def arguments(self, tensors, batch_ndim=1) -> list:
        """What the op is called with."""
        return [*self._placed(tensors, batch_ndim), *self.more(*tensors)]

    def _placed(self, tensors, dim: int) -> list[torch.Tensor]:
        return [t.movedim(-1, dim) if n in self.planes else t for n, t in zip(self.tensors, tensors, strict=True)]

    def truth(self, *tensors, seed, batch_ndim=1, bounds=None, plain=False, dtype=torch.float64):
        """What the outputs must be: the reference (or plain PyTorch) in float64 (or `dtype`), with the op's noise."""
        values = self._placed([t.to(dtype) for t in tensors], 0)
        if self.halves:
            values = list(values[0].chunk(2, -1))
        arguments = [*self.more(*tensors)]
        arguments += [standard_normal(seed, values[0].shape, dtype)] if self.takes("seed") else []
        arguments += [batch_ndim] if self.takes("batch_ndim") else []
        if plain:
            return tuple_of(self.plain(*values, *arguments))
        if self.takes("logvar_bounds"):
            arguments += bounds or (-math.inf, math.inf)
        return tuple_of(self.reference(*values, *arguments))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensors' shape, for outputs of `shape`."""
        return (*shape[:-1], 2 * shape[-1]) if self.halves else shape

    def inputs(self, shape, *, device="cpu", dtype=torch.float32, generator=0, requires_grad=True):
        """Contiguous tensors of the op, values in their range or [-2, 2]."""
        generator = torch.Generator().manual_seed(generator)
        tensors = []
        for name in self.tensors:
            lo, hi = self.ranges.get(name, (-2, 2))
            full = (*self.shape(shape), self.planes[name]) if name in self.planes else self.shape(shape)
            uniform = torch.rand(full, generator=generator, dtype=torch.float64)
            tensors.append((lo + (hi - lo) * uniform).to(device, dtype).requires_grad_(requires_grad))
        return tensors


def _per_sample(terms: Callable) -> Callable:
    """Elementwise terms, with the batch_ndim to sum them by."""

    def summed(*arguments):
        *values, batch_ndim = arguments
        total = terms(*values)
        return total.flatten(batch_ndim).sum(-1) if total.ndim > batch_ndim else total

    return summed


def _plain_rsample(mu, logvar, eps):
    return mu + torch.exp(0.5 * logvar) * eps


@_per_sample
def _plain_kl(mu, logvar):
    return -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())


@_per_sample
def _plain_kl_normal(mu_q, logvar_q, mu_p, logvar_p):
    return 0.5 * (logvar_p - logvar_q + (logvar_q.exp() + (mu_q - mu_p).pow(2)) / logvar_p.exp() - 1)


def _plain_rsample_kl(mu, logvar, eps, batch_ndim):
    return _plain_rsample(mu, logvar, eps), _plain_kl(mu, logvar, batch_ndim)


def _normal(mu, x, logvar):
    return -torch.distributions.Normal(mu, (0.5 * logvar).exp(), validate_args=False).log_prob(x)


def _laplace(mu, x, log_scale):
    return -torch.distributions.Laplace(mu, log_scale.exp(), validate_args=False).log_prob(x)


def _continuous_bernoulli(logits, x):
    distribution = torch.distributions.ContinuousBernoulli(logits=logits, lims=(0.4999, 0.5001), validate_args=False)
    return -distribution.log_prob(x)


def _logistic(mu, x, log_scale):
    distance, half_bin, inverse = (x - mu).abs(), 1 / 255, torch.exp(-log_scale)
    lower = torch.sigmoid((half_bin - distance) * inverse) - torch.sigmoid((-half_bin - distance) * inverse)
    mass = torch.where(x < half_bin - 1, torch.sigmoid((x + half_bin - mu) * inverse), lower)
    mass = torch.where(x > 1 - half_bin, torch.sigmoid((mu - x + half_bin) * inverse), mass)
    return -torch.log(mass)


@_per_sample
def _optimal_sigma(mu, x):
    """The loss of the optimal sigma VAE's own code."""
    log_sigma = (x - mu).square().mean().sqrt().log()
    log_sigma = -6 + torch.nn.functional.softplus(log_sigma + 6)
    return 0.5 * ((x - mu) / log_sigma.exp()) ** 2 + log_sigma + 0.5 * math.log(2 * math.pi)


def _optimal_sigma_reference(mu, x, batch_ndim):
    half_error = _per_sample(lambda mu, x: gaussian.squared_error(mu, x, 1.0, 0.0, 0.0))(mu, x, batch_ndim)
    count = torch.full_like(half_error, math.prod(mu.shape[batch_ndim:]))
    return gaussian.optimal_sigma_nll(half_error, count, half_error.sum(), count.sum(), -6.0)


def _classes(logits):
    return (torch.arange(math.prod(logits.shape[:-1]), device=logits.device) % logits.shape[-1]).view(logits.shape[:-1])


def _plain_categorical(logits, x):
    return -torch.log_softmax(logits, 0).gather(0, x.unsqueeze(0)).squeeze(0)


def plain_logistic_mixture(params, x, n):
    """PixelCNN++'s formula, of three channels; its masses are differences of sigmoids."""
    logits, rest = params[:n], params[n:].unflatten(0, (3, 3, n))
    red, green, blue = x.unsqueeze(1)
    first, second, third = torch.tanh(rest[:, 2])
    means = [rest[0, 0], rest[1, 0] + first * red, rest[2, 0] + second * red + third * green]
    terms = sum(_logistic(m, c, s.clamp(min=-7)) for m, c, s in zip(means, (red, green, blue), rest[:, 1], strict=True))
    return -torch.logsumexp(torch.log_softmax(logits, 0) - terms, 0)


def _plain_poisson(log_rate, x):
    return -Poisson(log_rate.exp(), validate_args=False).log_prob(x)


def _plain_negative_binomial(mu, x, log_theta):
    return -NegativeBinomial(log_theta.exp(), logits=mu.log() - log_theta, validate_args=False).log_prob(x)


def _plain_zero_inflated(mu, x, log_theta, gate_logits):
    log_nb = -_plain_negative_binomial(mu, x, log_theta) + logsigmoid(-gate_logits)
    return -torch.where(x == 0, torch.logaddexp(logsigmoid(gate_logits), log_nb), log_nb)


def _plain_binomial(logits, x, total):
    return -Binomial(total, logits=logits, validate_args=False).log_prob(x)


def _plain_beta_binomial(logits, x, total, log_concentration):
    def log_beta(a, b):
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    alpha, beta = (log_concentration.exp() * torch.sigmoid(t) for t in (logits, -logits))
    choose = -log_beta(x + 1, total - x + 1) - torch.log(total + 1)
    return -choose - log_beta(x + alpha, total - x + beta) + log_beta(alpha, beta)


_LATENT = ("mu", "logvar")
_GENES = ("mu", "x", "log_theta")
_COUNTS = {"mu": (0.1, 4), "x": (0, 6), "total": (6, 12)}  # between the counts too: the formulas are continued there
ROWS = [
    Row("rsample", _LATENT, gaussian.rsample, _plain_rsample),
    Row("kl_standard_normal", _LATENT, gaussian.kl_standard_normal, _plain_kl),
    Row("rsample_kl", _LATENT, gaussian.rsample_kl, _plain_rsample_kl),
    Row("rsample_kl_moments", ("moments",), gaussian.rsample_kl, _plain_rsample_kl, halves=True),
    Row("kl_normal", ("mu_q", "logvar_q", "mu_p", "logvar_p"), gaussian.kl_normal, _plain_kl_normal),
    Row(
        "bernoulli_nll",
        ("logits", "x"),
        _per_sample(lambda logits, x: bernoulli.bernoulli_nll(logits, x, 1.0)),
        _per_sample(functools.partial(binary_cross_entropy_with_logits, reduction="none")),
        ranges={"x": (0, 1)},
    ),
    Row(
        "gaussian_nll",
        ("mu", "x", "logvar"),
        _per_sample(lambda mu, x, logvar: gaussian.gaussian_nll(mu, logvar, x, 1.0)),
        _per_sample(_normal),
        ranges={"logvar": (-1, 2)},
    ),
    Row(
        "optimal_sigma_nll",
        ("mu", "x"),
        _optimal_sigma_reference,
        _optimal_sigma,
        density="squared_error",
        signed=True,
        couples=True,
    ),
    Row(
        "laplace_nll",
        ("mu", "x", "log_scale"),
        _per_sample(lambda mu, x, log_scale: laplace.laplace_nll(mu, log_scale, x, 1.0)),
        _per_sample(_laplace),
        ranges={"log_scale": (-0.6, 2)},
    ),
    Row(
        "continuous_bernoulli_nll",
        ("logits", "x"),
        _per_sample(lambda logits, x: continuous_bernoulli.continuous_bernoulli_nll(logits, x, 1.0)),
        _per_sample(_continuous_bernoulli),
        ranges={"x": (0, 1)},
        signed=True,
    ),
    Row(
        "discretized_logistic_nll",
        ("mu", "x", "log_scale"),
        _per_sample(lambda mu, x, s: logistic.discretized_logistic_nll(mu, s, x, 1.0, 0.0, 0.0, 1 / 255, -7.0)),
        _per_sample(_logistic),
        ranges={"mu": (-1, 1), "x": (-1, 1), "log_scale": (-2, 1)},
    ),
    Row(
        "categorical_nll",
        ("logits",),
        _per_sample(categorical.categorical_nll),
        _per_sample(_plain_categorical),
        planes={"logits": 5},
        more=lambda logits: (_classes(logits),),
    ),
    Row(
        "discretized_logistic_mixture_nll",
        ("params", "x"),
        _per_sample(
            lambda params, x, n: logistic_mixture.discretized_logistic_mixture_nll(
                params, x, 1.0, 0.0, 0.0, 1 / 255, -7.0
            )
        ),
        _per_sample(plain_logistic_mixture),
        planes={"params": 20, "x": 3},
        more=lambda params, x: (2,),
        ranges={"params": (-1, 1), "x": (-1, 1)},
    ),
    *(
        Row(name, tensors, _per_sample(getattr(counts, name)), _per_sample(plain), ranges=_COUNTS)
        for name, tensors, plain in (
            ("poisson_nll", ("log_rate", "x"), _plain_poisson),
            ("negative_binomial_nll", _GENES, _plain_negative_binomial),
            ("zero_inflated_negative_binomial_nll", (*_GENES, "gate_logits"), _plain_zero_inflated),
            ("binomial_nll", ("logits", "x", "total"), _plain_binomial),
            ("beta_binomial_nll", ("logits", "x", "total", "log_concentration"), _plain_beta_binomial),
        )
    ),
]


def seed_tensor(seed: int = 7, offset: int = 0, device="cpu") -> torch.Tensor:
    return torch.tensor([seed, offset], device=device)


def cotangents(outputs, generator=1) -> list[torch.Tensor]:
    """Random output gradients."""
    generator = torch.Generator().manual_seed(generator)
    return [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.device, o.dtype) for o in outputs]


def gradients(outputs, tensors, grads=None, **options) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(outputs, tensors, cotangents(outputs) if grads is None else grads, **options)


def assert_accurate(actual: torch.Tensor, expected: torch.Tensor, *, sums: bool = False) -> None:
    """`actual` against float64: a relative error of 1e-5 in float32, 1e-12 in float64, one rounding in half types.

    Sums of terms that are not negative get no absolute tolerance. Elements may cancel: they get four roundings of the
    terms that cancel, which for inputs in [-2, 2] and cotangents of 4 sigma are at most 32.
    """
    expected = expected.to(actual.device)
    half = actual.dtype in HALF
    rounding = 2**-53 if actual.dtype == torch.float64 else 2**-24
    rtol = 1e-12 if actual.dtype == torch.float64 else 1e-5
    rtol += torch.finfo(actual.dtype).eps / 2 if half else 0
    atol = 0 if sums else 4 * 32 * rounding
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol, equal_nan=True)
