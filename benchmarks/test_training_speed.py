from __future__ import annotations

from benchmarks import training

FAMILY = training


def test_training_speed(case, compare):
    compare(case)
