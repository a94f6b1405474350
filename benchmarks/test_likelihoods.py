from __future__ import annotations

from benchmarks import likelihoods

FAMILY = likelihoods


def test_likelihoods(case, compare):
    compare(case)
