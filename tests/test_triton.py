"""The Triton kernels on CPU tensors, in Triton's interpreter: TRITON_INTERPRET=1 pytest tests/test_triton.py

On a GPU the backend is one of those that every other test runs on.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from samples import DTYPES, HALF, ROWS, assert_accurate, cotangents, gradients, seed_tensor

import vaefast
from vaefast import kernels
from vaefast.ops._define import TABLE
from vaefast.reference import noise as reference

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in Triton's interpreter: set TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder

from vaefast.kernels import rows
from vaefast.kernels.density import gaussian, noise

INF, NAN = float("inf"), float("nan")
VECTORS = json.loads(Path(__file__).with_name("noise_vectors.json").read_text())

# What the tiling tells apart: one tile of many rows, rows that begin inside a quad, one element, none, three
# dimensions, a row of one tile, of a tile with many warps, of several tiles.
SHAPES = [(128, 20), (3, 50), (5, 7), (33, 2), (9, 1), (1, 1), (0, 4), (4, 0), (2, 3, 5)]
SHAPES += [(3, 1200), (2, 5000), (2, 4099)]


@pytest.fixture(autouse=True)
def triton_backend():
    with vaefast.use_backend("triton"):
        yield


def shape_id(shape) -> str:
    return "x".join(map(str, shape))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32)


def check(row, tensors, batch_ndim=1, bounds=None) -> None:
    """Forward and gradient against float64."""
    seed = seed_tensor()
    outputs = row.call(*tensors, seed=seed, batch_ndim=batch_ndim, bounds=bounds)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    truth = row.truth(*wide, seed=seed, batch_ndim=batch_ndim, bounds=bounds)
    for actual, expected in zip(outputs, truth, strict=True):
        assert actual.is_contiguous()
        assert_accurate(actual, expected, sums=actual.ndim == batch_ndim < tensors[0].ndim)
    grads = cotangents(outputs)
    actual = gradients(outputs, tensors, grads)
    expected = gradients(truth, wide, [g.double() for g in grads])
    for a, e in zip(actual, expected, strict=True):
        assert_accurate(a, e)


# The noise


@triton.jit
def philox_kernel(words, out):
    zero = tl.zeros([1], tl.uint32)
    c0, c1, c2, c3 = tl.load(words), tl.load(words + 1), tl.load(words + 2), tl.load(words + 3)
    k0, k1 = tl.load(words + 4).to(tl.uint32), tl.load(words + 5).to(tl.uint32)
    r0, r1, r2, r3 = noise.philox4x32(
        zero + c0.to(tl.uint32), zero + c1.to(tl.uint32), zero + c2.to(tl.uint32), zero + c3.to(tl.uint32), k0, k1
    )
    one = tl.arange(0, 1)
    tl.store(out + one, r0.to(tl.int64))
    tl.store(out + 1 + one, r1.to(tl.int64))
    tl.store(out + 2 + one, r2.to(tl.int64))
    tl.store(out + 3 + one, r3.to(tl.int64))


@pytest.mark.parametrize("known", VECTORS["philox_known_answers"], ids=lambda k: k["counter"][0])
def test_philox_known_answers(known):
    words = torch.tensor([int(w, 16) for w in known["counter"] + known["key"]])
    out = torch.empty(4, dtype=torch.int64)
    philox_kernel[(1,)](words, out)
    assert [f"{word:08x}" for word in out.tolist()] == known["out"]


@triton.jit
def normals_kernel(out, seed, first, QUADS: tl.constexpr):
    quad = first + tl.arange(0, QUADS)[None, :].to(tl.int64)
    tl.store(out + tl.arange(0, 4 * QUADS)[None, :], noise.standard_normal(seed, quad))


@pytest.mark.parametrize("known", VECTORS["normals"], ids=lambda k: f"{k['seed']}-{k['offset']}-{k['first_element']}")
def test_known_normals(known):
    out = torch.empty(64)
    seed = seed_tensor(known["seed"], known["offset"])
    normals_kernel[(1,)](out, seed, known["first_element"] // 4, QUADS=16)
    assert [f"{word & 0xFFFFFFFF:08x}" for word in bits(out).tolist()] == known["float32_bits"]


@pytest.mark.parametrize("shape", [*SHAPES, (), (100001,)], ids=shape_id)
def test_normals_are_the_references(shape):
    seed = seed_tensor(-3, 2**40)
    out = vaefast.standard_normal(shape, seed=seed)
    assert torch.equal(bits(out), bits(reference.standard_normal(seed, shape)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normals_are_rounded_once(dtype):
    seed = seed_tensor()
    out = vaefast.standard_normal((3, 4096), seed=seed, dtype=dtype)
    assert torch.equal(out, reference.standard_normal(seed, (3, 4096)).to(dtype))


@pytest.mark.parametrize("shape", [(128, 20), (3, 50), (33, 2), (2, 1201)], ids=shape_id)
def test_sampling_takes_the_elements_noise(shape):
    """Rows begin where the flat draw has them, also inside a quad."""
    seed = seed_tensor()
    zero = torch.zeros(shape)
    z, _ = vaefast.rsample_kl(zero, zero, seed=seed)
    assert torch.equal(z, reference.standard_normal(seed, shape))


# The ops


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_shapes(row, shape):
    check(row, row.inputs(shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(16, 24), (5, 7)], ids=shape_id)
def test_dtypes(row, dtype, shape):
    check(row, row.inputs(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types_are_rounded_once(dtype):
    mu, logvar = (t.detach() for t in ROWS[0].inputs((16, 64), dtype=dtype))
    z = vaefast.rsample(mu, logvar, seed=3)
    wide = vaefast.rsample(mu.float(), logvar.float(), seed=3)
    assert torch.equal(z, wide.to(dtype))


@triton.jit
def store_kernel(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    rows._store(out + i, tl.load(x + i), i < N)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_stores_round_to_nearest_even(dtype):
    """Also halfway between two neighbours, where random values seldom lie."""
    ties = {torch.float16: 0x1000, torch.bfloat16: 0x8000}[dtype]
    x = (bits(torch.randn(512)) & ~(2 * ties - 1) | ties).view(torch.float32)
    x = torch.cat([x, torch.randn(506), torch.tensor([INF, -INF, NAN, -0.0, 3.4e38, 65519.99])])
    out = torch.empty(1024, dtype=dtype)
    store_kernel[(1,)](x, out, N=1024)
    torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("batch_ndim", [0, 1, 2, 3])
def test_batch_ndim(row, batch_ndim):
    if row.takes("batch_ndim") and not (row.halves and batch_ndim == 3):
        check(row, row.inputs((2, 3, 6)), batch_ndim)


LAYOUTS = {
    "chunk": lambda t: torch.cat([t, t], 1).chunk(2, 1)[1],
    "chunk of channels": lambda t: torch.cat([t, t], 2).chunk(2, 2)[0],
    "transposed": lambda t: t.flatten(1).t().contiguous().t().view(t.shape),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "expanded over the batch": lambda t: t[:1].expand_as(t),
    "expanded over an event dimension": lambda t: t[:, :1].expand_as(t),
    "stepped": lambda t: torch.stack([t, t], -1)[..., 0],
    "unaligned": lambda t: torch.cat([t.flatten(), t.flatten()])[1 : 1 + t.numel()].view(t.shape),
    "permuted": lambda t: t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 4, 2, 8), (3, 3, 5, 2)], ids=shape_id)
def test_layouts(row, layout, shape):
    tensors = [layout(t.detach()).requires_grad_() for t in row.inputs(shape)]
    check(row, tensors)


def test_one_strided_tensor_among_dense_ones(row):
    first, *rest = row.inputs((6, 4, 2, 8))
    check(row, [LAYOUTS["channels last"](first.detach()).requires_grad_(), *rest])


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_moments_are_split_along_any_event_dimension(dim):
    seed = seed_tensor()
    moments = torch.randn(3, 4, 6, 8, requires_grad=True)
    apart = moments.detach().clone().requires_grad_()
    outputs = vaefast.rsample_kl_moments(moments, dim, seed=seed)
    expected = vaefast.rsample_kl(*apart.chunk(2, dim), seed=seed)
    for a, e in zip(outputs, expected, strict=True):
        assert torch.equal(a, e)
    grads = cotangents(outputs)
    assert torch.equal(*gradients(outputs, [moments], grads), *gradients(expected, [apart], grads))


@pytest.mark.parametrize("shape", [(8, 20), (2, 5000)], ids=shape_id)
def test_expanded_gradients(shape):
    """What `.sum().backward()` sends: one number, expanded."""
    mu, logvar = ROWS[0].inputs(shape)
    z, kl = vaefast.rsample_kl(mu, logvar, seed=3)
    actual = torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar), retain_graph=True)
    expected = gradients((z, kl), (mu, logvar), [torch.ones_like(z), torch.ones_like(kl)])
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_two_runs_agree(row):
    tensors = row.inputs((2, 9001))
    runs = []
    for _ in range(2):
        outputs = row.call(*tensors, seed=seed_tensor())
        runs.append((*outputs, *gradients(outputs, tensors)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# The mathematics where it is hard


@triton.jit
def exponentials_kernel(x, exp, expm1, excess, N: tl.constexpr):
    i = tl.arange(0, N)
    e, m, q = gaussian.exponentials(tl.load(x + i))
    tl.store(exp + i, e)
    tl.store(expm1 + i, m)
    tl.store(excess + i, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponentials(dtype):
    """A few units in the last place everywhere: near zero, where each cancels; at the joints; at the ends."""
    mpmath = pytest.importorskip("mpmath")
    lowest, highest = (-103.9, 88.7) if dtype == torch.float32 else (-745.0, 709.7)
    x = torch.cat([
        torch.linspace(lowest, highest, 301, dtype=torch.float64),
        torch.linspace(-1.5, 1.5, 300, dtype=torch.float64),
        torch.logspace(-16, 0, 100, dtype=torch.float64),
        -torch.logspace(-16, 0, 99, dtype=torch.float64),
        torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, 1e30, -1e30, -150.0, 99.0]),
    ]).to(dtype)  # fmt: skip
    n = triton.next_power_of_2(len(x))
    x = torch.nn.functional.pad(x, (0, n - len(x)))
    outputs = [torch.empty_like(x) for _ in range(3)]
    exponentials_kernel[(1,)](x, *outputs, N=n)

    mpmath.mp.prec = 200

    def truth(value):
        value = mpmath.mpf(value)
        e = mpmath.exp(value) if not value > 2000 else mpmath.inf
        return [float(v) for v in (e, e - 1, e - 1 - min(value, 100))]

    # exp - 1 - x keeps the rounding of exp - 1 and x, both up to ten times as large, past log(2) / 2
    tolerance = [4, 4, 20]
    for actual, expected, units in zip(outputs, zip(*map(truth, x.tolist()), strict=True), tolerance, strict=True):
        expected = torch.tensor(expected, dtype=torch.float64)
        rtol = units * torch.finfo(dtype).eps
        atol = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the spacing below the normal range
        torch.testing.assert_close(actual, expected.to(dtype), rtol=rtol, atol=atol, equal_nan=True)


EXTREMES = [0.0, 1e-30, -1e-8, 1e-3, 100.0, -100.0, 170.0, -170.0, 1e30, -1e30, INF, -INF, NAN]


@pytest.mark.parametrize("bounds", [None, (-30.0, 20.0), (-INF, 5.0), (0.5, 0.5)], ids=str)
def test_extremes(row, bounds):
    """Every pair of extremes gives float64's answer, rounded to float32: inf included, never a wrong finite number."""
    grid = torch.cartesian_prod(*[torch.tensor(EXTREMES)] * 2)
    mu, logvar = (c.contiguous().view(-1, 1) for c in grid.unbind(1))
    if row.name == "kl_normal":
        # equal, standard, and exchanged priors
        tensors = [torch.cat([mu] * 3), torch.cat([logvar] * 3)]
        tensors += [torch.cat([mu, mu * 0, logvar]), torch.cat([logvar, logvar * 0, mu])]
    else:
        tensors = [torch.cat([mu, logvar], 1)] if row.halves else [mu, logvar]
    tensors = [t.requires_grad_() for t in tensors]
    seed = seed_tensor()
    outputs = row.call(*tensors, seed=seed, bounds=bounds)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    with vaefast.use_backend("reference"):
        truth = row.call(*wide, seed=seed, bounds=bounds)
        expected = gradients(truth, wide, [torch.ones_like(t) for t in truth])
    actual = gradients(outputs, tensors, [torch.ones_like(t) for t in outputs])
    for a, e in zip((*outputs, *actual), (*truth, *expected), strict=True):
        torch.testing.assert_close(a, e.float(), rtol=1e-5, atol=1e-37, equal_nan=True)


def test_near_the_prior_nothing_cancels():
    for scale in (1e-2, 1e-4, 1e-8):
        logvar = scale * torch.linspace(-1, 1, 50).expand(3, 50)
        mu = torch.zeros_like(logvar)
        x = logvar.double()
        expected = (x**2 * (1 / 4 + x / 12 + x**2 / 48 + x**3 / 240)).sum(1)  # float64 would cancel too
        torch.testing.assert_close(vaefast.kl_standard_normal(mu, logvar).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["rsample", "rsample_kl", "kl_standard_normal"])
def test_gradient_outside_the_bounds_is_exactly_zero(name):
    row = next(r for r in ROWS if r.name == name)
    logvar = torch.tensor([[-INF, -1e30, -11.0, 1.0, 6.0, 200.0, INF]], requires_grad=True)
    outputs = row.call(torch.ones_like(logvar), logvar, seed=seed_tensor(), bounds=(-10.0, 5.0))
    assert all(torch.isfinite(o).all() for o in outputs if o.ndim == 2)
    (grad,) = gradients(outputs, [logvar], [torch.full_like(o, 1e30) for o in outputs])
    inside = torch.tensor([[False, False, False, True, False, False, False]])
    assert torch.equal(grad != 0, inside)


# Past 2^31 elements, without allocating them: outputs that lie on themselves, and programs that begin far away


@pytest.mark.parametrize(
    ("shape", "strides", "batch_ndim", "program"),
    [
        ((2**22, 1024), (0, 1), 1, 2**22 - 3),  # a row each
        ((2**25, 1024), (0, 1), 0, 2**25 - 3),  # one row of many tiles, two strides
        ((2, 2**24, 1024), (0, 0, 1), 1, 2**24 + 2**23),  # rows of many tiles
        ((2**31 - 5, 7), (0, 1), 1, (2**31 - 5) // 128 - 3),  # rows that begin inside a quad
    ],
    ids=["many rows", "one row", "long rows", "odd rows"],
)
def test_far_elements(monkeypatch, shape, strides, batch_ndim, program):
    seed = seed_tensor()
    out = torch.empty(1024).as_strided(shape, strides)
    _, arguments, options, _ = rows.launch("standard_normal", batch_ndim, (), (), (out,), (), seed, ())
    tile = rows.tiling(*arguments[8:10], 4, True, False)

    def far(*index):
        interpreter_builder.grid_idx = program, 0, 0

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", far)
    rows.rows_kernel[(1,)](*arguments, **options)
    row, chunk = divmod(program, tile.chunks)
    last = (row * tile.tile_rows + tile.tile_rows - 1) * arguments[9] + chunk * tile.tile_cols  # the last row's remains
    count = min(tile.tile_cols, arguments[9])
    expected = reference.standard_normal(seed, (count,), first=last)
    written = torch.empty(0).set_(out.untyped_storage())[: strides[-1] * shape[-1]]
    assert last > 2**31
    assert torch.equal(written, expected[-len(written) :])


@triton.jit
def offsets_kernel(out, operand, row, col, cols):
    base = operand[0].to(tl.int64)
    one = tl.arange(0, 1).to(tl.int64)
    row, col = (row + one)[:, None], (col + one)[None, :]
    pointers = rows._pointers(operand, row, col, col.to(cols.dtype), 4)
    tl.store(out + tl.arange(0, 1)[:, None], (pointers.to(tl.int64) - base) // 4)


def test_far_addresses():
    base = torch.zeros(1)
    row, col, cols = 2**33 + 1, 2**32 + 10, 2**34
    for operand, expected in [
        ((base, 2**20), row * 2**22 + col),
        ((base, 2**22, 3), row * 2**22 + col * 3),
        ((base, 7, 2**31, 2**34, 5), row * 7 + 2 * 2**34 + 10 * 5),
    ]:
        out = torch.empty(1, dtype=torch.int64)
        offsets_kernel[(1,)](out, operand, row, col, cols)
        assert out.item() == expected


# The backend


def test_why_not():
    assert kernels.backend.why_not("rsample_forward", "cpu") is None
    assert "no Triton density 'nonsense'" in kernels.backend.why_not("nonsense", "cpu")
    assert "mps" in kernels.backend.why_not("rsample_forward", "mps")


def test_every_op_has_a_density():
    assert {op.density for op in TABLE.values()} <= set(rows.DENSITIES)


def test_without_the_variable_cpu_tensors_are_refused(python):
    source = "import vaefast; vaefast.use_backend('triton'); vaefast.standard_normal(4)"
    status, _, error = python(source, TRITON_INTERPRET="0")
    assert status != 0
    assert "BackendError" in error
    assert "TRITON_INTERPRET=1" in error


def test_import_does_not_import_triton(python):
    source = "import sys, vaefast, vaefast.kernels; assert not any(m.split('.')[0] == 'triton' for m in sys.modules)"
    assert python(source) == (0, "", "")
