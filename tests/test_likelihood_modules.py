"""Every row of the table of likelihoods, as a module and as a distribution."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import vaefast
from vaefast import distributions, nn, ops
from vaefast.nn.likelihoods import TABLE

ROWS = {row.name: row for row in TABLE if hasattr(ops, row.function)}
WITH_BASE = [name for name, row in ROWS.items() if row.base is not None]
COUNTS = ("Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial", "Binomial", "BetaBinomial")


def parameters(name: str, shape=(6, 5)) -> tuple[torch.Tensor, ...]:
    """What a decoder might say: of one shape, and positive where it is a mean of counts."""
    generator = torch.Generator().manual_seed(len(name))
    names = ROWS[name].parameters.split()
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in names]
    positive = {"mu": torch.exp, "total": lambda v: 10 + 5 * v.abs().floor()} if name in COUNTS else {}
    return tuple(positive.get(n, lambda v: v)(v) for n, v in zip(names, values, strict=True))


def data(name: str, shape=(6, 5)) -> torch.Tensor:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return (10 * uniform).floor() if name in COUNTS else uniform.round() if name == "Bernoulli" else uniform


def elementwise(name):
    if name in ("Categorical", "DiscretizedLogisticMixture"):
        pytest.skip("its parameters hold several numbers for each element; tested by its own family")
    return ROWS[name]


@pytest.mark.parametrize("name", ROWS)
def test_module_is_the_function(name):
    row = elementwise(name)
    first, *others = parameters(name)
    x = data(name)
    expected = getattr(vaefast, row.function)(first, x, *others)
    module = getattr(nn, name)()
    given = (first, *others) if others else first
    assert torch.equal(module(given, x), expected)
    assert torch.equal(getattr(nn, name)(reduction="mean")(given, x), expected.mean())
    assert torch.equal(getattr(nn, name)(reduction="sum")(given, x), expected.sum())
    weight = torch.arange(5) > 1
    part = getattr(vaefast, row.function)(first, x, *others, weight=weight, batch_ndim=2)
    assert torch.equal(getattr(nn, name)(batch_ndim=2)(given, x, weight), part)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if len(row.parameters.split()) > 1])
def test_fixed_parameters(name):
    first, *others = parameters(name)
    x = data(name)
    names = ROWS[name].parameters.split()[1:]
    every = getattr(nn, name)()
    fixed = getattr(nn, name)(**dict(zip(names, others, strict=True)))
    assert torch.equal(fixed(first, x), every((first, *others), x))
    assert torch.equal(fixed.mean(first), every.mean((first, *others)))
    if len(others) > 1:
        last = getattr(nn, name)(**{names[-1]: others[-1]})
        assert torch.equal(last((first, *others[:-1]), x), every((first, *others), x))


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if len(row.parameters.split()) > 1])
def test_fixed_parameters_may_be_numbers(name):
    """As in a configuration, which holds no tensors."""
    first = parameters(name)[0]
    x, names = data(name), ROWS[name].parameters.split()[1:]
    numbers = {n: 7 if n == "total" else 0.5 for n in names}
    tensors = {n: torch.full_like(first, value) for n, value in numbers.items()}
    by_number, by_tensor = (getattr(nn, name)(**fixed) for fixed in (numbers, tensors))
    torch.testing.assert_close(by_number(first, x), by_tensor(first, x))
    torch.testing.assert_close(by_number.mean(first), by_tensor.mean(first))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_fixed_tensors_belong_to_the_module(clone):
    learned, gate, mu = torch.nn.Parameter(torch.zeros(5)), torch.ones(5), torch.ones(2, 5)
    module = nn.ZeroInflatedNegativeBinomial(log_theta=learned, gate_logits=gate)
    assert dict(module.named_parameters()) == {"log_theta": learned}
    assert list(module.state_dict()) == ["log_theta", "gate_logits"]
    module(mu, mu).sum().backward()
    assert learned.grad.any()
    other = clone(module).double()
    assert list(other.fixed) == ["log_theta", "gate_logits"]
    assert all(value.dtype == torch.float64 for value in other.fixed.values())
    torch.testing.assert_close(other(mu.double(), mu), module(mu, mu).double())
    assert "log_theta=Parameter" in repr(other)
    assert nn.Gaussian(logvar=0.5).state_dict() == {}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_module_copies(name, clone):
    module = getattr(nn, name)(reduction="sum", batch_ndim=2)
    assert repr(clone(module)) == repr(module) == f"{name}(reduction='sum', batch_ndim=2)"
    assert type(clone(module)) is type(module)


@pytest.mark.parametrize("name", WITH_BASE)
def test_distribution_is_torchs_own(name):
    values, x = parameters(name), data(name).requires_grad_(name not in COUNTS)
    values = tuple(v.requires_grad_() for v in values)
    base = ROWS[name].base(*values)
    ours = getattr(distributions, name)(*values, validate_args=False)
    theirs = torch.distributions.Independent(base, 1, validate_args=False)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.mean, theirs.mean)
    wanted = [*values, x] if x.requires_grad else [*values]
    actual, expected = (torch.autograd.grad(d.log_prob(x).sum(), wanted) for d in (ours, theirs))
    torch.testing.assert_close(actual, expected)
    draws = ours.sample((3,))
    assert draws.shape == (3, 6, 5)
    torch.testing.assert_close(ours.log_prob(draws), theirs.log_prob(draws))
    each = getattr(distributions, name)(*values, event_ndim=0, validate_args=False)
    torch.testing.assert_close(each.log_prob(x), base.log_prob(x))


@pytest.mark.parametrize("name", WITH_BASE)
def test_mean_is_the_distributions(name):
    values = parameters(name)
    module = getattr(nn, name)()
    torch.testing.assert_close(module.mean(values if len(values) > 1 else values[0]), ROWS[name].base(*values).mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_mean_of_a_continuous_bernoulli_for_all_logits(dtype):
    """torch's own stops at 0.937 in float32, and is wrong in the fourth digit where logits are near 0.01."""
    large = torch.tensor([0.1, 0.3, 0.9, 1.0, 1.1, 3.0, 10.0, 20.0, 100.0, 1e4]).to(dtype).double()
    logits = torch.cat([-large, large])
    expected = 0.5 + 0.5 / torch.tanh(logits / 2) - 1 / logits
    small = torch.tensor([0.0, 1e-30, 1e-3, -1e-3, 0.01]).to(dtype).double()
    ends = torch.tensor([math.inf, -math.inf], dtype=torch.float64)
    logits = torch.cat([logits, small, ends]).to(dtype).requires_grad_()
    expected = torch.cat([expected, 0.5 + small / 12 - small**3 / 720, (ends > 0).double()])
    mean = nn.ContinuousBernoulli().mean(logits)
    assert mean.dtype == dtype
    torch.testing.assert_close(mean, expected.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-9)
    (grad,) = torch.autograd.grad(mean.sum(), logits)
    assert grad.isfinite().all()
    assert (grad >= 0).all()


@pytest.mark.parametrize("name", WITH_BASE)
def test_distribution_expands_as_torchs_own(name):
    first, *others = parameters(name)
    ours = getattr(distributions, name)(first, *[other[0] for other in others], validate_args=False)
    theirs = torch.distributions.Independent(ours.base_dist, 1, validate_args=False).expand((4, 6))
    expanded = ours.expand((4, 6))
    assert type(expanded) is type(ours)
    assert (expanded.batch_shape, expanded.event_shape) == (theirs.batch_shape, theirs.event_shape) == ((4, 6), (5,))
    x = theirs.sample()
    torch.testing.assert_close(expanded.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(expanded.mean, theirs.mean)


def test_distribution_checks_its_sample():
    with pytest.raises(ValueError, match="within the support"):
        distributions.Bernoulli(torch.zeros(2, 3), validate_args=True).log_prob(torch.full((2, 3), 0.5))


def test_distribution_of_one_element():
    assert distributions.Bernoulli(torch.zeros(4)).log_prob(torch.ones(4)).shape == (4,)


def test_distribution_of_no_dimension():
    ours, theirs = distributions.Bernoulli(torch.tensor(0.3)), torch.distributions.Bernoulli(logits=torch.tensor(0.3))
    for x in (torch.tensor(1.0), torch.tensor([1.0, 0.0]), ours.sample((2, 3))):
        torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))


def test_distribution_of_numbers():
    mu, x = torch.randn(2, 3), torch.randn(4, 2, 3)
    for ours, theirs in (
        (distributions.Gaussian(mu, 0.0), torch.distributions.Normal(mu, 1.0)),
        (distributions.Gaussian(0.5, mu), torch.distributions.Normal(0.5, torch.exp(0.5 * mu))),
        (
            distributions.Gaussian(0.5, 0.0, event_ndim=0).expand((2, 3)),
            torch.distributions.Normal(0.5, torch.ones(2, 3)),
        ),
        (distributions.Binomial(mu, 10), torch.distributions.Binomial(10, logits=mu)),
    ):
        value = x.abs().round() if isinstance(theirs, torch.distributions.Binomial) else x
        expected = theirs.log_prob(value)
        for dist in (ours, ours.expand((4, *ours.batch_shape))):
            torch.testing.assert_close(dist.log_prob(value), expected.sum(2) if ours.event_shape else expected)


def test_a_mixture_of_one_level_is_refused():
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        distributions.DiscretizedLogisticMixture(torch.zeros(1, 3, 2), 1, levels=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Bernoulli(reduction="batchmean"), ValueError, "reduction must be one of 'none', 'mean', 'sum'"),
        (lambda: nn.Bernoulli(sigma=1.0), TypeError, "Bernoulli: unknown option sigma; there are batch_ndim, validate"),
        (
            lambda: nn.Bernoulli(weight=torch.ones(1)),
            TypeError,
            "Bernoulli: unknown option weight; there are batch_ndim",
        ),
        (lambda: nn.OptimalSigmaGaussian(weight=None), TypeError, "OptimalSigmaGaussian: unknown option weight"),
        (lambda: nn.Bernoulli(expected_grad=1.0), TypeError, "Bernoulli: unknown option expected_grad"),
        (lambda: nn.Bernoulli(batch_ndim="x"), TypeError, "batch_ndim must be an int, got str"),
        (lambda: nn.Bernoulli(batch_ndim=-1), ValueError, "batch_ndim must be at least 0, got -1"),
        (lambda: nn.Bernoulli()((torch.zeros(1), torch.zeros(1)), torch.zeros(1)), ValueError, r"must be \(logits\)"),
        (lambda: nn.Bernoulli(validate=True)(torch.zeros(1, 2), torch.full((1, 2), 2.0)), ValueError, "x must be in"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_compiled_and_autocast(compiler):
    module, logits, x = nn.Bernoulli(reduction="mean"), torch.randn(4, 6, requires_grad=True), torch.rand(4, 6)

    def function(logits):
        return module(torch.tanh(logits), x)

    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(compiled(logits), function(logits))
    (actual,), (expected,) = (torch.autograd.grad(f(logits), logits) for f in (compiled, function))
    torch.testing.assert_close(actual, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(logits @ torch.eye(6), x).dtype == torch.float32


def test_subclasses_may_have_a_function_of_their_own():
    class Base(nn.Likelihood):
        pass

    class Mine(nn.Bernoulli):
        function = staticmethod(lambda logits, x, weight=None, batch_ndim=1, validate=False: 42 + 0 * logits.sum(1))

    class Child(Mine):
        pass

    x = torch.rand(3, 4)
    for module in (Mine(), Child()):
        assert module(torch.zeros(3, 4), x).tolist() == [42] * 3
