"""Priors: densities against torch's own, flows against their Jacobian, draws against densities."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import distributions

from vaefast import models
from vaefast.models.priors import FlowPrior, MixturePrior, VampPrior


def shaken(prior: torch.nn.Module, size: float = 0.5) -> torch.nn.Module:
    """Away from where it starts, in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in prior.double().parameters():
            p += size * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return prior


def z_of(shape, count=5) -> torch.Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_mixture_is_torchs():
    prior, z = shaken(MixturePrior((2, 3), 4)), z_of((2, 3))
    components = distributions.Independent(distributions.Normal(prior.mean, (0.5 * prior.logvar).exp()), 2)
    expected = distributions.MixtureSameFamily(distributions.Categorical(logits=prior.logits), components).log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), expected)
    every = [*prior.parameters()]
    actual, wanted = (torch.autograd.grad(value.sum(), every) for value in (prior.log_prob(z), expected))
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("shape", [(2,), (3,), (2, 2, 2)])
def test_flow_is_a_change_of_variables(shape):
    prior, z = shaken(FlowPrior(shape, layers=3, hidden=8)), z_of(shape)
    u, log_det = prior(z)
    for i in range(len(z)):
        jacobian = torch.autograd.functional.jacobian(lambda v: prior(v[None])[0][0], z[i]).flatten(1)
        torch.testing.assert_close(log_det[i], jacobian.slogdet().logabsdet)
    torch.testing.assert_close(prior.inverse(u), z)
    torch.testing.assert_close(prior.log_prob(z), distributions.Normal(0, 1).log_prob(u).sum(1) + log_det)


def test_flow_integrates_to_one():
    prior = shaken(FlowPrior((2,), layers=4, hidden=8), 0.2)
    side = torch.linspace(-15, 15, 800, dtype=torch.float64)
    with torch.no_grad():
        density = prior.log_prob(torch.cartesian_prod(side, side)).exp()
    assert density.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-3)
    plain = distributions.Normal(0, 1).log_prob(torch.cartesian_prod(side, side)).sum(1).exp()
    assert (density - plain).abs().sum() * (side[1] - side[0]) ** 2 > 0.1


def test_flow_starts_as_standard_normal():
    z = z_of((4,))
    expected = distributions.Normal(0, 1).log_prob(z).sum(1)
    torch.testing.assert_close(FlowPrior((4,)).double().log_prob(z), expected)


@pytest.mark.parametrize("make", [lambda: MixturePrior((3,), 4), lambda: FlowPrior((3,), layers=2, hidden=8)])
def test_draws_have_the_density(make):
    """E[f] over draws is the integral of f p, estimated over a wide Gaussian with importance weights."""
    torch.manual_seed(0)
    prior = shaken(make(), 0.3)
    with torch.no_grad():
        drawn = prior.sample(40_000, seed=3)
        wide = 3 * torch.randn(400_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        log_weight = prior.log_prob(wide) - distributions.Normal(0, 3).log_prob(wide).sum(1)
    weight = log_weight.exp()
    assert weight.mean() == pytest.approx(1, abs=0.02)
    for f in (lambda z: z, lambda z: z * z, lambda z: torch.sin(z + z.roll(1, 1))):
        torch.testing.assert_close(f(drawn).mean(0), (weight[:, None] * f(wide)).mean(0), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["mixture", "vamp", "flow"])
def test_seeds_and_temperature(name):
    model = models.create("dense", data_shape=(6,), latent=3, prior=name)
    assert torch.equal(model.sample_prior(4, seed=1), model.sample_prior(4, seed=1))
    assert not torch.equal(model.sample_prior(4, seed=1), model.sample_prior(4, seed=2))
    cold = model.sample_prior(200, seed=1, temperature=0.0)
    places = {"mixture": 50, "vamp": 100, "flow": 1}[name]
    assert 1 <= len(cold.unique(dim=0)) <= places
    assert cold.isfinite().all()


@pytest.mark.parametrize("name", ["mixture", "vamp", "flow"])
def test_kl_is_of_the_z_drawn(name):
    model = shaken(models.create("dense", data_shape=(6,), latent=3, prior=name), 0.1)
    x = torch.rand(5, 6, dtype=torch.float64)
    output = model(x, seed=1)
    q = distributions.Normal(output.posterior.mean, output.posterior.std)
    expected = q.log_prob(output.z).sum(1) - model.prior.log_prob(output.z, encode=model.moments)
    torch.testing.assert_close(output.kl, expected)
    output.kl.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.prior.parameters())
    assert model.encoder.hidden[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.decoder.parameters())


def test_vamp_is_the_mixture_of_the_posteriors_of_its_inputs():
    model = shaken(
        models.create("dense", data_shape=(6,), latent=3, prior="vamp", prior_options={"components": 4}), 0.1
    )
    q, z = model.encode(torch.sigmoid(model.prior.pseudo_inputs)), z_of((3,))
    components = distributions.Independent(distributions.Normal(q.mean, q.std), 1)
    mixture = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(4).double()), components)
    torch.testing.assert_close(model.log_prior(z), mixture.log_prob(z))


def test_vamp_registers_no_second_encoder():
    options = {"data_shape": (6,), "latent": 3}
    plain, vamp = (models.create("dense", **options, **more).state_dict() for more in ({}, {"prior": "vamp"}))
    assert set(vamp) - set(plain) == {"prior.pseudo_inputs"}
    assert VampPrior((3,), (6,), 7).pseudo_inputs.shape == (7, 6)


def test_a_prior_is_trained_with_the_model():
    """Of data from two clusters, a mixture of two learns what N(0, I) cannot."""
    torch.manual_seed(0)
    centre = torch.tensor([3.0, -3.0])[torch.randint(2, (512,))]
    z = torch.stack([centre, -centre], 1) + 0.3 * torch.randn(512, 2)
    for prior, lr in ((MixturePrior((2,), 4), 5e-2), (FlowPrior((2,), layers=8, hidden=32), 1e-2)):
        optimizer = torch.optim.Adam(prior.parameters(), lr)
        for _ in range(250):
            value = -prior.log_prob(z).mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        entropy = math.log(2) + 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.3))
        assert value < entropy + 0.5, (type(prior), value)  # N(0, I) has 10.9, entropy is 1.1


def test_flow_refuses_one_number():
    with pytest.raises(ValueError, match=r"at least 2 numbers for a flow, got \(1,\)"):
        FlowPrior((1,))


def test_flow_from_the_meta_device():
    """Its orders are in no state dict, and to_empty does not fill them."""
    prior, z = shaken(FlowPrior((9,), layers=4, hidden=8)), z_of((9,))
    state = prior.state_dict()
    assert not [name for name in state if "order" in name]
    with torch.device("meta"):
        emptied, assigned = (FlowPrior((9,), layers=4, hidden=8).double() for _ in range(2))
    emptied.to_empty(device="cpu").load_state_dict(state)
    assigned.load_state_dict(state, assign=True)
    for other in (emptied, assigned, copy.deepcopy(prior)):
        for order in (0, 2):
            assert torch.equal(getattr(other, f"order_{order}"), getattr(prior, f"order_{order}"))
        assert torch.equal(other.log_prob(z), prior.log_prob(z))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("components", [100, 500])
def test_half_types_choose_every_component_as_often(components, dtype):
    prior = MixturePrior((1,), components).to(dtype)
    with torch.no_grad():
        prior.mean.copy_(torch.arange(components)[:, None] - components // 2)  # which bfloat16 holds up to 256
        z = prior.sample(2000 * components, seed=0, temperature=0.0)
    assert z.dtype == dtype
    counts = z.long().flatten().add(components // 2).bincount(minlength=components)
    assert (counts - 2000).abs().max() < 5 * math.sqrt(2000)


def test_mixture_refuses_a_negative_temperature():
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        MixturePrior((2,)).sample(1, temperature=-1)
