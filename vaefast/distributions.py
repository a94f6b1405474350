"""Distributions as objects, for code written against diffusers or torch.distributions."""

from __future__ import annotations

import functools
import math
import numbers
from typing import ClassVar

import torch
from torch.distributions import Distribution, Independent

from vaefast import ops
from vaefast.nn.latent import halves
from vaefast.nn.likelihoods import TABLE, Row
from vaefast.ops import _checks, draw_seed, kl_normal, kl_standard_normal, rsample
from vaefast.ops.logistic import LOG_SCALE_FLOOR
from vaefast.reference import logistic_mixture
from vaefast.reference.gaussian import compute_dtype


class _Lazy:
    """functools.cached_property, whose lock Dynamo cannot trace (it is gone with Python 3.12).

    A value that was first read where no gradient is recorded is not kept: it would lack its gradient ever after.
    """

    def __init__(self, function):
        self.function = function

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        value = self.function(instance)
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():  # Dynamo cannot trace the latter
            keep = instance.parameters.is_inference()
        else:
            keep = torch.is_grad_enabled() or not instance.parameters.requires_grad
        if keep:
            setattr(instance, self.name, value)
        return value


class DiagonalGaussian:
    """N(mean, diag(exp(logvar))) from an encoder's output: diffusers' `DiagonalGaussianDistribution` over our ops.

    Same constructor, attributes and methods. What differs: kl, nll and log_prob of half types are computed and
    returned in float32; any number of dimensions from two up is taken, not four only; the noise comes from a seed.
    Nothing is computed before it is asked for.

    Args:
        parameters: [B, 2 * C, ...]; the mean, then the log-variance, along dimension 1.
        deterministic: a point mass at the mean: std and var are zero, sample() is the mean, kl() and nll() are zero.

    Attributes:
        mean: [B, C, ...], a view of parameters.
        logvar: the same shape, clamped to [-30, 20], with gradient zero outside.
        std, var: exp(logvar / 2) and exp(logvar).

    Raises:
        TypeError, ValueError: for parameters that are not floating point, or not of an even size at dimension 1.
    """

    logvar_bounds = (-30.0, 20.0)

    def __init__(self, parameters: torch.Tensor, deterministic: bool = False):
        _checks.halved_dim(parameters, 1, 1)
        self.parameters = parameters
        self.deterministic = deterministic

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.mean.shape)}, deterministic={self.deterministic})"

    @_Lazy
    def mean(self) -> torch.Tensor:
        return halves(self.parameters)[0]

    @_Lazy
    def _logvar(self) -> torch.Tensor:
        return halves(self.parameters)[1]

    @_Lazy
    def logvar(self) -> torch.Tensor:
        return self._logvar.clamp(*self.logvar_bounds)

    @_Lazy
    def std(self) -> torch.Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(0.5 * self.logvar)

    @_Lazy
    def var(self) -> torch.Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(self.logvar)

    def mode(self) -> torch.Tensor:
        return self.mean

    def rsample(self, seed: int | torch.Tensor | None = None) -> torch.Tensor:
        """mean + std * eps, differentiable; `seed` as for `vaefast.rsample`."""
        if self.deterministic:
            return self.mean.clone(memory_format=torch.contiguous_format)
        return rsample(self.mean, self._logvar, seed=seed, logvar_bounds=self.logvar_bounds)

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """`rsample` with its seed drawn from `generator` (on any device), or from the device's default one."""
        if generator is None or self.deterministic:
            return self.rsample()
        return self.rsample(draw_seed(generator=generator).to(self.parameters.device))

    def kl(self, other: DiagonalGaussian | None = None) -> torch.Tensor:
        """KL(self || other), or to N(0, 1) without `other`: [B], in nats; zero, of shape [1], if deterministic.

        `other` is any object with mean and logvar. It is infinite where other is deterministic.
        """
        if self.deterministic:
            return torch.zeros(1, device=self.parameters.device)
        if other is None:
            return kl_standard_normal(self.mean, self._logvar, logvar_bounds=self.logvar_bounds)
        if getattr(other, "deterministic", False):
            return torch.full(self.mean.shape[:1], math.inf, device=self.parameters.device)
        return kl_normal(self.mean, self._logvar, other.mean, other.logvar, logvar_bounds=self.logvar_bounds)

    def nll(self, sample: torch.Tensor, dims: tuple[int, ...] | None = None) -> torch.Tensor:
        """-log density of `sample`, summed over `dims`: by default all but the batch, diffusers' (1, 2, 3) for images.

        Zero, of shape [1], if deterministic, as in diffusers.
        """
        if self.deterministic:
            return torch.zeros(1, device=self.parameters.device)
        return self._surprise(sample).sum(tuple(range(1, self.mean.ndim)) if dims is None else tuple(dims))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log density per sample, what `Independent(Normal(mean, std), event dims)` gives.

        Args:
            value: [*n, B, C, ...], any number of dimensions in front of the distribution's own.

        Returns:
            [*n, B], in float32 (float64 for float64).

        Raises:
            ValueError: if deterministic, since a point mass has no density.
        """
        if self.deterministic:
            raise ValueError("a deterministic DiagonalGaussian has no density; use nll, which is then 0")
        return -self._surprise(value).flatten(1 - self.mean.ndim).sum(-1)

    def _surprise(self, value: torch.Tensor) -> torch.Tensor:
        """-log density of each element; scaled before it is squared, so that a small variance does not overflow."""
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        mean, logvar = self.mean.to(dtype), self.logvar.to(dtype)
        scaled = (value.to(dtype) - mean) * torch.exp(-0.5 * logvar)
        return 0.5 * (math.log(2 * math.pi) + logvar + scaled * scaled)


class Fused(Independent):
    """torch's own distribution, over whose event one op sums log_prob: what Independent(base, event_ndim) is.

    Args:
        parameters: those of the class's row in `vaefast.nn.likelihoods.TABLE`, which broadcast; numbers
            stand for the same everywhere.
        event_ndim: how many trailing dimensions are the event; by default all but the first.

    log_prob(value) is differentiable in the parameters and the value: [*n, *batch] for value [*n, *batch, *event], in
    float32 (float64 for float64). Everything else, samples, mean, entropy, is torch's.
    """

    row: Row

    def __init__(self, *parameters: torch.Tensor, event_ndim: int | None = None, validate_args: bool | None = None):
        like = next((p for p in parameters if torch.is_tensor(p) and p.is_floating_point()), torch.empty(()))
        tensors = [torch.as_tensor(p, dtype=like.dtype, device=like.device) if _number(p) else p for p in parameters]
        base = self.row.base(*tensors)
        super().__init__(base, max(len(base.batch_shape) - 1, 0) if event_ndim is None else event_ndim, validate_args)
        self.parameters = tensors[0], *parameters[1:]  # a number of trials stays exact, also beside half types

    def expand(self, batch_shape, _instance=None) -> Fused:
        shape = torch.Size(batch_shape) + self.event_shape
        options = {"event_ndim": self.reinterpreted_batch_ndims, "validate_args": False}
        expanded = type(self)(*[p if _number(p) else p.expand(shape) for p in self.parameters], **options)
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        ndim = max(value.ndim, len(self.base_dist.batch_shape))
        batch_ndim = max(ndim, 1) - self.reinterpreted_batch_ndims
        first, *others = self.parameters
        first = first if first.ndim else first[None]  # the functions take no 0-d tensor
        result = -getattr(ops, self.row.function)(first, value, *others, batch_ndim=batch_ndim)
        return result if ndim else result[0]


def _number(parameter: object) -> bool:
    return isinstance(parameter, numbers.Real)


def _distribution(row: Row) -> type[Fused]:
    parameters = ", ".join(row.parameters.split())
    doc = f"`torch.distributions`' own of ({parameters}), with log_prob by `vaefast.{row.function}`; see Fused."
    return type(row.name, (Fused,), {"row": row, "__doc__": doc, "__module__": __name__})


globals().update({row.name: _distribution(row) for row in TABLE if row.base is not None})


class _Planes(Distribution):
    """A distribution whose parameters [*batch, planes, *event] hold several numbers for each element."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(
        self, parameters: torch.Tensor, channels: tuple[int, ...], batch_ndim: int, validate_args: bool | None
    ):
        self.parameters = parameters
        event_shape = torch.Size((*channels, *parameters.shape[batch_ndim + 1 :]))
        super().__init__(parameters.shape[:batch_ndim], event_shape, validate_args)

    def _of(self, sample_shape) -> tuple[torch.Tensor, int]:
        """The parameters of as many samples, as a view, and the number of its batch dimensions."""
        parameters = self.parameters.expand(*sample_shape, *self.parameters.shape)
        return parameters, len(sample_shape) + len(self.batch_shape)

    def _log_prob(self, function, value: torch.Tensor, *options) -> torch.Tensor:
        ndim = len(self.batch_shape) + len(self.event_shape)
        parameters, batch_ndim = self._of(value.shape[: max(value.ndim - ndim, 0)])
        return -function(parameters, value, *options, batch_ndim=batch_ndim, validate=self._validate_args)


class Categorical(_Planes):
    """One of C classes for each element: `torch.distributions.Categorical`, with log_prob by `vaefast.categorical_nll`.

    Args:
        logits: [*batch, C, *event].
        batch_ndim: how many leading dimensions are the batch.

    sample() gives int64 classes [*n, *batch, *event]; log_prob takes integers of that shape.
    """

    def __init__(self, logits: torch.Tensor, *, batch_ndim: int = 1, validate_args: bool | None = None):
        super().__init__(logits, (), batch_ndim, validate_args)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self._log_prob(ops.categorical_nll, value)

    def sample(self, sample_shape=()) -> torch.Tensor:
        with torch.no_grad():
            return _draw_index(*self._of(sample_shape))


class DiscretizedLogisticMixture(_Planes):
    """The pixels of PixelCNN++, VDVAE and NVAE, with log_prob by `vaefast.discretized_logistic_mixture_nll`.

    Args:
        params, n_mixtures, levels: as for that function; params [*batch, 10 n or 3 n, *event].
        batch_ndim: how many leading dimensions are the batch.

    sample() gives values [*n, *batch, 3 or 1, *event] in -1…1, each one of the levels, in float32 (float64 for float64
    params); log_prob takes them, or integer levels. `mean` is that of the logistics before they are cut into bins, so
    it may lie past ±1.

    Raises:
        TypeError, ValueError: for a number of planes that is neither 10 n nor 3 n, or levels that are no int from 2 up.
    """

    def __init__(
        self,
        params: torch.Tensor,
        n_mixtures: int,
        *,
        levels: int = 256,
        batch_ndim: int = 1,
        validate_args: bool | None = None,
    ):
        _checks.whole("levels", levels, 2)
        planes = params.shape[batch_ndim]
        if planes not in (3 * n_mixtures, 10 * n_mixtures):
            raise ValueError(f"params must have 3 or 10 times {n_mixtures} planes at {batch_ndim}, got {planes}")
        super().__init__(params, (1 if planes == 3 * n_mixtures else 3,), batch_ndim, validate_args)
        self.n_mixtures, self.levels = n_mixtures, levels

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        function = functools.partial(ops.discretized_logistic_mixture_nll, levels=self.levels)
        return self._log_prob(function, value, self.n_mixtures)

    @property
    def mean(self) -> torch.Tensor:
        dim = len(self.batch_shape)
        return logistic_mixture.mean(self.parameters.movedim(dim, 0), self.n_mixtures).movedim(0, dim)

    def sample(self, sample_shape=()) -> torch.Tensor:
        """A logistic by its weight, then its channels in turn, each rounded to a level before the next depends on it:
        exact, since a level's bin is what rounds to it."""
        with torch.no_grad():
            params, dim = self._of(sample_shape)
            mixture = logistic_mixture.parts(params.movedim(dim, 0).to(compute_dtype(params.dtype)), self.n_mixtures)
            chosen = _draw_index(mixture.logits, 0).unsqueeze(0)
            steps = (self.levels - 1) / 2
            values = [torch.zeros_like(mixture.logits[0])] * 3  # red and green are read before they are drawn
            for c, log_scales in enumerate(mixture.log_scales):
                mean = mixture.conditional_means(*values[:2])[c].gather(0, chosen)[0]
                scale = log_scales.gather(0, chosen)[0].clamp(min=LOG_SCALE_FLOOR).exp()
                x = mean + scale * torch.rand_like(mean).logit()
                values[c] = ((x.clamp(-1, 1) + 1) * steps).round() / steps - 1
            return torch.stack(values[: len(mixture.means)], dim)


def _draw_index(logits: torch.Tensor, dim: int) -> torch.Tensor:
    """An index along `dim` for each of the other numbers, by its weight exp(logits): a Gumbel-max draw."""
    logits = logits.to(compute_dtype(logits.dtype))
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(dim)


__all__ = [
    "Categorical",
    "DiagonalGaussian",
    "DiscretizedLogisticMixture",
    "Fused",
    *[row.name for row in TABLE if row.base is not None],
]
