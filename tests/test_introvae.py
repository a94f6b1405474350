"""Soft-IntroVAE: its two losses, whose gradient goes where, and that it trains."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vaefast import models, objectives
from vaefast.training import Settings, SettingsError, build, run

SHAPE = (1, 12, 12)


@pytest.fixture(autouse=True)
def generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def model_of(**options) -> models.VAE:
    torch.manual_seed(0)
    return models.create("conv", data_shape=SHAPE, latent=3, width=4, hidden=16, likelihood="gaussian", **options)


def images(count=6) -> torch.Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def decoder_of(model) -> list[torch.nn.Parameter]:
    encoder = {id(p) for p in model.encoder.parameters()}
    return [p for p in model.parameters() if id(p) not in encoder]


def test_formulas():
    model, x = model_of(), images()
    objective = objectives.create("soft_intro_vae", model=model, beta_rec=0.7, beta_kl=2.0, beta_neg=5.0)
    unit, s = x / 255, 1 / 144

    def error(a, b):
        return (a - b).square().flatten(1).sum(1)

    torch.manual_seed(1)
    parts = objective(model, x)
    torch.manual_seed(1)
    z, kl, _ = model.draw(x)
    fakes = model.decode(z), model.decode(model.sample_prior(6))
    kl_fake = model.draw(torch.cat(fakes))[1].view(2, 6).mean(0)
    expected = {"reconstruction": error(unit, fakes[0]), "kl": kl, "kl_fake": kl_fake}
    for name, value in (expected | {"loss": s * (0.7 * expected["reconstruction"] + 2 * kl_fake)}).items():
        torch.testing.assert_close(parts[name], value)

    torch.manual_seed(1)
    critics = objective.critic_loss(model, x)
    torch.manual_seed(1)
    z, kl, _ = model.draw(x)
    fakes = torch.cat([model.decode(z), model.decode(model.sample_prior(6))])
    z_fake, kl_fake, _ = model.draw(fakes)
    doubt = torch.exp(-2 * s * (0.7 * error(fakes, model.decode(z_fake)) + 5 * kl_fake))
    loss = s * (0.7 * error(unit, fakes[:6]) + 2 * kl) + 0.25 * (doubt[:6] + doubt[6:])
    torch.testing.assert_close(critics["loss"], loss)
    torch.testing.assert_close(critics["kl"], kl)
    torch.testing.assert_close(critics["kl_fake"], (kl_fake[:6] + kl_fake[6:]) / 2)


def test_each_side_leaves_the_other_alone():
    model, x = model_of(), images()
    objective = objectives.create("soft_intro_vae", model=model)
    sides = [*model.encoder.parameters()], decoder_of(model)
    for loss_of, (still, moved) in ((objective, sides), (objective.critic_loss, sides[::-1])):
        model.zero_grad()
        loss_of(model, x)["loss"].mean().backward()
        assert all(p.grad is None for p in still)
        assert all(p.grad.abs().sum() > 0 for p in moved if p.ndim > 1)
    assert all(p.requires_grad for p in model.parameters())


def step(optimizer, loss_of, model, x) -> dict:
    parts = loss_of(model, x)
    optimizer.zero_grad()
    parts["loss"].mean().backward()
    optimizer.step()
    return parts


def setting():
    model = model_of()
    objective = objectives.create("soft_intro_vae", model=model)
    decoder = torch.optim.Adam(decoder_of(model), lr=3e-3), objective
    return model, decoder, (torch.optim.Adam(objective.critic.parameters(), lr=3e-3), objective.critic_loss)


def corners() -> torch.Tensor:
    corner = (torch.arange(12) // 6).repeat_interleave(12).view(12, 12).byte() * 255
    return torch.stack([torch.rot90(corner, k)[None] for k in range(4)] * 4)


def test_own_training_loop_in_three_lines():
    """Copies come nearer to the data."""
    (model, *sides), x = setting(), corners()
    error = [(model.reconstruct(x) - x / 255).abs().mean().item()]
    for _ in range(150):
        for side in sides:
            step(*side, model, x)
    error.append((model.reconstruct(x) - x / 255).abs().mean().item())
    assert error[1] < 0.5 * error[0]


def test_the_sides_pull_against_each_other():
    """By itself the encoder finds fakes less likely, and the decoder makes likelier ones."""
    (model, decoder, encoder), x = setting(), corners()
    found = []
    for side in (encoder, decoder):
        found.append([step(*side, model, x)["kl_fake"].mean().item() for _ in range(40)][::39])
    assert found[0][1] > 1.5 * found[0][0]
    assert found[1][1] < 0.7 * found[1][0]


def test_a_run(tmp_path):
    """Two optimizers share the model between them, and a run that was cut goes on."""
    np.save(tmp_path / "x.npy", images(60).numpy())
    options = {"data": str(tmp_path / "x.npy"), "model": "conv", "model_options": "width=4", "latent": 3}
    settings = {**options, "objective": "soft_intro_vae", "batch_size": 20, "lr": 2e-4, "output": str(tmp_path / "run")}
    first = Settings(**settings, epochs=1)
    split = build.load_data(first)
    model, _ = build.model(first, split.train.shape[1:])
    trainer = build.trainer(first, model, build.objective(first, split, model), 3)
    halves = [
        {id(p) for g in o.param_groups for p in g["params"]}
        for o in (trainer.optimizer, trainer._critic_update.optimizer)
    ]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == {id(p) for p in model.parameters()}

    for epochs in (1, 2):
        found = run(Settings(**settings, epochs=epochs, resume=epochs > 1), lambda line: None)
    assert found["epochs"] == 2
    assert {"loss", "reconstruction", "kl", "kl_fake", "critic_loss", "critic_kl"} <= set(found["train"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["objective"] == "soft_intro_vae"
    with pytest.raises(SettingsError, match="objective 'soft_intro_vae': model must be one whose encoder alone"):
        run(Settings(**settings | {"model": "ladder", "output": str(tmp_path / "ladder")}), lambda line: None)
