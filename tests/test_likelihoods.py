"""What holds for every likelihood beside what holds for every op: weights and masks, data of any type, parameters that
broadcast, `validate`, refusals."""

from __future__ import annotations

import pytest
import torch
from samples import DTYPES, ROWS, assert_accurate, gradients

import vaefast
from vaefast.reference import counts

LIKELIHOODS = [row for row in ROWS if row.takes("weight") and not row.couples]
# a number per element; test_categorical.py and test_logistic_mixture.py have their own tests
SINGLE = [row for row in LIKELIHOODS if not row.planes]
# data of any real value; test_counts.py has its own tests of data, types and refusals
PIXELS = [row for row in SINGLE if not hasattr(counts, row.name)]
SHAPE = (6, 50)


@pytest.fixture(params=LIKELIHOODS, ids=lambda row: row.name)
def row(request):
    return request.param


@pytest.fixture(params=SINGLE, ids=lambda row: row.name)
def single(request):
    return request.param


@pytest.fixture(params=PIXELS, ids=lambda row: row.name)
def pixels(request):
    return request.param


def nll(row, tensors, **options):
    """-log p, and the gradients of what wants one."""
    value = getattr(vaefast, row.name)(*row.arguments(tensors), **options)
    return value, *gradients([value], [t for t in tensors if t.requires_grad])


def same(actual, expected) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_accurate(a, e.double())


def replaced(row, tensors, name, value):
    """The tensors with another one by this name; only floating ones want a gradient."""
    tensors = list(tensors)
    tensors[row.tensors.index(name)] = value
    return tensors


def mask(shape, device) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.5).to(device)


WEIGHTS = {
    "mask": lambda shape, device: mask(shape, device),
    "float": lambda shape, device: mask(shape, device) * torch.linspace(0.5, 3, shape[-1], device=device),
    "bfloat16": lambda shape, device: (mask(shape, device) * 1.5).bfloat16(),
    "float64": lambda shape, device: (mask(shape, device) * 1.5).double(),
    "integers": lambda shape, device: mask(shape, device) * 3,
    "per sample": lambda shape, device: mask((shape[0], 1), device),
    "per column": lambda shape, device: mask(shape[-1:], device),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("shape", [SHAPE, (2, 5000)])
def test_weight(row, backend, shape, weight, dtype):
    """The weighted sum of the elements' own values, which are those of a batch that has no event."""
    tensors = row.inputs(shape, device=backend.device, dtype=dtype)
    w = weight(shape, backend.device)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    terms = getattr(vaefast, row.name)(*row.arguments(wide, 2), batch_ndim=2)
    expected = (terms * w).sum(-1)
    same(nll(row, tensors, weight=w), (expected, *gradients([expected], wide)))


@pytest.mark.parametrize("poison", [float("inf"), -float("inf"), float("nan")])
def test_a_weight_of_zero_leaves_nothing(row, backend, poison):
    """Not even of inf and NaN, in the value or in the gradient."""
    keep = mask(SHAPE, backend.device)
    clean = row.inputs(SHAPE, device=backend.device)
    poisoned = [t.detach().clone() for t in clean]
    for t in poisoned:
        t[~keep] = poison
        t.requires_grad_()
    expected, actual = nll(row, clean, weight=keep), nll(row, poisoned, weight=keep)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert not any(grad[~keep].any() for grad in actual[1:])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_integer_data(pixels, backend, dtype):
    tensors = pixels.inputs(SHAPE, device=backend.device)
    x = torch.randint(0, 256 if dtype == torch.uint8 else 2, SHAPE, generator=torch.Generator().manual_seed(0))
    x = x.to(backend.device)
    if pixels.name == "discretized_logistic_nll":
        meant = 2 * x.double() / 255 - 1  # integers are levels
    else:
        meant = x.double() / 255 if dtype == torch.uint8 else x.double()  # bytes are levels
    wide = [t.detach().double().requires_grad_(n != "x") for n, t in zip(pixels.tensors, tensors, strict=True)]
    same(nll(pixels, replaced(pixels, tensors, "x", x.to(dtype))), nll(pixels, replaced(pixels, wide, "x", meant)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("data", DTYPES)
def test_data_of_another_type(single, backend, dtype, data):
    """The parameters' type is what is computed in; the data's gradient has the data's type."""
    tensors = single.inputs(SHAPE, dtype=dtype, device=backend.device)
    x = tensors[single.tensors.index("x")].detach().to(data).requires_grad_()
    tensors = replaced(single, tensors, "x", x)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value, *grads = nll(single, tensors)
    expected, *expected_grads = nll(single, [t.detach().to(wide).requires_grad_() for t in tensors])
    assert torch.equal(value, expected)
    for grad, e, t in zip(grads, expected_grads, tensors, strict=True):
        assert grad.dtype == t.dtype
        assert torch.equal(grad, e.to(t.dtype))


def test_parameters_of_two_types(pixels, backend):
    """Half types and float32 side by side are computed in float32, and each gradient has its parameter's type."""
    tensors = pixels.inputs(SHAPE, device=backend.device)
    names = [n for n in pixels.tensors if n != "x"]
    if len(names) == 1:
        pytest.skip("one parameter has one type")
    for first, second in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.float16, torch.float64),
    ):
        mixed = replaced(pixels, tensors, names[0], tensors[0].detach().to(first).requires_grad_())
        mixed = replaced(
            pixels, mixed, names[1], mixed[pixels.tensors.index(names[1])].detach().to(second).requires_grad_()
        )
        wide = torch.promote_types(torch.float32, second)
        expected = nll(pixels, [t.detach().to(wide).requires_grad_() for t in mixed])
        value, *grads = nll(pixels, mixed)
        assert torch.equal(value, expected[0])
        for grad, e, t in zip(grads, expected[1:], mixed, strict=True):
            assert torch.equal(grad, e.to(t.dtype))


@pytest.mark.parametrize("shape", [(6, 1), (50,), (1, 1), (1, 50)])
def test_every_argument_broadcasts(single, backend, shape):
    for name in single.tensors:
        small = single.inputs(shape, generator=3, device=backend.device)[single.tensors.index(name)]
        tensors = replaced(single, single.inputs(SHAPE, device=backend.device), name, small)
        large = replaced(single, tensors, name, small.detach().expand(SHAPE).contiguous().requires_grad_())
        value, *grads = nll(single, tensors)
        expected, *expected_grads = nll(single, large)
        assert torch.equal(value, expected)
        for grad, e, t in zip(grads, expected_grads, tensors, strict=True):
            assert torch.equal(grad, e.sum_to_size(t.shape))


def test_images_in_channels_last(single, backend):
    """Parameters per channel, data channels-last: read in place, and the value of contiguous copies."""
    tensors = single.inputs((4, 3, 8, 6), device=backend.device)
    strided = [t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in tensors]
    assert torch.equal(nll(single, strided)[0], nll(single, tensors)[0])
    for a, e in zip(nll(single, strided)[1:], nll(single, tensors)[1:], strict=True):
        assert torch.equal(a, e)


def test_validate(pixels, backend):
    tensors = pixels.inputs(SHAPE, device=backend.device)
    function = getattr(vaefast, pixels.name)
    assert torch.equal(function(*tensors, validate=True), function(*tensors))
    x = tensors[pixels.tensors.index("x")].detach().clone()
    x[3, 4] = float("nan")
    with pytest.raises(ValueError, match="x must be"):
        function(*replaced(pixels, tensors, "x", x), validate=True)
    function(*replaced(pixels, tensors, "x", x), weight=torch.zeros_like(x), validate=True)
    assert function(*replaced(pixels, tensors, "x", x))[3].isnan()


def test_refusals_name_the_argument(pixels, backend):
    tensors = [t.detach() for t in pixels.inputs(SHAPE, device=backend.device)]
    function = getattr(vaefast, pixels.name)
    for name, tensor in zip(pixels.tensors, tensors, strict=True):
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got list"):
            function(*replaced(pixels, tensors, name, [1.0]))
        with pytest.raises(ValueError, match=f"must broadcast to one shape.*{name} \\(5, 3\\)"):
            function(*replaced(pixels, tensors, name, torch.zeros(5, 3, device=backend.device)))
        with pytest.raises(TypeError, match=f"{name} must be .*complex64"):
            function(*replaced(pixels, tensors, name, tensor.to(torch.complex64)))
        if name != "x":
            with pytest.raises(
                TypeError, match=f"{name} must be float32, float64, float16 or bfloat16, got torch.int32"
            ):
                function(*replaced(pixels, tensors, name, tensor.int()))
    with pytest.raises(TypeError, match=r"x must be a dense tensor, got one of torch.sparse_csr; to_dense\(\)"):
        function(*replaced(pixels, tensors, "x", tensors[pixels.tensors.index("x")].to_sparse_csr()))
    with pytest.raises(TypeError, match="weight must be a tensor, got float"):
        function(*tensors, weight=0.5)
    with pytest.raises(ValueError, match="batch_ndim must be from 0 to"):
        function(*tensors, batch_ndim=3)


@pytest.mark.parametrize("cols", [1, 127, 128, 129, 784, 1024, 1025, 3000])
def test_well_predicted_pixels_keep_their_digits(cols, backend):
    """The CPU takes one logarithm of a product for a whole row: terms of 1e-30 beside each other, and beside larger."""
    size = torch.linspace(1, 70, 5 * cols).reshape(5, cols).roll(3, 0)
    size[1] += 30.0
    x = (torch.arange(5 * cols).reshape(5, cols) % 3 == 0).float()
    logits = torch.where(x == 1, size, -size)
    truth = torch.nn.functional.softplus(-size.double()).sum(-1)
    nll = vaefast.bernoulli_nll(logits.to(backend.device), x.to(backend.device))
    torch.testing.assert_close(nll.cpu().double(), truth, rtol=3e-6, atol=0)
