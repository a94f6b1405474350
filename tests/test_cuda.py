"""The CUDA kernels with no GPU at hand: what their machine code must show, and what they compute.

tests/cuda_emulation stands in for CUDA's headers, so that a C++ compiler builds csrc/cuda for the CPU. On that build
every test runs that takes a backend: the same index arithmetic, masks, shuffles, sums and noise as on a GPU.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest
import test_categorical
import test_gaussian
import test_layout
import test_logistic_mixture
import test_noise
import test_ops
import test_pairs
import torch
from conftest import Backend, need
from samples import DTYPES, assert_accurate, cotangents, gradients, seed_tensor
from test_layout import sparse  # noqa: F401 - a fixture
from torch.nn.functional import binary_cross_entropy_with_logits

import vaefast
from vaefast import _extension
from vaefast.ops._define import TABLE as OPS
from vaefast.reference.gaussian import compute_dtype, kl_normal_with_gradient
from vaefast.reference.noise import standard_normal

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
CAPABILITIES = ["80", "90", "100"]


def run(*command) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# On the CPU


class Emulated:
    """In the place of vaefast._extension.cuda, for CPU tensors."""

    def __init__(self, module):
        self.module = module

    def why_not(self, density, device_type):
        known = density in self.module.densities or density in self.module.pair_densities
        return None if known else f"it has no kernel for {density}"

    def body(self, body):
        return body.in_c(self.module, cuda=True)

    def rows(self, *arguments):
        self.module.cuda_rows(0, 0, *arguments)

    def pairs(self, *arguments, **options):
        self.module.cuda_pairs(0, 0, *arguments, **options)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    need("compiler", None if cxx and shutil.which(cxx) else "no C++ compiler on the PATH")
    need("compiler", None if sys.platform == "linux" else "the emulation is written for Linux")
    import pybind11

    folder = tmp_path_factory.mktemp("cuda_emulation")
    (folder / "build_facts.h").write_text('#define VAEFAST_BUILD_FACTS "{}"\n')
    module = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-O1", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", f"-I{folder}", f"-I{CSRC}"]
    # a misaligned vector, an index past its array or a wrapped offset stops the process
    checks = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    kernels = ["-std=c++20", "-ffp-contract=off", "-Wno-unknown-pragmas", f"-I{ROOT / 'tests/cuda_emulation'}", *checks]
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    for source, target in zip(SOURCES, objects, strict=True):
        run(cxx, *kernels, *flags, "-x", "c++", "-c", source, "-o", target)
    headers = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    link = ["-shared", CSRC / "module.cpp", *objects, "-o", module]
    run(cxx, "-std=c++17", "-DVAEFAST_HAS_CUDA", *headers, *flags, *link)
    spec = importlib.util.spec_from_file_location("_C", module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    _extension.attach(loaded, lambda device: 0)
    return Emulated(loaded)


@pytest.fixture
def backend(emulated, monkeypatch):
    monkeypatch.setattr(_extension, "cuda", emulated)
    with vaefast.use_backend("cuda"):
        yield Backend("emulated", "cpu")


for _module in (test_categorical, test_gaussian, test_layout, test_logistic_mixture, test_noise, test_ops):
    for _name, _function in vars(_module).items():
        _slow = any(mark.name == "slow" for mark in getattr(_function, "pytestmark", ()))  # here, hours
        if _name.startswith("test_") and not _slow and "backend" in inspect.signature(_function).parameters:
            globals()[f"{_name}__{_module.__name__}"] = _function


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [8191, 8192, 8193, 16385, 100_003])
def test_pieces_of_rows(backend, cols, dtype):
    """Rows that one block still sums and rows that are cut, whose pieces a second kernel adds up."""
    mu, logvar = torch.randn(2, 3, cols, dtype=dtype, generator=torch.Generator().manual_seed(0))
    z, kl = vaefast.rsample_kl(mu, logvar, seed=seed_tensor())
    with vaefast.use_backend("reference"):
        expected_z, expected_kl = vaefast.rsample_kl(mu.double(), logvar.double(), seed=seed_tensor())
    assert_accurate(z, expected_z)
    assert_accurate(kl, expected_kl, sums=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3), (7, 301), (2, 20_001)])
def test_bits_do_not_depend_on_the_strides(backend, shape, dtype):
    """Dense tensors and others take different kernels, which agree."""
    mu, logvar = torch.randn(2, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    dense, strided = (vaefast.rsample_kl(f(mu), f(logvar), seed=1) for f in (torch.clone, lambda t: t.mT.clone().mT))
    assert all(torch.equal(a, b) for a, b in zip(dense, strided, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 7, 20_001])
def test_reduced_loss(backend, dtype, batch):
    pairs = torch.randn(batch, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    leaves = [t.requires_grad_() for t in pairs.unbind(1)]  # strided
    wide = [t.detach().double().requires_grad_() for t in leaves]
    loss, truth = vaefast.elbo_loss(*leaves, beta=0.5).loss, (wide[0] + 0.5 * wide[1]).mean()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)
    for actual, expected in zip(
        *[torch.autograd.grad(3 * o, t) for o, t in ((loss, leaves), (truth, wide))], strict=True
    ):
        assert_accurate(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3), (7, 301), (2, 20_001)])
def test_gradients_beside_the_divergence(backend, shape, dtype):
    tensors = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = [t.mT.clone().mT if i % 2 else t for i, t in enumerate(tensors)]
    grad, rest = torch.linspace(-1, 2, shape[0]), (1, -1.5, 1.5)
    op, wanted = OPS["kl_normal_with_gradient"], [True, True, False, True]
    actual = op(grad.to(compute_dtype(dtype)), *tensors, *rest, wanted)
    expected = kl_normal_with_gradient(grad.double(), *[t.double() for t in tensors], *rest)
    assert actual[2].numel() == 0
    for i in (0, 1, 3, 4):
        assert_accurate(actual[i], expected[i], sums=i == 4)


for _test in (test_pairs.test_values_and_gradients, *test_pairs.OF_THE_WALK):
    globals()[f"{_test.__name__}__test_pairs"] = _test


@pytest.fixture(params=test_pairs.CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.mark.parametrize("sizes", [(131, 300, 2), (300, 131, 2)])
def test_programs_and_parts_of_pairs(case, backend, sizes):
    test_pairs.check_against_reference(case, test_pairs.inputs(case, sizes, torch.float32), 1e-5)


def test_an_output_that_nobody_asked_for_is_skipped(emulated):
    mu, logvar, grad = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    outputs = [torch.empty(4, 9) for _ in range(4)]
    for asked in ((outputs[0], outputs[1]), (outputs[2], None), (None, outputs[3])):
        inputs = (grad, mu, logvar)
        emulated.rows("rsample_kl_backward", 1, inputs, (torch.ones(4),), asked, (), seed_tensor(), (-1.0, 1.0))
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int32, torch.int64, *DTYPES])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (2, 20_000)])
def test_types_and_weights_mix(backend, dtype, weighed, shape):
    """Data and weights of any type beside half-precision parameters, and gradients in the type of each."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).half().requires_grad_()
    x = torch.randint(2, shape, generator=generator).to(dtype).requires_grad_(dtype.is_floating_point)
    weight = torch.randint(3, shape, generator=generator).to(dtype) if weighed else None
    nll = vaefast.bernoulli_nll(logits, x, weight=weight)
    wide = x.double() / (255 if dtype == torch.uint8 else 1)
    wide_weight = None if weight is None else weight.double()
    terms = binary_cross_entropy_with_logits(logits.double(), wide, wide_weight, reduction="none")
    assert_accurate(nll, terms.sum(1), sums=True)
    leaves = [t for t in (logits, x) if t.requires_grad]
    expected = gradients((terms.sum(1),), leaves, cotangents((nll,)))
    for leaf, actual, truth in zip(leaves, gradients((nll,), leaves), expected, strict=True):
        assert actual.dtype == leaf.dtype
        torch.testing.assert_close(actual, truth)


# Sizes that nobody would wait for: only the last blocks run


@pytest.fixture
def last_blocks(monkeypatch):
    monkeypatch.setenv("VAEFAST_EMULATED_BLOCKS", "64")


def test_flat_past_2_32_elements(emulated, last_blocks, sparse):  # noqa: F811
    count, tail = 2**32 + 9, 100_000
    out = sparse(count, torch.bfloat16)
    emulated.rows("standard_normal", 0, (), (), (out,), (), seed_tensor(3, 1), ())
    expected = standard_normal(seed_tensor(3, 1), (tail,), torch.bfloat16, first=count - tail)
    assert torch.equal(out[-tail:], expected)


@pytest.mark.parametrize("cols", [4099, 4104])
def test_rows_past_2_32_elements(emulated, last_blocks, cols):
    """More rows than one dimension of a grid holds, each written over the one before."""
    rows = 2**32 // cols + 2
    out = torch.empty(cols)
    emulated.rows("standard_normal", 1, (), (), (out.expand(rows, cols),), (), seed_tensor(3, 1), ())
    assert torch.equal(out, standard_normal(seed_tensor(3, 1), (cols,), first=(rows - 1) * cols))


@pytest.mark.parametrize("cols", [3, 4])
def test_sums_of_many_rows(emulated, last_blocks, cols):
    rows = 2**24 + 5
    mu, logvar = torch.full((1, cols), 2.0).expand(rows, cols), torch.zeros(1, cols).expand(rows, cols)
    kl = torch.empty(rows)
    emulated.rows("kl_standard_normal_forward", 1, (mu, logvar), (), (), (kl,), None, (-1.0, 1.0))
    assert kl[-256:].tolist() == [2.0 * cols] * 256
    assert kl[: -64 * 128].isnan().all()  # the test runs what it means to run


# The machine code


class Kernel(NamedTuple):
    walk: str  # map_packs, map_elements or map_planes
    density: str
    dtype: str  # as the mangled name has it
    code: list[str]  # mnemonics


_NAME = re.compile(r"(map_packs|map_elements|map_planes)INS_\d+scalar\d+(\w+?)E(f|d|6__half|13__nv_bfloat16)E")
_TENSORS = re.compile(r"struct (\w+)\s+: Density<(\d+), \d+, (\d+), ")
HEADERS = "\n".join(header.read_text() for header in sorted((CSRC / "density").glob("*.h")))
DENSITIES = {name: (int(inputs), int(outputs)) for name, inputs, outputs in _TENSORS.findall(HEADERS)}
for _name, _forward, _backward in re.findall(r"struct (\w+) : WithGradient<(\w+), (\w+)>", HEADERS):
    DENSITIES[_name] = (DENSITIES[_forward][0], DENSITIES[_backward][1])
TABLE = (CSRC / "density/table.h").read_text()
PLANES = set(re.findall(r'X\("\w+", (\w+)\)', TABLE)) - set(DENSITIES)
# the types that a kernel is compiled for, and how many 16-byte accesses a thread makes to each tensor
PACKS = {
    "map_packs": {"f": 2, "d": 2, "6__half": 1, "13__nv_bfloat16": 1},
    "map_elements": {"f": 0, "d": 0, "6__half": 0},
}


@pytest.fixture(scope="session")
def binary(tmp_path_factory):
    """csrc/cuda/rows.cu, compiled for every architecture."""
    return compiled("rows", tmp_path_factory)


@pytest.fixture(scope="session")
def pairs_binary(tmp_path_factory):
    return compiled("pairs", tmp_path_factory)


def compiled(name: str, tmp_path_factory) -> Path:
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    need("nvcc", None if nvcc else "no nvcc on the PATH")
    target = tmp_path_factory.mktemp("nvcc") / f"{name}.o"
    code = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in CAPABILITIES]
    code.append(f"-gencode=arch=compute_{CAPABILITIES[-1]},code=compute_{CAPABILITIES[-1]}")
    source = CSRC / f"cuda/{name}.cu"
    flags = ["-std=c++17", "-O3", "-Werror=all-warnings", "--threads=2", f"-I{CSRC}"]
    run(nvcc, *flags, *code, "-c", source, "-o", target)
    return target


@pytest.fixture(scope="session")
def cuobjdump():
    bundled = importlib.util.find_spec("triton")
    bundled = bundled and Path(bundled.origin).parent / "backends/nvidia/bin/cuobjdump"
    found = shutil.which("cuobjdump") or (bundled if bundled and bundled.exists() else None)
    need("nvcc", None if found else "no cuobjdump, neither on the PATH nor in Triton")
    return found


@pytest.fixture(params=CAPABILITIES, ids="sm_{}".format, scope="session")
def capability(request):
    return request.param


def functions(listing: str, pattern: str) -> list[tuple[str, str]]:
    """(mangled name, text) of each function of a listing."""
    parts = re.split(pattern, listing)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


@pytest.fixture(scope="session")
def kernels(binary, cuobjdump, capability):
    found = []
    for name, text in functions(run(cuobjdump, "-arch", f"sm_{capability}", "-sass", binary), r"Function : (\w+)"):
        if match := _NAME.search(name):
            code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text, re.MULTILINE)
            found.append(Kernel(*match.groups(), code))
    return found


def test_every_density_is_compiled(kernels):
    expected = {(walk, density, dtype) for walk, dtypes in PACKS.items() for density in DENSITIES for dtype in dtypes}
    heavy = set(re.findall(r"struct (\w+) : .*\n  static constexpr bool heavy = true", HEADERS))
    expected = {k for k in expected if k[0] == "map_elements" or k[1] not in heavy}
    assert {k[:3] for k in kernels} == expected | {
        ("map_planes", density, dtype) for density in PLANES for dtype in "fd"
    }


def test_packs_are_read_and_written_16_bytes_at_a_time(kernels):
    for kernel in (k for k in kernels if k.walk in PACKS):
        inputs, outputs = DENSITIES[kernel.density]
        packs = PACKS[kernel.walk][kernel.dtype]
        assert sum(c.startswith("LDG") and ".128" in c for c in kernel.code) == inputs * packs, kernel[:3]
        assert sum(c.startswith("STG") and ".128" in c for c in kernel.code) == outputs * packs, kernel[:3]


def test_nothing_spills(binary, cuobjdump, kernels, capability):
    usage = run(cuobjdump, "-arch", f"sm_{capability}", "-res-usage", binary)
    stacks = re.findall(r"STACK:(\d+) .*?LOCAL:(\d+)", usage)
    assert len(stacks) >= len(kernels)
    assert set(stacks) == {("0", "0")}
    assert not [k[:3] for k in kernels for c in k.code if c.startswith(("LDL", "STL"))]


def test_machine_code_of_pairs(pairs_binary, cuobjdump, capability):
    """Nothing spills, and nothing is added in any order; a thread's sums are its own."""
    stacks = re.findall(
        r"STACK:(\d+) .*?LOCAL:(\d+)", run(cuobjdump, "-arch", f"sm_{capability}", "-res-usage", pairs_binary)
    )
    assert set(stacks) == {("0", "0")}
    code = run(cuobjdump, "-arch", f"sm_{capability}", "-sass", pairs_binary)
    assert "MUFU.EX2" in code
    assert not re.search(r"\b(ATOM|ATOMG|RED|SHFL|BAR|LDL|STL)\b", code)


def test_no_atomics(kernels):
    """They would add in any order."""
    assert not [k[:3] for k in kernels for c in k.code if c.startswith(("ATOM", "RED"))]


def test_noise_is_not_contracted(binary, cuobjdump):
    """An operation with a rounding of its own is never fused, neither by the compiler nor by the assembler."""
    entries = functions(run(cuobjdump, "-ptx", binary), r"\.entry (\w+)")
    noise = [text for name, text in entries if (match := _NAME.search(name)) and match[2] == "StandardNormal"]
    assert len(noise) == sum(map(len, PACKS.values()))
    for text in noise:
        assert not re.search(r"\bfma\b|\b(mul|add|sub)\.(ftz\.)?f32", text)
        assert {"mul.rn.f32", "add.rn.f32", "sqrt.rn.f32"} <= set(re.findall(r"\b\w+\.rn\.f32", text))
