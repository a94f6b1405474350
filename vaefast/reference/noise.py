"""The noise, in plain PyTorch: Philox4x32-10 counters and a Box-Muller of fixed float32 arithmetic.

Element n of a draw is word n mod 4 of block n div 4, so any element can be computed again anywhere, and every
backend produces these bits. ARCHITECTURE.md, "The noise", says what breaks and what keeps the exactness.
"""

from __future__ import annotations

import math

import torch

_WORD = 0xFFFFFFFF
_LOG = (
    -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip


def philox4x32(counter: list[torch.Tensor], key: list[torch.Tensor]) -> list[torch.Tensor]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        counter: four int64 tensors holding 32-bit words, low word first.
        key: two such tensors.

    Returns:
        Four int64 tensors of 32-bit words.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        hi0, lo0 = _multiply(c0, 0xD2511F53)
        hi1, lo1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]


def _multiply(a: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    # int64 wraps: the product's bits are right, and the arithmetic shift is masked back to the high word
    product = a * m
    return (product >> 32) & _WORD, product & _WORD


def box_muller(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two standard normals from two 32-bit words (int64 tensors), each float32 operation rounded on its own."""
    u = (a >> 1).to(torch.int32).float() * 2.0**-31 + 2.0**-32  # in (0, 1], never 0
    # natural log, the argument reduced to [sqrt(1/2), sqrt(2)) (Cephes logf)
    k = u.view(torch.int32) - 0x3F3504F3
    e = (k >> 23).float()
    g = ((k & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1
    w = g * g
    p = torch.full_like(g, 7.0376836292e-2)
    for c in _LOG:
        p = p * g + c
    y = (p * g) * w
    y = y + e * -2.12194440e-4
    y = y + w * -0.5
    log_u = (g + y) + e * 0.693359375
    r = (log_u * -2).double().sqrt().float()  # torch's float32 sqrt on CPU is 1 ulp off for 15 % of values
    # angle: two quadrant bits and a signed remainder in [-pi/4, pi/4)
    q = b >> 30
    t = (b << 34 >> 32).to(torch.int32).float() * 3.6572951981e-10
    t2 = t * t
    s = t2 * -1.9515295891e-4 + 8.3321608736e-3
    s = s * t2 + -1.6666654611e-1
    s = (s * t2) * t + t
    c = t2 * 2.443315711809948e-5 + -1.388731625493765e-3
    c = c * t2 + 4.166664568298827e-2
    c = ((c * t2) * t2 + t2 * -0.5) + 1
    swap = (q & 1) == 1
    s, c = torch.where(swap, c, s), torch.where(swap, s, c)
    s = torch.where((q & 2) == 2, -s, s)
    c = torch.where(((q + 1) & 2) == 2, -c, c)
    return r * c, r * s


def standard_normal(seed: torch.Tensor, shape, dtype: torch.dtype = torch.float32, first: int = 0) -> torch.Tensor:
    """Elements `first`, `first + 1`, … of the draw named by `seed` (int64 [2]: seed, offset), in row-major order.

    Computed in float32, then rounded once to half types or widened to float64.
    """
    count = math.prod(shape)
    start, end = first // 4, (first + count + 3) // 4
    block = torch.arange(start, max(end, start), dtype=torch.int64, device=seed.device)
    words = [w & _WORD for w in (block, block >> 32, seed[1], seed[1] >> 32, seed[0], seed[0] >> 32)]
    r0, r1, r2, r3 = philox4x32(words[:4], words[4:])
    normals = torch.stack([*box_muller(r0, r1), *box_muller(r2, r3)], dim=-1).flatten()
    return normals[first - 4 * start :][:count].reshape(shape).to(dtype)
