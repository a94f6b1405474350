"""Modules: the latent layer and the likelihood."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import vaefast
from vaefast.nn import Bernoulli, GaussianLatent, unit


@pytest.fixture
def moments() -> torch.Tensor:
    return torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [True, False])
def test_latent_is_rsample_kl_moments(moments, training):
    layer = GaussianLatent(logvar_bounds=(-1, 1)).train(training)
    expected = vaefast.rsample_kl_moments(moments, 1, seed=3, logvar_bounds=(-1, 1))
    for ours, theirs in zip(layer(moments, seed=3), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_latent_noise_follows_manual_seed(moments):
    layer = GaussianLatent()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(layer(moments)[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("dim", "batch_ndim"), [(1, 1), (-1, 1), (2, 2), (0, 0)])
def test_latent_mean_in_eval(dim, batch_ndim):
    moments = torch.randn(4, 6, 2, dtype=torch.float64).requires_grad_()
    layer = GaussianLatent(dim, batch_ndim=batch_ndim, sample_in_eval=False).eval()
    z, kl = layer(moments)
    mean, logvar = moments.chunk(2, dim)
    assert torch.equal(z, mean)
    terms = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
    torch.testing.assert_close(kl, terms.sum(tuple(range(batch_ndim, 3))))
    (grad,) = torch.autograd.grad(z.sum() + kl.sum(), moments)
    torch.testing.assert_close(grad, torch.cat([1 + mean, 0.5 * (logvar.exp() - 1)], dim))
    assert not torch.equal(layer.train()(moments)[0], mean)


def test_latent_bounds_hold_in_eval():
    moments = torch.tensor([[2.0, 1e4]], requires_grad=True)
    _, kl = GaussianLatent(logvar_bounds=(-30, 20), sample_in_eval=False).eval()(moments)
    torch.testing.assert_close(kl, 0.5 * (4 + torch.tensor([20.0]).exp() - 21))
    kl.sum().backward()
    assert moments.grad.tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_latent_copies(clone, moments):
    layer = GaussianLatent(-2, logvar_bounds=(-2.0, 2.0), sample_in_eval=False)
    other = clone(layer).eval()
    assert layer.training
    assert repr(other) == repr(layer) == "GaussianLatent(dim=-2, logvar_bounds=(-2.0, 2.0), sample_in_eval=False)"
    assert torch.equal(other.train()(moments, seed=1)[0], layer(moments, seed=1)[0])


def test_latent_repr_shows_what_is_not_default():
    assert repr(GaussianLatent()) == "GaussianLatent(dim=1)"
    assert repr(GaussianLatent(2, batch_ndim=2)) == "GaussianLatent(dim=2, batch_ndim=2)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 1.0}, TypeError, "dim must be an int, got float"),
        ({"batch_ndim": True}, TypeError, "batch_ndim must be an int, got bool"),
        ({"logvar_bounds": (1, 0)}, ValueError, "logvar_bounds"),
    ],
)
def test_latent_refuses_on_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        GaussianLatent(**arguments)


@pytest.mark.parametrize("sample_in_eval", [True, False])
@pytest.mark.parametrize(
    ("moments", "message"),
    [(torch.zeros(2, 3), "even size at dim 1"), (torch.zeros(4), "dim must be a dimension of the event")],
)
def test_latent_refuses_moments_that_do_not_fit(moments, message, sample_in_eval):
    with pytest.raises(ValueError, match=message):
        GaussianLatent(sample_in_eval=sample_in_eval).eval()(moments)


def test_bernoulli_is_the_expected_log_likelihood_of_binarised_images():
    logits, levels = torch.randn(4, 1, 3, 3).double(), torch.rand(4, 1, 3, 3).double()
    pixel = torch.distributions.Bernoulli(logits=logits)
    expected = -(levels * pixel.log_prob(torch.ones_like(levels)) + (1 - levels) * pixel.log_prob(0 * levels))
    torch.testing.assert_close(Bernoulli()(logits, levels), expected.sum((1, 2, 3)))
    torch.testing.assert_close(Bernoulli().mean(logits), pixel.probs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_bernoulli_computes_in_float32(dtype):
    logits, x = torch.full((2, 70_000), 2.0, dtype=dtype), torch.zeros(2, 70_000)
    nll = Bernoulli()(logits, x)  # past the largest float16
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, torch.full((2,), 70_000 * 2.126928011))


def test_uint8_levels_are_divided_by_255():
    levels = torch.arange(256, dtype=torch.uint8)[None]
    assert torch.equal(unit(levels), torch.arange(256)[None] / 255)
    logits = torch.randn(1, 256)
    assert torch.equal(Bernoulli()(logits, levels), Bernoulli()(logits, levels / 255))
