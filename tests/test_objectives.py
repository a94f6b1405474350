"""Objectives: each against its formula, in someone's own loop, and what sends gradients where."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vaefast
from vaefast import models, objectives
from vaefast.objectives import NAMES, FactorVAE, create, permute_dimensions
from vaefast.ops import ranks

N, D = 50, 3
OPTIONS = {
    "elbo": {},
    "beta_tcvae": {"dataset_size": N},
    "factor_vae": {"latent": D, "width": 16, "layers": 2},
    "info_vae": {},
    "wae_mmd": {},
    "dip_vae": {},
    "iwae": {"samples": 4},
    "miwae": {"repeats": 2, "samples": 3},
    "piwae": {"repeats": 2, "samples": 3},
    "ciwae": {"samples": 4, "beta": 0.25},
}


def dense(**options):
    torch.manual_seed(0)
    sizes = {"encoder_hidden": (16,), "decoder_hidden": (16,), "activation": "tanh"}
    return models.create("dense", data_shape=(1, 2, 4), latent=D, **sizes, **options).double()


def made(name):
    objective = create(name, **OPTIONS[name])
    return objective.double() if isinstance(objective, torch.nn.Module) else objective


@pytest.fixture
def model():
    return dense()


def batch(count=6):
    return torch.rand(count, 1, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def seeded(objective, model, x, seed=2):
    torch.manual_seed(seed)
    return objective(model, x)


@pytest.mark.parametrize("name", OPTIONS)
def test_parts(name, model):
    parts = made(name)(model, batch())
    assert {"loss", "reconstruction", "kl"} <= set(parts)
    assert all(p.shape == (6,) and torch.isfinite(p).all() for p in parts.values())
    parts["loss"].mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", OPTIONS)
def test_own_training_loop_in_three_lines(name, model):
    objective, x = made(name), batch(40)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    torch.manual_seed(3)

    def loss():
        with torch.no_grad():
            return torch.stack([objective(model, x)["loss"].mean() for _ in range(8)]).mean()

    before = loss()
    for _ in range(60):
        optimizer.zero_grad()
        objective(model, x)["loss"].mean().backward()
        optimizer.step()
    assert loss() < before


def test_every_objective_of_this_package_is_here():
    ours = {name for name, make in NAMES.items() if not make.__module__.endswith(("vaegan", "introvae"))}  # own files
    assert ours == set(OPTIONS)
    assert all(inspect.isclass(make) for make in NAMES.values())


# Each against its formula


def again(model, x):
    """The model's output with the noise that `seeded` gave the objective."""
    torch.manual_seed(2)
    output = model(x)
    return output, model.likelihood(output.decoded, x)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_elbo(model):
    x = batch()
    output, nll = again(model, x)
    for beta in (1.0, 4.0, torch.tensor(0.5)):
        close(seeded(create("elbo", beta=beta), model, x)["loss"], nll + beta * output.kl)
    close(seeded(objectives.elbo, model, x)["loss"], nll + output.kl)


@pytest.mark.parametrize("options", [{"free_bits": 0.3}, {"capacity": 2.0}, {"free_bits": 0.3, "capacity": 2.0}])
def test_free_bits_and_capacity_are_elbo_loss(model, options):
    x = batch()
    output, nll = again(model, x)
    parts = seeded(create("elbo", beta=2.0, gamma=30.0, **options), model, x)
    weight = 30.0 if "capacity" in options else 2.0
    q = output.posterior
    expected = vaefast.elbo_loss(nll, output.kl, q.mean, q.logvar, beta=weight, **options).loss
    close(parts["loss"].mean(), expected)
    close(parts["kl"], output.kl)


def test_a_ladders_free_bits_are_its_levels():
    torch.manual_seed(0)
    ladder, x = models.create("ladder", data_shape=(1, 8, 8), latent=2, width=4), torch.rand(3, 1, 8, 8)
    torch.manual_seed(1)
    levels = ladder(x).kl_by_level.mean(0).detach()
    free = float(levels.mean())  # some levels have more, some less
    assert levels.min() < free < levels.max()
    torch.manual_seed(1)
    parts = create("elbo", free_bits=free, beta=2.0)(ladder, x)
    close(parts["regulariser"][0], 2 * levels.clamp(min=free).sum())
    close(parts["loss"], parts["reconstruction"] + parts["regulariser"])


@pytest.mark.parametrize("estimator", ["weighted", "stratified"])
def test_beta_tcvae(model, estimator):
    x = batch()
    output, nll = again(model, x)
    q = output.posterior
    mi, tc, kl = vaefast.total_correlation(output.z, q.mean, q.logvar, N, estimator=estimator)
    parts = seeded(create("beta_tcvae", dataset_size=N, beta=3.0, alpha=0.5, gamma=2.0, estimator=estimator), model, x)
    close(parts["loss"], nll + 0.5 * mi + 3 * tc + 2 * kl)
    close(parts["total_correlation"], tc)
    plain = seeded(create("beta_tcvae", dataset_size=N, beta=1.0, estimator=estimator), model, x)["loss"]
    # all weights 1: the ELBO with a sampled KL
    close(plain, nll - vaefast.gaussian_nll(q.mean, output.z, q.logvar) - model.log_prior(output.z))


def test_the_critic_of_a_factor_vae_sees_the_z_of_its_model():
    """Of a ladder too, whose z is not a draw of the Gaussians of `encode`, where each level above has its mean."""
    ladder, x = models.create("ladder", data_shape=(1, 8, 8), latent=2, width=4), torch.rand(5, 1, 8, 8)
    seen: list[torch.Tensor] = []
    critic = torch.nn.Linear(ladder.latent_shape[0], 1)
    critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    objective = create("factor_vae", latent=ladder.latent_shape[0], critic=critic)
    for call in (objective, objective.critic_loss):
        torch.manual_seed(0)
        call(ladder, x)
    assert torch.equal(seen[0], seen[1])


def test_info_vae_and_wae(model):
    x = batch()
    output, nll = again(model, x)
    discrepancy = vaefast.mmd(output.z, model.sample_prior(6))  # the next draw of the generator
    info = seeded(create("info_vae", alpha=0.25, lambda_=7.0), model, x)
    close(info["loss"], nll + 0.75 * output.kl + 6.25 * discrepancy)
    wae = seeded(create("wae_mmd", weight=5.0), model, x)
    close(wae["loss"], nll + 5 * discrepancy)
    close(wae["kl"], output.kl)
    for name in ("info_vae", "wae_mmd"):
        one = create(name)(model, batch(1))  # the last of an epoch may be
        assert one["mmd"].tolist() == [0]
        close(one["loss"], one["reconstruction"] + (one["kl"] if name == "info_vae" else 0))
        assert torch.isfinite(create(name, unbiased=False)(model, batch(1))["loss"]).all()


@pytest.mark.parametrize("kind", ["I", "II"])
def test_dip_vae(model, kind):
    x = batch()
    output, nll = again(model, x)
    q = output.posterior
    covariance = torch.cov(q.mean.T, correction=0)
    if kind == "II":
        covariance = covariance + q.var.mean(0).diag()
    off = (covariance - covariance.diag().diag()).square().sum()
    own = (covariance.diag() - 1).square().sum()
    close(seeded(create("dip_vae", kind=kind, off_diagonal=3.0, diagonal=2.0), model, x)["loss"],
          nll + output.kl + 3 * off + 2 * own)  # fmt: skip
    ratio = 10 if kind == "I" else 1
    close(seeded(create("dip_vae", kind=kind, off_diagonal=3.0), model, x)["loss"],
          nll + output.kl + 3 * off + 3 * ratio * own)  # fmt: skip


def log_weights(model, x, samples):
    """log w with x repeated, sample by sample."""
    torch.manual_seed(2)
    q = model.encode(x)
    z, log_ratio = vaefast.rsample_log_ratio(q.mean, q.logvar, samples)
    nll = [model.likelihood(model.parameters_of(z[:, k]), x) for k in range(samples)]
    return log_ratio - torch.stack(nll, 1)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic_mixture"])
def test_importance_weighted_bounds(likelihood):
    model, x = dense(likelihood=likelihood), batch()
    log_w = log_weights(model, x, 6)
    close(seeded(create("iwae", samples=6), model, x)["loss"], -vaefast.iwae_bound(log_w))
    close(seeded(create("ciwae", samples=6, beta=0.3), model, x)["loss"], -vaefast.ciwae_bound(log_w, 0.3))
    miwae = seeded(create("miwae", repeats=2, samples=3), model, x)["loss"]
    close(miwae, -vaefast.miwae_bound(log_w.unflatten(1, (2, 3))))
    one = seeded(create("iwae", samples=1), model, x)
    close(one["loss"], one["reconstruction"] + one["kl"])


@pytest.mark.parametrize("name", ["iwae", "miwae", "ciwae"])
def test_samples_are_of_the_likelihood_itself(name, monkeypatch):
    """Its group, too, of processes that share an optimal sigma, which no copy has."""
    model, seen = dense(likelihood="optimal_sigma"), []
    model.likelihood.group = object()
    monkeypatch.setattr(ranks, "total", lambda tensor, group: seen.append(group) or tensor)
    made(name)(model, batch())
    assert seen == [model.likelihood.group]


def test_samples_of_ones_own_likelihood(model):
    class Own(torch.nn.Module):
        def forward(self, logits, x):
            return vaefast.bernoulli_nll(logits, x)

    expected = seeded(create("iwae", samples=3), model, batch())
    model.likelihood = Own()
    torch.testing.assert_close(seeded(create("iwae", samples=3), model, batch()), expected)


@pytest.mark.parametrize("likelihood", ["bernoulli", "optimal_sigma"])
def test_iwae_compiled(compiler, likelihood):
    model, x = dense(likelihood=likelihood).float(), batch().float()
    parts = torch.compile(create("iwae", samples=3), fullgraph=True)(model, x)
    assert parts["loss"].isfinite().all()


def test_piwae_sends_each_target_where_it_belongs(model):
    x = batch()
    torch.manual_seed(2)
    seed = vaefast.draw_seed()

    def gradients(bound, parameters):
        q = model.encode(x)
        z, log_ratio = vaefast.rsample_log_ratio(q.mean, q.logvar, 6, seed=seed)
        nll = model.likelihood(model.parameters_of(z.flatten(0, 1)), x.repeat_interleave(6, 0))
        log_w = (log_ratio - nll.unflatten(0, (6, 6))).unflatten(1, (2, 3))
        return torch.autograd.grad(-getattr(vaefast.piwae_bounds(log_w), bound).mean(), parameters)

    encoder, decoder = (list(m.parameters()) for m in (model.encoder, model.decoder))
    parts = seeded(create("piwae", repeats=2, samples=3), model, x)
    parts["loss"].mean().backward()
    for p, expected in zip(encoder, gradients("inference", encoder), strict=True):
        close(p.grad, expected)
    for p, expected in zip(decoder, gradients("generative", decoder), strict=True):
        close(p.grad, expected)
    close(parts["loss"], seeded(create("iwae", samples=6), model, x)["loss"])
    assert all(p.requires_grad for p in model.parameters())


def test_objectives_use_the_model_s_prior():
    """A VampPrior's log-density is a mixture's: the ELBO's KL and IWAE's weights have it."""
    model, x = dense(prior="vamp", prior_options={"components": 4}), batch()
    output, nll = again(model, x)
    q, u = output.posterior, model.encode(torch.sigmoid(model.prior.pseudo_inputs))
    log_prior = vaefast.mixture_log_prob(output.z, u.mean, u.logvar)
    parts = seeded(create("elbo"), model, x)
    close(parts["loss"], nll - vaefast.gaussian_nll(q.mean, output.z, q.logvar) - log_prior)
    for name in ("elbo", "iwae", "piwae", "info_vae"):
        model.zero_grad()
        made(name)(model, x)["loss"].mean().backward()
        assert model.prior.pseudo_inputs.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="the model has a prior of its own"):
        create("elbo", free_bits=0.1)(model, x)


# FactorVAE's critic


def test_the_critic_and_the_model_train_apart(model):
    objective, x = made("factor_vae"), batch()
    objective(model, x)["loss"].mean().backward()
    assert all(p.grad is None for p in objective.critic.parameters())
    assert all(p.requires_grad for p in objective.critic.parameters())
    model.zero_grad(set_to_none=True)
    parts = objective.critic_loss(model, x)
    parts["loss"].mean().backward()
    assert all(p.shape == (6,) for p in parts.values())
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in objective.critic.parameters())


def test_factor_vae_formula(model):
    x = batch()
    critic = torch.nn.Linear(D, 1).double()
    objective = FactorVAE(D, 4.0, critic=critic)
    output, nll = again(model, x)
    logit = critic(output.z)[:, 0]
    close(seeded(objective, model, x)["loss"], nll + output.kl + 4 * logit)
    torch.nn.init.zeros_(critic.weight), torch.nn.init.zeros_(critic.bias)
    close(objective.critic_loss(model, x)["loss"], torch.full((6,), math.log(2), dtype=torch.float64))


def test_the_critic_is_the_paper_s():
    critic = FactorVAE(10).critic
    assert sum(isinstance(m, torch.nn.Linear) for m in critic) == 7
    assert [tuple(m.weight.shape) for m in critic if isinstance(m, torch.nn.Linear)][1:6] == [(1000, 1000)] * 5


def test_the_critic_finds_a_total_correlation():
    """Of a correlated Gaussian, TC = -log(1 - r^2) / 2, the mean logit of a trained critic."""
    torch.manual_seed(0)
    r = 0.9

    class Codes(torch.nn.Module):
        def draw(self, x):
            z = torch.randn(len(x), 2)
            z[:, 1] = r * z[:, 0] + math.sqrt(1 - r * r) * z[:, 1]
            return z, None, None

    objective = FactorVAE(2, width=64, layers=2)
    optimizer = torch.optim.Adam(objective.critic.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        objective.critic_loss(Codes(), torch.empty(512, 1))["loss"].mean().backward()
        optimizer.step()
    z = Codes().draw(torch.empty(4096, 1))[0]
    assert objective._logit(z).mean().item() == pytest.approx(-0.5 * math.log(1 - r * r), abs=0.15)


@given(count=st.integers(1, 9), event=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_permutation_keeps_every_column(count, event):
    z = torch.randn(count, *event)
    assert torch.equal(permute_dimensions(z).sort(0).values, z.sort(0).values)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"beta_tcvae", "dip_vae", "info_vae", "wae_mmd"}))
def test_a_rank_may_have_no_rows(name):
    """Of the last batch of an epoch; terms over the batch, left out here, are of all ranks' rows then."""
    model = models.create("conv", data_shape=(1, 8, 8), latent=2, width=4)
    options = {"data_shape": (1, 8, 8), "model": model, "latent": 2, "dataset_size": N}
    taken = inspect.signature(NAMES[name]).parameters
    objective = create(name, **{key: value for key, value in options.items() if key in taken})
    for call in (objective, getattr(objective, "critic_loss", objective)):
        parts = call(model, torch.rand(0, 1, 8, 8))
        assert all(part.shape == (0,) for part in parts.values())
        parts["loss"].sum().backward()


def test_permutation_takes_dimensions_apart():
    torch.manual_seed(0)
    z = torch.randn(2000, 1).expand(2000, 2)
    assert torch.corrcoef(permute_dimensions(z).T)[0, 1].abs() < 0.1


# Errors


def test_errors(model):
    ladder = models.create("ladder", data_shape=(1, 8, 8), latent=2, width=4)
    images = torch.rand(3, 1, 8, 8)
    for error, words, call in [
        (ValueError, "objective must be one of", lambda: create("tcvae")),
        (ValueError, "kind must be 'I' or 'II', got 'III'", lambda: create("dip_vae", kind="III")),
        (ValueError, "samples must be at least 1, got 0", lambda: create("iwae", samples=0)),
        (TypeError, "repeats must be an int, got float", lambda: create("miwae", repeats=2.0)),
        (ValueError, "beta must be from 0 to 1", lambda: create("ciwae", beta=2)(model, batch())),
        (
            ValueError,
            "at least the batch's 6 samples, got 5",
            lambda: create("beta_tcvae", dataset_size=5)(model, batch()),
        ),
        (
            ValueError,
            "BetaTCVAE must have a model whose posterior",
            lambda: create("beta_tcvae", dataset_size=9)(ladder, images),
        ),
        (
            ValueError,
            "per_channel must be False for a ladder",
            lambda: create("elbo", free_bits=1, per_channel=True)(ladder, images),
        ),
    ]:
        with pytest.raises(error, match=words):
            call()
