from __future__ import annotations

from benchmarks import noise

FAMILY = noise


def test_noise(case, compare):
    compare(case)
