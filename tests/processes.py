"""Several ranks of a gloo group, for tests: what a function finds in each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


def _run(rank: int, world: int, folder: Path, function: Callable) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    torch.save(function(rank), folder / f"{rank}.pt")
    dist.barrier()  # none leaves while another still needs it
    dist.destroy_process_group()
    os._exit(0)  # PyTorch's threads may outlive the group, and one that asks for Python's lock at its end aborts


def of_ranks(function: Callable, world: int, folder: Path) -> list:
    """What `function(rank)`, one that can be imported, returns in each of `world` processes."""
    torch.multiprocessing.spawn(_run, (world, folder, function), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
