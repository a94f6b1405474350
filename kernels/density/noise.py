"""The noise: Philox4x32-10 counters and a Box-Muller of fixed float32 arithmetic (vaefast/reference/noise.py).

The bits are those of the reference, so no multiplication may be contracted with an addition: whatever launches these
functions passes `enable_fp_fusion=False`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 (Salmon et al. 2011): four words of counter and two of key, uint32, to four random words."""
    for _ in tl.static_range(10):
        # one widening multiplication; umulhi and a product apart take two instructions
        product0, product1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        high0, high1 = (product0 >> 32).to(tl.uint32), (product1 >> 32).to(tl.uint32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1.to(tl.uint32), high0 ^ c3 ^ k1, product0.to(tl.uint32)
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def box_muller(a, b):
    """Two standard normals from two uint32 words; each float32 operation is rounded on its own."""
    u = (a >> 1).to(tl.int32).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10  # (0, 1], never 0
    # natural log, the argument reduced to [sqrt(1/2), sqrt(2)) (Cephes logf)
    k = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    e = (k >> 23).to(tl.float32)
    g = ((k & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1
    w = g * g
    p = g * 7.0376836292e-2 + -1.1514610310e-1
    p = p * g + 1.1676998740e-1
    p = p * g + -1.2420140846e-1
    p = p * g + 1.4249322787e-1
    p = p * g + -1.6668057665e-1
    p = p * g + 2.0000714765e-1
    p = p * g + -2.4999993993e-1
    p = p * g + 3.3333331174e-1
    y = (p * g) * w
    y = y + e * -2.12194440e-4
    y = y + w * -0.5
    r = tl.sqrt_rn(((g + y) + e * 0.693359375) * -2)
    # angle: two quadrant bits and a signed remainder in [-pi/4, pi/4)
    t = (b << 2).to(tl.int32, bitcast=True).to(tl.float32) * 3.6572951981e-10
    t2 = t * t
    s = t2 * -1.9515295891e-4 + 8.3321608736e-3
    s = s * t2 + -1.6666654611e-1
    s = (s * t2) * t + t
    c = t2 * 2.443315711809948e-5 + -1.388731625493765e-3
    c = c * t2 + 4.166664568298827e-2
    c = ((c * t2) * t2 + t2 * -0.5) + 1
    odd = (b & 0x40000000) != 0
    # quadrants 2 and 3 negate the sine, 1 and 2 the cosine: their bits, moved to the sign
    sine = _flip(r * tl.where(odd, c, s), b)
    cosine = _flip(r * tl.where(odd, s, c), b ^ (b << 1))
    return cosine, sine


@triton.jit
def _flip(x, word):
    """x, negated where the top bit of the uint32 `word` is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def standard_normal(seed, quad):
    """Elements 4 * quad … 4 * quad + 3 of the draw that `seed` (a pointer to two int64) names.

    quad: int64 [R, Q]. Returns float32 [R, 4 * Q].
    """
    key, offset = tl.load(seed), tl.load(seed + 1)
    r0, r1, r2, r3 = philox4x32(
        quad.to(tl.uint32),
        (quad >> 32).to(tl.uint32),
        tl.full(quad.shape, offset.to(tl.uint32), tl.uint32),
        tl.full(quad.shape, (offset >> 32).to(tl.uint32), tl.uint32),
        tl.full(quad.shape, key.to(tl.uint32), tl.uint32),
        tl.full(quad.shape, (key >> 32).to(tl.uint32), tl.uint32),
    )
    n0, n1 = box_muller(r0, r1)
    n2, n3 = box_muller(r2, r3)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [quad.shape[0], 4 * quad.shape[1]])
