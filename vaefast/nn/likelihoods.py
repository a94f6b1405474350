"""Likelihoods as modules: what a decoder's output says about the data. One line of TABLE each."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import distributions

from vaefast import _options, ops
from vaefast.ops import _checks
from vaefast.ops.gaussian import half_squared_error, squared_error_total
from vaefast.reference import continuous_bernoulli, gaussian, logistic_mixture

REDUCTIONS = ("none", "mean", "sum")


class Row(NamedTuple):
    """name: of the class; function: of vaefast, called with (first parameter, x, other parameters); parameters: what
    the decoder gives; mean: E[x | parameters]; base: torch's own distribution of one element, where there is one;
    planes: the parameters have several numbers per element, in the first dimension after the batch, and mean takes
    batch_ndim and the module's options beside them; signed: floating x lies in -1…1, and so does the mean; counts: x
    is a count without an upper end."""

    name: str
    function: str
    parameters: str
    mean: Callable | None = None
    base: Callable | None = None
    planes: bool = False
    signed: bool = False
    counts: bool = False


def _first(parameter, *others):
    return parameter


def _successes(logits, total, *others):
    return total * torch.sigmoid(logits)


def _negative_binomial(mu, log_theta):
    return distributions.NegativeBinomial(log_theta.exp(), logits=mu.log() - log_theta, validate_args=False)


def _mixture_mean(params, batch_ndim, n_mixtures, **options):
    return logistic_mixture.mean(params.movedim(batch_ndim, 0), n_mixtures).movedim(0, batch_ndim)


TABLE = (
    Row("Bernoulli", "bernoulli_nll", "logits", torch.sigmoid, lambda p: distributions.Bernoulli(logits=p)),
    Row(
        "ContinuousBernoulli",
        "continuous_bernoulli_nll",
        "logits",
        continuous_bernoulli.mean,
        lambda p: distributions.ContinuousBernoulli(logits=p),
    ),
    Row("Gaussian", "gaussian_nll", "mu logvar", _first, lambda mu, v: distributions.Normal(mu, torch.exp(0.5 * v))),
    Row("Laplace", "laplace_nll", "mu log_scale", _first, lambda mu, s: distributions.Laplace(mu, s.exp())),
    Row("Categorical", "categorical_nll", "logits", planes=True),
    Row("DiscretizedLogistic", "discretized_logistic_nll", "mu log_scale", _first, signed=True),
    Row(
        "DiscretizedLogisticMixture",
        "discretized_logistic_mixture_nll",
        "params",
        _mixture_mean,
        planes=True,
        signed=True,
    ),
    Row(
        "Poisson",
        "poisson_nll",
        "log_rate",
        torch.exp,
        lambda r: distributions.Poisson(r.exp(), validate_args=False),
        counts=True,
    ),
    Row("NegativeBinomial", "negative_binomial_nll", "mu log_theta", _first, _negative_binomial, counts=True),
    Row(
        "ZeroInflatedNegativeBinomial",
        "zero_inflated_negative_binomial_nll",
        "mu log_theta gate_logits",
        lambda mu, log_theta, gate_logits: mu * torch.sigmoid(-torch.as_tensor(gate_logits)),
        counts=True,
    ),
    Row("Binomial", "binomial_nll", "logits total", _successes, lambda p, n: distributions.Binomial(n, logits=p)),
    Row("BetaBinomial", "beta_binomial_nll", "logits total log_concentration", _successes),
)


class Likelihood(torch.nn.Module):
    """-log p(x | parameters), in nats; the formula is that of the function of the class's row.

    Args:
        reduction: "none" for a value per sample, "mean" or "sum" over the batch.
        batch_ndim, validate: as for the function.
        options: parameters that are fixed rather than decoded, such as `Gaussian(logvar=0.0)`, and what else the
            function takes by name, but weight and expected_grad, which are of a call.

    A fixed torch.nn.Parameter is a parameter of the module and another fixed tensor a buffer, each by its name; `fixed`
    has them all.

    Shape: parameters: a tensor, or a tuple of those that are not fixed, in the row's order; x as for the function; the
        result [*batch] or a scalar, in float32 (float64 for float64 parameters).
    """

    row: Row

    def __init__(self, *, reduction: str = "none", batch_ndim: int = 1, validate: bool = False, **options):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
        taken = inspect.signature(self.function).parameters
        _checks.whole("batch_ndim", batch_ndim, 0)
        of_a_call = ("weight", "expected_grad")
        _options.check(type(self).__name__, options, dict.fromkeys(n for n in [*taken][2:] if n not in of_a_call))
        self.reduction, self.batch_ndim, self.validate = reduction, batch_ndim, validate
        self._fixed = [name for name in options if name in self.row.parameters.split()]
        for name in self._fixed:
            if isinstance(options[name], torch.Tensor) and not isinstance(options[name], torch.nn.Parameter):
                self.register_buffer(name, options[name])
            else:
                setattr(self, name, options[name])
        self.options = {name: value for name, value in options.items() if name not in self._fixed}
        self._hints = "expected_grad" in taken

    @property
    def function(self) -> Callable:
        return getattr(ops, self.row.function)

    @property
    def fixed(self) -> dict[str, object]:
        """{name: value} of the parameters that are not decoded."""
        return {name: getattr(self, name) for name in self._fixed}

    def forward(
        self, parameters, x, weight=None, *, expected_grad: float | None = None, batch_ndim: int | None = None
    ) -> torch.Tensor:
        """-log p; `weight` and `expected_grad` (a hint, dropped where the function takes none) as for the function.
        batch_ndim: of this call, where it is not the module's."""
        first, *others = self._complete(parameters)
        batch_ndim = self.batch_ndim if batch_ndim is None else batch_ndim
        options = {"weight": weight, "batch_ndim": batch_ndim, "validate": self.validate, **self.options}
        if self._hints:
            options["expected_grad"] = expected_grad
        nll = self.function(first, x, *others, **options)
        return nll if self.reduction == "none" else getattr(nll, self.reduction)()

    def mean(self, parameters) -> torch.Tensor:
        """E[x | parameters], elementwise."""
        if self.row.mean is None:
            raise TypeError(f"{type(self).__name__} has no mean in closed form here")
        options = {"batch_ndim": self.batch_ndim, **self.options} if self.row.planes else {}
        return self.row.mean(*self._complete(parameters), **options)

    def _complete(self, parameters) -> Sequence:
        """The row's parameters in order, those that are given and those that are fixed."""
        names = self.row.parameters.split()
        given = parameters if isinstance(parameters, (tuple, list)) else (parameters,)
        if len(given) == len(names) and not self._fixed:
            return given
        if len(given) != len(names) - len(self._fixed):
            decoded = [n for n in names if n not in self._fixed]
            raise ValueError(f"parameters must be ({', '.join(decoded)}), got {len(given)} of them")
        decoded = iter(given)
        return [getattr(self, n) if n in self._fixed else next(decoded) for n in names]

    def extra_repr(self) -> str:
        shown = {"reduction": self.reduction, "batch_ndim": self.batch_ndim, "validate": self.validate}
        usual = {"reduction": "none", "batch_ndim": 1, "validate": False}
        parts = {name: value for name, value in shown.items() if value != usual[name]} | self.fixed | self.options
        return ", ".join(f"{name}={value!r}" for name, value in parts.items())


def _module(row: Row) -> type[Likelihood]:
    parameters = ", ".join(row.parameters.split())
    doc = f"-log p(x | {parameters}): `vaefast.{row.function}` as a module; its arguments are Likelihood's."
    return type(row.name, (Likelihood,), {"row": row, "__doc__": doc, "__module__": __name__})


globals().update({row.name: _module(row) for row in TABLE})


class OptimalSigmaGaussian(Likelihood):
    """-log N(x | mu, sigma^2) with the best sigma: `vaefast.optimal_sigma_nll` of the batch in training; in `eval()`
    the sigma that training ended with, so that a sample's value does not depend on its neighbours.

    mean_squared_error, a buffer, is the mean over the steps so far, and from 100 steps on moves by a hundredth of the
    way at each step. Before the first it is 1. A step is a call in training with gradients enabled, of a batch whose
    error is finite and of at least one element. The buffer stays float32 in a module of half precision.

    Args:
        per_sample: a sigma for each sample, in training and in `eval()`; nothing is kept then.
        log_sigma_min, group, others: as for the function and Likelihood.

    group is an attribute, which a trainer in several processes may set, and is not copied or stored with the module.
    """

    row = Row("OptimalSigmaGaussian", "optimal_sigma_nll", "mu", _first)

    def __init__(self, *, per_sample: bool = False, log_sigma_min: float = -6.0, group=None, **options):
        super().__init__(per_sample=per_sample, log_sigma_min=log_sigma_min, **options)
        self.group = group
        self.register_buffer("mean_squared_error", torch.ones(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(
        self, parameters, x, weight=None, *, expected_grad: float | None = None, batch_ndim: int | None = None
    ) -> torch.Tensor:
        (mu,) = self._complete(parameters)
        batch_ndim = self.batch_ndim if batch_ndim is None else batch_ndim
        options = {"weight": weight, "batch_ndim": batch_ndim, "validate": self.validate}
        half_error, count = half_squared_error(mu, x, **options)
        per_sample, log_sigma_min = self.options.values()
        if self.training or per_sample:
            total = squared_error_total(half_error, count, per_sample, self.group)
            nll = gaussian.optimal_sigma_nll(half_error, count, *total, log_sigma_min)
            if self.training and not per_sample and torch.is_grad_enabled():
                self._observe(*total)
        else:
            sigma = self.sigma.to(half_error.dtype)
            nll = half_error / sigma.square() + count * (sigma.log() + 0.5 * math.log(2 * math.pi))
        return nll if self.reduction == "none" else getattr(nll, self.reduction)()

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"group": None}

    @property
    def sigma(self) -> torch.Tensor:
        """What `eval()` takes: a 0-d tensor."""
        return self.mean_squared_error.sqrt() + math.exp(self.options["log_sigma_min"])

    def _apply(self, fn, recurse=True):
        exact = self.mean_squared_error
        super()._apply(fn, recurse)
        if self.mean_squared_error.dtype in (torch.float16, torch.bfloat16):  # small errors are 0 there
            self.mean_squared_error = exact.to(self.mean_squared_error.device)
        return self

    @torch.no_grad()
    def _observe(self, half_error: torch.Tensor, count: torch.Tensor) -> None:
        kept = self.mean_squared_error
        error = (2 * half_error / count).to(kept.dtype)
        seen = error.isfinite() & (count > 0)  # one NaN would stay for ever
        self.steps += seen
        rate = self.steps.clamp(min=1).reciprocal().clamp(min=0.01).to(kept.dtype)
        kept.lerp_(torch.where(seen, error, kept), rate)


__all__ = ["Likelihood", "OptimalSigmaGaussian", *[row.name for row in TABLE]]


def unit(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Data as floating point: uint8 levels are divided by 255, other types are taken as they are.

    Images stay uint8 (a quarter of the memory traffic) until somebody computes with them.
    """
    _checks.data("x", x)
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)
