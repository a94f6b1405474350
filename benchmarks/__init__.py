"""Benchmarks: vaefast, eager PyTorch and torch.compile side by side in one process; no speed without a checked result.

    pytest benchmarks/                      a quick look, through pytest-benchmark
    python -m benchmarks.run                measure everything and store it under benchmarks/results/
    python -m benchmarks.report             tables and plots from what is stored
    python -m benchmarks.scaling            the terms of pairs as the batch and the latent grow, to where memory ends
    python -m benchmarks.mig                the information in all codes of dSprites: time and memory
    python -m benchmarks.study              which remedy helps which complaint about samples: trains and measures
    python -m benchmarks.claims             published claims, checked: trains and measures
    python -m benchmarks.gpu                on a machine with an NVIDIA GPU: build, test, measure, report

`workloads` names the shapes; a family's file holds its contenders; `measure` holds the clock.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

# PyTorch reads this once, at its first CPU allocation, so it must be set before; page faults otherwise dominate every
# contender that allocates large outputs. `facts.environment` records what was in force.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
keeps_freed_memory = False
# The same below PyTorch's 2 MB: glibc would give freed memory back to the system, and each step fault it in anew.
# -1 and -3 are M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (malloc.h); where there is no mallopt, nothing is changed.
with contextlib.suppress(AttributeError, OSError, TypeError):
    _libc = ctypes.CDLL(None)
    keeps_freed_memory = bool(_libc.mallopt(-1, 2**31 - 1) and _libc.mallopt(-3, 2**25))
# or the profiler, which measures memory, prints two lines each time
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
