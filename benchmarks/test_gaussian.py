from __future__ import annotations

from benchmarks import gaussian

FAMILY = gaussian


def test_gaussian(case, compare):
    compare(case)
