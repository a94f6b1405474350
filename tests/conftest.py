"""What every test shares: a backend to run on, and memory that shows what was not written.

VAEFAST_REQUIRE names, comma-separated, what must be there (cpu, cuda, triton, compiler): without it, tests that need
what this machine lacks are skipped; with it they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, settings
from samples import ROWS, Row

import vaefast
from vaefast import _backends
from vaefast.ops._define import TABLE

# the same examples every time, so that a failure is a change in the code; --hypothesis-profile=search looks further
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
settings.register_profile("fixed", max_examples=40, derandomize=True, database=None, **_COMMON)
settings.register_profile("search", max_examples=1000, print_blob=True, **_COMMON)
settings.load_profile("fixed")


def pytest_configure(config):
    # every test must hold whatever the shell asks for; tests of the variable set it in a process of their own
    os.environ.pop("VAEFAST_BACKEND", None)


def pytest_collection_modifyitems(config, items):
    # left out rather than skipped one by one: without -m the slow tests, without a GPU the GPU's
    left_out = set() if config.option.markexpr else {"slow"}
    if not torch.cuda.is_available() and not {"cuda", "triton"} & _required():
        left_out.add("gpu")
    dropped = [item for item in items if left_out.intersection(mark.name for mark in item.iter_markers())]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def _required() -> set[str]:
    return set(os.environ.get("VAEFAST_REQUIRE", "").split(","))


def need(what: str, reason: str | None) -> None:
    """Skip the test (or the module) for `reason`, or fail where VAEFAST_REQUIRE names `what`. None is no reason."""
    if reason is None:
        return
    if what in _required():
        pytest.fail(f"VAEFAST_REQUIRE names {what}, but: {reason}", pytrace=False)
    pytest.skip(f"{what}: {reason}", allow_module_level=True)


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """torch.empty and its like hold NaN, so that an output that no kernel wrote is not equal to anything."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request) -> Row:
    """Every op, one after the other."""
    return request.param


class Backend(NamedTuple):
    name: str
    device: str


_BACKENDS = [
    Backend("reference", "cpu"),
    Backend("cpu", "cpu"),
    pytest.param(Backend("cuda", "cuda"), marks=pytest.mark.gpu),
    Backend("triton", "cpu")  # in its interpreter
    if os.environ.get("TRITON_INTERPRET") == "1"
    else pytest.param(Backend("triton", "cuda"), marks=pytest.mark.gpu),
]


@pytest.fixture(params=_BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    """Every backend that this machine has; with `row`, every backend that has the row's densities."""
    name, device = request.param
    if device == "cuda" and not torch.cuda.is_available():
        need(name, "no CUDA device")
    names = request.getfixturevalue("row").ops if "row" in request.fixturenames else ["standard_normal"]
    for op in names:
        need(name, _backends.why_not(name, TABLE[op].density, device))
    with vaefast.use_backend(name):
        yield request.param


@pytest.fixture
def compiler():
    """TorchInductor's CPU code needs a C++ compiler when it runs."""
    found = any(shutil.which(c) for c in (os.environ.get("CXX"), "g++", "clang++", "c++") if c)
    need("compiler", None if found else "no C++ compiler on the PATH")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def python():
    """Run Python source in a fresh process: (exit status, stdout, stderr)."""

    def run(source: str, **environment: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", source],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run
