"""VAE-GANs: a discriminator, trained beside the model, tells what is blurred or unlike the data.

An objective's own forward puts no gradient on its critic, and its `critic_loss` none on the model. Both count on
`model.training`: nothing is counted, and no gradient is asked for, where a model is only evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import softplus

from vaefast.models import VAE, ImageCritic, PatchCritic
from vaefast.objectives.elbo import Parts
from vaefast.ops import optimal_sigma_nll, ranks


def _judge(critic: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """critic(x), differentiable in x alone."""
    return torch.func.functional_call(critic, {name: p.detach() for name, p in critic.named_parameters()}, (x,))


def _per_sample(logits: torch.Tensor) -> torch.Tensor:
    """[B], the mean over patches."""
    return logits.flatten(1).mean(1) if logits.ndim > 1 else logits


def _balance(model: VAE, reconstruction: torch.Tensor, generator: torch.Tensor, group) -> torch.Tensor:
    """|grad reconstruction| / (|grad generator| + 1e-4), at most 1e4, of their means over all ranks' rows at the
    decoder's last layer; 0 in evaluation."""
    if not (model.training and torch.is_grad_enabled()):
        return reconstruction.new_zeros(())
    rows = len(reconstruction) if group is None else sum(ranks.layout(reconstruction, group).sizes)
    gradients = [
        torch.autograd.grad(part.sum() / rows, model.last_layer, retain_graph=True)[0].flatten()
        for part in (reconstruction, generator)
    ]
    norms = ranks.total(torch.stack(gradients), group).norm(dim=1)
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()


def _critic(critic, kind: type, data_shape, **options) -> nn.Module:
    if (critic is None) == (data_shape is None):
        raise TypeError("give either critic, a module, or data_shape, for which one is made")
    return kind(data_shape, **options) if critic is None else critic


class LarsenVAEGAN(nn.Module):
    """The VAE-GAN of Larsen et al. 2016, "Autoencoding beyond pixels using a learned similarity metric", algorithm 1.

    With f the critic's features, D its logit's sigmoid, x~ = decode(z), z ~ q(z | x), and x_p = decode(z_p) of the
    prior's z_p:

        reconstruction = -log N(f(x) | f(x~), sigma^2), summed         generator = -log D(x~) - log D(x_p)
        encoder: beta kl + reconstruction        decoder: reconstruction + weight generator
        critic:  -log D(x) - log(1 - D(x~)) - log(1 - D(x_p))

    The generator's term sends no gradient to the encoder. Three things are not the paper's. The weight is gan_weight
    |grad reconstruction| / (|grad generator| + 1e-4), at most gan_weight 1e4, at the decoder's last layer, as in
    PatchVAEGAN; theirs is a number for their network, and where it is too large for another, the decoder follows the
    critic alone, its images saturate, and the encoder has nothing left to say. sigma is the best for the batch
    (`vaefast.optimal_sigma_nll`) and theirs 1, so that kl weighs the same whatever the size of the features. And the
    generator's term is the usual one that does not saturate.

    Args:
        data_shape: (C, H, W), for which an ImageCritic of `width` is made; or critic: x -> (features, logits [B]).
        gan_weight: how much the generator's term counts beside the reconstruction.
        gamma: for the paper's fixed weight, (1 - gamma) / gamma; above 0, at most 1.
        beta: the weight of kl.
        group: of processes, as `torch.distributed.group.WORLD`: weight and sigma are then those of all its ranks' rows.

    Called with (model, x), x [B, *data_shape] in 0…1 or uint8, it gives {"loss", "reconstruction", "kl", "generator",
    "weight"}, each [B]; loss is beta kl + reconstruction + weight generator. The weight by gradients is 0 where none is
    recorded, as in evaluation.
    """

    def __init__(
        self,
        data_shape: Sequence[int] | None = None,
        *,
        gan_weight: float = 0.5,
        gamma: float | None = None,
        beta: float = 1.0,
        width: int = 32,
        critic: nn.Module | None = None,
        group=None,
    ):
        super().__init__()
        if gamma is not None and not 0 < gamma <= 1:
            raise ValueError(f"gamma must be above 0 and at most 1, got {gamma!r}")
        self.critic = _critic(critic, ImageCritic, data_shape, **({} if critic else {"width": width}))
        self.gan_weight, self.gamma, self.beta, self.group = gan_weight, gamma, beta, group

    def forward(self, model: VAE, x: torch.Tensor) -> Parts:
        z, kl, _ = model.draw(x)
        with torch.no_grad():
            prior = model.sample_prior(len(x))
            real, _ = _judge(self.critic, model.unit(x))
        latents = torch.cat([z, z.detach(), prior])
        features, logits = _judge(self.critic, model.expectation(model.parameters_of(latents)))
        reconstruction = optimal_sigma_nll(features[: len(x)], real, group=self.group)
        _, copied, invented = softplus(-logits).chunk(3)
        generator = copied + invented
        if self.gamma is None:
            weight = self.gan_weight * _balance(model, reconstruction, generator, self.group)
        else:
            weight = torch.as_tensor((1 - self.gamma) / self.gamma, device=kl.device)
        loss = self.beta * kl + reconstruction + weight * generator
        parts = {"loss": loss, "reconstruction": reconstruction, "kl": kl, "generator": generator}
        return parts | {"weight": weight.expand_as(loss)}

    def critic_loss(self, model: VAE, x: torch.Tensor) -> Parts:
        """{"loss", "real", "fake"}, each [B]; real and fake are D's mean opinions."""
        with torch.no_grad():
            z = torch.cat([model.draw(x)[0], model.sample_prior(len(x))])
            images = torch.cat([model.unit(x), model.expectation(model.parameters_of(z))])
        logits = self.critic(images)[1]
        real, copied, invented = logits.chunk(3)
        loss = softplus(-real) + softplus(copied) + softplus(invented)
        fake = 0.5 * (copied.sigmoid() + invented.sigmoid())
        return {"loss": loss, "real": real.sigmoid().detach(), "fake": fake.detach()}


class PatchVAEGAN(nn.Module):
    """The autoencoder's loss of latent diffusion (Esser et al. 2021, "Taming transformers", section 3.1; Rombach et al.
    2022): reconstruction, a small KL, and a patch discriminator with the hinge loss, weighted by gradients.

        reconstruction = (sum |x - x~| + N perceptual_weight perceptual(x, x~)) / e^logvar + N logvar
        loss   = reconstruction + beta kl + gan_weight w generator,      generator = -mean over patches of D(x~)
        w      = |grad reconstruction| / (|grad generator| + 1e-4), at most 1e4, at the decoder's last layer
        critic = mean over patches of (relu(1 - D(x)) + relu(1 + D(x~))) / 2

    N is the number of elements of x; generator and critic count as 0 for the first `start` steps.

    Args:
        data_shape: (C, H, W), for which a PatchCritic of `width` and `layers` is made; or critic: x -> (features,
            logits [B, 1, h, w]).
        reconstruction: "l1" as above, or "likelihood" for the model's own, with `beta` 1 an ELBO with a critic.
        beta: the weight of kl; None for 1e-6 with "l1", as in the source, and 1 with "likelihood".
        gan_weight: the source's 1/2.
        start: steps without the critic.
        perceptual: a module (x, x~) -> [B] or [B, 1, 1, 1], such as LPIPS, whose own parameters are frozen and through
            which gradients flow to x~; perceptual_weight: its weight, for "l1".
        group: of processes, as `torch.distributed.group.WORLD`: the weight is then that of all its ranks' rows.

    logvar is a parameter, 0 unless it is given to the model's optimizer. `state_dict` has it, the critic and the number
    of steps so far, so that a run resumes where it was.

    Called with (model, x), x [B, *data_shape] in 0…1 or uint8, it gives {"loss", "reconstruction", "kl", "generator",
    "weight"}, each [B]; weight is gan_weight w, and 0 where no gradient is recorded, as in evaluation.
    """

    def __init__(
        self,
        data_shape: Sequence[int] | None = None,
        *,
        reconstruction: str = "l1",
        beta: float | None = None,
        gan_weight: float = 0.5,
        start: int = 0,
        width: int = 32,
        layers: int | None = None,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        critic: nn.Module | None = None,
        group=None,
    ):
        super().__init__()
        if reconstruction not in ("l1", "likelihood"):
            raise ValueError(f"reconstruction must be 'l1' or 'likelihood', got {reconstruction!r}")
        options = {} if critic else {"width": width, "layers": layers}
        self.critic = _critic(critic, PatchCritic, data_shape, **options)
        self.kind = reconstruction
        self.beta = (1e-6 if reconstruction == "l1" else 1.0) if beta is None else beta
        self.gan_weight, self.start, self.group = gan_weight, start, group
        self.perceptual = None if perceptual is None else perceptual.requires_grad_(False)
        self.perceptual_weight = perceptual_weight
        self.logvar = nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, model: VAE, x: torch.Tensor) -> Parts:
        output = model(x)
        copy = model.expectation(output.decoded)
        reconstruction = self._reconstruction(model, output, copy, x)
        generator = -_per_sample(_judge(self.critic, copy)[1])
        weight = self.gan_weight * _balance(model, reconstruction, generator, self.group)
        weight = torch.where(self.steps >= self.start, weight, 0)
        loss = reconstruction + self.beta * output.kl + weight * generator
        if model.training:
            self.steps += 1
        parts = {"loss": loss, "reconstruction": reconstruction, "kl": output.kl, "generator": generator}
        return parts | {"weight": weight.expand_as(loss)}

    def critic_loss(self, model: VAE, x: torch.Tensor) -> Parts:
        """{"loss", "real", "fake"}, each [B]; real and fake are the mean logits."""
        with torch.no_grad():
            images = torch.cat([model.unit(x), model.expectation(model(x).decoded)])
        real, fake = self.critic(images)[1].chunk(2)
        hinge = 0.5 * _per_sample(torch.relu(1 - real) + torch.relu(1 + fake))
        # the objective has counted this step already
        loss = torch.where(self.steps > self.start, hinge, 0 * hinge)
        return {"loss": loss, "real": _per_sample(real).detach(), "fake": _per_sample(fake).detach()}

    def _reconstruction(self, model: VAE, output, copy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "likelihood":
            return model.likelihood(output.decoded, x)
        x = model.unit(x)
        error, size = (x - copy).abs().flatten(1).sum(1), x.shape[1:].numel()
        if self.perceptual is not None:
            error = error + size * self.perceptual_weight * self.perceptual(x, copy).flatten(1).mean(1)
        return error * torch.exp(-self.logvar) + size * self.logvar
