"""`vaefast.info()` says what `_backends` does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import vaefast
from vaefast import _backends, _extension
from vaefast.info import text
from vaefast.ops._define import TABLE


def test_it_covers_every_op_and_backend():
    facts = vaefast.info()
    assert facts["ops"].keys() == TABLE.keys()
    for op, kinds in facts["ops"].items():
        for device_type, choice in kinds.items():
            assert choice["chosen"] == _backends.choose(TABLE[op].density, device_type)
            assert choice["why_not"].keys() == set(_backends.NAMES)
            assert choice["why_not"][choice["chosen"]] is None
            assert choice["why_not"]["reference"] is None
    assert facts["ops"]["rsample_forward"]["cuda"]["why_not"]["cpu"] == "it runs on CPU tensors only"
    json.dumps(facts)


def test_it_shows_what_was_asked_for():
    assert vaefast.info()["asked"] is None
    with vaefast.use_backend("reference"):
        facts = vaefast.info()
    assert facts["asked"] == "reference"
    assert {choice["chosen"] for kinds in facts["ops"].values() for choice in kinds.values()} == {"reference"}
    assert "backend   reference, asked for by name" in text(facts)


def test_a_backend_that_was_asked_for_and_cannot_run_is_not_chosen():
    with vaefast.use_backend("cpu"):
        facts = vaefast.info()
    assert facts["ops"]["rsample_forward"]["cuda"]["chosen"] is None
    assert "used" not in text(facts).split("on cuda tensors")[1]


def test_build_facts_or_the_reason_for_none():
    facts = vaefast.info()
    assert (facts["build"] is None) == (facts["not_built"] is not None)
    assert facts["build"] == _extension.facts()


@pytest.mark.parametrize("cuda", [None, {"nvcc": "release 13.0", "architectures": ["90", "100"]}])
def test_text_of_a_build(cuda):
    build = {
        "compiler": "c++ 12",
        "openmp": True,
        "instruction_sets": ["baseline", "avx2"],
        "instruction_set": "avx2",
        "cuda": cuda,
    }
    shown = text({**vaefast.info(), "build": build, "not_built": None})
    assert "c++ 12, with OpenMP; instruction sets baseline, avx2 (here: avx2)" in shown
    assert ("no CUDA kernels" if cuda is None else "release 13.0 for sm_90, sm_100") in shown


def test_text_numbers_each_reason_once():
    facts = vaefast.info()
    why_not = {"cuda": "no nvcc", "triton": "not installed", "cpu": "no nvcc", "reference": None}
    choice = {"chosen": "reference", "why_not": why_not}
    facts["ops"] = {name: {"cpu": choice, "cuda": choice} for name in "ab"}
    facts["build"], facts["not_built"] = None, "it was not built"
    table = text(facts).split("on cpu tensors")[1].split("\n\n")[0].splitlines()[1:]
    assert [line.split() for line in table] == [
        ["cuda", "triton", "cpu", "reference"],
        *[[name, "no", "[1]", "no", "[2]", "no", "[1]", "used"] for name in "ab"],
        ["[1]", "no", "nvcc"],
        ["[2]", "not", "installed"],
    ]
    assert "compiled  it was not built" in text(facts)


def test_import_is_light_and_info_stays_a_function():
    script = """
import sys, vaefast
heavy = {"matplotlib", "mlxtend", "PIL", "safetensors", "triton", "vaefast.models", "vaefast.training", "vaefast._C"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import vaefast.info, vaefast.training
assert vaefast.info()["versions"]["vaefast"] == vaefast.__version__
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
