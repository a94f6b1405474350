"""What is minimised. An objective is called with (model, batch) and returns its parts, each [B], "loss" included.

One that has a rival to train (a discriminator, or the model's own encoder) has `critic`, a module, and
`critic_loss(model, batch)`, the critic's parts, called in the same step after the objective itself. One with a term
over the batch takes `group`, the process group whose ranks hold the batch together.
"""

from __future__ import annotations

from vaefast import _options
from vaefast.objectives.elbo import ELBO, elbo
from vaefast.objectives.introvae import SoftIntroVAE
from vaefast.objectives.iwae import CIWAE, IWAE, MIWAE, PIWAE
from vaefast.objectives.moments import DIPVAE, WAEMMD, InfoVAE
from vaefast.objectives.tcvae import BetaTCVAE, FactorVAE, permute_dimensions
from vaefast.objectives.vaegan import LarsenVAEGAN, PatchVAEGAN

NAMES = {
    "elbo": ELBO,
    "beta_tcvae": BetaTCVAE,
    "factor_vae": FactorVAE,
    "info_vae": InfoVAE,
    "wae_mmd": WAEMMD,
    "dip_vae": DIPVAE,
    "iwae": IWAE,
    "miwae": MIWAE,
    "piwae": PIWAE,
    "ciwae": CIWAE,
    "vaegan": PatchVAEGAN,
    "vaegan_larsen": LarsenVAEGAN,
    "soft_intro_vae": SoftIntroVAE,
}


def create(name: str, **options):
    """The objective of this name, as the command line and a run's configuration call it.

    Raises:
        ValueError: for an unknown name. TypeError: for an option that it does not take.
    """
    return _options.create("objective", NAMES, name, options)


__all__ = [
    "CIWAE",
    "DIPVAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "NAMES",
    "PIWAE",
    "WAEMMD",
    "BetaTCVAE",
    "FactorVAE",
    "InfoVAE",
    "LarsenVAEGAN",
    "PatchVAEGAN",
    "SoftIntroVAE",
    "create",
    "elbo",
    "permute_dimensions",
]
