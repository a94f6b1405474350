"""vaefast: fused kernels, modules and models for variational autoencoders in PyTorch."""

import importlib

from vaefast import ops
from vaefast._backends import BackendError, use_backend
from vaefast.info import info  # here, not on demand: importing the module would bind its own name over the function's
from vaefast.ops import *  # noqa: F403 - its public functions, which its __all__ lists
from vaefast.patch import patch  # as for info

__version__ = "0.1.0"

# imported when first used, so that `import vaefast` brings the ops alone
_LAZY = ("data", "distributions", "metrics", "models", "nn", "objectives", "sampling", "training")


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"vaefast.{name}")
    raise AttributeError(f"module 'vaefast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = ["BackendError", "info", "patch", "use_backend", *ops.__all__]
