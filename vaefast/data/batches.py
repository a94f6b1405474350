"""Batches of a tensor that fits in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch


class Batches:
    """Iterates over rows of `data`, each once, in a new order at every pass if `shuffle`.

    What a DataLoader does for a tensor, without its work per sample. The order comes from PyTorch's CPU generator, so
    `torch.manual_seed` rules. The last batch can be smaller.

    Args:
        data: [N, ...], N >= 1.
        size: samples per batch.
    """

    def __init__(self, data: torch.Tensor, size: int, *, shuffle: bool = False):
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
        if not self.shuffle:
            return iter(self.data.split(self.size)[batch:])
        order = torch.randperm(len(self.data)).to(self.data.device)
        return (self.data[rows] for rows in order.split(self.size)[batch:])
