"""DiagonalGaussian against torch.distributions in float64, and against what diffusers' class does."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

import vaefast
from vaefast.distributions import DiagonalGaussian

SHAPES = [(3, 4), (2, 8, 5), (2, 4, 3, 5)]


def parameters(*shape, seed=0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def peer(values: torch.Tensor) -> Independent:
    mean, logvar = values.chunk(2, 1)
    return Independent(Normal(mean, torch.exp(0.5 * logvar)), mean.ndim - 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape):
    values, others = parameters(*shape), parameters(*shape, seed=1)
    ours, theirs = DiagonalGaussian(values), peer(values)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.std, theirs.stddev)
    torch.testing.assert_close(ours.var, theirs.variance)
    torch.testing.assert_close(ours.logvar, values.chunk(2, 1)[1])
    assert torch.equal(ours.mode(), ours.mean)
    standard = Independent(Normal(torch.zeros_like(ours.mean), 1), ours.mean.ndim - 1)
    torch.testing.assert_close(ours.kl(), kl_divergence(theirs, standard))
    torch.testing.assert_close(ours.kl(DiagonalGaussian(others)), kl_divergence(theirs, peer(others)))
    where = parameters(*ours.mean.shape, seed=2)
    torch.testing.assert_close(ours.log_prob(where), theirs.log_prob(where))
    torch.testing.assert_close(ours.nll(where), -theirs.log_prob(where))
    several = parameters(4, *ours.mean.shape, seed=3)
    torch.testing.assert_close(ours.log_prob(several), theirs.log_prob(several))


def test_kl_takes_any_object_with_mean_and_logvar():
    values, others = parameters(2, 4, 3, 3), parameters(2, 4, 3, 3, seed=1)

    class Peer:
        mean, logvar = others.chunk(2, 1)

    torch.testing.assert_close(DiagonalGaussian(values).kl(Peer()), kl_divergence(peer(values), peer(others)))


def test_nll_sums_over_dims():
    values, where = parameters(2, 4, 3, 5), parameters(2, 2, 3, 5, seed=1)
    ours, each = DiagonalGaussian(values), -Normal(*_mean_std(values)).log_prob(where)
    torch.testing.assert_close(ours.nll(where, dims=[1, 2, 3]), each.sum((1, 2, 3)))  # diffusers' default, a list
    torch.testing.assert_close(ours.nll(where, [2]), each.sum(2))


def _mean_std(values):
    mean, logvar = values.chunk(2, 1)
    return mean, torch.exp(0.5 * logvar)


def test_gradients():
    values, others = parameters(3, 6).requires_grad_(), parameters(3, 6, seed=1).requires_grad_()
    weight = parameters(3, 3, seed=2)
    ours = DiagonalGaussian(values)
    z = ours.rsample(seed=11)
    loss = (weight * z).sum() + ours.kl().sum() + ours.kl(DiagonalGaussian(others)).sum() + ours.log_prob(weight).sum()
    grads = torch.autograd.grad(loss, (values, others))

    theirs = peer(values)
    eps = vaefast.standard_normal((3, 3), seed=11, dtype=torch.float64)
    standard = Independent(Normal(torch.zeros(3, 3).double(), 1), 1)
    plain = (weight * (theirs.mean + theirs.stddev * eps)).sum() + kl_divergence(theirs, standard).sum()
    plain = plain + kl_divergence(theirs, peer(others)).sum() + theirs.log_prob(weight).sum()
    for mine, expected in zip(grads, torch.autograd.grad(plain, (values, others)), strict=True):
        torch.testing.assert_close(mine, expected)


def test_sample_draws_its_seed_from_the_generator():
    ours = DiagonalGaussian(parameters(2, 4, 3, 3, dtype=torch.float32))
    seed = vaefast.draw_seed(generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    first = ours.sample(generator)
    assert torch.equal(first, ours.rsample(seed))
    assert not torch.equal(first, ours.sample(generator))
    torch.manual_seed(5)
    assert torch.equal(first, ours.sample())


def test_sample_is_distributed_as_it_says():
    values = torch.tensor([2.0, -4.0])[None].repeat(200_000, 1)  # mean 2, std exp(-2)
    z = DiagonalGaussian(values).sample(torch.Generator().manual_seed(0))
    assert abs(z.mean().item() - 2) < 5 * math.exp(-2) / math.sqrt(200_000)
    assert abs(z.std().item() / math.exp(-2) - 1) < 5 / math.sqrt(2 * 200_000)


def test_logvar_is_clamped_as_in_diffusers():
    values = torch.tensor([[0.5, 0.5, 0.5, -1e4, 1e4, 1.0]], requires_grad=True)
    ours = DiagonalGaussian(values)
    assert ours.logvar.tolist() == [[-30.0, 20.0, 1.0]]
    assert torch.equal(ours.var, torch.exp(ours.logvar))
    loss = ours.kl() + ours.rsample(seed=0).sum() + ours.nll(torch.zeros(1, 3))
    assert loss.isfinite()
    loss.backward()
    assert values.grad.isfinite().all()
    assert values.grad[0, 3:5].tolist() == [0.0, 0.0]
    assert values.grad[0, 5] != 0


def test_deterministic_returns_what_diffusers_returns():
    values = parameters(2, 4, 3, 3, dtype=torch.float32)
    ours = DiagonalGaussian(values, deterministic=True)
    assert torch.equal(ours.sample(), ours.mean)
    assert torch.equal(ours.rsample(seed=1), ours.mean)
    assert torch.equal(ours.mode(), ours.mean)
    assert torch.equal(ours.std, torch.zeros_like(ours.mean))
    assert torch.equal(ours.var, torch.zeros_like(ours.mean))
    for zero in (ours.kl(), ours.kl(DiagonalGaussian(values)), ours.nll(ours.mean)):
        assert torch.equal(zero, torch.Tensor([0.0]))
    assert DiagonalGaussian(values).kl(ours).tolist() == [math.inf, math.inf]
    with pytest.raises(ValueError, match="no density"):
        ours.log_prob(ours.mean)


def test_deterministic_sample_does_not_share_the_memory_of_the_parameters():
    values = torch.zeros(1, 4)
    DiagonalGaussian(values, deterministic=True).sample().fill_(7)
    assert torch.equal(values, torch.zeros(1, 4))


def test_nothing_is_computed_before_it_is_asked_for():
    ours = DiagonalGaussian(parameters(2, 4))
    ours.kl()
    ours.rsample()
    assert not {"logvar", "std", "var"} & set(vars(ours))
    assert ours.std is ours.std
    assert ours.mean.data_ptr() == ours.parameters.data_ptr()


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_what_is_read_without_gradients_has_them_later(quiet):
    values = torch.ones(1, 2, requires_grad=True)
    ours = DiagonalGaussian(values)
    with quiet():
        assert not (ours.std + ours.var).requires_grad
    (actual,) = torch.autograd.grad(ours.nll(torch.zeros(1, 1)).sum(), values)
    torch.testing.assert_close(actual, torch.tensor([[math.exp(-1), 0.5 - 0.5 * math.exp(-1)]]))
    assert ours.std is ours.std


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    values = parameters(2, 4, 8, 8, dtype=torch.float32).to(dtype)
    ours, exact = DiagonalGaussian(values), DiagonalGaussian(values.double())
    assert ours.sample().dtype == ours.std.dtype == dtype
    where = torch.zeros_like(ours.mean)
    for name, arguments in (("kl", ()), ("nll", (where,)), ("log_prob", (where,))):
        value = getattr(ours, name)(*arguments)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), getattr(exact, name)(*arguments), rtol=1e-5, atol=0)
    wide = DiagonalGaussian(torch.full((1, 2), 20.0, dtype=dtype))  # exp(20) is past the largest float16
    assert wide.kl().isfinite()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (torch.zeros(2, 3), ValueError, "even size at dim 1"),
        (torch.zeros(4), ValueError, "dimension of the event"),
        (torch.zeros(2, 4, dtype=torch.int64), TypeError, "must be float32"),
        ([1.0], TypeError, "must be a tensor"),
    ],
)
def test_refuses(values, error, message):
    with pytest.raises(error, match=message):
        DiagonalGaussian(values)


def test_repr():
    assert repr(DiagonalGaussian(torch.zeros(2, 4))) == "DiagonalGaussian(shape=(2, 2), deterministic=False)"
