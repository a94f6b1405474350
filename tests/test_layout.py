"""How strides are named, and index arithmetic past 2^31 without the memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import cotangents, gradients, seed_tensor
from strategies import shapes, strided
from torch._subclasses.fake_tensor import FakeTensorMode

import vaefast
from vaefast import _extension
from vaefast._layout import Layout, readable, rows_and_cols
from vaefast.ops import _checks
from vaefast.ops._define import TABLE
from vaefast.reference.noise import standard_normal


def _element(layout: Layout, row: int, col: int) -> int:
    outer, inner = divmod(col, layout.segment)
    group, member = divmod(row, layout.row_segment)
    base = group * layout.row_segment_stride + member * layout.row_stride
    return base + outer * layout.segment_stride + inner * layout.stride


@given(data=st.data())
def test_layout_names_every_element(data):
    shape = data.draw(shapes(max_elements=600))
    values = torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
    tensor = data.draw(strided(values))
    batch_ndim = data.draw(st.integers(0, len(shape)))
    rows, cols = rows_and_cols(tensor, batch_ndim)
    assert rows * cols == tensor.numel()
    read, layout = readable(tensor, batch_ndim, cols)
    assert layout.segment > 0
    flat = read.as_strided((read.untyped_storage().nbytes() // 8,), (1,), 0)
    found = [flat[read.storage_offset() + _element(layout, r, c)].item() for r in range(rows) for c in range(cols)]
    assert found == tensor.flatten().tolist()


def _latent(*shape):
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("tensor", "batch_ndim", "layout"),
    [
        (_latent(5, 12), 1, Layout(12, 12, 0, 1)),
        (_latent(5, 3, 2, 2), 1, Layout(12, 12, 0, 1)),
        (_latent(5, 24).chunk(2, 1)[1], 1, Layout(24, 12, 0, 1)),
        (_latent(5, 6, 2, 2).chunk(2, 1)[0], 1, Layout(24, 12, 0, 1)),
        (_latent(5, 3, 8).chunk(2, 2)[0], 1, Layout(24, 4, 8, 1)),
        (_latent(12, 5).T, 1, Layout(1, 12, 0, 5)),
        (_latent(12).expand(5, 12), 1, Layout(0, 12, 0, 1)),
        (_latent(5, 1).expand(5, 12), 1, Layout(1, 12, 0, 0)),
        (_latent(5, 3, 2, 2).to(memory_format=torch.channels_last), 1, Layout(12, 4, 1, 3)),
        (_latent(5, 12)[::2, ::3], 1, Layout(24, 4, 0, 3)),
        (_latent(2, 3, 4)[:, :, ::2], 2, Layout(4, 2, 0, 2)),
        (_latent(7, 2)[:, 0], 1, Layout(2, 1, 0, 0)),
        (_latent(5, 1, 12).expand(5, 3, 12), 2, Layout(0, 12, 0, 1, 3, 12)),
        (_latent(5, 12).expand(3, 5, 12), 2, Layout(12, 12, 0, 1, 5, 0)),
        (_latent(5, 1, 24).expand(5, 3, 24).chunk(2, 2)[1], 2, Layout(0, 12, 0, 1, 3, 24)),
    ],
)
def test_layouts_of_vaes_are_read_in_place(tensor, batch_ndim, layout):
    rows, cols = rows_and_cols(tensor, batch_ndim)
    read, found = readable(tensor, batch_ndim, cols)
    assert read is tensor
    cells = [(r, c) for r in range(rows) for c in range(cols)]
    assert [_element(found, *cell) for cell in cells] == [_element(layout, *cell) for cell in cells]


@pytest.mark.parametrize(
    ("tensor", "batch_ndim", "row_levels"),
    [
        (torch.arange(120.0).view(2, 3, 4, 5).permute(0, 3, 2, 1)[:, ::2], 1, 2),
        (torch.arange(120.0).view(2, 3, 4, 5).permute(2, 1, 0, 3), 3, 2),
        (torch.arange(60.0).view(5, 1, 12).expand(5, 3, 12), 2, 1),
    ],
)
def test_only_what_the_levels_cannot_name_is_copied(tensor, batch_ndim, row_levels):
    _, cols = rows_and_cols(tensor, batch_ndim)
    read, layout = readable(tensor, batch_ndim, cols, row_levels)
    assert read is not tensor
    assert torch.equal(read, tensor)
    assert layout == Layout(cols, cols, 0, 1)


def test_sizes_past_2_31():
    """Strides and counts are Python's integers and the walks' 64 bits: no element is named by a wrapped number."""
    tensor = torch.empty(70_000, 2, 40_000, device="meta")[:, 1]
    _, layout = readable(tensor, 1, 40_000)
    assert _element(layout, 69_999, 39_999) == 69_999 * 80_000 + 39_999 > 2**32


@pytest.fixture
def sparse(tmp_path):
    """A tensor of more elements than there is memory: pages that nobody touches do not exist."""

    def make(count: int, dtype: torch.dtype) -> torch.Tensor:
        path = tmp_path / "sparse"
        with open(path, "wb") as file:
            file.truncate(count * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype)

    return make


@pytest.mark.parametrize("levels", ["row", "row segment", "segment", "element"])
def test_memory_past_2_31_elements(backend, sparse, levels):
    """Rows, segments and elements that lie 2^31 elements apart are read from where they are."""
    if backend.device != "cpu":
        pytest.skip("a sparse file is the CPU's memory")
    gap, size = 2**31 + 3, 10
    strides = {
        "row": ((3, 5), (gap, 1)),
        "row segment": ((3, 2, 5), (gap, 7, 1)),
        "segment": ((1, 3, 5), (1, gap, 1)),
        "element": ((2, 3), (7, gap)),
    }
    shape, stride = strides[levels]
    base = sparse(3 * gap + size, torch.float16)
    far = base.as_strided(shape, stride)
    near = torch.randn(shape).half()
    far.copy_(near)
    far.requires_grad_(), near.requires_grad_()
    batch_ndim = 2 if levels == "row segment" else 1
    results = [vaefast.rsample_kl(t, t, seed=1, batch_ndim=batch_ndim) for t in (far, near)]
    results = [r + gradients(r, [t], cotangents(r)) for r, t in zip(results, (far, near), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
def test_sum_past_2_31_elements(backend):
    """KL of a row of 2^31 + 11 equal elements, one number in memory."""
    count = 2**31 + 11
    if backend.name == "reference":
        pytest.skip("plain PyTorch holds the row in memory")
    mu = torch.tensor([2.0], device=backend.device).expand(1, count)
    logvar = torch.tensor([0.0], device=backend.device).expand(1, count)
    assert vaefast.kl_standard_normal(mu, logvar).item() == pytest.approx(2.0 * count, rel=1e-5)


@pytest.mark.slow
def test_noise_past_2_32_elements(backend):
    """The last row of a draw of more than 2^32 elements, each row written over the one before."""
    if backend.name != "cpu":
        pytest.skip("rows are written one after the other by one CPU thread only")
    cols = 4099
    rows = 2**32 // cols + 2
    out = torch.empty(cols)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _extension.cpu.rows("standard_normal", 1, (), (), (out.expand(rows, cols),), (), seed_tensor(3, 1), ())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(out, standard_normal(seed_tensor(3, 1), (cols,), first=(rows - 1) * cols))


# --- values that PyTorch puts off ---


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_put_off_negatives(backend):
    """The imaginary part of a conjugate is a view with a bit that says: negative."""
    value = torch.randn(5, 6)
    lazy = torch.complex(torch.zeros(5, 6), -value).conj().imag
    assert lazy.is_neg()
    with vaefast.use_backend(backend):
        for call in (
            lambda x: vaefast.kl_normal(x, x, value, value),
            lambda x: vaefast.kl_standard_normal(x.t(), x.t()),
            lambda x: vaefast.bernoulli_nll(value, value.sigmoid(), weight=x),
            lambda x: vaefast.rsample_kl_moments(x, 1, seed=1)[1],
            lambda x: vaefast.mmd(torch._neg_view(-x.contiguous()), value),
            lambda x: vaefast.categorical_nll(x, torch.zeros(5, dtype=torch.int64)),
        ):
            torch.testing.assert_close(call(lazy), call(value))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients_that_are_put_off(backend):
    mu, logvar = (torch.randn(4, 3).requires_grad_() for _ in range(2))
    with vaefast.use_backend(backend):
        for value in (vaefast.rsample(mu, logvar, seed=1), vaefast.kl_standard_normal(mu, logvar)):
            grads = torch.autograd.grad(torch.sgn(value).sum(), (mu, logvar))  # of zeros that have no memory
            assert not any(g.any() for g in grads)
        z = vaefast.rsample(mu, logvar, seed=1)
        (plain,) = torch.autograd.grad((z * -3).sum(), logvar, retain_graph=True)
        (lazy,) = torch.autograd.grad(z, logvar, torch._neg_view(torch.full((4, 3), 3.0)))
        torch.testing.assert_close(lazy, plain)


def _left_behind(tensor):
    """Twice the tensor, in the wrapper that a transform of torch.func gives its function, kept past the transform."""
    kept = []
    torch.func.grad(lambda x: (kept.append(2 * x), x.sum())[1])(tensor)
    return kept[0]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_a_transform_left_behind(backend):
    leaf, logvar = (torch.randn(4, 3).requires_grad_() for _ in range(2))
    with vaefast.use_backend(backend):
        for call in (
            lambda x: vaefast.rsample(x, logvar, seed=1),
            lambda x: vaefast.rsample_kl(x, logvar, seed=1)[0],
            lambda x: vaefast.kl_standard_normal(x.t(), logvar.t()),
            lambda x: vaefast.bernoulli_nll(logvar + x, torch.ones(4, 3)),
        ):
            found, expected = call(_left_behind(leaf)), call(2 * leaf)
            torch.testing.assert_close(found, expected)
            ours, theirs = (torch.autograd.grad(value.sum(), (leaf, logvar)) for value in (found, expected))
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "make", [lambda s: torch._neg_view(-s), lambda s: torch._efficientzerotensor(2, dtype=s.dtype)]
)
def test_a_seed_that_is_put_off(make):
    mu, logvar = torch.randn(2, 4, 3)
    seed = make(torch.tensor([3, 4]))
    assert torch.equal(vaefast.rsample(mu, logvar, seed=seed), vaefast.rsample(mu, logvar, seed=seed + 0))


def test_a_tensor_without_memory_is_refused(recwarn):
    with FakeTensorMode():
        fake = torch.randn(2, 3)
    warned = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with pytest.raises((TypeError, RuntimeError), match=r"without memory|FakeTensor"):
            vaefast.kl_standard_normal(torch.randn(2, 3), fake)
    finally:
        torch.set_warn_always(warned)
    assert not recwarn.list  # PyTorch warns of fake tensors' pointers, and once lost the error by it


# --- a PyTorch that lends no pointers: the compiled module then reads a tensor's attributes ---


@pytest.fixture
def attributes_only(monkeypatch):
    module = _extension.module()
    if module is None:
        pytest.skip("no compiled module")
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__", raising=False)
    _extension.attach(module, None)
    yield
    monkeypatch.undo()
    _extension.attach(module, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_read_by_their_attributes(attributes_only, dtype):
    logits = torch.randn(4, 6, 5).to(dtype).requires_grad_()
    mu = torch.randn(5, 4).to(dtype).t()  # strided
    for x in (torch.rand(4, 1, 5), torch.randint(256, (4, 6, 5), dtype=torch.uint8), torch.rand(4, 6, 5) < 0.5):
        calls = (
            lambda: vaefast.bernoulli_nll(logits, x, batch_ndim=2),  # noqa: B023 - called in this turn of the loop
            lambda: vaefast.rsample_kl(mu, logits[:, 0], seed=1)[1],
            lambda: vaefast.rsample_kl_moments(logits, 1, seed=1)[1],
            lambda: vaefast.categorical_nll(logits, torch.zeros(4, 5, dtype=torch.int64)),
        )
        for call in calls:
            found = call()
            (grad,) = torch.autograd.grad(found.sum(), logits)
            with vaefast.use_backend("reference"):
                expected = call()
                (expected_grad,) = torch.autograd.grad(expected.sum(), logits)
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(grad, expected_grad)


def test_gradients_are_written_also_where_only_attributes_tell(attributes_only):
    logits, x = torch.randn(4, 9000).requires_grad_(), torch.rand(4, 9000)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        vaefast.bernoulli_nll(logits, x, expected_grad=0.25)
    assert any(t.shape == x.shape and t is not logits and t is not x for t in kept[2:])


def test_what_no_walk_takes(attributes_only):
    rows = _extension.cpu.rows
    with pytest.raises(IndexError):
        rows("rsample_forward", 1)
    with pytest.raises(ValueError, match="batch_ndim must not be above"):
        rows("kl_standard_normal_forward", 1, (torch.zeros(()), torch.zeros(())), (), (), (torch.zeros(()),))
    with pytest.raises(TypeError, match="takes no tensor of this type"):
        _extension.cpu.rows("standard_normal", 0, (), (), (torch.empty(2, dtype=torch.complex64),), (), None, ())


@pytest.mark.parametrize("shape", [(1, 6), (3, 0), (1, 1, 4), (5, 1)])
def test_outputs_have_the_usual_strides(shape):
    """Also where the inputs' strides of dimensions of size 1 are others: what a compiler was told of the op."""
    mu, logvar = torch.randn(*shape[:-1], 2 * shape[-1]).chunk(2, -1)
    grad = torch.randn(shape)
    z, kl = TABLE["rsample_kl_forward"].run(mu, logvar, seed_tensor(), 1, -math.inf, math.inf)
    grads = TABLE["rsample_kl_backward"].run(grad, kl, mu, logvar, seed_tensor(), 1, -math.inf, math.inf)
    for made in (z, *grads):
        assert made.stride() == torch.empty(shape).stride()


# --- what the compiled module answers in the place of checks ---


class Subclass(torch.Tensor):
    pass


_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.complex64, torch.float8_e4m3fn]


def _odd(kind: str, tensor: torch.Tensor) -> object:
    if kind == "fake":
        with FakeTensorMode() as mode:
            return mode.from_tensor(tensor)
    made = {
        "plain": lambda: tensor,
        "parameter": lambda: torch.nn.Parameter(tensor, requires_grad=False),
        "subclass": lambda: tensor.as_subclass(Subclass),
        "meta": lambda: tensor.to("meta"),
        "sparse": tensor.to_sparse,
        "none": lambda: None,
        "number": lambda: 1.0,
    }
    return made[kind]()


@given(
    shapes=st.lists(st.sampled_from([(), (3,), (2, 3), (3, 2), (0, 3)]), min_size=1, max_size=3),
    dtypes=st.lists(st.sampled_from(_DTYPES), min_size=3, max_size=3),
    kinds=st.lists(
        st.sampled_from(["plain"] * 6 + ["parameter", "subclass", "meta", "sparse", "fake", "none", "number"]),
        min_size=3,
        max_size=3,
    ),
    alike=st.booleans(),
    roles=st.sampled_from(["fff", "fdd", "ffd", "f", ""]),
    batch_ndim=st.sampled_from([0, 1, 2, 3, -1, True, 1.0, None, 2**70]),
)
def test_what_is_usual_passes_every_check(shapes, dtypes, kinds, alike, roles, batch_ndim):
    if _extension.module() is None:
        pytest.skip("no compiled module")
    if alike:
        shapes, dtypes = [shapes[0]] * len(shapes), [dtypes[0]] * 3
    if len(roles) == 3:
        roles = roles[: len(shapes)]
    tensors = [_odd(k, torch.zeros(s, dtype=d)) for k, s, d in zip(kinds, shapes, dtypes, strict=False)]
    found = _checks.usual(batch_ndim, roles, *tensors)
    try:
        _in_words(tensors, roles, batch_ndim)
        right = all(type(t) is torch.Tensor and t.is_cpu for t in tensors)
    except (TypeError, ValueError):
        right = False
    assert found == right if hasattr(torch.Tensor, "__dlpack_c_exchange_api__") else not found


def _in_words(tensors, roles, batch_ndim) -> None:
    """The checks that a usual call need not ask."""
    if len(roles) != len(tensors):
        raise ValueError("not usual")
    for tensor, role in zip(tensors, roles, strict=True):
        (_checks.floating if role == "f" else _checks.data)("a tensor", tensor)
    for tensor in tensors:
        _checks.alike("the first", tensors[0], "a tensor", tensor)
    _checks.batch_ndim(batch_ndim, tensors[0].ndim)
    if tensors[0].ndim == 0 or len({t.dtype for t, role in zip(tensors, roles, strict=True) if role == "f"}) > 1:
        raise ValueError("not usual")
