"""Contenders of the noise: a fresh tensor of standard normals."""

from __future__ import annotations

import torch

import vaefast
from benchmarks.measure import Case
from benchmarks.workloads import WORKLOADS


def randn(shape, device):
    """What users write. Handed the noise of vaefast's seed, it is that noise: the check is on every bit."""
    return lambda eps=None: (torch.randn(shape, device=device) if eps is None else eps,)


def fused(shape, device):
    return lambda seed=None: (vaefast.standard_normal(shape, seed=seed, device=device),)


def cases(device: str) -> list[Case]:
    """Floor at 2^24 on one CPU thread: about 61 instructions a normal, so 4 of AVX-512's or 8 of AVX2's; two of those a
    cycle are 0.6 or 1.2 ns, 9 or 18 ms in all, and 67 MB of fresh pages besides. On a GPU: 4 bytes an element."""
    shape = WORKLOADS["latent_2^24"]["latent"]
    return [
        Case(
            name="standard_normal_2^24",
            op="standard_normal",
            device=device,
            eager=randn(shape, device),
            fused=fused(shape, device),
            noise=shape,
            exact=True,
            compiled=False,
            threads=1 if device == "cpu" else None,
            targets={"eager": 2.0} if device == "cpu" else {"eager": 1.0},
        )
    ]
