"""Memory: from forward to backward, rsample_kl holds z, kl and the seed, and nothing else."""

from __future__ import annotations

import pytest
import torch
from memory import allocations, peak
from samples import cotangents, gradients

import vaefast

B, D = 512, 256
ELEMENTS = B * D


def _saved(function, *tensors):
    """The outputs, and what autograd keeps for backward."""
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = function(*tensors)
    return outputs, saved


def _storages(tensors) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors}


def test_noise_is_not_saved(row, backend):
    """Autograd keeps inputs and the seed: two int64, whatever the size of the draw."""
    tensors = row.inputs((B, D), device=backend.device)
    _, saved = _saved(lambda *t: row.call(*t, seed=None), *tensors)
    others = [t for t in saved if t.untyped_storage().data_ptr() not in _storages(tensors)]
    given = [tuple(t.shape) for t in row.more(*tensors) if isinstance(t, torch.Tensor)]
    others = [t for t in others if tuple(t.shape) not in given]  # inputs as well, made anew by each call
    if row.couples:
        others = [t for t in others if t.numel() > B]  # beside a number per sample
    assert [(t.dtype, tuple(t.shape)) for t in others] == ([(torch.int64, (2,))] if row.takes("seed") else [])


def test_chunk_halves_are_not_copied(backend):
    moments = torch.randn(B, 2 * D, device=backend.device, requires_grad=True)
    mu, logvar = moments.chunk(2, 1)
    _, saved = _saved(vaefast.rsample_kl, mu, logvar)
    assert _storages(t for t in saved if t.is_floating_point()) == _storages([moments])


def _fused_on_cpu(backend):
    if backend.name != "cpu":
        pytest.skip("a fused backend of the CPU is meant")


def test_peak_of_forward_and_backward(backend):
    """Forward allocates z, kl and the seed; backward the two gradients. Nothing comes and goes between."""
    _fused_on_cpu(backend)
    mu, logvar = (torch.randn(B, D, requires_grad=True) for _ in range(2))
    outputs, changes = allocations(lambda: vaefast.rsample_kl(mu, logvar))
    z, kl = outputs
    seed = 16
    assert peak(changes) <= z.nbytes + kl.nbytes + seed + 64  # 64: how the allocator rounds the seed up
    assert sum(changes) >= z.nbytes + kl.nbytes + seed
    grads = cotangents(outputs)
    result, changes = allocations(lambda: gradients(outputs, (mu, logvar), grads))
    assert peak(changes) <= sum(g.nbytes for g in result) + 64


def test_peak_with_moments(backend):
    """The gradient of moments is written as one tensor: no halves that are joined afterwards."""
    _fused_on_cpu(backend)
    moments = torch.randn(B, 2 * D, requires_grad=True)
    outputs, changes = allocations(lambda: vaefast.rsample_kl_moments(moments))
    assert peak(changes) <= 4 * (ELEMENTS + B) + 16 + 64
    grads = cotangents(outputs)
    result, changes = allocations(lambda: gradients(outputs, [moments], grads))
    assert result[0].nbytes == 4 * 2 * ELEMENTS
    assert peak(changes) <= result[0].nbytes + 64


def test_the_profiler_sees_what_it_should():
    """Plain PyTorch holds temporaries of the latent's size, and the profile shows them."""
    mu, logvar = (torch.randn(B, D, requires_grad=True) for _ in range(2))
    _, changes = allocations(lambda: mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))
    assert peak(changes) >= 3 * mu.nbytes


@pytest.mark.gpu
def test_peak_on_the_gpu(backend):
    if backend.device != "cuda":
        pytest.skip("the allocator of the GPU is meant")
    mu, logvar = (torch.randn(B, D, device="cuda", requires_grad=True) for _ in range(2))
    for _ in range(2):  # once to compile and warm up
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        z, kl = vaefast.rsample_kl(mu, logvar)
        peak = torch.cuda.max_memory_allocated() - before
        grads = torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar))
    block = 512  # the allocator's unit: z, kl and the seed are rounded up to it, and the draw of a seed has a temporary
    assert peak <= z.nbytes + kl.nbytes + 4 * block
    assert len(grads) == 2
