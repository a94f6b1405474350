"""Sprites with known factors, drawn when they are asked for: the grid of factors of dSprites (Matthey et al. 2017)."""

from __future__ import annotations

import math

import torch

from vaefast.data.rows import Rows

SIZE = 64  # pixels
FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}  # 737,280 combinations; the last varies fastest
SHAPES = ("square", "ellipse", "heart")
_MARGIN = 15.5  # from the edge to the outermost centres: no sprite is cut


class Sprites(Rows):
    """All 737,280 white shapes on black, uint8 [N, 1, 64, 64] of 0 and 255; sample n has the factors of row n.

    shape: square, ellipse or heart; scale: 0.5, 0.6 … 1; orientation: 40 steps of a full turn; x, y: 32 places each.
    A square looks the same after a quarter of a turn and an ellipse after half, as in dSprites.
    """

    def __init__(self):
        super().__init__(self._draw, math.prod(FACTORS.values()), (1, SIZE, SIZE))

    def factors(self, rows: torch.Tensor) -> torch.Tensor:
        """The factors' indices of samples `rows` [n]: int64 [n, 5], in the order of FACTORS."""
        found = []
        for size in reversed(FACTORS.values()):
            found.append(rows % size)
            rows = rows // size
        return torch.stack(found[::-1], 1)

    def _draw(self, rows: torch.Tensor) -> torch.Tensor:
        shape, scale, orientation, x, y = self.factors(rows).to(torch.float32).T[..., None, None]  # each [n, 1, 1]
        scale = 0.5 + scale / 10
        angle = orientation * (2 * math.pi / FACTORS["orientation"])
        step = (SIZE - 1 - 2 * _MARGIN) / (FACTORS["x"] - 1)
        pixels = torch.arange(SIZE, dtype=torch.float32)
        across = (pixels[None, None, :] - _MARGIN - step * x) / scale  # [n, 1, 64]
        down = (pixels[None, :, None] - _MARGIN - step * y) / scale  # [n, 64, 1]
        u = angle.cos() * across + angle.sin() * down  # [n, 64, 64], the sprite's own axes, in pixels at scale 1
        v = angle.cos() * down - angle.sin() * across
        square = (u.abs() <= 9.0) & (v.abs() <= 9.0)
        ellipse = (u / 13.0) ** 2 + (v / 6.5) ** 2 <= 1
        p, q = u / 10.0, -v / 10.0 + 0.1
        heart = (p**2 + q**2 - 1) ** 3 <= p**2 * q**3
        inside = torch.where(shape == 0, square, torch.where(shape == 1, ellipse, heart))
        return inside[:, None].to(torch.uint8) * 255
