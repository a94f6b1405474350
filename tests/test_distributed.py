"""DistributedDataParallel over two processes: each rank draws its own noise, and gradients are averaged."""

from __future__ import annotations

import pytest
import torch
from processes import of_ranks
from torch.nn.parallel import DistributedDataParallel

import vaefast

RANKS = 2


class VAE(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(6, 8), torch.nn.Linear(4, 6)

    def forward(self, x):
        z, kl = vaefast.rsample_kl_moments(self.encoder(x))
        return ((self.decoder(z) - x).square().sum(-1) + kl).mean()


def _gradients(model, rank):
    torch.manual_seed(100 + rank)
    x = torch.randn(5 + rank, 6)
    loss = model(x)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


def _model():
    torch.manual_seed(0)
    return VAE()


def _rank(rank):
    return _gradients(DistributedDataParallel(_model()), rank)


def test_gradients_are_the_average_over_ranks(tmp_path):
    found = of_ranks(_rank, RANKS, tmp_path)
    alone = [_gradients(_model(), rank) for rank in range(RANKS)]
    for (loss, grads), (loss_alone, _) in zip(found, alone, strict=True):
        assert loss == pytest.approx(loss_alone, rel=1e-6)
        for grad, *parts in zip(grads, *(g for _, g in alone), strict=True):
            torch.testing.assert_close(grad, torch.stack(parts).mean(0), rtol=1e-5, atol=1e-6)
    assert found[0][0] != found[1][0]
