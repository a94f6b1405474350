"""The compiled module vaefast._C: loaded once, on first use."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import warnings
from collections.abc import Callable

import torch

from vaefast._layout import plain, readable, view

_DTYPES = (  # in the order of DType, csrc/walk.h
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.bool,
)


class LoadWarning(RuntimeWarning):
    """The compiled module was built but does not load."""


def usual(batch_ndim: object, roles: str, *tensors: object) -> bool:
    """`_checks.usual`, in C once the module is loaded; till then no tensor is."""
    return False


def alive(args: tuple) -> bool:
    """Whether no plain tensor among these is left over from a transform that ended; in C once the module is loaded.
    False says nothing."""
    return False


def entry(general: Callable, ready: dict, *keys: tuple[str, str]) -> Callable:
    """`general` with a shorter way, in C once the module is loaded, for plain tensors whose body is ready."""
    return general


_waiting: list[Callable] = []


def when_loaded(use: Callable) -> None:
    """Call `use(vaefast._C)` as soon as the module is there, which is not loaded for that."""
    _waiting.append(use)
    if _load.cache_info().currsize and module():
        use(module())


def attach(_C, cuda_stream) -> None:
    """Hand the module what it calls of PyTorch. `cuda_stream(device index)`: the address of the current stream."""
    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)  # in some releases of PyTorch 2.10 on
    _C.attach(_DTYPES, readable, plain, exchange, cuda_stream)


@functools.cache
def _load():
    """(module, None), or (None, why not)."""
    try:
        # after torch: both then share one OpenMP runtime, and its pool of threads
        _C = importlib.import_module("vaefast._C")  # `from vaefast import _C` hides a missing file in an ImportError
    except ModuleNotFoundError as error:
        if error.name not in (None, "vaefast._C"):
            raise
        return None, "the compiled module was not built (pip install with a C++ compiler, or VAEFAST_BUILD=cpu)"
    except ImportError as error:
        reason = f"the compiled module was built but does not load: {error}"
        warnings.warn(f"vaefast: {reason}. Slower backends run instead.", LoadWarning, stacklevel=2)
        return None, reason
    attach(_C, getattr(torch._C, "_cuda_getCurrentRawStream", None))
    global usual, alive, entry
    usual, alive, entry = _C.usual, _C.alive, _C.entry
    for use in _waiting:
        use(_C)
    if asked := os.environ.get("VAEFAST_ISA"):
        if asked not in _C.instruction_sets:
            raise ValueError(f"VAEFAST_ISA must be one of {', '.join(_C.instruction_sets)} here, got {asked!r}")
        _C.use_instruction_set(asked)
    return _C, None


def module():
    """vaefast._C, or None."""
    return _load()[0]


def reason() -> str | None:
    """Why there is no compiled module, or None where there is one."""
    return _load()[1]


def facts() -> dict | None:
    """What the compiled module was built with, and the instruction set that it runs; None where there is none."""
    if module() is None:
        return None
    return {**ast.literal_eval(module().build_facts), "instruction_set": instruction_set()}


def instruction_set() -> str:
    """The instruction set that the CPU kernels run: the best that was built and this machine has, or VAEFAST_ISA's."""
    return os.environ.get("VAEFAST_ISA") or module().instruction_sets[0]


class _Compiled:
    device: str

    def body(self, body):
        return body.in_c(module(), self.device == "cuda")

    def why_not(self, density: str, device_type: str) -> str | None:
        if module() is None:
            return reason()
        if not hasattr(module(), f"{self.device}_rows"):
            return "the compiled module was built without CUDA kernels (no nvcc, or VAEFAST_BUILD=cpu)"
        if device_type != self.device:
            return f"it runs on {self.device.upper()} tensors only"
        known = density in module().densities or density in module().pair_densities
        return None if known else f"it has no kernel for {density}"


class _CPU(_Compiled):
    device = "cpu"

    @property
    def rows(self):
        return module().cpu_rows

    @property
    def pairs(self):
        return module().cpu_pairs


class _CUDA(_Compiled):
    device = "cuda"

    def rows(self, density, batch_ndim, inputs, *rest) -> None:
        device = view(inputs[0] if inputs else rest[1][0]).device.index  # rest: row inputs, outputs, …
        stream = torch._C._cuda_getCurrentRawStream(device)
        module().cuda_rows(device, stream, density, batch_ndim, inputs, *rest)

    def pairs(self, density, tensors, *rest, **options) -> None:
        device = tensors[0].device.index
        stream = torch._C._cuda_getCurrentRawStream(device)
        module().cuda_pairs(device, stream, density, tensors, *rest, **options)


cpu, cuda = _CPU(), _CUDA()
