"""Data to train on and data held out."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vaefast.data.rows import Rows


class DataError(ValueError):
    """Data that is not there, or cannot be read; the message names the file and what is missing."""


class Split(NamedTuple):
    """Samples [N, ...], images uint8 [N, C, H, W], as a tensor or Rows, and their labels int64 [N] (of sprites
    [N, 5]), None where there are none; `test` is never trained on."""

    train: torch.Tensor | Rows
    train_labels: torch.Tensor | None
    test: torch.Tensor | Rows
    test_labels: torch.Tensor | None


def take(data: torch.Tensor | Rows, rows: torch.Tensor) -> torch.Tensor | Rows:
    return data.take(rows) if isinstance(data, Rows) else data[rows]


def hold_out(data: torch.Tensor | Rows, labels: torch.Tensor | None, share: float) -> Split:
    """Split off a random `share` of the samples, the same ones at every call.

    Raises:
        DataError: for a share that leaves nothing on one side.
    """
    count = round(share * len(data))
    if not 0 < count < len(data):
        raise DataError(f"held_out must leave samples on both sides, got {share} of {len(data)} samples")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    test, train = order[:count].sort().values, order[count:].sort().values
    sides = [(take(data, rows), None if labels is None else labels[rows]) for rows in (train, test)]
    return Split(*sides[0], *sides[1])


def limited(split: Split, count: int) -> Split:
    """At most `count` samples to train on, and the same share of those held out, at least one; the same at every
    call."""
    share = min(count / len(split.train), 1.0)
    parts: list = []
    for data, labels in (split[:2], split[2:]):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
        rows = order[: max(1, round(share * len(data)))].sort().values
        parts += [take(data, rows), None if labels is None else labels[rows]]
    return Split(*parts)
