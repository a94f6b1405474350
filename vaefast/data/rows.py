"""Data that is made when it is asked for: decoded from files, drawn, or taken out of a sparse matrix."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import torch

_KEPT = 2**30  # bytes of made samples that are kept in memory


class Rows:
    """N samples, indexed like a tensor [N, *shape]; what indexing gives is a tensor.

    Args:
        make: indices int64 [n] -> samples [n, *shape] of `dtype`; called from any thread.
        count: N.
        keep: keep what was made, where all of it takes no more than a GiB, so that no sample is made twice.
    """

    def __init__(
        self,
        make: Callable[[torch.Tensor], torch.Tensor],
        count: int,
        shape: Sequence[int],
        dtype: torch.dtype = torch.uint8,
        *,
        keep: bool = False,
    ):
        self.shape, self.dtype = torch.Size([count, *shape]), dtype
        self._make = make
        self._kept = None
        if keep and count * math.prod(shape) * dtype.itemsize <= _KEPT:
            self._kept = torch.empty(self.shape, dtype=dtype)
            self._made = torch.zeros(count, dtype=torch.bool)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> torch.Tensor:
        """
        Args:
            rows: an int64 tensor [n], a slice, or an int, which gives one sample without the first dimension.
        """
        if not isinstance(rows, (torch.Tensor, slice)):
            return self[torch.arange(len(self))[operator.index(rows)].view(1)][0]
        rows = torch.arange(len(self))[rows.cpu() if isinstance(rows, torch.Tensor) else rows]
        if self._kept is None:
            return self._make(rows)
        missing = rows[~self._made[rows]]
        if len(missing):
            self._kept[missing] = self._make(missing)
            self._made[missing] = True
        return self._kept[rows]

    def take(self, rows: torch.Tensor) -> Rows:
        """The samples `rows`, an int64 tensor, as Rows of their own that share what is kept."""
        return Rows(lambda chosen: self[rows[chosen]], len(rows), self.shape[1:], self.dtype)


def spread(data: torch.Tensor | Rows, count: int) -> torch.Tensor:
    """At most `count` rows of data, evenly over all of it, which is often sorted by class."""
    count = min(count, len(data))
    return data[torch.arange(count) * len(data) // count]
