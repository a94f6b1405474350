"""The Laplace likelihood: values by hand, numbers as scales, extremes."""

from __future__ import annotations

import math

import pytest
import torch

import vaefast

INF, NAN = math.inf, math.nan


def _row(backend, *values, dtype=torch.float32):
    return [torch.tensor([v], dtype=dtype, device=backend.device, requires_grad=True) for v in values]


def test_values_by_hand(backend):
    """|3 - 1| / 2 + log 4; gradients sign(mu - x) / b, and 1 - |x - mu| / b."""
    mu, x, log_scale = _row(backend, [1.0], [3.0], [math.log(2)])
    nll = vaefast.laplace_nll(mu, x, log_scale)
    assert nll.item() == pytest.approx(1 + math.log(4), rel=1e-6)
    grads = torch.autograd.grad(nll.sum(), (mu, x, log_scale))
    assert [g.item() for g in grads] == pytest.approx([-0.5, 0.5, 0.0], abs=1e-6)


@pytest.mark.parametrize("log_scale", [0, -3.25, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_number_is_a_scale_for_all(backend, log_scale, dtype):
    mu, x = (torch.randn(4, 30, dtype=dtype, device=backend.device, requires_grad=True) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scales = torch.full((4, 30), float(log_scale), dtype=wide, device=backend.device)
    for scale in (log_scale, torch.tensor(log_scale, dtype=wide, device=backend.device)):
        nll = vaefast.laplace_nll(mu, x, scale)
        expected = vaefast.laplace_nll(mu, x, scales)
        assert torch.equal(nll, expected)
        grads = (torch.autograd.grad(n.sum(), (mu, x)) for n in (nll, expected))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("x", "log_scale", "nll", "grad_mu", "grad_log_scale"),
    [
        (0.0, -200.0, -200 + math.log(2), 0.0, 1.0),  # a hit costs nothing however small the scale
        (0.0, -INF, -INF, 0.0, 1.0),
        (1.0, -200.0, INF, -INF, -INF),
        (1.0, -INF, INF, -INF, -INF),
        (1e30, 0.0, 1e30, -1.0, -1e30),
        (1.0, 80.0, 80 + math.log(2), -math.exp(-80), 1.0),
        (0.0, INF, INF, 0.0, 1.0),
    ],
)
def test_extremes(backend, x, log_scale, nll, grad_mu, grad_log_scale):
    tensors = _row(backend, [0.0], [x], [log_scale])
    value = vaefast.laplace_nll(*tensors)
    assert value.item() == pytest.approx(nll, rel=1e-6)
    grads = torch.autograd.grad(value.sum(), (tensors[0], tensors[2]))
    assert [g.item() for g in grads] == pytest.approx([grad_mu, grad_log_scale], rel=1e-6)


def test_nan_stays(backend):
    for position in range(3):
        values = [0.5, 1.0, 0.0]
        values[position] = NAN
        assert vaefast.laplace_nll(*_row(backend, *[[v] for v in values])).isnan()
