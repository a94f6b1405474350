"""What holds for every op on every backend: values and gradients, for any shape, strides and type."""

from __future__ import annotations

import math
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import DTYPES, HALF, ROWS, assert_accurate, cotangents, gradients, seed_tensor
from strategies import SEEDS, shapes, strided
from torch.utils._python_dispatch import TorchDispatchMode

import vaefast
from vaefast.ops._define import TABLE, EagerFunction

BOUNDS = (None, (-1.0, 1.0), (-1.0, math.inf), (0.5, 0.5))


def check(row, tensors, grads=None, **options):
    """Outputs and gradients of one call against the float64 reference."""
    outputs = row.call(*tensors, **options)
    grads = cotangents(outputs) if grads is None else grads
    wide = [t.detach().double().requires_grad_() for t in tensors]
    expected = row.truth(*wide, **options)
    sums_from = len(outputs) - 1 if row.takes("batch_ndim") else len(outputs)
    for i, (actual, truth) in enumerate(zip(outputs, expected, strict=True)):
        assert actual.is_contiguous()
        assert_accurate(actual, truth, sums=i >= sums_from and not row.signed)
    expected_grads = torch.autograd.grad(expected, wide, [g.double() for g in grads])
    for tensor, actual, truth in zip(tensors, gradients(outputs, tensors, grads), expected_grads, strict=True):
        assert actual.dtype == tensor.dtype
        assert_accurate(actual, truth)


@given(data=st.data())
def test_matches_float64(row, backend, data):
    shape = data.draw(shapes())
    dtype = data.draw(st.sampled_from(DTYPES))
    batch_ndim = data.draw(st.integers(0, len(shape) - row.halves))  # moments have an event, whose last dim they split
    options = {"batch_ndim": batch_ndim, "bounds": data.draw(st.sampled_from(BOUNDS))}
    tensors = row.inputs(shape, dtype=dtype, device=backend.device, requires_grad=False)
    tensors = [data.draw(strided(t)).requires_grad_() for t in tensors]
    seed = seed_tensor(data.draw(SEEDS), data.draw(SEEDS), backend.device)
    grads = [data.draw(strided(g)) for g in cotangents(row.call(*tensors, seed=seed, **options))]
    check(row, tensors, grads, seed=seed, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(128, 20), (3, 4099), (4099, 3), (16, 16, 8, 8), (70_001, 1), (1, 70_001), (2, 1)])
def test_matches_float64_at_sizes_that_divide_nothing(row, backend, shape, dtype):
    check(row, row.inputs(shape, dtype=dtype, device=backend.device), seed=seed_tensor(3, 5, backend.device))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0,), (2, 0, 3), (1,), (1, 1)])
def test_empty_and_single(row, backend, shape):
    batch_ndim = 0 if row.halves and len(shape) == 1 else 1  # moments have an event
    tensors = row.inputs(shape, device=backend.device)
    outputs = row.call(*tensors, seed=1, batch_ndim=batch_ndim)
    shapes_expected = ([shape] if row.takes("seed") else []) + ([shape[:batch_ndim]] if row.takes("batch_ndim") else [])
    assert [tuple(o.shape) for o in outputs] == shapes_expected
    if math.prod(shape) == 0 and row.takes("batch_ndim"):
        assert torch.equal(outputs[-1], torch.zeros_like(outputs[-1]))  # a sum of nothing
    check(row, tensors, seed=seed_tensor(1, 0, backend.device), batch_ndim=batch_ndim)


@pytest.mark.parametrize("dtype", HALF)
def test_half_error_at_most_twice_pytorch(row, backend, dtype):
    tensors = row.inputs((64, 1000), dtype=dtype, device=backend.device)
    seed = seed_tensor(11, 0, backend.device)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    truth = row.truth(*wide, seed=seed)
    fused, plain = row.call(*tensors, seed=seed), row.truth(*tensors, seed=seed, plain=True, dtype=dtype)
    grads = cotangents(fused)
    truth += gradients(truth, wide, [g.double() for g in grads])
    plain += gradients(plain, tensors, [g.to(dtype) for g in grads])
    fused += gradients(fused, tensors, grads)
    for f, p, t in zip(fused, plain, truth, strict=True):
        # where PyTorch's own result is NaN, any number is better
        assert (f.double() - t).abs().max() <= 2 * (p.double() - t).abs().nan_to_num(math.inf).max()


@pytest.mark.parametrize("dtype", HALF)
def test_half_is_float32_rounded_once(row, backend, dtype):
    """What an element is does not depend on the type it comes in: half types are widened, computed and rounded."""
    tensors = row.inputs((7, 301), dtype=dtype, device=backend.device)
    wide = [t.detach().float().requires_grad_() for t in tensors]
    half, single = (row.call(*t, seed=2) for t in (tensors, wide))
    grads = cotangents(half)
    half += gradients(half, tensors, grads)
    single += gradients(single, wide, [g.float() for g in grads])
    for h, s in zip(half, single, strict=True):
        torch.testing.assert_close(h, s.to(h.dtype), rtol=1e-6 if h.dtype == torch.float32 else 0, atol=0)


def test_reference_is_the_plain_formula(row):
    tensors = row.inputs((5, 40), dtype=torch.float64)
    seed = seed_tensor(4, 4)
    reference, plain = (row.truth(*tensors, seed=seed, plain=p) for p in (False, True))
    reference += gradients(reference, tensors)
    plain += gradients(plain, tensors)
    for r, p in zip(reference, plain, strict=True):
        torch.testing.assert_close(r, p, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_gradcheck(row, backend, bounds):
    seed = seed_tensor(5, 0, backend.device)

    def function(*tensors):
        return row.call(*tensors, seed=seed, bounds=bounds)

    tensors = row.inputs((3, 4), dtype=torch.float64, device=backend.device)
    # vmap over the backward warns that it loops over the op
    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, tensors, check_batched_grad=True)


def test_gradient_of_one_output_only(row, backend):
    """An output that takes no part in the loss adds nothing to the gradient."""
    tensors = row.inputs((4, 6), device=backend.device)
    seed = seed_tensor(5, 0, backend.device)
    for i in range(len(row.call(*tensors, seed=seed))):
        output = row.call(*tensors, seed=seed)[i]
        wide = [t.detach().double().requires_grad_() for t in tensors]
        truth = gradients([row.truth(*wide, seed=seed)[i]], wide, allow_unused=True)
        actual = gradients([output], tensors, allow_unused=True)
        for a, t, tensor in zip(actual, truth, tensors, strict=True):
            zero = torch.zeros_like(tensor)
            assert_accurate(zero if a is None else a, zero.double() if t is None else t)


def test_gradient_of_one_input_only(row, backend):
    """A frozen input gets no gradient, and the others get theirs."""
    seed = seed_tensor(5, 0, backend.device)
    all_grads = gradients(row.call(*(t := row.inputs((4, 6), device=backend.device)), seed=seed), t)
    for i in range(len(row.tensors)):
        tensors = row.inputs((4, 6), device=backend.device, requires_grad=False)
        tensors[i].requires_grad_()
        (grad,) = gradients(row.call(*tensors, seed=seed), tensors[i : i + 1])
        assert torch.equal(grad, all_grads[i])


def descendants(cls):
    return [d for child in cls.__subclasses__() for d in (child, *descendants(child))]


def _outputs_and_gradients(row, tensors, seed):
    outputs = row.call(*tensors, seed=seed)
    return outputs + gradients(outputs, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(70, 1001), (2, 35_001), (35_001, 2)])
def test_bits_do_not_depend_on_the_run_or_the_threads(row, backend, shape, dtype):
    if row.couples and shape[0] >= 2**15:
        pytest.skip("PyTorch cuts the sum over so many samples by the number of threads")
    seed = seed_tensor(9, 0, backend.device)
    tensors = row.inputs(shape, dtype=dtype, device=backend.device)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(_outputs_and_gradients(row, tensors, seed))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a, b)


def test_function_in_c_does_what_the_one_in_python_does(row, monkeypatch):
    """Saved tensors and constants, names, outputs and gradients of any number of them."""

    def run():
        outputs = row.call(*tensors, seed=seed)
        graph = outputs[0].grad_fn
        saved = getattr(graph, "saved_tensors", ())  # of the op's own Function, which is last but in optimal_sigma_nll
        kept = [graph.name(), [t is None for t in saved], getattr(graph, "constants", None), len(graph.next_functions)]
        some = gradients(outputs, tensors[:1], retain_graph=True)
        return kept, [*outputs, *filter(torch.is_tensor, saved), *some, *gradients(outputs, tensors)]

    tensors, seed = row.inputs((33, 65)), seed_tensor(1, 0, "cpu")
    with vaefast.use_backend("cpu"):
        kept, in_c = run()
        in_c_there = [
            f for f in descendants(EagerFunction) if isinstance(vars(f).get("apply"), types.BuiltinFunctionType)
        ]
        assert len(in_c_there) > 20
        for function in in_c_there:
            monkeypatch.delattr(function, "apply")
        kept_by_python, in_python = run()
    assert kept == kept_by_python
    assert len(in_c) == len(in_python)
    assert all(map(torch.equal, in_c, in_python))


def test_inputs_are_not_changed(row, backend):
    tensors = row.inputs((33, 65), device=backend.device)
    versions, copies = [t._version for t in tensors], [t.detach().clone() for t in tensors]
    _outputs_and_gradients(row, tensors, seed_tensor(1, 0, backend.device))
    assert [t._version for t in tensors] == versions
    assert all(torch.equal(t, c) for t, c in zip(tensors, copies, strict=True))


class _Calls(TorchDispatchMode):
    """Collects the calls of vaefast's ops."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "vaefast":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


def test_opcheck(row, backend):
    """Schema, fake tensors and tracing with dynamic shapes, of each op that the public function calls."""
    tensors = row.inputs((4, 6), device=backend.device)
    with _Calls() as recorded:
        _outputs_and_gradients(row, tensors, seed_tensor(1, 0, backend.device))
    assert [function._opname for function, _ in recorded.calls] == row.ops
    for function, args in recorded.calls:
        args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        torch.library.opcheck(function, args)


def test_opcheck_standard_normal(backend):
    args = (seed_tensor(1, 2, backend.device), [3, 5], torch.float32)
    torch.library.opcheck(torch.ops.vaefast.standard_normal.default, args)


# no public functions by themselves: test_elbo.py, test_iwae.py and test_patch.py test them
# and those of pairs, whose tensors are not of one shape: test_pairs.py
ELSEWHERE = {
    "standard_normal",
    "imq_mmd",
    "rbf_mmd",
    *[f"{name}_with_gradient"
      for name in ("bernoulli_nll", "categorical_nll", "discretized_logistic_mixture_nll", "kl_normal")],
    *[f"{name}_{way}"
      for name in ("elbo", "kl_by_dimension", "rsample_log_ratio", "normal_rsample", "normal_kl",
                   "mixture_log_prob", "total_correlation")
      for way in ("forward", "backward")],
}  # fmt: skip


def test_every_op_has_a_row():
    assert {op for row in ROWS for op in row.ops} | ELSEWHERE == set(TABLE)


def test_unwritten_outputs_would_show():
    """What the fixture promises: an output that no kernel wrote is NaN, in every floating type."""
    for dtype in DTYPES:
        for empty in (torch.empty(5, dtype=dtype), torch.empty_like(torch.zeros(5, dtype=dtype))):
            assert torch.isnan(empty).all()
