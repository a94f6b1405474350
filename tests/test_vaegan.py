"""VAE-GANs: whose gradient goes where, the weights of the sources, and the defects of public code, absent."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import vaefast
from vaefast import models, objectives
from vaefast.models import VAEGAN, ImageCritic, PatchCritic

SHAPE = (1, 12, 12)
ADVERSARIAL = ("vaegan", "vaegan_larsen")


def model_of(**options) -> models.VAE:
    torch.manual_seed(0)
    return models.create("conv", data_shape=SHAPE, latent=3, width=4, hidden=8, **options)


def objective_of(name: str, **options) -> nn.Module:
    torch.manual_seed(1)
    return objectives.create(name, data_shape=SHAPE, width=8, **options)


def images(count=6) -> torch.Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def gradients(value: torch.Tensor, module: nn.Module) -> list[torch.Tensor]:
    return [*torch.autograd.grad(value, [*module.parameters()], retain_graph=True, materialize_grads=True)]


@contextmanager
def seeded(seed=5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# critics


@pytest.mark.parametrize(
    ("side", "layers", "logits"), [(7, 0, 5), (15, 0, 13), (16, 1, 6), (28, 1, 12), (32, 1, 14), (34, 2, 6), (70, 3, 6)]
)
def test_patches_fit_the_image(side, layers, logits):
    critic = PatchCritic((3, side, side), width=4)
    assert critic.layers == layers
    assert critic(torch.rand(2, 3, side, side))[1].shape == (2, 1, logits, logits)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_patch_is_what_a_logit_sees(layers):
    critic = PatchCritic((1, 64, 64), width=2, layers=layers)
    convolutions = nn.Sequential(*[m for m in critic.features if not isinstance(m, nn.GroupNorm)])  # which sees all
    x = torch.rand(1, 1, 64, 64, requires_grad=True)
    logits = critic.logits(convolutions(x))
    middle = logits.shape[-1] // 2
    (grad,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    assert grad[0, 0].abs().sum(0).nonzero().numel() == PatchCritic.patch(layers)


def test_image_critic():
    features, logits = ImageCritic((3, 33, 20), width=4)(torch.rand(2, 3, 33, 20))
    assert logits.shape == (2,)
    assert features.shape == (2, 16, 5, 3)


# whose gradient goes where


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_parts_are_per_sample(name):
    objective, model, x = objective_of(name), model_of(), images()
    for parts in (objective(model, x), objective.critic_loss(model, x)):
        assert "loss" in parts
        for key, value in parts.items():
            assert value.shape == (6,), key
            assert value.isfinite().all(), key
    assert {"reconstruction", "kl", "generator"} <= set(objective(model, x))


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_objective_leaves_the_critic_alone(name):
    objective, model = objective_of(name), model_of()
    objective(model, images())["loss"].mean().backward()
    assert all(p.grad is None for p in objective.critic.parameters())
    assert all(p.requires_grad for p in objective.critic.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_critics_step_leaves_the_model_alone(name):
    """The public trainer of AutoencoderKL does not detach the reconstructions there."""
    objective, model = objective_of(name), model_of()
    objective(model, images())
    objective.critic_loss(model, images())["loss"].mean().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in objective.critic.parameters())
    assert all(p.grad.abs().sum() > 0 for p in objective.critic.parameters() if p.ndim > 1)


@pytest.mark.parametrize("gamma", [None, 0.1])
def test_larsen_sends_each_its_own_gradient(gamma):
    objective = objective_of("vaegan_larsen", gamma=gamma, gan_weight=0.3, beta=2.0)
    model, x = model_of(), images()
    with seeded():
        parts = objective(model, x)
    # the same by hand, term by term
    with seeded():
        z, kl, _ = model.draw(x)
        prior = model.sample_prior(len(x))
    critic = objective.critic
    features, real = critic(model.decode(z))[0], critic(x / 255)[0]
    sigma = (features - real).square().mean().sqrt() + math.exp(-6)
    reconstruction = -torch.distributions.Normal(features, sigma).log_prob(real).flatten(1).sum(1)
    generator = -torch.stack([critic(model.decode(v))[1].sigmoid().log() for v in (z.detach(), prior)]).sum(0)
    norms = [
        torch.autograd.grad(v.mean(), model.last_layer, retain_graph=True)[0].norm()
        for v in (reconstruction, generator)
    ]
    weight = 0.3 * norms[0] / (norms[1] + 1e-4) if gamma is None else torch.tensor(9.0)
    torch.testing.assert_close(parts["reconstruction"], reconstruction)
    torch.testing.assert_close(parts["generator"], generator)
    torch.testing.assert_close(parts["weight"], weight.expand(6))
    assert not parts["weight"].requires_grad
    torch.testing.assert_close(parts["loss"], 2 * kl + parts["reconstruction"] + parts["weight"] * parts["generator"])
    encoders = gradients((2 * kl + reconstruction).sum(), model.encoder)
    decoders = gradients((reconstruction + weight * generator).sum(), model.decoder)
    for module, expected in ((model.encoder, encoders), (model.decoder, decoders)):
        for ours, theirs in zip(gradients(parts["loss"].sum(), module), expected, strict=True):
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_larsen_weighs_features_by_their_own_error():
    """Features ten times as large change the nats by a constant, and no gradient: kl weighs the same beside them."""

    class Louder(nn.Module):
        def __init__(self, critic, factor):
            super().__init__()
            self.critic, self.factor = critic, factor

        def forward(self, x):
            features, logits = self.critic(x)
            return self.factor * features, logits

    model, x, found = model_of(), images(), []
    critic = ImageCritic(SHAPE, width=8)
    for factor in (1.0, 10.0):
        objective = objectives.create("vaegan_larsen", critic=Louder(critic, factor))
        with seeded():
            parts = objective(model, x)
        found.append((parts["reconstruction"], *gradients(parts["reconstruction"].sum(), model.encoder)))
    size = critic(x / 255)[0][0].numel()
    torch.testing.assert_close(found[1][0] - found[0][0], torch.full((6,), size * math.log(10)), rtol=0.02, atol=0)
    for a, b in zip(found[0][1:], found[1][1:], strict=True):
        assert (a - b).norm() <= 0.02 * a.norm()


def test_larsens_critic():
    objective, model, x = objective_of("vaegan_larsen"), model_of(), images()
    with seeded():
        parts = objective.critic_loss(model, x)
    with seeded():
        z, prior = model.draw(x)[0], model.sample_prior(len(x))
    D = [objective.critic(v)[1].sigmoid() for v in (x / 255, model.decode(z), model.decode(prior))]
    torch.testing.assert_close(parts["loss"], -D[0].log() - (1 - D[1]).log() - (1 - D[2]).log())
    torch.testing.assert_close(parts["real"], D[0])
    torch.testing.assert_close(parts["fake"], (D[1] + D[2]) / 2)


def test_the_adaptive_weight():
    objective, model, x = objective_of("vaegan", gan_weight=0.25), model_of(), images()
    parts = objective(model, x)
    norms = [
        torch.autograd.grad(parts[key].mean(), model.decoder[-1].weight, retain_graph=True)[0].norm()
        for key in ("reconstruction", "generator")
    ]
    torch.testing.assert_close(parts["weight"], (0.25 * norms[0] / (norms[1] + 1e-4)).expand(6))
    assert not parts["weight"].requires_grad
    torch.testing.assert_close(
        parts["loss"], parts["reconstruction"] + 1e-6 * parts["kl"] + parts["weight"] * parts["generator"]
    )


def test_the_adaptive_weight_has_a_limit():
    objective = objective_of("vaegan")
    nn.init.zeros_(objective.critic.logits.weight)  # no gradient at all
    assert torch.equal(objective(model_of(), 255 - images())["weight"].clamp(max=5e3), torch.full((6,), 5e3))


@pytest.mark.parametrize("name", models.NAMES)
def test_the_last_layer_is_the_decoders(name):
    few = {"autoencoder_kl": {"widths": (8, 8), "groups": 4}, "dense": {"latent": 3}}
    for likelihood in ("bernoulli", "gaussian"):
        model = models.create(name, data_shape=SHAPE, likelihood=likelihood, **few.get(name, {"width": 4}))
        assert objective_of("vaegan")(model, images())["weight"].gt(0).all()
        assert model.sample(4).std(0).max() > 0
        nn.init.zeros_(model.last_layer)  # nothing comes past it
        assert model.sample(4).std(0).max() == 0


def test_reconstruction_and_hinge():
    objective, model, x = objective_of("vaegan"), model_of(), images()
    with seeded():
        parts = objective(model, x)
        critics = objective.critic_loss(model, x)
    with seeded():
        copy = model.expectation(model(x).decoded)
        again = model.expectation(model(x).decoded)
    torch.testing.assert_close(parts["reconstruction"], (x / 255 - copy).abs().flatten(1).sum(1))
    torch.testing.assert_close(parts["generator"], -objective.critic(copy)[1].flatten(1).mean(1))
    real, fake = objective.critic(x / 255)[1], objective.critic(again)[1]
    hinge = (1 - real).clamp(min=0) + (1 + fake).clamp(min=0)
    torch.testing.assert_close(critics["loss"], 0.5 * hinge.flatten(1).mean(1))
    nn.init.constant_(objective.logvar, 0.3)
    with seeded():
        scaled = objective(model, x)["reconstruction"]
    torch.testing.assert_close(scaled, parts["reconstruction"] * math.exp(-0.3) + 144 * 0.3)
    scaled.mean().backward()
    assert objective.logvar.grad is not None


def test_the_models_own_likelihood():
    objective, model, x = objective_of("vaegan", reconstruction="likelihood"), model_of(), images()
    with seeded():
        parts = objective(model, x)
    with seeded():
        expected = objectives.create("elbo")(model, x)
    assert objective.beta == 1
    torch.testing.assert_close(parts["loss"] - parts["weight"] * parts["generator"], expected["loss"])


class Contrast(nn.Module):
    """Stands for LPIPS: a network of its own, and a distance [B, 1, 1, 1] of its features."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(1, 4, 3)

    def forward(self, a, b):
        return (self.features(a) - self.features(b)).square().mean((1, 2, 3), keepdim=True)


def test_the_perceptual_term_has_a_gradient():
    """The public trainer of AutoencoderKL computes LPIPS under no_grad, so that it changes nothing."""
    perceptual, model, x = Contrast(), model_of(), images()
    objective = objective_of("vaegan", perceptual=perceptual, perceptual_weight=50.0)
    without = objective_of("vaegan")
    found = []
    for each in (objective, without):
        with seeded():
            found.append(each(model, x)["reconstruction"])
    with seeded():
        distance = perceptual(x / 255, model.expectation(model(x).decoded)).flatten()
    torch.testing.assert_close(found[0] - found[1], 144 * 50 * distance, rtol=1e-3, atol=1e-3)
    (a, b), expected = [gradients(f.sum(), model.decoder) for f in found], gradients(distance.sum(), model.decoder)
    torch.testing.assert_close(
        [u - v for u, v in zip(a, b, strict=True)], [7200 * g for g in expected], rtol=1e-3, atol=0.05
    )
    assert max(g.abs().max() for g in expected) > 0
    objective(model, x)["loss"].mean().backward()
    assert all(p.grad is None for p in perceptual.parameters())


def test_delayed_start():
    objective, model, x = objective_of("vaegan", start=2), model_of(), images()
    weights, losses = [], []
    for _ in range(4):
        weights.append(objective(model, x)["weight"][0].item())
        losses.append(objective.critic_loss(model, x)["loss"].abs().sum().item())
    assert [w > 0 for w in weights] == [v > 0 for v in losses] == [False, False, True, True]


def test_evaluation_counts_nothing():
    objective, model = objective_of("vaegan"), model_of().eval()
    with torch.no_grad():
        parts = objective(model, images())
    assert objective.steps == 0
    assert torch.equal(parts["weight"], torch.zeros(6))
    with torch.no_grad():
        objective_of("vaegan_larsen")(model, images())


# training


def step(model, objective, optimizer, critic_optimizer, x):
    parts = objective(model, x)
    optimizer.zero_grad()
    parts["loss"].mean().backward()
    optimizer.step()
    critics = objective.critic_loss(model, x)
    critic_optimizer.zero_grad()
    critics["loss"].mean().backward()
    critic_optimizer.step()
    return parts, critics


def setting(name, lr=2e-3, **options):
    model, objective = model_of(), objective_of(name, **options)
    optimizers = [torch.optim.Adam(m.parameters(), rate) for m, rate in ((model, lr), (objective.critic, 2e-3))]
    return model, objective, *optimizers


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_resumes_where_it_was(name):
    """The public trainer of AutoencoderKL cannot."""
    options = {"start": 3} if name == "vaegan" else {}
    unbroken = setting(name, **options)
    with seeded():
        for _ in range(4):
            step(*unbroken, images())
        saved = [copy.deepcopy(part.state_dict()) for part in unbroken]
        resumed = setting(name, **options)
        for part, state in zip(resumed, saved, strict=True):
            part.load_state_dict(state)
        noise = torch.get_rng_state()
        for _ in range(2):
            step(*resumed, images())
        torch.set_rng_state(noise)
        for _ in range(2):
            step(*unbroken, images())
    for a, b in zip(unbroken[:2], resumed[:2], strict=True):
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key]), key
    if name == "vaegan":
        assert unbroken[1].steps == 6


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_short_training(name):
    """The critic learns to tell, and the copies come nearer to the data."""
    options = {"gan_weight": 0.1}
    torch.manual_seed(3)
    corner = (torch.arange(12) // 6).repeat_interleave(12).view(12, 12).byte() * 255
    x = torch.stack([torch.rot90(corner, k)[None] for k in range(4)] * 4)
    model, *rest = setting(name, lr=5e-3, **options)
    with seeded():
        error = [(model.reconstruct(x) - x / 255).abs().mean().item()]
        for _ in range(120):
            _, critics = step(model, *rest, x)
        error.append((model.reconstruct(x) - x / 255).abs().mean().item())
    assert error[1] < 0.7 * error[0]
    assert critics["real"].mean() > critics["fake"].mean()


# the model with its critic


def test_vaegan_is_a_vae_with_a_critic():
    model = VAEGAN(model_of(), PatchCritic(SHAPE, width=4))
    x = images()
    assert torch.equal(model(x, seed=1).decoded, model.vae(x, seed=1).decoded)
    assert torch.equal(model.sample(2, seed=1), model.vae.sample(2, seed=1))
    assert torch.equal(model.reconstruct(x), model.vae.reconstruct(x))
    assert model.latent_shape == (3,)
    assert {key.split(".")[0] for key in model.state_dict()} == {"vae", "critic"}
    objective = objectives.create("vaegan", critic=model.critic)
    objective(model.vae, x)["loss"].mean().backward()
    assert all(p.grad is None for p in model.critic.parameters())
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        model.nothing  # noqa: B018


def test_float_images_are_taken_as_they_are():
    objective, model, x = objective_of("vaegan"), model_of(), images()
    with seeded():
        of_bytes = objective(model, x)
    with seeded():
        of_floats = objective(model, vaefast.nn.unit(x))
    torch.testing.assert_close(of_bytes, of_floats)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PatchCritic((1, 28, 28), layers=2), ValueError, "as wide as a patch, 34 for 2 layers, got"),
        (lambda: PatchCritic((1, 6, 28)), ValueError, "as wide as a patch, 7 for 0 layers"),
        (lambda: ImageCritic((1, 7, 7)), ValueError, "larger than 7 in height or width"),
        (lambda: objectives.create("vaegan"), TypeError, "give either critic, a module, or data_shape"),
        (lambda: objective_of("vaegan_larsen", gamma=0), ValueError, "gamma must be above 0 and at most 1, got 0"),
        (lambda: objective_of("vaegan", reconstruction="l2"), ValueError, "must be 'l1' or 'likelihood', got 'l2'"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
