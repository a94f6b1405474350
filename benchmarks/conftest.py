"""`compare(case)`: check and measure a case side by side, and hand the figures to pytest-benchmark.

pytest-benchmark's own columns show vaefast alone; what compares is the interleaved measurement, which lies in
`extra_info` and in the table at the end. `--benchmark-max-time` is its length per case in seconds (default 1),
`--benchmark-disable` leaves only the check of the results.
"""

from __future__ import annotations

import pytest
import torch

import vaefast
from benchmarks import measure, report

_ROWS = pytest.StashKey[list]()


def pytest_generate_tests(metafunc):
    """A test module names its family as FAMILY; every case of it, on every device, becomes a test."""
    if "case" not in metafunc.fixturenames:
        return
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
    marks = {"cpu": (), "cuda": (pytest.mark.gpu, no_gpu)}
    cases = [(c, marks[device]) for device in marks for c in metafunc.module.FAMILY.cases(device)]
    names = [f"{c.device}-{c.name}-{str(c.dtype).removeprefix('torch.')}" for c, _ in cases]
    metafunc.parametrize("case", [pytest.param(c, marks=m, id=n) for (c, m), n in zip(cases, names, strict=True)])


@pytest.fixture
def compare(benchmark, request):
    def run(case: measure.Case) -> list[dict]:
        if benchmark.disabled:
            measure.check(case)
            rows = []
        else:
            rows = measure.rows(case, float(request.config.getoption("benchmark_max_time")))
            benchmark.extra_info["rows"] = rows
            request.config.stash.setdefault(_ROWS, []).extend(rows)
        backend = measure.fused_backends(case.op, case.device)[0]
        benchmark.group, benchmark.extra_info["backend"] = case.name, backend
        call = measure.step(case.fused, case.inputs())
        times = rows[0]["times"][backend] if rows else {"rounds": 1, "calls_per_turn": 1}
        with measure.threads(case), vaefast.use_backend(backend):
            benchmark.pedantic(call, rounds=times["rounds"], iterations=times["calls_per_turn"], warmup_rounds=1)
        return rows

    return run


def pytest_terminal_summary(terminalreporter, config):
    if rows := config.stash.get(_ROWS, []):
        terminalreporter.section("vaefast side by side with PyTorch (a quick look, nothing stored)")
        terminalreporter.write(report.speed_table(rows) + "\n")
