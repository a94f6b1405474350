"""The gamma function's parts for likelihoods of counts (csrc/density/gamma.h in Triton).

ln Γ itself appears nowhere: sums of ln Γ cancel to a small rest, so the densities add up logarithms of ratios near 1,
and what is left of Stirling's series:

    ln Γ(z) = (z - 1/2) ln z - z + ln(2 pi) / 2 + stirling(1/z)
    digamma(z) = ln z - 1 / (2 z) - stirling_slope(1/z)

Both are wanted for z >= 1 alone, since every argument is raised by Γ(z) = Γ(z + 1) / z first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.math import at_least, at_most, exponentials, log1p_parts, polynomial


@triton.jit
def stirling(t):
    """1 / (12 z) - 1 / (360 z^3) + …, of t = 1/z in [0, 1]: minimax, to 3e-9; in float64 Chebyshev, to 1.3e-16."""
    if t.dtype == tl.float64:
        p = polynomial(t, (
            5.0243389300907844608e-5, -4.7820415243903328223e-4, 2.0182799213684929843e-3, -4.8269313680688429471e-3,
            6.6020373912765683074e-3, -3.1298584253098309182e-3, -6.9144813793622743347e-3, 1.8299446771779859004e-2,
            -2.3101670321655985184e-2, 1.8565406775337877847e-2, -9.3507532034650382938e-3, 2.1120975397257227124e-3,
            4.0116169830876972543e-4, 6.7713670115614545209e-5, -6.0278980397603918092e-4, 5.9190734730949556618e-7,
            7.9361985481372811977e-4, 9.9143253627094946677e-10, -2.7777777946507430587e-3, 1.144874529178984658e-13,
            8.3333333333333203655e-2,
        ))  # fmt: skip
    else:
        p = polynomial(t, (
            1.371135438e-4, -6.2975196023e-4, 1.0447195537e-3, -5.0486700085e-5, -2.7733767668e-3, -7.8940803308e-8,
            8.3333330898e-2,
        ))  # fmt: skip
    return p * t


@triton.jit
def stirling_slope(t):
    """1 / (12 z^2) - 1 / (120 z^4) + …, of t = 1/z in [0, 1]: minimax, to 4e-8; in float64 Chebyshev, to 1.7e-15."""
    if t.dtype == tl.float64:
        p = polynomial(t, (
            -4.0561812676310555344e-5, 1.2296976116521342668e-3, -1.0827533296095614647e-2, 5.0569911651008828888e-2,
            -1.5148176418279813624e-1, 3.1800457105979267145e-1, -4.9023125934528713326e-1, 5.6766165101877585752e-1,
            -4.9506039412368055695e-1, 3.1766828946461815265e-1, -1.3884757745048046411e-1, 3.1682102265532181302e-2,
            1.2404771056696300528e-3, 9.4113718460620190706e-4, -4.2687745147242742864e-3, 7.8278947102540193406e-6,
            3.9678518657491431979e-3, 1.2718234223869136936e-8, -8.3333335478537824322e-3, 1.4483673030616779696e-12,
            8.3333333333331694428e-2,
        ))  # fmt: skip
    else:
        p = polynomial(t, (
            8.6275579699e-4, -3.5064238072e-3, 4.9380189637e-3, -6.3771030729e-5, -8.3505000272e-3, 2.3265791573e-6,
            8.333329588e-2,
        ))  # fmt: skip
    return p * t * t


@triton.jit
def digamma_parts(x, a):
    """p = x inverse, rest, t = 1 / (a + 1), s = a + x + 1 and inverse = 1 / ((a + x) (a + 1)) of `digamma_difference`,
    which is p + a (rest + ln(1 - p) + p): the logarithm is what raising both arguments leaves. rest is not quite 0 at
    x = 0."""
    total = x + a
    s = total + 1
    inverse, t_sum = 1 / (total * (a + 1)), 1 / s
    t = total * inverse
    return x * inverse, stirling_slope(t) - stirling_slope(t_sum) + x * (t * t_sum) * 0.5, t, s, inverse


@triton.jit
def digamma_difference(x, a):
    """a (digamma(a + x) - digamma(a) - ln((a + x) / a)) for x >= 0: from 0 at x = 0 up to 1, and x / (2 (a + x)) for
    large a. The logarithm of the ratio, which the caller has in a better place, stays out, and with it every large
    term."""
    p, rest, _, s, inverse = digamma_parts(x, a)
    _, excess = log1p_parts(-p, a * (s * inverse))
    return tl.where(x == 0, x, p + a * (rest - excess))


@triton.jit
def shape(log_shape):
    """exp, within bounds: products of two such parameters and counts neither overflow nor vanish, and beyond them the
    limits hold to the last bit (for counts up to 1e6 in float32)."""
    # not tl.clamp: between -c and c it becomes an instruction that float64 lacks
    lowest: tl.constexpr = -300.0 if log_shape.dtype == tl.float64 else -57.0
    highest: tl.constexpr = 300.0 if log_shape.dtype == tl.float64 else 43.0
    exp, _, _ = exponentials(at_least(at_most(log_shape, highest), lowest))
    return exp
