"""Benchmarks: vaefast, eager PyTorch and torch.compile side by side in one process; no speed without a checked result.

    pytest benchmarks/                      a quick look, through pytest-benchmark
    python -m benchmarks.run                measure everything and store it under benchmarks/results/
    python -m benchmarks.report             tables and plots from what is stored
    python -m benchmarks.gpu                on a machine with an NVIDIA GPU: build, test, measure, report

`workloads` names the shapes; a family's file holds its contenders; `measure` holds the clock.
"""

from __future__ import annotations

import os

# PyTorch reads this once, at its first CPU allocation, so it must be set before; page faults otherwise dominate every
# contender that allocates large outputs. `facts.environment` records what was in force.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# or the profiler, which measures memory, prints two lines each time
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
