"""What is checked where an op is public. Below that line, code trusts its caller."""

from __future__ import annotations

import math

import torch
from torch.compiler import is_dynamo_compiling

from vaefast import _extension

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DATA = (*FLOATING, torch.uint8, torch.int32, torch.int64, torch.bool)
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class SupportError(ValueError):
    """Data that its likelihood cannot have made, found with `validate=True`."""


def usual(batch_ndim: object, roles: str, *tensors: object) -> bool:
    """Whether these pass `floating`, `data`, `alike` and `batch_ndim`: plain dense tensors of one shape on one device.
    roles: a letter for each: f, floating and of one type with the others; d, data.

    False says nothing, also while torch.compile traces: the checks must be asked.
    """
    return not is_dynamo_compiling() and _extension.usual(batch_ndim, roles, *tensors)


def floating(name: str, tensor: object) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
    _dense(name, tensor)
    if tensor.ndim == 0:
        raise ValueError(f"{name} must have at least one dimension (the batch), got a 0-d tensor")


def data(name: str, tensor: object) -> None:
    """Observed data and weights: any real type."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DATA:
        raise TypeError(f"{name} must be a floating, uint8, int32, int64 or bool tensor, got {tensor.dtype}")
    _dense(name, tensor)


def _dense(name: str, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of {tensor.layout}; to_dense() makes it one")


def alike(first: str, a: torch.Tensor, second: str, b: torch.Tensor) -> None:
    """Same shape and device."""
    if a.shape != b.shape:
        raise ValueError(f"{second} must have {first}'s shape {tuple(a.shape)}, got {tuple(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"{second} must be on {first}'s device {a.device}, got {b.device}")


def whole(name: str, value: object, least: float = -math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def number(name: str, value: object) -> None:
    """A number, or a tensor that holds one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.Tensor)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def batch_ndim(value: object, ndim: int) -> None:
    whole("batch_ndim", value)
    if not 0 <= value <= ndim:
        raise ValueError(f"batch_ndim must be from 0 to the number of dimensions {ndim}, got {value}")


def event_dim(value: object, ndim: int, batch_ndim: int) -> int:
    """`dim` as a non-negative index of a dimension of the event."""
    whole("dim", value)
    if not (batch_ndim <= value < ndim or batch_ndim - ndim <= value < 0):
        raise ValueError(f"dim must be a dimension of the event ({batch_ndim} to {ndim - 1}), got {value}")
    return value % ndim


def halved_dim(moments: object, dim: object, ndim: object) -> int:
    """`dim` as `event_dim` gives it, along which moments hold a mean, then a log-variance; ndim: of the batch."""
    floating("moments", moments)
    batch_ndim(ndim, moments.ndim)
    axis = event_dim(dim, moments.ndim, ndim)
    if moments.shape[axis] % 2:
        raise ValueError(f"moments must have an even size at dim {dim}, got shape {tuple(moments.shape)}")
    return axis


def unreduced(likelihood: object) -> None:
    if getattr(likelihood, "reduction", "none") != "none":
        raise ValueError(f"likelihood must have reduction 'none', got {likelihood.reduction!r}")


def reduced(reduction: str, free_bits: object, capacity: object) -> None:
    """Free bits and a capacity are of the batch, not of a sample."""
    if reduction == "none" and (free_bits is not None or capacity is not None):
        raise ValueError("reduction must be 'mean' or 'sum' with free_bits or capacity, which are of the batch")


def bounds(value: object) -> tuple[float, float]:
    """(lo, hi) of logvar_bounds; None is no bound."""
    if value is None:
        return -math.inf, math.inf
    try:
        lo, hi = map(float, value)
    except (TypeError, ValueError):
        raise TypeError(f"logvar_bounds must be None or a pair (lo, hi) of numbers, got {value!r}") from None
    if not lo <= hi:
        raise ValueError(f"logvar_bounds must be (lo, hi) with lo <= hi, got {value!r}")
    return lo, hi


def seed(value: object, device: torch.device) -> torch.Tensor:
    """An int (offset 0) or an int64 tensor [2], as an int64 tensor [2] on `device`."""
    if isinstance(value, torch.Tensor):
        if value.dtype != torch.int64:
            raise TypeError(f"seed must be an int or an int64 tensor of shape (2,), got {value.dtype}")
        if value.shape != (2,):
            raise ValueError(f"seed must be an int or an int64 tensor of shape (2,), got shape {tuple(value.shape)}")
        if value.device != device:
            raise ValueError(f"seed must be on {device}, got {value.device}")
        return value.contiguous()
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"seed must be an int, an int64 tensor of shape (2,) or None, got {type(value).__name__}")
    if not _INT64_MIN <= value <= _INT64_MAX:
        raise ValueError(f"seed must fit in 64 bits, got {value}")
    return torch.tensor([value, 0], dtype=torch.int64, device=device)
