"""The continuous Bernoulli likelihood: a density on [0, 1], through its removable singularity and at extremes."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

import vaefast

INF, NAN = math.inf, math.nan


def _exact(logits: float, x: float) -> tuple[float, float]:
    """-log p and its derivative by the logits, with enough digits for every cancellation."""
    with mpmath.workprec(400):
        t, x = mpmath.mpf(logits), mpmath.mpf(x)
        if t == 0:
            return 0.0, float(mpmath.mpf(1) / 2 - x)
        return float(mpmath.log(mpmath.expm1(t) / t) - x * t), float(1 / -mpmath.expm1(-t) - 1 / t - x)


def _both(backend, logits, x, dtype):
    logits = torch.tensor(logits, dtype=dtype, device=backend.device, requires_grad=True)
    nll = vaefast.continuous_bernoulli_nll(logits, torch.tensor(x, dtype=dtype, device=backend.device), batch_ndim=1)
    return nll.detach(), torch.autograd.grad(nll.sum(), logits)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_mpmath(backend, dtype):
    """Logits of every size, 0 and the place where the series ends among them, and x at both ends."""
    sizes = [0.0, 1e-30, 1e-8, 1e-3, 0.1, 0.5, 0.9999999, 1.0, 1.0000001, 1.7, 3.0, 10.0, 30.0, 100.0, 1e4, 1e10]
    cases = [(sign * size, x) for size in sizes for sign in (1, -1) for x in (0.0, 0.125, 0.5, 0.75, 1.0)]
    logits, x = (torch.tensor(v, dtype=dtype) for v in zip(*cases, strict=True))
    nll, grad = _both(backend, logits.tolist(), x.tolist(), dtype)
    exact = torch.tensor([_exact(t, v) for t, v in zip(logits.tolist(), x.tolist(), strict=True)], dtype=torch.float64)
    rtol = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(nll.double().cpu(), exact[:, 0], rtol=rtol, atol=rtol / 10)
    torch.testing.assert_close(grad.double().cpu(), exact[:, 1], rtol=rtol, atol=rtol / 10)


def test_it_is_a_density(backend):
    """It integrates to 1, whatever the logits."""
    n = 20_000
    x = (torch.arange(n, dtype=torch.float64, device=backend.device) + 0.5) / n
    for logits in (0.0, 1e-6, -0.7, 1.0, 5.0, -40.0):
        nll = vaefast.continuous_bernoulli_nll(torch.full((n,), logits, dtype=x.dtype, device=x.device), x)
        assert torch.exp(-nll).mean().item() == pytest.approx(1, rel=1e-6)


def test_at_zero_logits(backend):
    """The uniform density: no cost, the gradient E[x] - x = 1/2 - x, and the second derivative 1/12, x's variance."""
    logits = torch.zeros(1, 3, dtype=torch.float64, device=backend.device, requires_grad=True)
    x = torch.tensor([[0.0, 0.25, 1.0]], dtype=torch.float64, device=backend.device)
    nll = vaefast.continuous_bernoulli_nll(logits, x)
    assert nll.item() == 0
    (grad,) = torch.autograd.grad(nll.sum(), logits, create_graph=True)
    assert grad.tolist() == [[0.5, 0.25, -0.5]]
    (second,) = torch.autograd.grad(grad.sum(), logits)
    torch.testing.assert_close(second, torch.full_like(second, 1 / 12), rtol=1e-12, atol=0)


def test_infinite_logits(backend):
    """All mass at one end: infinitely likely there, impossible elsewhere; NaN is NaN."""
    nll, _ = _both(backend, [INF, INF, INF, -INF, -INF, NAN, NAN], [1.0, 0.5, 0.0, 0.0, 1.0, 0.0, 1.0], torch.float32)
    expected = torch.tensor([-INF, INF, INF, -INF, INF, NAN, NAN])
    torch.testing.assert_close(nll.cpu(), expected, equal_nan=True)


def test_all_of_it_is_the_bernoulli_and_a_normaliser(backend):
    """log C(p) = log(2 artanh(1 - 2p) / (1 - 2p)) (equation 4)."""
    logits = torch.linspace(-6, 6, 40, dtype=torch.float64, device=backend.device)  # 0 is not one of them
    x = torch.rand(40, dtype=torch.float64, device=backend.device)
    p = torch.sigmoid(logits)
    normaliser = torch.log(2 * torch.atanh(1 - 2 * p) / (1 - 2 * p))
    expected = vaefast.bernoulli_nll(logits, x) - normaliser
    torch.testing.assert_close(vaefast.continuous_bernoulli_nll(logits, x), expected, rtol=1e-12, atol=1e-12)
