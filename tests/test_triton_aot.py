"""Every Triton kernel, compiled ahead of time for each target with no GPU, and what its machine code must show.

The launches are recorded from the public ops, so what is compiled is what runs.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import need
from samples import ROWS, gradients, seed_tensor

import vaefast
from vaefast import kernels
from vaefast.ops._define import TABLE
from vaefast.ops.normal import normal_kl, normal_rsample
from vaefast.ops.pairs import AggregatePosterior

if importlib.util.find_spec("triton") is None:
    need("triton", "it is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 takes the compiler away", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from vaefast.kernels import pairs, planes, rows

CAPABILITIES = [80, 90, 100]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
PAIRS = [kernel for name, kernel in vars(pairs).items() if name.endswith("_kernel")]
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

# The tilings and operands that the launcher tells apart: with dense operands every op in float32, else one; the other
# types in the first of them
SHAPE = (4096, 64)
DENSE = {
    "many rows in a tile": SHAPE,
    "one row in a tile of many warps": (16, 4096),
    "one row in several tiles": (2, 65536),
}
OTHERS = {
    "rows that begin inside a quad": lambda: torch.empty(128, 50),
    "transposed": lambda: torch.empty(64, 4096).t(),
    "channels last": lambda: torch.empty(12, 4, 32, 32).to(memory_format=torch.channels_last),
}

# What a likelihood gets: the types of the parameters, of the data (which then want no gradient) and of the weight
TYPES = [
    (torch.bfloat16, torch.uint8, None),
    (torch.bfloat16, torch.float32, torch.bfloat16),
    (torch.float32, torch.uint8, torch.bool),
    (torch.float32, torch.int64, torch.float32),
    (torch.float16, torch.int32, torch.float64),
]


class Launch(NamedTuple):
    what: str
    dense: bool  # so that whole vectors are read and written; a kernel of planes does neither
    kernel: triton.JITFunction
    arguments: tuple
    options: dict

    @property
    def bound(self) -> dict:
        return dict(zip(self.kernel.arg_names, self.arguments, strict=True))


class Recorder:
    """Stands for a kernel and writes down how it is launched."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.append((self.kernel, arguments, options))


@pytest.fixture(scope="module")
def launches():
    found = []

    def record(what, dense, run):
        launched = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "rows_kernel", Recorder(rows.rows_kernel, launched))
            patch.setattr(planes, "planes_kernel", Recorder(planes.planes_kernel, launched))
            for kernel in PAIRS:
                patch.setattr(pairs, kernel.fn.__name__, Recorder(kernel, launched))
            patch.setattr(type(kernels.backend), "why_not", lambda *args: None)
            with vaefast.use_backend("triton"):
                run()
        for kernel, *launch in launched:
            found.append(Launch(what, dense and kernel is rows.rows_kernel, kernel, *launch))

    def op(row, tensors):
        tensors = [t.requires_grad_() for t in tensors]
        gradients(row.call(*tensors, seed=seed_tensor()), tensors)

    for dtype in DTYPES:
        record(f"standard_normal {dtype}", True, lambda: vaefast.standard_normal((4096, 64), seed=1, dtype=dtype))  # noqa: B023
        for name, shape in DENSE.items():
            for row in ROWS:
                if dtype == torch.float32 or shape == SHAPE:
                    tensors = row.inputs(shape, dtype=dtype)
                    record(f"{row.name} {dtype}, {name}", True, lambda: op(row, tensors))  # noqa: B023
        for name, like in OTHERS.items():
            tensors = [torch.empty_like(like(), dtype=dtype) for _ in range(2)]
            record(f"rsample_kl {dtype}, {name}", False, lambda: op(ROWS[2], tensors))  # noqa: B023

    a, b, c, d = (torch.empty(SHAPE, requires_grad=True) for _ in range(4))
    record("elbo", True, lambda: gradients([vaefast.elbo_loss(a[0], b[0], beta=2).loss], (a, b)))
    record("kl_by_dimension", True, lambda: gradients(vaefast.kl_by_dimension(a, b), (a, b)))
    record("rsample_log_ratio", True, lambda: gradients(vaefast.rsample_log_ratio(a, b, 8, seed=1), (a, b)))
    record("normal_rsample", True, lambda: gradients([normal_rsample(a, b)], (a, b)))
    record("normal_kl", True, lambda: gradients([normal_kl(a, b, c, d)], (a, b, c, d)))
    all_four = [True] * 4
    hinted = TABLE["bernoulli_nll_with_gradient"]
    record("with_gradient", True, lambda: hinted(torch.empty(len(a)), a, b, None, 1, 1.0, [True, False]))
    record(
        "with_gradient",
        True,
        lambda: TABLE["kl_normal_with_gradient"](torch.empty(len(a)), a, b, c, d, 1, -1, 1, all_four),
    )

    for parameters, data, weight in [*TYPES, (torch.float64, torch.uint8, None)]:
        logits, mixture, one = (
            torch.empty(16, n, 32, 32, dtype=parameters, requires_grad=True) for n in (256, 100, 30)
        )
        x, pixel = torch.empty(16, 32, 32, dtype=data), torch.empty(16, 3, 32, 32, dtype=data)
        w = None if weight is None else torch.empty_like(x, dtype=weight)
        what = f"planes, {parameters}, {data}, weight {weight}"
        if not data.is_floating_point:
            record(what, False, lambda: gradients([vaefast.categorical_nll(logits, x, weight=w)], [logits]))  # noqa: B023
        for p, c in ((mixture, pixel), (one, pixel[:, :1])):
            nll = vaefast.discretized_logistic_mixture_nll
            record(what, False, lambda: gradients([nll(p, c, 10, weight=w)], [p]))  # noqa: B023
    for name, tensors, params in (
        ("categorical_nll", (logits, x), ()),
        ("discretized_logistic_mixture_nll", (mixture, pixel), (1.0, 0.0, 0.0, 1 / 255, -7.0)),
    ):
        both_ways = TABLE[f"{name}_with_gradient"]
        record("with_gradient", False, lambda: both_ways(torch.empty(16), *tensors, None, 1, *params, [True, False]))  # noqa: B023

    for dtype in (torch.float32, torch.float64):
        z, mu, logvar = (torch.empty(300, 10, dtype=dtype, requires_grad=True) for _ in range(3))
        log_weights = torch.empty(300, dtype=dtype, requires_grad=True)
        mixture, what = (z, mu, logvar, log_weights), f"pairs {dtype}"
        record(what, False, lambda: gradients([vaefast.mixture_log_prob(*mixture)], mixture))  # noqa: B023
        for own in (0.0, 1.0):
            log_qs = AggregatePosterior.apply
            record(what, False, lambda: gradients(log_qs(z, mu, logvar, -1.0, own, own, 0), (z, mu, logvar)))  # noqa: B023
        for name in ("imq", "rbf"):
            record(what, False, lambda: gradients([vaefast.mmd(z, mu, name)], (z, mu)))  # noqa: B023
            record(what, False, lambda: vaefast.mmd(z.detach(), mu.detach(), name))  # noqa: B023

    for parameters, data, weight in TYPES:
        logits, x = torch.empty(SHAPE, dtype=parameters, requires_grad=True), torch.empty(SHAPE, dtype=data)
        # one weight per element, and one per sample
        for w in [None] if weight is None else [torch.empty(n, dtype=weight) for n in (SHAPE, (len(x), 1))]:
            what = f"bernoulli_nll {parameters}, {data}, weight {weight}"
            record(what, True, lambda: gradients([vaefast.bernoulli_nll(logits, x, weight=w)], [logits]))  # noqa: B023
    return found


def compiled(launch: Launch, capability: int):
    """What triton.compile makes of a launch, specialised as the launch itself would be."""
    kernel, target = launch.kernel, GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    options = {**launch.options, "debug": False}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, given = binder(*launch.arguments, **options)
    options, signature, constexprs, attrs = kernel._pack_args(backend, options, bound, specialization, given)
    return triton.compile(ASTSource(kernel, signature, constexprs, attrs), target=target, options=options.__dict__)


def vectors(launch: Launch, operands) -> Counter:
    """The accesses that a thread makes for dense operands, by their bytes: 16, or all that it has of small types."""
    bound, accesses = launch.bound, Counter()
    elements = bound["ROWS"] * bound["COLS"] // (32 * launch.options["num_warps"])
    for tensor, _, columns in operands:
        if columns is not None:  # else one for the whole row
            size = elements * tensor.element_size()
            accesses[min(size, 16)] += -(-size // 16)
    return accesses


def vectors_in(ptx: str, instruction: str) -> Counter:
    found = re.findall(rf"{instruction}\.global\S*\.v(\d)\.b(\d+)", ptx)
    return Counter(int(count) * int(width) // 8 for count, width in found)


def test_every_op_is_launched(launches):
    elementwise = {launch.arguments[0] for launch in launches if launch.kernel not in PAIRS}
    assert elementwise == {*rows.DENSITIES.values(), *planes.DENSITIES.values()}
    kernels_of_pairs = {(launch.kernel, launch.arguments[0]) for launch in launches if launch.kernel in PAIRS}
    assert kernels_of_pairs == set(itertools.product(PAIRS, {density.kernel for density in pairs.DENSITIES.values()}))


def test_every_dense_layout_is_launched(launches):
    bounds = [launch.bound for launch in launches if launch.dense]
    assert {b["ONE_ROW"] for b in bounds} == {True, False}
    assert {b["chunks"] > 1 for b in bounds} == {True, False}
    assert {b["ROWS"] > 1 for b in bounds} == {True, False}


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
def test_machine_code(launches, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    parse, one_by_one = triton.JITFunction.parse, threading.Lock()

    def locked(kernel):  # CPython 3.11 counts the recursion of every thread's ast.parse in one place (cpython#106905)
        with one_by_one:
            return parse(kernel)

    monkeypatch.setattr(triton.JITFunction, "parse", locked)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # ptxas is a process, and LLVM lets go of Python's lock
        codes = pool.map(lambda launch: compiled(launch, capability), launches)
        seen = {code.hash: (launch, code) for launch, code in zip(launches, codes, strict=True)}
    for i, (launch, code) in enumerate(seen.values()):
        bound, ptx, what = launch.bound, code.asm["ptx"], launch.what
        cubin = tmp_path / f"{i}.cubin"
        cubin.write_bytes(code.asm["cubin"])
        usage = subprocess.run([CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
        assert "STACK:0 " in usage, (what, usage)
        assert "LOCAL:0 " in usage, (what, usage)
        assert not re.search(r"\b(atom|red)\.", ptx), what  # float atomics would add in any order
        if launch.dense:
            read = [*bound["inputs"], *([] if bound["weight"] is None else [bound["weight"]])]
            written = [operand for operand in bound["outputs"] if operand is not None]
            assert vectors_in(ptx, "ld") == vectors(launch, read), what
            assert vectors_in(ptx, "st") == vectors(launch, written), what
        if bound.get("seed") is not None:
            # an operation with a rounding of its own is never contracted, neither by LLVM nor by ptxas
            assert not re.search(r"\b(mul|add|sub)\.f32", ptx), what
            assert launch.options["enable_fp_fusion"] is False, what
            assert "sqrt.rn.f32" in ptx, what
        if launch.kernel in (pairs.forward_kernel, pairs.backward_kernel):
            assert not re.search(r"\b(shfl|bar)\.", ptx), what  # a thread's sums are its own
        if bound.get("density") is rows.DENSITIES["standard_normal"]:
            assert "fma" not in ptx, what
