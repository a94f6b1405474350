"""The evidence lower bound."""

from __future__ import annotations

import torch

from vaefast.models import VAE


def elbo(model: VAE, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """-ELBO(x) = -log p(x | z) + KL(q(z | x) || p(z)), z ~ q(z | x) (Kingma and Welling 2014, equation 3), per sample.

    Returns:
        {"loss", "reconstruction", "kl"}, each [B], in nats; loss is the sum of the other two.
    """
    output = model(x)
    reconstruction = model.likelihood(output.decoded, x)
    return {"loss": reconstruction + output.kl, "reconstruction": reconstruction, "kl": output.kl}
