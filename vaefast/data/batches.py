"""Batches of data that fits in memory, or that is made while the batch before is trained on."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from vaefast.data.rows import Rows

_AHEAD = 2  # batches


class Batches:
    """Iterates over rows of `data`, each once, in a new order at every pass if `shuffle`.

    What a DataLoader does for a tensor, without its work per sample. The order comes from PyTorch's CPU generator, so
    `torch.manual_seed` rules. The last batch can be smaller.

    Args:
        data: a tensor [N, ...] or Rows, N >= 1. Rows are made in a thread, two batches ahead.
        size: samples per batch.
    """

    def __init__(self, data: torch.Tensor | Rows, size: int, *, shuffle: bool = False):
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if len(data) == 0:
            raise ValueError("data must hold at least one sample, got none")
        self.data = data
        self.size = size
        self.shuffle = shuffle

    def __len__(self) -> int:
        return -(-len(self.data) // self.size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.start_at(0)

    def start_at(self, batch: int) -> Iterator[torch.Tensor]:
        """A pass without its first `batch` batches; the order is drawn at once."""
        in_memory = isinstance(self.data, torch.Tensor)
        if in_memory and not self.shuffle:
            return iter(self.data.split(self.size)[batch:])
        order = torch.randperm(len(self.data)) if self.shuffle else torch.arange(len(self.data))
        if in_memory:
            return (self.data[rows] for rows in order.to(self.data.device).split(self.size)[batch:])
        return self._in_the_background(order.split(self.size)[batch:])

    def _in_the_background(self, groups: tuple[torch.Tensor, ...]) -> Iterator[torch.Tensor]:
        pending = collections.deque()
        with ThreadPoolExecutor(1, "vaefast-data") as thread:
            try:
                for rows in groups:
                    pending.append(thread.submit(self.data.__getitem__, rows))
                    if len(pending) > _AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()
