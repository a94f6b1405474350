"""Distances of every pair of two sets of features, a chunk of rows at a time: memory is chunk x M, never N x M."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

_CHUNK = 512


class Nearest(NamedTuple):
    """distances [N, k], from the nearest on, and indices [N, k] of whom they lead to."""

    distances: torch.Tensor
    indices: torch.Tensor


def distances(a: torch.Tensor, b: torch.Tensor, chunk: int = _CHUNK) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, Euclidean distances [rows, M]) of a [N, F] to b [M, F], in float64.

    |a|^2 + |b|^2 - 2 a.b, with the mean of b taken off first: where both are equal up to 1e-7 of their spread stands 0.
    """
    centre = b.double().mean(0)
    a, b = a.double() - centre, b.double() - centre
    b_squares = b.square().sum(1)
    floor = 1e-14 * b_squares.mean()
    for start in range(0, len(a), chunk):
        rows = slice(start, min(start + chunk, len(a)))
        squares = torch.addmm(a[rows].square().sum(1, keepdim=True) + b_squares, a[rows], b.T, alpha=-2)
        yield rows, squares.where(squares > floor, 0).sqrt()


def nearest(a: torch.Tensor, b: torch.Tensor | None = None, k: int = 1) -> Nearest:
    """The k nearest points of b to each of a; without b, of the other points of a."""
    found = []
    for rows, block in distances(a, a if b is None else b):
        if b is None:
            block.diagonal(rows.start).fill_(torch.inf)
        found.append(block.topk(k, 1, largest=False))
    return Nearest(*map(torch.cat, zip(*found, strict=True)))
