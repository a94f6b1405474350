"""Several processes that train one model: what they share. Without a process group, every function is the identity.

Each rank holds the whole model and takes its rows of every batch; gradients are added up after the backward pass, in
one message per type. DistributedDataParallel is not used: an objective reaches into the model (its likelihood, its
encoder), which that wrapper hides, and a step that is skipped or clipped needs the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    return dist.get_world_size() if _active() else 1


def rank() -> int:
    return dist.get_rank() if _active() else 0


def shard(batch: torch.Tensor) -> torch.Tensor:
    """This rank's rows of `batch`: every world()-th, so that shares differ by one row at most."""
    return batch[rank() :: world()] if world() > 1 else batch


def sum_all(tensors: Iterable[torch.Tensor]) -> None:
    """Add each tensor up over the ranks, in place."""
    if world() == 1:
        return
    by_type: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([t.reshape(-1) for t in group])
        dist.all_reduce(flat)
        for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Give every rank what rank 0 holds, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Every rank's tensor, in the order of the ranks; all of one shape."""
    if world() == 1:
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(found, tensor)
    return found


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on one rank at least; every rank gets the same answer."""
    if world() == 1:
        return flag
    total = torch.tensor(float(flag), device=device)
    dist.all_reduce(total)
    return bool(total)


def gather_object(value: object) -> list:
    """Every rank's value, in the order of the ranks."""
    if world() == 1:
        return [value]
    found: list = [None] * world()
    dist.all_gather_object(found, value)
    return found
