"""The compiled module vaefast._C: loaded once, on first use, and called with pointers, sizes and strides."""

from __future__ import annotations

import ast
import functools
import os
import warnings

import torch

from vaefast._layout import readable, rows_and_cols, writable

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/walk.h, DType


class LoadWarning(RuntimeWarning):
    """The compiled module was built but does not load."""


@functools.cache
def _load():
    """(module, None), or (None, why not)."""
    try:
        # after torch: both then share one OpenMP runtime, and its pool of threads
        from vaefast import _C
    except ModuleNotFoundError as error:
        if error.name not in (None, "vaefast._C"):
            raise
        return None, "the compiled module was not built (pip install with a C++ compiler, or VAEFAST_BUILD=cpu)"
    except ImportError as error:
        reason = f"the compiled module was built but does not load: {error}"
        warnings.warn(f"vaefast: {reason}. Slower backends run instead.", LoadWarning, stacklevel=2)
        return None, reason
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


@functools.cache
def instruction_set() -> str:
    """The best instruction set that was built and this machine runs, or VAEFAST_ISA's."""
    available = module().instruction_sets
    asked = os.environ.get("VAEFAST_ISA")
    if asked and asked not in available:
        raise ValueError(f"VAEFAST_ISA must be one of {', '.join(available)} on this machine, got {asked!r}")
    return asked or available[0]


def _elements(tensors, batch_ndim, cols, keep):
    described = []
    for tensor in tensors:
        tensor, layout = readable(tensor, batch_ndim, cols)
        keep.append(tensor)  # a copy must live until the walk has run
        described.append((tensor.data_ptr(), _DTYPES[tensor.dtype], *layout))
    return tuple(described)


def _rows(tensors, keep):
    described = []
    for tensor in tensors:
        if tensor.ndim != 1:
            if not tensor.is_contiguous():
                tensor = tensor.contiguous()
            keep.append(tensor)
            described.append((tensor.data_ptr(), 1))
        else:
            described.append((tensor.data_ptr(), tensor.stride(0)))
    return tuple(described)


def _arguments(batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, keep):
    head = outputs[0] if len(outputs) else inputs[0]
    rows, cols = rows_and_cols(head.shape, batch_ndim)
    return (
        rows,
        cols,
        head.dtype is torch.float64,
        _elements(inputs, batch_ndim, cols, keep),
        _rows(row_inputs, keep),
        _elements(outputs, batch_ndim, cols, keep),
        _rows(row_outputs, keep),
        0 if seed is None else seed.data_ptr(),
        tuple(params),
    )


class _CPU:
    def why_not(self, density: str, device_type: str) -> str | None:
        if module() is None:
            return reason()
        if device_type != "cpu":
            return "it runs on CPU tensors only"
        return None if density in module().densities else f"it has no kernel for {density}"

    def rows(
        self, density, batch_ndim, *, inputs=(), row_inputs=(), outputs=(), row_outputs=(), seed=None, params=()
    ) -> None:
        keep = []
        arguments = _arguments(batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, keep)
        module().cpu_rows(instruction_set(), torch.get_num_threads(), density, *arguments)


class _CUDA:
    def why_not(self, density: str, device_type: str) -> str | None:
        if module() is None:
            return reason()
        if not hasattr(module(), "cuda_rows"):
            return "the compiled module was built without CUDA kernels (no nvcc, or VAEFAST_BUILD=cpu)"
        if device_type != "cuda":
            return "it runs on CUDA tensors only"
        return None if density in module().densities else f"it has no kernel for {density}"

    def rows(
        self, density, batch_ndim, *, inputs=(), row_inputs=(), outputs=(), row_outputs=(), seed=None, params=()
    ) -> None:
        keep = []
        arguments = _arguments(batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, keep)
        device = (outputs or row_outputs)[0].device.index
        module().cuda_rows(device, torch._C._cuda_getCurrentRawStream(device), density, *arguments)


cpu, cuda = _CPU(), _CUDA()
