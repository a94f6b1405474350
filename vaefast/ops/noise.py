"""Standard normals from a counter, and the seeds that name a draw."""

from __future__ import annotations

import torch

from vaefast.ops import _checks
from vaefast.ops._define import define
from vaefast.reference import noise as reference


def _fused_standard_normal(walk, seed, shape, dtype):
    out = seed.new_empty(shape, dtype=dtype)
    walk("standard_normal", 0, (), (), (out,), (), seed, ())
    return out


standard_normal_op = define(
    "standard_normal(Tensor seed, SymInt[] shape, ScalarType dtype) -> Tensor",
    reference=reference.standard_normal,
    fused=_fused_standard_normal,
)


def _vmap_standard_normal(info, in_dims, seed, shape, dtype):
    # only the seed can be batched (randomness="different"): one draw per seed
    seeds = seed.movedim(in_dims[0], 0)
    return torch.stack([standard_normal_op.call(s, shape, dtype) for s in seeds.contiguous()]), 0


torch.library.register_vmap("vaefast::standard_normal", _vmap_standard_normal)


def draw_seed(device=None, generator: torch.Generator | None = None) -> torch.Tensor:
    """A fresh seed from PyTorch's generator, so that `torch.manual_seed` rules.

    Args:
        device: where the seed shall lie, and whose generator is used; default the CPU, or the generator's device.
        generator: a `torch.Generator` instead of the device's default one.

    Returns:
        An int64 tensor [2], (seed, offset), which names one draw on every device.
    """
    if device is None and generator is not None:
        device = generator.device
    # drawn by a built-in, outside every op: compile, checkpointing, vmap and CUDA graphs know it as they know randn
    return torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device, generator=generator)


def seed_for(tensor: torch.Tensor, seed: int | torch.Tensor | None) -> torch.Tensor:
    """The `seed=` argument of a sampling op as a tensor on the device of `tensor`."""
    return draw_seed(tensor.device) if seed is None else _checks.seed(seed, tensor.device)


def standard_normal(shape, *, seed: int | torch.Tensor | None = None, device=None, dtype=None) -> torch.Tensor:
    """Standard normals, the same float32 bits for one seed on every device and backend.

    Element n (row-major) of the draw comes from block n div 4 of Philox4x32-10 and a Box-Muller of fixed float32
    arithmetic; half types round it once, float64 widens it. The largest magnitude is 6.66.

    Args:
        shape: an int or a sequence of ints.
        seed: an int, an int64 tensor [2] from `draw_seed`, or None for a fresh one.
        device: default the seed's device where the seed is a tensor, else the default device.
        dtype: float32, float64, float16 or bfloat16; default `torch.get_default_dtype()`.

    Raises:
        TypeError, ValueError: for a shape, seed or dtype of another kind, named in the message.
    """
    try:
        shape = [shape] if isinstance(shape, int) else list(shape)
    except TypeError:
        raise TypeError(f"shape must be an int or a sequence of ints, got {type(shape).__name__}") from None
    for size in shape:
        if not isinstance(size, (int, torch.SymInt)) or isinstance(size, bool):
            raise TypeError(f"shape must hold ints, got {size!r}")
        if size < 0:
            raise ValueError(f"shape must hold sizes >= 0, got {tuple(shape)}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in _checks.FLOATING:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    if seed is None:
        seed = draw_seed(device)
    else:
        is_tensor = isinstance(seed, torch.Tensor)
        where = seed.device if is_tensor and device is None else torch.empty(0, device=device).device
        seed = _checks.seed(seed, where)
    return standard_normal_op.call(seed, shape, dtype)
