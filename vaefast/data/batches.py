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
        if not self.shuffle:
            yield from self.data.split(self.size)
            return
        for rows in torch.randperm(len(self.data)).split(self.size):
            yield self.data[rows.to(self.data.device)]
