"""Peers' models trained with our ops and objective inside: real packages, and loss curves equal to theirs.

Each is trained twice from the same weights on the same batches and noise. Float32, and Adam, which turns a gradient's
last bits into steps where the gradient is near zero: curves are compared within TOLERANCE, far below what a step moves.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

import vaefast
from vaefast import nn, patch
from vaefast.reference.noise import standard_normal

STEPS = 10
TOLERANCE = 1e-4  # relative


def train(model: torch.nn.Module, loss_of, batches: torch.Tensor) -> torch.Tensor:
    """The losses of STEPS steps of Adam on a copy of the model; step i has the noise of seed i."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for i, x in enumerate(batches):
        optimizer.zero_grad()
        loss = loss_of(model, x, i)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def seed(i: int) -> torch.Tensor:
    return torch.tensor([i, 0])


def compare(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs[-1] < 0.95 * theirs[0]  # it trains: a step moves the loss by far more than the tolerance
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=0)


def test_pythae_vae():
    """Theirs: pythae's own forward and loss. Ours: its encoder and decoder, `rsample_kl` between them, ELBOLoss after
    them; its default decoder ends in a sigmoid, whose logits ours takes."""
    pythae = pytest.importorskip("pythae.models")
    torch.manual_seed(0)
    config = pythae.VAEConfig(input_dim=(1, 8, 8), latent_dim=4, reconstruction_loss="bce")
    model = pythae.VAE(config)
    batches = (torch.rand(1, 1, 1, 8, 8) > 0.5).float().expand(STEPS, 16, -1, -1, -1)
    objective = nn.ELBOLoss(nn.Bernoulli())

    def theirs(model, x, i):
        def sample(mu, std):
            eps = standard_normal(seed(i), mu.shape, mu.dtype)
            return mu + eps * std, eps

        model._sample_gauss = sample
        return model({"data": x}).loss

    def ours(model, x, i):
        encoded = model.encoder(x)
        z, kl = vaefast.rsample_kl(encoded.embedding, encoded.log_covariance, seed=seed(i))
        *hidden, (last, sigmoid) = model.decoder.layers
        assert isinstance(sigmoid, torch.nn.Sigmoid)
        for layer in hidden:
            z = layer(z)
        return objective(last(z).reshape(x.shape), x, kl).loss

    compare(train(model, ours, batches), train(model, theirs, batches))


def test_diffusers_autoencoder_kl():
    """Theirs: the posterior's mean, std and kl as diffusers computes them, mean + std * eps as its `sample` does with
    noise of its own. Ours: `rsample` and kl under `patch`, and `gaussian_nll` for the squared error."""
    diffusers = pytest.importorskip("diffusers")
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=2,
    )
    batches = (2 * torch.rand(1, 4, 3, 16, 16) - 1).expand(STEPS, -1, -1, -1, -1)
    used = []

    def theirs(model, x, i):
        posterior = model.encode(x).latent_dist
        z = posterior.mean + posterior.std * standard_normal(seed(i), posterior.mean.shape, x.dtype)
        error = 0.5 * functional.mse_loss(model.decode(z).sample, x, reduction="sum") / len(x)
        return error + posterior.kl().mean()

    def ours(model, x, i):
        posterior = model.encode(x).latent_dist
        used.append(type(posterior))
        z = posterior.rsample(seed(i))
        decoded = model.decode(z).sample
        constant = 0.5 * x[0].numel() * torch.log(torch.tensor(2 * torch.pi))  # the density's, which an error has not
        return (vaefast.gaussian_nll(decoded, x, 0.0) - constant + posterior.kl()).mean()

    expected = train(model, theirs, batches)
    with patch("diffusers"):
        actual = train(model, ours, batches)
    assert set(used) == {vae.DiagonalGaussianDistribution}
    compare(actual, expected)
