"""Which backend runs an op. A backend is a set of walks; `reference` is the mathematics itself.

Automatic by device, the fastest first; `use_backend` or VAEFAST_BACKEND asks for one by name, and a backend that is
asked for by name works or raises with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable

NAMES = ("cuda", "triton", "cpu", "reference")
_AUTOMATIC = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}  # device type: preference; `reference` follows

_asked: str | None = None  # what use_backend set; process-wide, since autograd runs backward on threads of its own
ready: dict[tuple[str, str], Callable] = {}  # (op, device type): what runs it, as long as the choice stands


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run the op; the message says why."""


def module(backend: str):
    """What has the backend's walks."""
    if backend == "triton":
        from vaefast import kernels

        return kernels.backend
    from vaefast import _extension

    return _extension.cuda if backend == "cuda" else _extension.cpu


def why_not(backend: str, op: str, device_type: str) -> str | None:
    """None where `backend` can run `op` on tensors of this device type, else the reason in one sentence."""
    return None if backend == "reference" else module(backend).why_not(op, device_type)


def asked() -> str | None:
    """The backend asked for by name, through use_backend or else VAEFAST_BACKEND."""
    if _asked is not None:
        return _asked
    name = os.environ.get("VAEFAST_BACKEND", "").strip()
    return _check(name, "VAEFAST_BACKEND") if name and name != "auto" else None


def choose(op: str, device_type: str) -> str:
    """The name of the backend that runs `op` on this device type."""
    name = asked()
    if name is None:
        ordered = _AUTOMATIC.get(device_type, ())
        return next((b for b in ordered if why_not(b, op, device_type) is None), "reference")
    reason = why_not(name, op, device_type)
    if reason is not None:
        raise BackendError(f"backend {name!r} was asked for but cannot run {op} on {device_type} tensors: {reason}")
    return name


def _check(name: object, argument: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, NAMES))} or 'auto', got {name!r}")
    return name


class use_backend:  # noqa: N801 - used like torch.set_grad_enabled
    """Ask for one backend by name, for the process or, as a context manager, for a block.

    Args:
        name: "cuda", "triton", "cpu", "reference", or "auto" (by device, the fastest first).

    Raises:
        ValueError: for any other name. An op that the backend cannot run raises BackendError when it is called.

    The setting is process-wide, because autograd runs the backward of CUDA ops on threads of its own. One object may
    be used for several blocks.
    """

    def __init__(self, name: str):
        self.name = None if name == "auto" else _check(name, "use_backend's name")
        self.previous: list[str | None] = []
        self._new = True  # asked for here already, for the first block
        self._ask()

    def _ask(self) -> None:
        global _asked
        self.previous.append(_asked)
        _asked = self.name
        ready.clear()

    def __enter__(self) -> None:
        if not self._new:
            self._ask()
        self._new = False

    def __exit__(self, *exc_info) -> None:
        global _asked
        _asked = self.previous.pop()
        ready.clear()
