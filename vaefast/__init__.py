"""vaefast: fused kernels, modules and models for variational autoencoders in PyTorch."""

from vaefast._backends import BackendError, use_backend
from vaefast.ops import (
    draw_seed,
    kl_normal,
    kl_standard_normal,
    rsample,
    rsample_kl,
    rsample_kl_moments,
    standard_normal,
)

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "draw_seed",
    "kl_normal",
    "kl_standard_normal",
    "rsample",
    "rsample_kl",
    "rsample_kl_moments",
    "standard_normal",
    "use_backend",
]
