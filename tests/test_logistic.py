"""The discretised logistic likelihood: masses that add up to 1, narrow bins and far tails, levels."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

import vaefast

INF, NAN = math.inf, math.nan


def _exact(mu: float, level: int, log_scale: float, levels: int = 256) -> tuple[float, float, float]:
    """-log of the mass, and its derivatives by mu and log_scale."""
    with mpmath.workprec(600):
        half = mpmath.mpf(1) / (levels - 1)
        x = 2 * half * level - 1

        def sigmoid(z):
            return 1 / (1 + mpmath.exp(-z))

        def nll(mu, log_scale):
            upper, lower = ((x - mu + sign * half) / mpmath.exp(log_scale) for sign in (1, -1))
            if level == 0:
                return mpmath.log1p(mpmath.exp(-upper))
            if level == levels - 1:
                return mpmath.log1p(mpmath.exp(lower))
            # of the two tails the one whose sigmoids are small
            return -mpmath.log(sigmoid(upper) - sigmoid(lower) if x < mu else sigmoid(-lower) - sigmoid(-upper))

        mu, log_scale = mpmath.mpf(mu), mpmath.mpf(max(log_scale, -7.0))
        value = nll(mu, log_scale)
        step = mpmath.mpf(2) ** -100
        by_mu = (nll(mu + step, log_scale) - nll(mu - step, log_scale)) / (2 * step)
        by_scale = (nll(mu, log_scale + step) - nll(mu, log_scale - step)) / (2 * step)
        return float(value), float(by_mu), float(by_scale)


def _run(backend, mu, x, log_scale, dtype, **options):
    mu, log_scale = (torch.tensor(v, dtype=dtype, device=backend.device, requires_grad=True) for v in (mu, log_scale))
    nll = vaefast.discretized_logistic_nll(mu, x.to(backend.device), log_scale, batch_ndim=1, **options)
    return (nll.detach(), *torch.autograd.grad(nll.sum(), (mu, log_scale)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [256, 32, 2])
def test_against_mpmath(backend, dtype, levels):
    """Scales from the floor to a flat density; mu in the bin, on its border, beside it, far off, and beyond the edges:
    where a difference of sigmoids is 0."""
    cases = []
    for level in (0, 1, levels // 2, levels - 1):
        x = 2 * level / (levels - 1) - 1
        for log_scale in (-7.0, -6.5, -4.0, -1.0, 2.0, 20.0, 59.0, 61.0, 85.0):
            for mu in (x, x + 1 / (levels - 1), x + 0.003, x - 0.1, 0.3, -1.0, 1.0, 5.0, -5.0, 300.0, -300.0):
                cases.append((mu, level, log_scale))
    mu, level, log_scale = zip(*cases, strict=True)
    mu = torch.tensor(mu, dtype=dtype).tolist()
    actual = _run(backend, mu, torch.tensor(level, dtype=torch.uint8), log_scale, dtype, levels=levels)
    actual = torch.stack(actual).double().cpu()
    exact = [_exact(m, k, s, levels) for m, k, s in zip(mu, level, log_scale, strict=True)]
    exact = torch.tensor(exact, dtype=torch.float64).T
    wide = {"dtype": torch.float64}
    inverse = torch.exp(-torch.tensor(log_scale, **wide))
    # a rounding of (x - mu) / s or of half a bin over s moves the value by its derivatives by mu and log_scale
    distance = (2 * torch.tensor(level, **wide) / (levels - 1) - 1 - torch.tensor(mu, **wide)).abs() + 1 / (levels - 1)
    moved = exact[1].abs() * distance + exact[2].abs()
    rtol = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    size = torch.stack([exact[0].abs(), inverse, torch.ones_like(inverse)])  # which derivatives have, up to c and h
    most = rtol * (size + moved) + torch.finfo(dtype).tiny
    assert ((actual - exact).abs() <= most).all()


@pytest.mark.parametrize("levels", [2, 3, 32, 256, 65_536])
@pytest.mark.parametrize("log_scale", [-9.0, -7.0, -3.0, 0.0, 4.0])
def test_masses_add_up_to_1(backend, levels, log_scale):
    x = torch.arange(levels, device=backend.device, dtype=torch.int32)
    for mu in (0.0, -0.98, 1.7):
        mu = torch.full((levels,), mu, dtype=torch.float64, device=backend.device)
        nll = vaefast.discretized_logistic_nll(mu, x, log_scale, levels=levels)
        assert torch.exp(-nll).sum().item() == pytest.approx(1, rel=1e-9)


def test_levels_are_bytes_are_floats(backend):
    """Level k stands for 2 k / 255 - 1."""
    level = torch.arange(256, device=backend.device)
    mu = torch.linspace(-1.2, 1.2, 256, dtype=torch.float64, device=backend.device)
    expected = vaefast.discretized_logistic_nll(mu, 2 * level.double() / 255 - 1, -3.0)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        actual = vaefast.discretized_logistic_nll(mu, level.to(dtype), -3.0, validate=True)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_below_the_floor(backend):
    """log_scale counts as -7, without gradient; at the floor there is one."""
    x = torch.tensor([7, 0, 255], dtype=torch.uint8)
    mu = [2 * 7 / 255 - 1 + 0.004, -0.98, 0.98]
    below, at = (_run(backend, mu, x, [s] * 3, torch.float32) for s in (-100.0, -7.0))
    assert torch.equal(below[0], at[0])
    assert torch.equal(below[1], at[1])
    assert not below[2].any()
    assert at[2].all()


def test_mu_on_the_edge(backend):
    """At mu = x = ±1 half of the logistic lies beyond the edge, in the open bin: mass sigmoid(h / s), and the pull is
    outwards."""
    x = torch.tensor([-1.0, 1.0])
    nll, by_mu, _ = _run(backend, [-1.0, 1.0], x, [-2.0, -2.0], torch.float64)
    inverse = math.exp(2)
    mass = 1 / (1 + math.exp(-inverse / 255))
    assert nll.tolist() == pytest.approx([-math.log(mass)] * 2, rel=1e-12)
    assert by_mu.tolist() == pytest.approx([inverse * (1 - mass), -inverse * (1 - mass)], rel=1e-12)


def test_extremes(backend):
    x = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0, 0.0])
    mu, log_scale = [INF, -INF, INF, 1e30, NAN, 0.0], [0.0, 0.0, 0.0, -7.0, 0.0, INF]
    nll, by_mu, _ = _run(backend, mu, x, log_scale, torch.float32)
    expected = torch.tensor([0.0, 0.0, INF, 1e30 * math.exp(7), NAN, INF])
    torch.testing.assert_close(nll.cpu(), expected, rtol=1e-6, atol=0, equal_nan=True)
    assert by_mu[:4].tolist() == pytest.approx([0.0, 0.0, 1.0, math.exp(7)], rel=1e-6)


def test_levels_are_checked(backend):
    mu = torch.zeros(2, 3, device=backend.device)
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        vaefast.discretized_logistic_nll(mu, mu, 0.0, levels=1)
    with pytest.raises(TypeError, match="levels must be an int, got float"):
        vaefast.discretized_logistic_nll(mu, mu, 0.0, levels=256.0)
    with pytest.raises(ValueError, match="x must be less than levels = 32"):
        vaefast.discretized_logistic_nll(mu, torch.full((3,), 32, device=mu.device), 0.0, levels=32, validate=True)
    with pytest.raises(ValueError, match=r"x must be in \[-1, 1\]"):
        vaefast.discretized_logistic_nll(mu, mu + 1.01, 0.0, validate=True)
