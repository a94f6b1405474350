"""Samplers, fitted to posteriors that are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vaefast import metrics, models, sampling
from vaefast.nn import Gaussian

QUICK = {
    "two_stage": {"hidden": (64, 64), "steps": 1200, "lr": 3e-3, "batch_size": 256},
    "flow": {"steps": 500, "layers": 8, "hidden": 32, "lr": 5e-3},
}


class Same(nn.Module):
    """x [B, 2] -> the posterior N(x, 0.1^2), in a latent [2, 1]."""

    def __init__(self):
        super().__init__()
        self.logvar = nn.Parameter(2 * torch.tensor(0.1).log())

    def forward(self, x):
        return torch.cat([x, self.logvar.expand_as(x)], 1)[..., None]


@pytest.fixture(scope="module")
def fitted():
    """A model, its data of two clusters of different weights, and every sampler fitted to it."""
    torch.manual_seed(0)
    model = models.VAE(Same(), nn.Flatten(), (2, 1), Gaussian(logvar=0.0))
    x = torch.tensor([[4.0, 1.0], [-2.0, 1.0]])[(torch.rand(2000) < 0.3).long()]
    x = x + torch.randn(2000, 2) @ torch.tensor([[0.3, 0.3], [0.0, 0.2]])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    samplers = {}
    for name in sampling.NAMES:
        if name == "gmm":
            pytest.importorskip("sklearn")
        samplers[name] = sampling.create(name, **QUICK.get(name, {})).fit(model, x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    return model, x, samplers


@pytest.mark.parametrize("name", ["gmm", "two_stage", "flow"])
def test_samples_are_where_the_posteriors_are(fitted, name):
    _, x, samplers = fitted
    z = samplers[name].sample(4000, seed=1)
    assert z.shape == (4000, 2, 1)
    z = z.squeeze(2)
    torch.testing.assert_close(z.mean(0), x.mean(0), rtol=0, atol=0.25)
    torch.testing.assert_close(z.T.cov(), x.T.cov(), rtol=0.2, atol=0.15)
    right = (z[:, 0] > 1).float().mean()
    assert abs(right - (x[:, 0] > 1).float().mean()) < 0.05
    between = ((z[:, 0] > 0.2) & (z[:, 0] < 1.8)).float().mean()
    assert between < 0.08  # N(mean, cov) has 0.22 there


def test_normal_is_standard(fitted):
    z = fitted[2]["normal"].sample(20_000, seed=1).squeeze(2)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=0.03)
    torch.testing.assert_close(z.T.cov(), torch.eye(2), rtol=0, atol=0.03)


def test_gmm_is_of_the_means_or_of_draws():
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    model, x = models.VAE(Same(), nn.Flatten(), (2, 1), Gaussian(logvar=0.0)), 0.01 * torch.randn(500, 2)
    spread = {
        on: sampling.create("gmm", components=1, on=on).fit(model, x).sample(2000).std() for on in ("mean", "sample")
    }
    assert spread["mean"] == pytest.approx(0.01, rel=0.1)
    assert spread["sample"] == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("name", sampling.NAMES)
def test_seed_temperature_and_state(fitted, name):
    model, _, samplers = fitted
    sampler = samplers[name]
    drawn = sampler.sample(50, seed=1)
    assert torch.equal(drawn, sampler.sample(50, seed=1))
    assert not torch.equal(drawn, sampler.sample(50, seed=2))
    assert not drawn.requires_grad
    cold = sampler.sample(50, seed=1, temperature=0.0)
    assert len(cold.unique(dim=0)) <= (10 if name == "gmm" else 1)
    again = sampling.create(name, **QUICK.get(name, {}))
    again.load_state_dict(sampler.state_dict())
    assert torch.equal(again.sample(50, seed=1), drawn)
    again.temperature = 0.5
    assert torch.equal(again.sample(50, seed=1), sampler.sample(50, seed=1, temperature=0.5))
    assert torch.equal(model.sample(50, seed=1, sampler=sampler), model.decode(drawn))
    with pytest.raises(RuntimeError, match="must be fitted before it samples"):
        sampling.create(name).sample(1)


def test_fit_follows_the_seed(fitted):
    model, x, _ = fitted
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(sampling.create("flow", steps=5).fit(model, x).sample(3, seed=1))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_images_in_bytes():
    model = models.create("conv", data_shape=(1, 12, 12), latent=3, width=4)
    x = torch.randint(0, 256, (40, 1, 12, 12), dtype=torch.uint8)
    sampler = sampling.create("flow", steps=2).fit(model, x, batch_size=7)
    assert model.sample(4, sampler=sampler).shape == (4, 1, 12, 12)
    moments = model.encode(x)
    torch.testing.assert_close(sampler.shift, moments.mean.mean(0), rtol=1e-4, atol=1e-5)


def test_a_model_in_training_is_not_changed():
    encoder = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval(), Same())
    model = models.VAE(encoder, nn.Flatten(), (2, 1), Gaussian(logvar=0.0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = 5 + torch.randn(50, 2)
    sampling.create("flow", steps=1).fit(model, x)
    metrics.posteriors(model, x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [module.training for module in encoder] == [True, False, True]


@pytest.mark.parametrize("name", sampling.NAMES)
def test_state_of_a_sampler_among_other_modules(fitted, name):
    sampler, quick = fitted[2][name], QUICK.get(name, {})
    again = nn.ModuleDict({"sampler": sampling.create(name, **quick), "other": nn.Linear(2, 2)})
    again.load_state_dict(nn.ModuleDict({"sampler": sampler, "other": nn.Linear(2, 2)}).state_dict())
    assert torch.equal(again["sampler"].sample(50, seed=1), sampler.sample(50, seed=1))
    unfitted = sampling.create(name, **quick)
    unfitted.load_state_dict(sampling.create(name, **quick).state_dict())
    with pytest.raises(RuntimeError, match="must be fitted before it samples"):
        unfitted.sample(1)


def test_refuses():
    with pytest.raises(ValueError, match="halvings must be at least 1, got 0"):
        sampling.create("two_stage", halvings=0)
    with pytest.raises(ValueError, match="sampler must be one of 'normal', 'gmm', 'two_stage', 'flow', got 'maf'"):
        sampling.create("maf")
    with pytest.raises(ValueError, match="on must be 'mean' or 'sample', got 'mode'"):
        sampling.create("gmm", on="mode")
    with pytest.raises(TypeError, match="sampler 'gmm': unknown option component; did you mean components"):
        sampling.create("gmm", component=3)
    ladder = models.create("ladder", data_shape=(1, 12, 12), width=4)
    with pytest.raises(TypeError, match="a hierarchical model's z is not N"):
        sampling.create("normal").fit(ladder, torch.rand(2, 1, 12, 12))
    for components in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"components must be a whole number from 1 up, got {components}"):
            sampling.create("gmm", components=components)
    one = models.create("dense", data_shape=(5,), latent=1)
    with pytest.raises(ValueError, match=r"at least 2 numbers for a flow, got \(1,\)"):
        sampling.create("flow").fit(one, torch.rand(9, 5))
    for name in sampling.NAMES:
        with pytest.raises(ValueError, match=r"x must hold at least one sample, got shape \(0, 5\)"):
            sampling.create(name).fit(one, torch.rand(0, 5))
    with pytest.raises(ValueError, match="x must hold at least 2 samples for a covariance, got 1"):
        sampling.create("gmm", components=1).fit(one, torch.rand(1, 5))
    with pytest.raises(ValueError, match="components must be at most the number of samples 9, got 10"):
        sampling.create("gmm", components=10).fit(one, torch.rand(9, 5))


@pytest.mark.parametrize("name", sampling.NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_any_type(name, dtype):
    """Sampler and z of a half type's model are float32: Adam's steps of a float16 flow are NaN."""
    if name == "gmm":
        pytest.importorskip("sklearn")
    torch.manual_seed(0)
    model, x = models.create("dense", data_shape=(5,), latent=3).to(dtype), torch.rand(40, 5)
    quick = {"steps": 20} if name == "flow" else {"steps": 20, "hidden": (8,)} if name == "two_stage" else {}
    sampler = sampling.create(name, **quick).fit(model, x)
    z = sampler.sample(6, seed=1)
    assert z.dtype == torch.promote_types(dtype, torch.float32)
    assert z.isfinite().all()
    again = sampling.create(name, **quick)
    again.load_state_dict(sampler.state_dict())
    assert torch.equal(again.sample(6, seed=1), z)
    images = model.sample(6, seed=1, sampler=again)
    assert images.dtype == dtype
    assert torch.equal(images, model.decode(z.to(dtype)))
