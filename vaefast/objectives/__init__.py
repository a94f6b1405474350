"""What is minimised. An objective is called with (model, batch) and returns its parts, each [B], "loss" included.

One that has a rival to train (a discriminator) has `critic`, a module, and `critic_loss(model, batch)`, the critic's
parts, called in the same step after the objective itself.
"""

from __future__ import annotations

from vaefast.objectives.elbo import elbo
from vaefast.objectives.vaegan import LarsenVAEGAN, PatchVAEGAN

NAMES = {
    "elbo": lambda: elbo,
    "vaegan": PatchVAEGAN,
    "vaegan_larsen": LarsenVAEGAN,
}


def create(name: str, **options):
    """The objective of this name, as the command line and a run's configuration call it.

    Raises:
        ValueError: for an unknown name. TypeError: for an option that it does not take.
    """
    if name not in NAMES:
        raise ValueError(f"objective must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    return NAMES[name](**options)


__all__ = [
    "NAMES",
    "LarsenVAEGAN",
    "PatchVAEGAN",
    "create",
    "elbo",
]
