"""What a function allocates on the CPU, as PyTorch's profiler sees it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def allocations(function: Callable) -> tuple[object, list[int]]:
    """The function's result, and every allocation (positive) and release (negative) while it ran, in bytes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return result, [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def peak(changes: list[int]) -> int:
    most = now = 0
    for change in changes:
        now += change
        most = max(most, now)
    return most
