"""The functions of csrc/density/math.h and gamma.h against float64 (float32) and mpmath (float64), over their
whole range."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

from vaefast import _extension

if _extension.module() is None:
    pytest.skip(f"cpu: {_extension.reason()}", allow_module_level=True)


def _excess(x):
    if isinstance(x, mpmath.mpf):
        return x * x / 2 if abs(x) < 1e-40 else mpmath.expm1(x) - x
    series = x * x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x / 720))))
    return np.where(np.abs(x) < 0.01, series, np.where(x == np.inf, np.inf, np.expm1(x) - x))


def _log1p_excess(x):
    if isinstance(x, mpmath.mpf):
        return x * x / 2 if abs(x) < 1e-40 else x - mpmath.log1p(x)
    series = x * x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * (1 / 6 - x / 7)))))
    return np.where(np.abs(x) < 0.003, series, x - np.log1p(x))


def _stirling(t):
    """ln Γ(1/t) less the elementary part of Stirling's formula; for small t, where that cancels, its series."""
    if isinstance(t, mpmath.mpf):
        if t < 1e-8:
            return t / 12
        return mpmath.loggamma(1 / t) + (1 / t - 0.5) * mpmath.log(t) + 1 / t - mpmath.log(2 * mpmath.pi) / 2
    s, z = t * t, 1 / t
    series = t * (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s * (1 / 1188 - s * 691 / 360360)))))
    exact = torch.from_numpy(z).lgamma().numpy() - (z - 0.5) * np.log(z) + z - np.log(2 * np.pi) / 2
    return np.where(t < 0.1, series, exact)


def _stirling_slope(t):
    """ln(1/t) - t / 2 - digamma(1/t)"""
    if isinstance(t, mpmath.mpf):
        return t * t / 12 if t < 1e-8 else -mpmath.log(t) - t / 2 - mpmath.digamma(1 / t)
    s = t * t
    series = s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s * (1 / 132 - s * 691 / 32760)))))
    return np.where(t < 0.1, series, -np.log(t) - t / 2 - torch.from_numpy(1 / t).digamma().numpy())


def _sigmoid(x):
    t = np.exp(-np.abs(x))
    return np.where(x > 0, 1, t) / (1 + t)


# density: its outputs, each with the truth in NumPy and in mpmath, the domain, and the ulps allowed
EVERYWHERE, POSITIVE, UNIT = (-np.inf, np.inf), (0, np.inf), (0, 1)
ABOVE_MINUS_1 = (-0.9999999, 1e38)
FUNCTIONS = {
    "exponentials": {
        "exp": (np.exp, mpmath.exp, EVERYWHERE, 4),
        "expm1": (np.expm1, mpmath.expm1, EVERYWHERE, 4),
        # just past ±ln(2)/2, where it is a twentieth of e^x, it carries the rounding of e^x: 1e-6 in float32
        "excess": (_excess, _excess, EVERYWHERE, 16),
        "exp_only": (np.exp, mpmath.exp, (-np.inf, 71), 4),
    },
    "logarithms": {
        "log": (np.log, mpmath.log, EVERYWHERE, 4),
        "log1p_positive": (np.log1p, mpmath.log1p, POSITIVE, 4),
        "log1p_unit": (np.log1p, mpmath.log1p, UNIT, 4),
        "log1p_parts": (np.log1p, mpmath.log1p, ABOVE_MINUS_1, 4),
        # just past -0.29, where it is a sixth of ln(1 + u), it carries the rounding of 1 + u
        "log1p_excess": (_log1p_excess, _log1p_excess, ABOVE_MINUS_1, 20),
    },
    "logistics": {
        "sigmoid": (_sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), EVERYWHERE, 4),
        "complement": (lambda x: _sigmoid(-x), lambda x: 1 / (1 + mpmath.exp(x)), EVERYWHERE, 4),
        "softplus": (lambda x: np.logaddexp(x, 0), lambda x: mpmath.log1p(mpmath.exp(x)), EVERYWHERE, 4),
        "log_sigmoid": (lambda x: -np.logaddexp(-x, 0), lambda x: -mpmath.log1p(mpmath.exp(-x)), EVERYWHERE, 4),
        "tanh": (np.tanh, mpmath.tanh, EVERYWHERE, 4),
    },
    # at worst 3 and 10 ulp in float32; in float64 relative errors of 2e-15 and 2e-14, of what is at most 0.08
    "stirlings": {
        "stirling": (_stirling, _stirling, UNIT, 16),
        "stirling_slope": (_stirling_slope, _stirling_slope, UNIT, 180),
    },
}


@pytest.fixture(params=_extension.module().instruction_sets)
def evaluate(request):
    """(name, what FUNCTIONS says, result) of each of a density's functions, on one instruction set."""

    def run(density: str, x: np.ndarray) -> list[tuple]:
        x = torch.from_numpy(x)
        outputs = [torch.empty_like(x) for _ in FUNCTIONS[density]]
        _extension.module().cpu_rows(density, 1, (x,), (), tuple(outputs))
        return [(*row, o.numpy()) for row, o in zip(FUNCTIONS[density].items(), outputs, strict=True)]

    _extension.module().use_instruction_set(request.param)
    yield run
    _extension.module().use_instruction_set(_extension.instruction_set())


@pytest.mark.parametrize("density", FUNCTIONS)
def test_float32(density, evaluate):
    """Every 1,009th of all bit patterns: each binade, the subnormal numbers, both infinities, NaN."""
    patterns = np.arange(0, 2**32, 1009, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([patterns.view(np.float32), np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)])
    for name, (truth, _, (lo, hi), most), actual in evaluate(density, x):
        inside = ~((x < lo) | (x > hi))  # NaN is
        with np.errstate(all="ignore"):
            expected = truth(x[inside].astype(np.float64))
            rounded = expected.astype(np.float32)
            finite = np.isfinite(rounded)
            ulps = np.abs(actual[inside].astype(np.float64) - expected)[finite] / np.spacing(np.abs(rounded[finite]))
        assert ulps.max() <= most, f"{name}: {ulps.max():.1f} ulp at {x[inside][finite][ulps.argmax()]!r}"
        np.testing.assert_array_equal(actual[inside][~finite], rounded[~finite], err_msg=name)


def test_exp_only_reaches_further_in_float64(evaluate):
    x = np.linspace(71, 671, 601)
    actual = {name: result for name, _, result in evaluate("exponentials", x)}["exp_only"]
    np.testing.assert_allclose(actual, np.exp(x), rtol=4 * np.finfo(np.float64).eps)


@pytest.mark.parametrize("density", FUNCTIONS)
def test_float64(density, evaluate):
    """A few in every binade from 2^-1074 to 2^1024, more where the functions bend."""
    rng = np.random.default_rng(0)
    near = rng.uniform(-50, 50, 1000)
    far = np.ldexp(rng.uniform(1, 2, 2098), np.arange(-1074, 1024))
    x = np.concatenate([near, near / 50, far, -far, rng.uniform(-750, 715, 500)])
    for name, (_, truth, (lo, hi), most), actual in evaluate(density, x):
        for value, result in zip(x, actual, strict=True):
            if not lo <= value <= hi:
                continue
            with mpmath.workprec(200):
                exact = truth(mpmath.mpf(value))
                if isinstance(exact, mpmath.mpc):
                    assert np.isnan(result), f"{name}({value!r})"
                elif abs(exact) > np.finfo(np.float64).max:
                    assert result == float(exact), f"{name}({value!r})"
                else:
                    ulps = abs(mpmath.mpf(result) - exact) / np.spacing(abs(float(exact)))
                    assert ulps <= most, f"{name}: {float(ulps):.1f} ulp at {value!r}"
