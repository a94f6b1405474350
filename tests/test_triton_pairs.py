"""The `pairs` walk in Triton's interpreter: TRITON_INTERPRET=1 pytest tests/test_triton_pairs.py"""

from __future__ import annotations

import importlib.util
import inspect
import os

import pytest
import test_pairs
import torch
from conftest import need
from test_pairs import CASES, check, check_against_reference, inputs

import vaefast
from vaefast import kernels
from vaefast.ops._define import TABLE

if importlib.util.find_spec("triton") is None:
    need("triton", "it is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    need("triton", "its interpreter needs TRITON_INTERPRET=1")

from vaefast.kernels import pairs


@pytest.fixture
def backend():
    with vaefast.use_backend("triton"):
        yield "triton"


@pytest.fixture(params=[CASES[0], *CASES[2::2]], ids=lambda case: case.name)
def case(request):
    return request.param


# The others test what lies above the walk, and would take the interpreter minutes
for _test in test_pairs.OF_THE_WALK:
    globals()[_test.__name__] = _test
    assert "backend" in inspect.signature(_test).parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(2, 2, 1), (19, 17, 3)])
def test_values_and_gradients(case, backend, sizes, dtype):
    check(case, inputs(case, sizes, dtype), 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("sizes", [(131, 70, 2), (70, 131, 2), (4, 5, 35)])
def test_programs_and_parts(case, backend, sizes):
    """Several programs and parts on either side, and more dimensions than are packed at once."""
    check_against_reference(case, inputs(case, sizes, torch.float32), 1e-5)


def test_parts_do_not_pass_what_streams():
    """A part holds at least one point, and the room of all parts is bounded."""
    for owned, streamed, most in ((128, 1, 256), (128, 33, 256), (128, 10**6, 256), (2**20, 10**6, 16), (0, 5, 16)):
        parts = pairs._parts(owned, streamed, 32, most)
        assert 1 <= parts <= min(most, -(-streamed // 32))
        assert parts * owned <= max(owned, pairs._PROGRAMS * pairs.OWN)


def test_bits_do_not_depend_on_the_run(case, backend):
    tensors = inputs(case, (40, 70, 2), torch.float32)
    first, second = (test_pairs.run(case.call, tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_op_of_pairs_has_a_density():
    assert {op.density for op in TABLE.values() if op.walk == "pairs"} <= pairs.DENSITIES.keys()
    assert {kernels.backend.why_not(name, device) for name in pairs.DENSITIES for device in ("cpu", "cuda")} == {None}
