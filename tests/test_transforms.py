"""The ops under autograd's and torch.func's transforms, checkpointing and autocast: as with PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from samples import DTYPES, HALF, cotangents, gradients, seed_tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import vaefast

SEED = 13


def _loss(outputs, weights):
    """A scalar that curves in every output, so that second derivatives are not zero."""
    return sum((w * o.square()).sum() for w, o in zip(weights, outputs, strict=True))


def _functions(row, tensors, shape=None):
    """The loss of the op, and of the plain formula in float64 under PyTorch's autograd."""
    seed = seed_tensor(SEED, 0, tensors[0].device)
    weights = cotangents(row.call(*tensors, seed=seed))

    def ours(*tensors):
        return _loss(row.call(*tensors, seed=seed), weights)

    def plain(*tensors):
        return _loss(row.truth(*tensors, seed=seed, plain=True), weights)

    return ours, plain


@pytest.fixture
def problem(row, backend):
    tensors = row.inputs((3, 4), dtype=torch.float64, device=backend.device, requires_grad=False)
    return (*_functions(row, tensors), tensors)


def _all(tensors):
    return tuple(range(len(tensors)))


def _close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def test_func_grad(problem):
    ours, plain, tensors = problem
    _close(grad(ours, _all(tensors))(*tensors), grad(plain, _all(tensors))(*tensors))


def test_func_vjp(problem):
    ours, plain, tensors = problem
    one = torch.ones((), dtype=torch.float64, device=tensors[0].device)
    _close(vjp(ours, *tensors)[1](one), vjp(plain, *tensors)[1](one))


def test_func_jvp(problem):
    """Never silent zeros."""
    ours, plain, tensors = problem
    tangents = tuple(torch.randn_like(t) for t in tensors)
    (value, tangent), expected = jvp(ours, tuple(tensors), tangents), jvp(plain, tuple(tensors), tangents)
    assert tangent != 0
    _close((value, tangent), expected)


def test_forward_mode_dual_numbers(problem):
    ours, plain, tensors = problem
    tangents = [torch.randn_like(t) for t in tensors]

    def tangent(function):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, d) for t, d in zip(tensors, tangents, strict=True)]
            return forward_ad.unpack_dual(function(*duals)).tangent

    assert tangent(ours) != 0
    _close(tangent(ours), tangent(plain))


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_jacobians_of_every_output(row, backend, jacobian):
    tensors = row.inputs((2, 3), dtype=torch.float64, device=backend.device, requires_grad=False)
    seed = seed_tensor(SEED, 0, backend.device)
    ours = jacobian(lambda *t: row.call(*t, seed=seed), _all(tensors))(*tensors)
    plain = jacobian(lambda *t: row.truth(*t, seed=seed, plain=True), _all(tensors))(*tensors)
    _close(ours, plain)


def test_hessian(problem):
    ours, plain, tensors = problem
    for argument in _all(tensors):
        _close(hessian(ours, argument)(*tensors), hessian(plain, argument)(*tensors))


def test_vectorised_jacobian(problem):
    """torch.autograd.functional batches the backward, not the function."""
    ours, plain, tensors = problem
    for vectorize in (False, True):
        actual = torch.autograd.functional.jacobian(ours, tuple(tensors), vectorize=vectorize)
        _close(actual, torch.autograd.functional.jacobian(plain, tuple(tensors)))


def test_double_backward(problem):
    ours, plain, tensors = problem

    def second(function):
        leaves = [t.clone().requires_grad_() for t in tensors]
        first = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    _close(second(ours), second(plain))


def test_third_derivative(backend):
    """d3/dlogvar3 of KL is exp(logvar) / 2."""
    logvar = torch.tensor([[0.3]], dtype=torch.float64, device=backend.device, requires_grad=True)
    value = vaefast.kl_standard_normal(torch.zeros_like(logvar), logvar)
    for _ in range(3):
        (value,) = torch.autograd.grad(value.sum(), logvar, create_graph=True)
    _close(value, logvar.exp() / 2)


# vmap


def test_vmap_of_grad_is_per_sample_gradients(row, backend):
    tensors = row.inputs((5, 3, 4), dtype=torch.float64, device=backend.device, requires_grad=False)
    ours, _ = _functions(row, [t[0] for t in tensors])
    batched = vmap(grad(ours, _all(tensors)))(*tensors)
    looped = [grad(ours, _all(tensors))(*(t[i] for t in tensors)) for i in range(5)]
    _close(batched, tuple(torch.stack(column) for column in zip(*looped, strict=True)))


def test_vmap_with_a_seed_for_each(backend):
    seeds = torch.stack([seed_tensor(s, 0, backend.device) for s in range(4)])
    mu, logvar = (torch.randn(4, 3, 5, device=backend.device) for _ in range(2))
    z, kl = vmap(lambda m, v, s: vaefast.rsample_kl(m, v, seed=s))(mu, logvar, seeds)
    for i in range(4):
        expected = vaefast.rsample_kl(mu[i], logvar[i], seed=seeds[i])
        torch.testing.assert_close((z[i], kl[i]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (2, 1), (-1, -1)])
def test_vmap_over_any_dimension(backend, in_dims):
    tensors = [torch.randn(4, 4, 4, device=backend.device) for _ in range(2)]
    actual = vmap(vaefast.kl_standard_normal, in_dims)(*tensors)
    expected = [
        vaefast.kl_standard_normal(*(t.select(dim, i) for t, dim in zip(tensors, in_dims, strict=True)))
        for i in range(4)
    ]
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-6, atol=0)


def test_vmap_over_one_tensor_only(backend):
    mu, logvar = torch.randn(5, 3, 4, device=backend.device), torch.randn(3, 4, device=backend.device)
    actual = vmap(vaefast.kl_standard_normal, (0, None))(mu, logvar)
    expected = torch.stack([vaefast.kl_standard_normal(m, logvar) for m in mu])
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_vmap_randomness_is_as_for_randn(row, backend):
    """Fresh noise under vmap: refused, one draw for each, or one draw for all, as `randomness` says."""
    tensors = [t.expand(6, *t.shape[1:]) for t in row.inputs((1, 3, 4), device=backend.device, requires_grad=False)]

    def run(randomness):
        torch.manual_seed(0)
        return vmap(lambda *t: row.call(*t, seed=None), randomness=randomness)(*tensors)

    if not row.takes("seed"):
        assert run("error")[0].shape[0] == 6  # nothing random here
        return
    with pytest.raises(RuntimeError, match="randomness"):
        run("error")
    same, different = run("same")[0], run("different")[0]
    assert all(torch.equal(same[0], z) for z in same)
    assert len({tuple(z.flatten().tolist()) for z in different}) == 6
    for randomness in ("same", "different"):
        assert torch.equal(run(randomness)[0], run(randomness)[0])  # torch.manual_seed rules here too


def test_vmap_of_standard_normal(backend):
    seeds = torch.stack([seed_tensor(s, 1, backend.device) for s in range(3)])
    for in_dims, batched in ((0, seeds), (1, seeds.T.contiguous())):
        actual = vmap(lambda s: vaefast.standard_normal((2, 5), seed=s), in_dims)(batched)
        assert torch.equal(actual, torch.stack([vaefast.standard_normal((2, 5), seed=s) for s in seeds]))


# Checkpointing, autocast, graph capture


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_draws_the_same_noise_again(row, backend, use_reentrant):
    """Recomputation under a restored generator gives the gradients that no checkpointing gives."""
    torch.manual_seed(5)
    first = row.inputs((6, 8), device=backend.device)

    def block(*tensors):
        return row.call(*(t * 1.5 for t in tensors), seed=None)

    state = torch.get_rng_state()
    expected_outputs = block(*first)
    expected = gradients(expected_outputs, first)
    torch.set_rng_state(state)
    tensors = [t.detach().requires_grad_() for t in first]
    outputs = checkpoint(block, *tensors, use_reentrant=use_reentrant)
    torch.rand(100)  # the generator moves on before backward
    torch.autograd.backward(outputs, cotangents(outputs))  # reentrant checkpointing has no torch.autograd.grad
    for a, b in zip(outputs, expected_outputs, strict=True):
        assert torch.equal(a, b)
    for tensor, g in zip(tensors, expected, strict=True):
        assert torch.equal(tensor.grad, g)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("autocast_dtype", HALF)
def test_autocast_changes_nothing(row, backend, dtype, autocast_dtype):
    """The rule: types in are types out and sums are float32 or wider, inside autocast as outside."""
    tensors = row.inputs((4, 6), dtype=dtype, device=backend.device)
    expected = row.call(*tensors, seed=1)
    with torch.autocast(backend.device, autocast_dtype):
        outputs = row.call(*tensors, seed=1)
    for a, b in zip(outputs + gradients(outputs, tensors), expected + gradients(expected, tensors), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_autocast_of_a_latent(backend):
    """An encoder's half precision reaches the op; z goes on in it; KL is float32, and the gradients come back."""
    torch.manual_seed(0)
    encoder, decoder = (torch.nn.Linear(8, n, device=backend.device) for n in (16, 5))
    with torch.autocast(backend.device, torch.bfloat16):
        moments = encoder(torch.randn(3, 8, device=backend.device))
        z, kl = vaefast.rsample_kl_moments(moments, seed=0)
        out = decoder(z)
    assert (moments.dtype, z.dtype, kl.dtype, out.dtype) == (*[torch.bfloat16] * 2, torch.float32, torch.bfloat16)
    (out.float().sum() + kl.sum()).backward()
    assert encoder.weight.grad.dtype == torch.float32
    assert torch.isfinite(encoder.weight.grad).all()


@pytest.mark.gpu
def test_cuda_graph_replays_with_fresh_noise(row, backend):
    """Captured once, forward and backward; each replay draws its own seed from the generator."""
    if backend.device != "cuda":
        pytest.skip("CUDA graphs are meant")
    tensors = row.inputs((64, 32), device="cuda")

    def step():
        outputs = row.call(*tensors, seed=None)
        return outputs + gradients(outputs, tensors, grads)

    grads = cotangents(row.call(*tensors, seed=None))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()

    def replay(seed):
        torch.cuda.manual_seed(seed)
        graph.replay()
        first = [t.clone() for t in captured]
        graph.replay()
        return first, [t.clone() for t in captured]

    first, second = replay(1)
    again, _ = replay(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], second[0]) == (not row.takes("seed"))
    torch.cuda.manual_seed(1)
    for a, b in zip(first, step(), strict=True):
        assert torch.equal(a, b)
