"""A VAE whose encoder is its critic: it learns to find the decoder's images unlikely, the decoder to be believed."""

from __future__ import annotations

import torch

from vaefast.models import VAE
from vaefast.objectives.elbo import Parts, frozen


class SoftIntroVAE:
    """The Soft-IntroVAE of Daniel and Tamar 2021, "Soft-IntroVAE: Analyzing and Improving the Introspective Variational
    Autoencoder", equation 3 and the authors' code, which takes copies beside inventions as fakes.

    With L(x) = |x - decode(z)|^2, summed, z ~ q(z | x), K(x) = KL(q(z | x) || p(z)), the fakes f = decode(z), z ~
    q(z | x), and decode(z_p), z_p of the prior, E the mean over both, and s = 1 / the number of elements of x:

        decoder: s (beta_rec L(x) + beta_kl E K(f))
        encoder: s (beta_rec L(x) + beta_kl K(x)) + E exp(-2 s (beta_rec L(f) + beta_neg K(f))) / 2

    A call is the decoder's loss, `critic_loss` the encoder's; neither sends a gradient to the other side. The authors'
    code also adds 1e-8 L(f) to the decoder's, which is left out.

    Args:
        model: whose encoder is the critic, with a Gaussian q(z | x) that depends on that module alone.
        beta_rec, beta_kl, beta_neg: numbers; the learning rate that goes with these is 2e-4. Where the squared error is
            small beside K, as of digits, copies come sooner with a larger beta_rec, such as 10.

    The model's optimizer must have its parameters without the encoder's, which are the critic's. Called with (model,
    x), x [B, *data_shape] in 0…1 or uint8, it gives {"loss", "reconstruction", "kl", "kl_fake"}, each [B]; the last is
    E K(f).

    Raises:
        ValueError: for a model with an encoder of several parts (a ladder, convolutions after the encoder).
    """

    def __init__(self, model: VAE, *, beta_rec=1.0, beta_kl=1.0, beta_neg=256.0):
        if getattr(model, "hierarchical", False) or getattr(model, "quant_conv", None) is not None:
            raise ValueError("model must be one whose encoder alone makes q(z | x)")
        self.critic = model.encoder
        self.beta_rec, self.beta_kl, self.beta_neg = beta_rec, beta_kl, beta_neg

    def __call__(self, model: VAE, x: torch.Tensor) -> Parts:
        x = model.unit(x)
        with torch.no_grad():
            z, kl, _ = model.draw(x)
            prior = model.sample_prior(len(x))
        fakes = model.decode(torch.cat([z, prior]))
        reconstruction = _squared_error(x, fakes[: len(x)])
        with frozen(self.critic.parameters()):
            kl_fake = _mean(model.draw(fakes)[1])
        loss = (self.beta_rec * reconstruction + self.beta_kl * kl_fake) / x.shape[1:].numel()
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl, "kl_fake": kl_fake}

    def critic_loss(self, model: VAE, x: torch.Tensor) -> Parts:
        """{"loss", "kl", "kl_fake"}, each [B], of the encoder."""
        x, encoder = model.unit(x), {id(p) for p in self.critic.parameters()}
        with frozen(p for p in model.parameters() if id(p) not in encoder):
            z, kl, _ = model.draw(x)
            copy = model.decode(z)
            with torch.no_grad():
                fakes = torch.cat([copy, model.decode(model.sample_prior(len(x)))])
            z_fake, kl_fake, _ = model.draw(fakes)
            wrong = self.beta_rec * _squared_error(fakes, model.decode(z_fake)) + self.beta_neg * kl_fake
            real = self.beta_rec * _squared_error(x, copy) + self.beta_kl * kl
            loss = real / x.shape[1:].numel() + 0.5 * _mean(torch.exp(-2 / x.shape[1:].numel() * wrong))
        return {"loss": loss, "kl": kl, "kl_fake": _mean(kl_fake)}


def _squared_error(x: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    return (x - copy).square().flatten(1).sum(1)


def _mean(of_fakes: torch.Tensor) -> torch.Tensor:
    """[2 B] -> [B], over a sample's two fakes."""
    return of_fakes.unflatten(0, (2, len(of_fakes) // 2)).mean(0)
