"""Elementwise mathematics in float32 and float64, which densities are written with (csrc/density/math.h in Triton).

libdevice has most of it, but Triton's interpreter has no libdevice, and a density needs several parts of one
exponential. Literals beside float64 go through operators, which keep their digits: as arguments of `tl.fma` and
`tl.where` they would pass through float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))


@triton.jit
def at_most(x, bound):
    """NaN stays."""
    return tl.where(x > bound, bound, x)


@triton.jit
def at_least(x, bound):
    """NaN stays."""
    return tl.where(x < bound, bound, x)


@triton.jit
def polynomial(x, coefficients):
    """Of a tuple of numbers, the highest power first."""
    if x.dtype == tl.float64:
        p = x * coefficients[0] + coefficients[1]
        for i in tl.static_range(2, len(coefficients)):
            p = p * x + coefficients[i]
    else:
        p = tl.fma(x, coefficients[0], coefficients[1])
        for i in tl.static_range(2, len(coefficients)):
            p = tl.fma(p, x, coefficients[i])
    return p


@triton.jit
def exponentials(x):
    """exp(x), exp(x) - 1 and exp(x) - 1 - min(x, 100), each to a few units in its own last place.

    x = n ln 2 + r and exp(r) = 1 + r + r^2 P(r) (Cephes expf; for float64 the Taylor series). Where n is 0 the
    terms that cancel are left out instead of subtracted.
    """
    if x.dtype == tl.float64:
        bounded = tl.clamp(x, -746.0, 710.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = bounded * 1.4426950408889634 + 6755399441055744.0  # 1.5 * 2^52: rounds, and the bits hold n
        n = shifted - 6755399441055744.0
        r = (bounded - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6
        p = polynomial(r, (
            1 / 87178291200, 1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320,
            1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2,
        ))  # fmt: skip
        bits = shifted.to(tl.int64, bitcast=True)  # its low bits are n's, whatever the shifts below drop
        small = bits == 0x4338000000000000
        # 2^n in two factors: n may be 1024, or below the normal range
        scale = ((bits >> 1 << 52) + 0x3FF0000000000000).to(tl.float64, bitcast=True)
        rest = ((bits - (bits >> 1) << 52) + 0x3FF0000000000000).to(tl.float64, bitcast=True)
        q = r * r * p
        m = r + q
        exp = (m * scale + scale) * rest
    else:
        bounded = tl.clamp(x, -104.0, 89.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = tl.fma(bounded, 1.44269504, 12582912.0)  # 1.5 * 2^23: rounds, and the bits hold n
        n = shifted - 12582912.0
        r = tl.fma(n, 2.12194440e-4, tl.fma(n, -0.693359375, bounded))
        p = polynomial(r, (
            1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
        ))  # fmt: skip
        bits = shifted.to(tl.int32, bitcast=True)
        small = bits == 0x4B400000
        scale = ((bits >> 1 << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        rest = ((bits - (bits >> 1) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        q = r * r * p
        m = r + q
        exp = tl.fma(m, scale, scale) * rest
    expm1 = tl.where(small, m, exp - 1)
    # past 100 the linear term no longer counts; without the bound inf - inf is NaN
    return exp, expm1, tl.where(small, q, expm1 - tl.minimum(x, 100.0))


@triton.jit
def _log1p_tail(g):
    """ln(1 + g) - g for 1 + g in [sqrt(1/2), sqrt(2)): Cephes logf; in float64 by 2 artanh(g / (2 + g))."""
    if g.dtype == tl.float64:
        s = g / (g + 2)
        z = s * s
        p = polynomial(z, (1 / 23, 1 / 21, 1 / 19, 1 / 17, 1 / 15, 1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3))
        tail = -s * (g - z * p * 2)
    else:
        w = g * g
        p = polynomial(g, (
            7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
            -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
        ))  # fmt: skip
        tail = tl.fma(w, -0.5, p * g * w)
    return tail


@triton.jit
def _split(x):
    """e and g of x = 2^e (1 + g), for normal, positive x, with 1 + g in [sqrt(1/2), sqrt(2))."""
    if x.dtype == tl.float64:
        k = x.to(tl.int64, bitcast=True) - 0x3FE6A09E667F3BCD
        e = (k >> 52).to(tl.float64)
        g = ((k & 0xFFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).to(tl.float64, bitcast=True) - 1
    else:
        k = x.to(tl.int32, bitcast=True) - 0x3F3504F3
        e = (k >> 23).to(tl.float32)
        g = ((k & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1
    return e, g


@triton.jit
def _log_split(e, log1p):
    """e ln(2) + log1p."""
    if e.dtype == tl.float64:
        y = e * 6.93147180369123816490e-01 + (e * 1.90821492927058770002e-10 + log1p)
    else:
        y = tl.fma(e, 0.693359375, tl.fma(e, -2.12194440e-4, log1p))
    return y


@triton.jit
def log_normal(x):
    """ln(x) for normal, positive x; the callers see to the rest."""
    e, g = _split(x)
    return _log_split(e, g + _log1p_tail(g))


@triton.jit
def log_parts(x):
    """high + low = ln(x) for normal, positive x; high, a multiple of a shortened ln(2), is exact."""
    e, g = _split(x)
    if x.dtype == tl.float64:
        high, low = e * 6.93147180369123816490e-01, e * 1.90821492927058770002e-10 + (g + _log1p_tail(g))
    else:
        high, low = e * 0.693359375, tl.fma(e, -2.12194440e-4, g + _log1p_tail(g))
    return high, low


@triton.jit
def log(x):
    """ln(x): -inf at 0, NaN below, right for subnormal numbers and +inf."""
    tiny: tl.constexpr = 2.2250738585072014e-308 if x.dtype == tl.float64 else 1.1754943508222875e-38
    small = x < tiny
    e, g = _split(tl.where(small, x * 18014398509481984.0, x))  # 2^54 makes every subnormal number normal
    e = tl.where(small, e - 54, e)
    special = tl.where(x > 0, x, tl.where(x == 0, -INF, NAN))
    return tl.where((x > 0) & (x < INF), _log_split(e, g + _log1p_tail(g)), special)


@triton.jit
def log1p_positive(x):
    """ln(1 + x) for x >= 0, exact near 0: below sqrt(2) - 1 the reduced argument is x itself."""
    e, g = _split(x + 1)
    g = tl.where(e == 0, x, g)
    return tl.where(x < INF, _log_split(e, g + _log1p_tail(g)), x)


@triton.jit
def log1p_unit(t):
    """ln(1 + t) for t in [0, 1], as softplus needs it: the reduction is exact, and takes no bits."""
    large = t > 0.41421356237309503  # 1 + t is halved
    g = tl.where(large, (t - 1) * 0.5, t)
    y = g + _log1p_tail(g)
    return tl.where(large, y + 0.6931471805599453, y)


@triton.jit
def log1p_parts(u, y):
    """ln(1 + u), and u - ln(1 + u) exact near 0, for u > -1 with y = 1 + u told apart: near 0 u has the digits that
    count, far from it y has. y must be normal; where u is infinite or NaN both are NaN."""
    e, g = _split(y)
    near = e == 0
    g = tl.where(near, u, g)
    tail = _log1p_tail(g)
    log1p = _log_split(e, u * 0 + (g + tail))
    return log1p, tl.where(near, -tail, u - log1p)


@triton.jit
def logistic(x):
    """sigmoid(x), sigmoid(-x), softplus(x) = ln(1 + exp(x)) and ln(sigmoid(x)) from one exponential, of -|x|: each
    keeps its relative accuracy where it is small."""
    t, _, _ = exponentials(-tl.abs(x))
    large = 1 / (t + 1)
    small = t * large
    positive = x > 0
    tail = log1p_unit(t)
    softplus, log = at_least(x, 0.0) + tail, at_most(x, 0.0) - tail
    return tl.where(positive, large, small), tl.where(positive, small, large), softplus, log


@triton.jit
def tanh(x):
    """(1 - exp(-2|x|)) / (1 + exp(-2|x|)) with x's sign."""
    _, m, _ = exponentials(tl.abs(x) * -2)
    y = m / (m + 2)
    return tl.where(x < 0, y, -y)


@triton.jit
def standardised(difference, inverse_scale):
    """Their product; no difference is none at scale 0 too, where 0 * inf would be NaN."""
    return tl.where((difference == 0) & (inverse_scale == INF), difference, difference * inverse_scale)


@triton.jit
def product(a, b):
    """a b, and 0 where a is 0 whatever b is: a term with no weight is no term."""
    return tl.where(a == 0, 0.0, a * b)
