"""Sets of images: tensors, or folders that are read a chunk at a time."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from vaefast.data.images import SUFFIXES, eight_bits, read
from vaefast.nn import unit

_ROUNDING = 1e-3  # how far past 0 and 1 floats may lie and still be taken for images


class Folder:
    """The images of a folder, in the order of their names: folder[rows] reads them as uint8 [n, C, H, W].

    Raises:
        FileNotFoundError: for a folder without images.
        ValueError: on reading, for an image of another shape than the first.
    """

    def __init__(self, path: str | os.PathLike):
        self.files = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in SUFFIXES)
        if not self.files:
            raise FileNotFoundError(f"{path} holds no image ({', '.join(SUFFIXES)})")
        self.shape = len(self.files), *self._read(self.files[0]).shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        files = self.files[rows] if isinstance(rows, slice) else [self.files[i] for i in rows.tolist()]
        return torch.stack([self._checked(file) for file in files])

    def _checked(self, file: Path) -> torch.Tensor:
        image = self._read(file)
        if image.shape != self.shape[1:]:
            raise ValueError(f"{file} is {list(image.shape)}, the first image of the folder {list(self.shape[1:])}")
        return image

    @staticmethod
    def _read(file: Path) -> torch.Tensor:
        import numpy as np
        from PIL import Image

        image = read(file)
        levels = torch.from_numpy(np.array(eight_bits(image, 1 if Image.getmodebase(image.mode) == "L" else 3)))
        return levels.unsqueeze(0) if levels.ndim == 2 else levels.permute(2, 0, 1)


def as_images(source) -> torch.Tensor | Folder:
    """`source` as something with a length and rows: a tensor [N, C, H, W] with C 1 or 3, uint8 or floats in [0, 1]; a
    Folder; or the path of a folder of images of one size.

    Raises:
        TypeError, ValueError: for anything else. FileNotFoundError: for a folder without images.
    """
    if isinstance(source, (str, os.PathLike)):
        return Folder(source)
    if not isinstance(source, (torch.Tensor, Folder)):
        raise TypeError(f"images must be a tensor or the path of a folder, got {type(source).__name__}")
    shape = source.shape
    if len(shape) != 4 or shape[0] < 2 or shape[1] not in (1, 3):
        raise ValueError(f"images must be [N, 1 or 3, H, W] with N >= 2, got {list(shape)}")
    return source


def unit_images(x: torch.Tensor) -> torch.Tensor:
    """A chunk of images as float32 in [0, 1].

    Raises:
        ValueError: for floats that lie elsewhere, such as in -1...1.
    """
    x = unit(x)
    low, high = x.aminmax()
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise ValueError(f"images must be uint8 or lie in [0, 1], got values from {low:.3g} to {high:.3g}")
    return x.clamp(0, 1)


def levels(x: torch.Tensor) -> torch.Tensor:
    """What a decoder says, as images are stored: clamped to [0, 1] and rounded to uint8.

    Raises:
        ValueError: for NaN, which has no level.
    """
    if x.isnan().any():
        raise ValueError("images must be numbers, got NaN among them")
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)
