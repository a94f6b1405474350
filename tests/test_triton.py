"""The Triton kernels on CPU tensors, in Triton's interpreter: TRITON_INTERPRET=1 pytest tests/test_triton.py

On a GPU the backend is one of those that every other test runs on.
"""

from __future__ import annotations

import importlib.util
import json
import os
from math import log2
from pathlib import Path

import mpmath
import pytest
import torch
from conftest import need
from samples import DTYPES, HALF, ROWS, assert_accurate, cotangents, gradients, seed_tensor, tuple_of

import vaefast
from vaefast import kernels
from vaefast.ops._define import TABLE
from vaefast.ops.iwae import RsampleLogRatio
from vaefast.ops.normal import normal_kl, normal_rsample
from vaefast.reference import counts
from vaefast.reference import noise as reference

if importlib.util.find_spec("triton") is None:
    need("triton", "it is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    need("triton", "its interpreter needs TRITON_INTERPRET=1")

import triton
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder

from vaefast.kernels import operands, planes, rows
from vaefast.kernels.density import gamma, math, noise

INF, NAN = float("inf"), float("nan")
VECTORS = json.loads(Path(__file__).with_name("noise_vectors.json").read_text())

# What the tiling tells apart: one tile of many rows, rows that begin inside a quad, one element, none, three
# dimensions, a row of one tile, of a tile with many warps, of several tiles.
SHAPES = [(128, 20), (3, 50), (5, 7), (33, 2), (9, 1), (1, 1), (0, 4), (4, 0), (2, 3, 5)]
SHAPES += [(3, 1200), (2, 5000), (2, 4099)]


def sized(row, shape):
    """Long rows an eighth as long where elements are stacks of planes, whose tiles are an eighth as wide."""
    return (*shape[:-1], shape[-1] // 8) if row.planes and shape[-1] > 1000 else shape


@pytest.fixture(autouse=True)
def triton_backend():
    with vaefast.use_backend("triton"):
        yield


def shape_id(shape) -> str:
    return "x".join(map(str, shape))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32)


def wanting(tensors) -> list[torch.Tensor]:
    return [t for t in tensors if t.requires_grad]


def check(row, tensors, batch_ndim=1, bounds=None) -> None:
    """Forward and gradient against float64."""
    seed = seed_tensor()
    outputs = row.call(*tensors, seed=seed, batch_ndim=batch_ndim, bounds=bounds)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    truth = row.truth(*wide, seed=seed, batch_ndim=batch_ndim, bounds=bounds)
    for actual, expected in zip(outputs, truth, strict=True):
        assert actual.is_contiguous()
        assert_accurate(actual, expected, sums=actual.ndim == batch_ndim < tensors[0].ndim and not row.signed)
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
    check(row, row.inputs(sized(row, shape)))


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
    operands.store(out + i, tl.load(x + i), i < N)


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
    "expanded over the event": lambda t: t[:, :1, :1, :1].expand_as(t),
    "one number": lambda t: t[:1, :1, :1, :1].expand_as(t),
    "stepped": lambda t: torch.stack([t, t], -1)[..., 0],
    "unaligned": lambda t: torch.cat([t.flatten(), t.flatten()])[1 : 1 + t.numel()].view(t.shape),
    "permuted": lambda t: t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
}


def laid(tensor, layout) -> torch.Tensor:
    """[*, P] as [*], where there are planes: an element's numbers then lie side by side."""
    return layout(tensor.detach().flatten(3)).unflatten(3, tensor.shape[3:])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 4, 2, 8), (3, 3, 5, 2)], ids=shape_id)
def test_layouts(row, layout, shape):
    check(row, [laid(t, layout).requires_grad_() for t in row.inputs(shape)])


@pytest.mark.parametrize("shape", [(3, 1, 16), (3, 1, 7)], ids=shape_id)
def test_samples_of_one_batch_are_read_in_place(row, shape):
    """[B, 1, N] that stands for [B, K, N], and [K, B, N] whose batch is its second dimension."""
    if row.takes("batch_ndim"):
        tensors = [t.detach() for t in row.inputs(shape)]
        check(row, [t.expand(3, 4, *t.shape[2:]).requires_grad_() for t in tensors], batch_ndim=2)
        check(row, [t.expand(3, 4, *t.shape[2:]).transpose(0, 1).requires_grad_() for t in tensors], batch_ndim=2)


def test_one_strided_tensor_among_dense_ones(row):
    first, *rest = row.inputs((6, 4, 2, 8))
    check(row, [laid(first, LAYOUTS["channels last"]).requires_grad_(), *rest])


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


LIKELIHOODS = [row for row in ROWS if row.takes("weight")]
by_likelihood = pytest.mark.parametrize("row", LIKELIHOODS, ids=lambda row: row.name)


DATA = ("x", "total")


def with_data(row, tensors, change) -> list[torch.Tensor]:
    """The tensors, with those of data changed."""
    return [change(t.detach()) if name in DATA else t for name, t in zip(row.tensors, tensors, strict=True)]


def likelihood(row, tensors, weight=None):
    """-log p per sample and the gradients of what wants one."""
    nll = getattr(vaefast, row.name)(*row.arguments(tensors), weight=weight)
    return nll, *gradients([nll], wanting(tensors))


def both(function, tensors, cotangents=cotangents):
    """Outputs, gradients, and the reference's outputs and gradients in float64; an integer tensor as it is."""
    wide = [t.detach().double() if t.is_floating_point() else t for t in tensors]
    wide = [w.requires_grad_(t.requires_grad) for t, w in zip(tensors, wide, strict=True)]
    outputs = tuple_of(function(*tensors))
    grads = cotangents(outputs)
    with vaefast.use_backend("reference"):
        truth = tuple_of(function(*wide))
        expected = gradients(truth, wanting(wide), [g.double() for g in grads])
    return outputs, gradients(outputs, wanting(tensors), grads), truth, expected


def against_reference(function, tensors) -> None:
    outputs, actual, truth, expected = both(function, tensors)
    for a, e in zip((*outputs, *actual), (*truth, *expected), strict=True):
        assert_accurate(a, e)
    assert [a.dtype for a in actual] == [t.dtype for t in wanting(tensors)]


def check_likelihood(row, tensors, weight=None) -> None:
    against_reference(lambda *t: getattr(vaefast, row.name)(*row.arguments(t), weight=weight), tensors)


def mask(shape) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.5


WEIGHTS = {
    "mask": lambda shape: mask(shape),
    "float": lambda shape: mask(shape) * torch.linspace(0.5, 3, shape[-1]),
    "half": lambda shape: (mask(shape) * 1.5).bfloat16(),
    "float64": lambda shape: (mask(shape) * 1.5).double(),
    "integers": lambda shape: mask(shape) * 3,
    "a sample's": lambda shape: mask((shape[0], 1)),
    "a column's": lambda shape: mask(shape[-1:]),
}


@by_likelihood
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("shape", [(6, 24), (5, 7)], ids=shape_id)
def test_weights(row, shape, weight):
    check_likelihood(row, row.inputs(shape), weight(shape))


@by_likelihood
@pytest.mark.parametrize("weight", ["float", "a column's"])
def test_weights_of_rows_in_pieces(row, weight):
    shape = sized(row, (2, 5000))
    check_likelihood(row, row.inputs(shape), WEIGHTS[weight](shape))


@by_likelihood
@pytest.mark.parametrize("poison", [INF, -INF, NAN])
def test_a_weight_of_zero_leaves_nothing(row, poison):
    shape = (6, 50)
    keep = mask(shape)
    clean = row.inputs(shape)
    keeps = [keep.unsqueeze(-1) if name in row.planes else keep for name in row.tensors]
    poisoned = [torch.where(k, t.detach(), poison).requires_grad_() for k, t in zip(keeps, clean, strict=True)]
    expected, actual = likelihood(row, clean, keep), likelihood(row, poisoned, keep)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert not any(grad[~keep].any() for grad in actual[1:])


@by_likelihood
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [(6, 48), (5, 7)], ids=shape_id)
def test_integer_data(row, shape, dtype):
    levels = dtype == torch.uint8 and not hasattr(counts, row.name)  # bytes 0…255 stand for 0…1 but in counts
    data = with_data(row, row.inputs(shape), lambda x: (x.abs() % 1 * 255 if levels else x).round().to(dtype))
    check_likelihood(row, data)


@by_likelihood
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("data", DTYPES, ids=str)
def test_data_of_another_type(row, dtype, data):
    """The parameters' type is what is computed in; the data's gradient has the data's type."""
    tensors = with_data(row, row.inputs((6, 48), dtype=dtype), lambda x: x.to(data).requires_grad_())
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    alike = [t.detach().to(wide).requires_grad_() for t in tensors]
    nll, *grads = likelihood(row, tensors)
    expected, *expected_grads = likelihood(row, alike)
    assert torch.equal(nll, expected)
    for grad, e, t in zip(grads, expected_grads, tensors, strict=True):
        assert torch.equal(grad, e.to(t.dtype))


@by_likelihood
def test_only_what_wants_a_gradient(row):
    tensors = row.inputs((6, 48))
    _, *grads = likelihood(row, tensors)
    for wanted in range(len(tensors)):
        alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        assert torch.equal(likelihood(row, alone)[1], grads[wanted])


def test_an_output_that_nobody_asked_for():
    x = ROWS[0].inputs((6, 48), requires_grad=False)[0]
    row = torch.ones(6)
    both = torch.empty_like(x), torch.empty_like(x)
    rows.rows("bernoulli_nll_backward", 1, (x, x), (row,), both, (), None, (0.5,))
    for wanted in range(2):
        alone = torch.empty_like(x)
        outputs = tuple([alone if i == wanted else None for i in range(2)])
        rows.rows("bernoulli_nll_backward", 1, (x, x), (row,), outputs, (), None, (0.5,))
        assert torch.equal(alone, both[wanted])


@triton.jit
def first_plus_params(inputs, row_inputs, eps, params):
    total = inputs[0]
    for i in tl.static_range(len(params)):
        total = total + params[i]
    return (total,)


@pytest.mark.parametrize("params", [(), (0.0,), (1.0,), (0.1, -3.0, 1e-300), (2.0**-60, 1 / 3) + (0.25,) * 9], ids=len)
def test_any_number_of_params(monkeypatch, params):
    """Exact in float64."""
    x = torch.zeros(3, 5, dtype=torch.float64)
    out = torch.empty_like(x)
    monkeypatch.setitem(rows.DENSITIES, "first_plus_params", first_plus_params)
    rows.rows("first_plus_params", 1, (x,), (), (out,), (), None, params)
    assert torch.equal(out, x + sum(params))


def test_the_gradient_beside_the_likelihood():
    """As the two densities apart write them; the hint itself is for CPUs."""
    logits, x = ROWS[0].inputs((6, 48), requires_grad=False)
    tensors, params = (logits, x), (0.5,)
    grad_nll, weight = torch.linspace(-1, 2, 6), mask((6, 48))
    apart, together = (tuple([torch.empty(6), torch.empty_like(x), torch.empty_like(x)]) for _ in range(2))
    rows.rows("bernoulli_nll_forward", 1, tensors, (), (), apart[:1], None, params, weight)
    rows.rows("bernoulli_nll_backward", 1, tensors, (grad_nll,), apart[1:], (), None, params, weight)
    rows.rows("bernoulli_nll_with_gradient", 1, tensors, (grad_nll,), together[1:], together[:1], None, params, weight)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 6, 5000])
def test_reduced_loss(dtype, batch):
    tensors = [t.detach()[:, 0].requires_grad_() for t in ROWS[0].inputs((batch, 2), dtype=dtype)]
    against_reference(lambda *t: vaefast.elbo_loss(*t, beta=0.5).loss, tensors)


def test_the_gradients_beside_the_divergence():
    tensors, bounds = tuple([t.detach() for t in ROWS[4].inputs((6, 48))]), (-1.0, 1.0)
    grad_kl = torch.linspace(-1, 2, 6)
    apart, together = ((torch.empty(6), *map(torch.empty_like, tensors)) for _ in range(2))
    rows.rows("kl_normal_forward", 1, tensors, (), (), apart[:1], None, bounds)
    rows.rows("kl_normal_backward", 1, tensors, (grad_kl,), apart[1:], (), None, bounds)
    rows.rows("kl_normal_with_gradient", 1, tensors, (grad_kl,), together[1:], together[:1], None, bounds)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize(
    ("name", "shapes", "params"),
    [
        ("categorical_nll", [(3, 5, 150), (3, 150)], ()),
        (
            "discretized_logistic_mixture_nll",
            [(3, 10, 150), (3, 3, 150)],
            (2 / 255, 0.0, -1.0, 1 / 255, -7.0),
        ),
    ],
    ids=["categorical", "mixture"],
)
def test_the_gradient_of_planes_beside_the_likelihood(name, shapes, params):
    """As the ops apart write them, with the planes in front and data of bytes."""
    tensors = torch.randn(shapes[0]), torch.randint(5, shapes[1], dtype=torch.uint8)
    tail = (mask((3, 150)), 1, *params)
    grad, wanted = torch.linspace(-1, 2, 3), [True, False]
    forward, backward, together = (TABLE[f"{name}_{part}"] for part in ("forward", "backward", "with_gradient"))
    written, _, nll = together(grad, *tensors, *tail, wanted)
    assert torch.equal(nll, forward(*tensors, *tail))
    assert torch.equal(written, backward(grad, *tensors, *tail, wanted)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", [0.0, 1.0])
def test_importance_weighted_latents(dtype, path):
    """K samples of one batch, whose moments are not repeated."""
    for shape, bounds in [((5, 12), (-1.0, 1.0)), ((3, 7), (-INF, INF)), ((2, 1200), (-INF, INF))]:
        tensors = [t.detach()[:, None].expand(-1, 3, -1).requires_grad_() for t in ROWS[0].inputs(shape, dtype=dtype)]
        seed = seed_tensor()
        outputs, actual, truth, expected = both(lambda *t: RsampleLogRatio.apply(*t, seed, 2, *bounds, path), tensors)  # noqa: B023
        assert_accurate(outputs[0], truth[0])
        # the terms of a row cancel, each of at most about 40 in size
        rounding = 2**-53 if dtype == torch.float64 else 2**-24
        atol = 40 * rounding * shape[-1] ** 0.5
        torch.testing.assert_close(outputs[1].double(), truth[1], rtol=1e-5 if rounding > 1e-10 else 1e-12, atol=atol)
        for a, e in zip(actual, expected, strict=True):
            assert_accurate(a, e)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
def test_kl_by_dimension(dtype, per_channel):
    for shape in [(5, 3, 8), (3, 5, 7), (2, 3, 2000)]:
        tensors = ROWS[0].inputs(shape, dtype=dtype)
        against_reference(lambda *t: vaefast.kl_by_dimension(*t, per_channel=per_channel), tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normal_by_location_and_scale(dtype):
    tensors = [(t.detach() + 2.5).requires_grad_() for t in ROWS[4].inputs((5, 24), dtype=dtype)]
    against_reference(normal_kl, tensors)

    def rsample(*tensors):
        torch.manual_seed(1)
        return normal_rsample(*tensors)

    against_reference(rsample, tensors[:2])


def test_two_runs_agree(row):
    tensors = row.inputs(sized(row, (2, 9001)))
    runs = []
    for _ in range(2):
        outputs = row.call(*tensors, seed=seed_tensor())
        runs.append((*outputs, *gradients(outputs, tensors)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# The mathematics where it is hard


@triton.jit
def exponentials(inputs, row_inputs, eps, params):
    return math.exponentials(inputs[0])


@triton.jit
def logarithms(inputs, row_inputs, eps, params):
    x = inputs[0]
    return math.log(x), math.log1p_positive(x), math.log1p_unit(x), *math.log1p_parts(x, x + 1)


@triton.jit
def logistics(inputs, row_inputs, eps, params):
    return *math.logistic(inputs[0]), math.tanh(inputs[0])


@triton.jit
def stirlings(inputs, row_inputs, eps, params):
    return gamma.stirling(inputs[0]), gamma.stirling_slope(inputs[0])


def _exp(x):
    return mpmath.exp(x) if x < 2000 else mpmath.inf


def _excess(x):
    return x * x / 2 if abs(x) < 1e-20 else _exp(x) - 1 - min(x, 100)


def _stirling(t):
    if t < 1e-8:
        return t / 12
    return mpmath.loggamma(1 / t) + (1 / t - 0.5) * mpmath.log(t) + 1 / t - mpmath.log(2 * mpmath.pi) / 2


def _stirling_slope(t):
    return t * t / 12 if t < 1e-8 else -mpmath.log(t) - t / 2 - mpmath.digamma(1 / t)


# Densities that show kernels/density/math.py and gamma.py: of each output the truth, the ulps allowed and the domain
EVERYWHERE, POSITIVE, UNIT = (-INF, INF), (0, INF), (0, 1)
FUNCTIONS = {
    exponentials: [
        (_exp, 4, EVERYWHERE),
        (lambda x: mpmath.expm1(x) if x < 2000 else mpmath.inf, 4, EVERYWHERE),
        # it keeps the rounding of exp - 1 and x, both up to ten times as large, past log(2) / 2
        (_excess, 20, EVERYWHERE),
    ],
    logarithms: [
        (mpmath.log, 4, POSITIVE),
        (mpmath.log1p, 4, POSITIVE),
        (mpmath.log1p, 4, UNIT),
        (mpmath.log1p, 4, (0, 3e38)),  # infinity makes it NaN
        (lambda x: x * x / 2 if x < 1e-20 else x - mpmath.log1p(x), 8, (0, 3e38)),
    ],
    logistics: [
        (lambda x: 1 / (1 + _exp(-x)), 4, EVERYWHERE),
        (lambda x: 1 / (1 + _exp(x)), 4, EVERYWHERE),
        (lambda x: mpmath.log1p(_exp(x)) if x < 2000 else x, 4, EVERYWHERE),
        (lambda x: -mpmath.log1p(_exp(-x)) if x > -2000 else x, 4, EVERYWHERE),
        (mpmath.tanh, 4, EVERYWHERE),
    ],
    # what test_functions.py measured of the same polynomials
    stirlings: [(_stirling, 16, UNIT), (_stirling_slope, 180, UNIT)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("density", FUNCTIONS, ids=lambda f: f.fn.__name__)
def test_functions(monkeypatch, density, dtype):
    """A few units in the last place everywhere: where something cancels, at the ends, in every binade."""
    info = torch.finfo(dtype)
    lowest, highest = (-103.9, 88.7) if dtype == torch.float32 else (-745.0, 709.7)
    spacing = info.smallest_normal * info.eps  # below the normal range
    exponents = range(round(log2(spacing)), round(log2(info.max)))
    positive = torch.cat([
        torch.tensor([2.0**e for e in exponents], dtype=torch.float64) * torch.linspace(1, 1.99, len(exponents)),
        torch.linspace(0, 1, 200, dtype=torch.float64),
        torch.linspace(0, 3, 100, dtype=torch.float64),
    ])  # fmt: skip
    x = torch.cat([
        positive,
        -positive,
        torch.linspace(lowest, highest, 301, dtype=torch.float64),
        torch.tensor([0.0, -0.0, INF, -INF, NAN, -150.0, 99.0]),
    ]).to(dtype)  # fmt: skip
    outputs = tuple([torch.empty_like(x) for _ in FUNCTIONS[density]])
    monkeypatch.setitem(rows.DENSITIES, "functions", density)
    rows.rows("functions", 1, (x,), (), outputs, (), None, ())
    for actual, (function, ulps, (lo, hi)) in zip(outputs, FUNCTIONS[density], strict=True):
        inside = ~((x < lo) | (x > hi))  # NaN is
        with mpmath.workprec(200):
            truth = [value if value != value else float(function(mpmath.mpf(value))) for value in x[inside].tolist()]
        truth = torch.tensor(truth, dtype=torch.float64).to(dtype)
        torch.testing.assert_close(actual[inside], truth, rtol=ulps * info.eps, atol=spacing, equal_nan=True)


def test_the_logarithm_of_what_is_negative(monkeypatch):
    x, out = torch.tensor([-1e-45, -1e-3, -2.0, -INF]), torch.empty(4)
    monkeypatch.setitem(rows.DENSITIES, "functions", logarithms)
    rows.rows("functions", 1, (x,), (), (out, None, None), (), None, ())
    assert out.isnan().all()


EXTREMES = [0.0, 1e-30, -1e-8, 1e-3, 100.0, -100.0, 170.0, -170.0, 1e30, -1e30, INF, -INF, NAN]


def extremes(row) -> list[torch.Tensor]:
    """Every combination of extremes, one a row; data are in their range, and have no gradient."""
    if row.name == "kl_normal":
        mu, logvar = torch.cartesian_prod(*[torch.tensor(EXTREMES)] * 2).view(-1, 1, 2).unbind(2)
        # equal, standard, and exchanged priors
        tensors = [torch.cat([mu] * 3), torch.cat([logvar] * 3)]
        tensors += [torch.cat([mu, mu * 0, logvar]), torch.cat([logvar, logvar * 0, mu])]
    elif row.halves:
        tensors = [torch.cartesian_prod(*[torch.tensor(EXTREMES)] * 2)]
    else:
        values = [torch.tensor(EXTREMES)] * len(row.tensors)
        for i, name in enumerate(row.tensors):
            if name in row.ranges:
                lo, hi = row.ranges[name]
                values[i] = torch.tensor([lo, hi, *[v for v in EXTREMES if lo < v < hi]])
        tensors = torch.cartesian_prod(*values).view(-1, 1, len(values)).unbind(2)
    return [t.contiguous().requires_grad_(name not in DATA) for name, t in zip(row.tensors, tensors, strict=True)]


def ones(outputs) -> list[torch.Tensor]:
    return [torch.ones_like(t) for t in outputs]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not (hasattr(counts, row.name) or row.planes)], ids=lambda row: row.name
)
def test_extremes(row):  # those of counts, of categories and of mixtures have tests of their own
    """Every pair of extremes gives float64's answer, rounded to float32: inf included, never a wrong finite number."""
    tensors, seed = extremes(row), seed_tensor()
    for bounds in [None, (-30.0, 20.0), (-INF, 5.0), (0.5, 0.5)] if row.takes("logvar_bounds") else [None]:
        outputs, actual, truth, expected = both(lambda *t: row.call(*t, seed=seed, bounds=bounds), tensors, ones)  # noqa: B023
        for a, e in zip(outputs, truth, strict=True):
            torch.testing.assert_close(a, e.float(), rtol=1e-5, atol=1e-37, equal_nan=True)
        atol = 1e-37
        if row in LIKELIHOODS:
            # autograd's gradient, which cancels in float64, and where a term of it is infinite is NaN
            atol = 1e-16
            known = [~(e.isnan() | truth[0].isnan()[:, None]) for e in expected]
            actual, expected = ([g[k] for g, k in zip(grads, known, strict=True)] for grads in (actual, expected))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e.float(), rtol=1e-5, atol=atol, equal_nan=True)


def test_extremes_of_importance_weighted_latents():
    seed = seed_tensor()
    for bounds in [(-INF, INF), (-30.0, 20.0)]:
        outputs, actual, truth, expected = both(
            lambda *t: RsampleLogRatio.apply(*t, seed, 1, *bounds, 0.0),  # noqa: B023
            extremes(ROWS[0]),
            ones,
        )
        for a, e in zip((*outputs, *actual), (*truth, *expected), strict=True):
            # near the prior the log-ratio is what terms of about 1 leave
            torch.testing.assert_close(a, e.float(), rtol=1e-5, atol=1e-6, equal_nan=True)


def test_extremes_of_location_and_scale():
    loc = torch.tensor([0.0, 7.0, 1e20, INF, NAN])
    scale = torch.tensor([0.0, 2.0**-40, 2.0**-10, 2.0**10, 2.0**40, INF, NAN])
    parameters = torch.cartesian_prod(loc, scale, loc, scale).unbind(1)
    outputs, actual, truth, expected = both(normal_kl, [t.clone().requires_grad_() for t in parameters], ones)
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
    _, arguments, options, _ = rows.launch("standard_normal", batch_ndim, (), (), (out,), (), seed, (), None)
    tile = rows.tiling(*arguments[8:10], 4, 8, True, False)

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
def offsets_kernel(out, operand, row, col):
    base = operand[0].to(tl.int64)
    one = tl.arange(0, 1).to(tl.int64)
    row, col = row + one, (col + one)[None, :]
    pointers = operands.pointers(operand, (row, row), (col, col), 4)
    tl.store(out + tl.arange(0, 1)[:, None], (pointers.to(tl.int64) - base) // 4)


def test_far_addresses():
    base = torch.zeros(1)
    row, col = 2**33 + 1, 2**32 + 10  # 2 segments of rows or columns, and the rest
    for operand, expected in [
        ((base, (2**20,), ()), row * 2**22 + col),
        ((base, (2**22,), (3,)), row * 2**22 + col * 3),
        ((base, (7,), (2**31, 2**34, 5)), row * 7 + 2 * 2**34 + 10 * 5),
        ((base, (7, 2**34, 2**32), (3,)), 2 * 2**34 + 7 + col * 3),
    ]:
        out = torch.empty(1, dtype=torch.int64)
        offsets_kernel[(1,)](out, operand, row, col)
        assert out.item() == expected


# The backend


def test_why_not():
    assert kernels.backend.why_not("rsample_forward", "cpu") is None
    assert "no Triton density 'nonsense'" in kernels.backend.why_not("nonsense", "cpu")
    assert "mps" in kernels.backend.why_not("rsample_forward", "mps")


def test_every_op_of_rows_has_a_density():
    known = rows.DENSITIES.keys() | planes.DENSITIES.keys()
    assert {op.density for op in TABLE.values() if op.walk == "rows"} <= known


def test_without_the_variable_cpu_tensors_are_refused(python):
    source = "import vaefast; vaefast.use_backend('triton'); vaefast.standard_normal(4)"
    status, _, error = python(source, TRITON_INTERPRET="0")
    assert status != 0
    assert "BackendError" in error
    assert "TRITON_INTERPRET=1" in error


def test_import_does_not_import_triton(python):
    source = "import sys, vaefast, vaefast.kernels; assert not any(m.split('.')[0] == 'triton' for m in sys.modules)"
    assert python(source) == (0, "", "")
