"""The sliced Wasserstein distance and DIP-VAE's moments: against other formulas, known answers, and at edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import DTYPES
from torch.func import grad, vmap

import vaefast


def points(count, dims, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dims, generator=generator, dtype=torch.float64).to(dtype)


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **{"rtol": 1e-12, "atol": 1e-13, **tolerance})


def wasserstein(a, b):
    """The squared distance of two lists of numbers: each number as often as makes both equally long."""
    x, y = a.repeat_interleave(len(b)).sort().values, b.repeat_interleave(len(a)).sort().values
    return (x - y).square().mean()


sizes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 5))


@given(sizes=sizes, seed=st.integers(0, 99))
def test_sliced_wasserstein(sizes, seed):
    b, c, dims, projections = sizes
    x, y = points(b, dims, 1), points(c, dims, 2)
    directions = vaefast.standard_normal((projections, dims), seed=seed, dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    expected = torch.stack([wasserstein(x @ d, y @ d) for d in directions]).mean()
    close(vaefast.sliced_wasserstein(x, y, projections, seed=seed), expected)
    close(vaefast.sliced_wasserstein(y, x, projections, seed=seed), expected)


@settings(max_examples=8)
@given(sizes=sizes)
def test_sliced_wasserstein_gradients(sizes):
    b, c, dims, projections = sizes
    x, y = points(b, dims, 1).requires_grad_(), points(c, dims, 2).requires_grad_()
    call = lambda x, y: vaefast.sliced_wasserstein(x, y, projections, seed=4)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, y), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, (x, y))


def test_sliced_wasserstein_known_answers():
    x = points(50, 3)
    assert vaefast.sliced_wasserstein(x, x.clone(), seed=0) == 0
    assert vaefast.sliced_wasserstein(x, x.flip(0), seed=0) < 1e-30  # a product may round by a row's place
    # of a shift by v: the mean of (v·θ)^2, |v|^2 / D
    shift = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    assert vaefast.sliced_wasserstein(x, x + shift, 20_000, seed=1).item() == pytest.approx(25 / 3, rel=0.02)
    # in one dimension every direction is the same
    a, b = x[:, :1], points(50, 1, 7)
    close(vaefast.sliced_wasserstein(a, b, 3, seed=5), wasserstein(a[:, 0], b[:, 0]))
    # as many copies of a sample as one likes are that sample
    close(vaefast.sliced_wasserstein(x, x.repeat(3, 1) + 1, seed=2), vaefast.sliced_wasserstein(x, x + 1, seed=2))


def test_directions_follow_the_seed():
    x, y = points(9, 3), points(9, 3, 1)
    torch.manual_seed(3)
    first = [vaefast.sliced_wasserstein(x, y) for _ in range(2)]
    torch.manual_seed(3)
    assert first[0] != first[1]
    assert vaefast.sliced_wasserstein(x, y) == first[0]
    seed = vaefast.draw_seed()
    assert vaefast.sliced_wasserstein(x, y, seed=seed) == vaefast.sliced_wasserstein(x, y, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_types(dtype):
    x, y = points(9, 4, 0, dtype).requires_grad_(), points(7, 4, 1, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for call in (
        lambda x, y: vaefast.sliced_wasserstein(x, y, 8, seed=0),
        lambda x, y: vaefast.dip_moments(x).sum(),
        lambda x, y: vaefast.dip_regulariser(x, x),
    ):
        value = call(x, y)
        assert value.dtype == wide
        expected = call(x.detach().double(), y.double())
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        close(value.double(), expected, rtol=tolerance, atol=tolerance)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(x, y), value)
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.dtype == dtype
        assert torch.isfinite(gradient).all()


@given(count=st.integers(1, 9), event=st.lists(st.integers(1, 3), max_size=3))
def test_dip_moments(count, event):
    size = math.prod(event)
    mu, logvar = points(count, size, 1), points(count, size, 2)
    covariance = torch.cov(mu.T, correction=0).reshape(size, size)
    shaped = [t.reshape(count, *event) for t in (mu, logvar)]
    close(vaefast.dip_moments(shaped[0]), covariance)
    whole = covariance + logvar.exp().mean(0).diag()
    close(vaefast.dip_moments(*shaped), whole)
    diagonal = torch.eye(size, dtype=torch.bool)
    expected = 3 * whole[~diagonal].square().sum() + 2 * (whole[diagonal] - 1).square().sum()
    close(vaefast.dip_regulariser(*shaped, off_diagonal=3.0, diagonal=2.0), expected)


def test_dip_gradients():
    mu, logvar = points(5, 3).requires_grad_(), points(5, 3, 1).requires_grad_()
    for call in (vaefast.dip_moments, vaefast.dip_regulariser):
        assert torch.autograd.gradcheck(call, (mu, logvar), check_batched_grad=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, (mu, logvar))


def test_dip_moments_of_standard_codes_are_the_identity():
    """The law of total covariance: z ~ N(mu, v) of mu ~ N(0, 1 - v) is N(0, 1), where the regulariser is least."""
    mu, logvar = math.sqrt(0.7) * points(200_000, 3), torch.full((1, 3), math.log(0.3)).double().expand(200_000, 3)
    close(vaefast.dip_moments(mu, logvar), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.01)
    assert vaefast.dip_regulariser(mu, logvar) < 0.02
    assert vaefast.dip_regulariser(mu) > 3 * 100 * 0.29**2


def test_means_far_from_zero_cancel_before_they_are_squared():
    mu = points(1000, 2, 0, torch.float32)
    close(vaefast.dip_moments(mu + 1000), vaefast.dip_moments(mu), rtol=0, atol=1e-3)


def test_transforms_and_compile(compiler):
    x, y = points(6, 3), points(6, 3, 1)
    for call in (lambda x: vaefast.sliced_wasserstein(x, y, 4, seed=2), vaefast.dip_regulariser):
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(call(leaf), leaf)
        close(grad(call)(x), expected)
        close(vmap(grad(call))(x[None])[0], expected)
        compiled = torch.compile(call, fullgraph=True)
        (actual,) = torch.autograd.grad(compiled(leaf), leaf)
        close(actual, expected)


def test_meta():
    x = torch.empty(4, 3, device="meta", requires_grad=True)
    assert vaefast.sliced_wasserstein(x, x[:2]).is_meta
    assert vaefast.dip_moments(x, x).shape == (3, 3)
    vaefast.dip_regulariser(x).backward()
    assert x.grad.is_meta


def test_edges():
    """One sample, identical points: right, and no NaN."""
    one = torch.ones(1, 3, requires_grad=True)
    assert vaefast.sliced_wasserstein(one, one.detach()) == 0
    for value in (vaefast.sliced_wasserstein(one, 3 * torch.ones(5, 3)), vaefast.dip_regulariser(one.expand(4, 3))):
        (gradient,) = torch.autograd.grad(value, one)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
    assert torch.equal(vaefast.dip_moments(one), torch.zeros(3, 3))
    far = vaefast.sliced_wasserstein(one, torch.full((2, 3), 1e30))
    assert far == math.inf


def test_errors():
    z = torch.zeros(4, 3)
    for error, words, call in [
        (ValueError, "projections must be at least 1, got 0", lambda: vaefast.sliced_wasserstein(z, z, 0)),
        (TypeError, "projections must be an int, got float", lambda: vaefast.sliced_wasserstein(z, z, 2.0)),
        (ValueError, "y must have x's event shape", lambda: vaefast.sliced_wasserstein(z, z[:, :2])),
        (ValueError, r"y must hold at least one .* got shape \(0, 3\)", lambda: vaefast.sliced_wasserstein(z, z[:0])),
        (ValueError, r"x must hold .* got shape \(4, 0\)", lambda: vaefast.sliced_wasserstein(z[:, :0], z[:, :0])),
        (TypeError, "seed must be an int", lambda: vaefast.sliced_wasserstein(z, z, seed=0.5)),
        (TypeError, "x must be float32", lambda: vaefast.sliced_wasserstein(z.int(), z)),
        (ValueError, "mu must hold at least one sample", lambda: vaefast.dip_moments(z[:0])),
        (ValueError, "logvar must have mu's shape", lambda: vaefast.dip_moments(z, z[:2])),
        (TypeError, "mu must be a tensor", lambda: vaefast.dip_regulariser(3.0)),
    ]:
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize("name", ["off_diagonal", "diagonal"])
def test_weights_that_are_no_numbers(name):
    with pytest.raises(TypeError, match=f"{name} must be a number, got str"):
        vaefast.dip_regulariser(torch.randn(4, 3), **{name: "1"})
