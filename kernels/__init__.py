"""The Triton backend: the walks, written once each, and the densities they run. Importing it does not import Triton."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable


class _Triton:
    """What vaefast/_backends.py asks of a backend: its walks, and why one cannot run."""

    @functools.cached_property
    def _walks(self) -> dict[str, Callable]:
        """The walk of each density."""
        from vaefast.kernels.pairs import DENSITIES as PAIRS
        from vaefast.kernels.pairs import pairs
        from vaefast.kernels.planes import DENSITIES as STACKS
        from vaefast.kernels.planes import planes
        from vaefast.kernels.rows import DENSITIES, rows

        return dict.fromkeys(DENSITIES, rows) | dict.fromkeys(STACKS, planes) | dict.fromkeys(PAIRS, pairs)

    def rows(self, density: str, *arguments, **options) -> None:
        self._walks[density](density, *arguments, **options)

    pairs = rows

    def why_not(self, density: str, device_type: str) -> str | None:
        """None where its walk can run the density on tensors of this device type, else the reason in one sentence."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (pip install triton)"
        if device_type not in ("cpu", "cuda"):
            return f"the Triton kernels take CUDA tensors, not {device_type}"
        if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton takes CPU tensors only where TRITON_INTERPRET=1 was set before it was imported"
        try:
            walks = self._walks
        except Exception as error:  # an installed Triton that does not load is a reason like any other
            return f"Triton does not load: {type(error).__name__}: {error}"
        return None if density in walks else f"there is no Triton density {density!r}"


backend = _Triton()
