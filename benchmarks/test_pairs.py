from __future__ import annotations

from benchmarks import pairs

FAMILY = pairs


def test_pairs(case, compare):
    compare(case)
