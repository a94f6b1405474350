"""Images in a folder, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from vaefast.data.rows import Rows
from vaefast.data.split import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "vaefast-images")  # starts none before it is used


def folder(path: Path, **options) -> tuple[Rows, torch.Tensor | None]:
    """All images in `path` and the folders in it, and their classes: the names of these folders, in order.

    Args:
        options: as for `decoded`.

    Returns:
        (uint8 [N, C, H, W], labels int64 [N], or None where images lie in `path` itself).

    Raises:
        DataError: where there is no image, or the first cannot be read; later ones raise when they are decoded.
    """
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{path} holds no image ({', '.join(SUFFIXES)}) and no idx files")

    kinds = [file.relative_to(path).parts[:-1] for file in files]
    names = sorted({kind[0] for kind in kinds if kind})
    labels = torch.tensor([names.index(kind[0]) for kind in kinds]) if all(kinds) else None
    return decoded(lambda i: read(files[i]), [str(file) for file in files], **options), labels


def read(file: Path):
    """The Pillow image in a file, decoded."""
    from PIL import Image

    with Image.open(file) as image:
        image.load()
        return image


def decoded(
    read: Callable[[int], object],
    names: Sequence[str],
    *,
    size: int | None = None,
    crop: bool = True,
    channels: int | None = None,
) -> Rows:
    """Rows of the images that `read` gives.

    Args:
        read: i -> the PIL image of names[i].
        names: what errors call them.
        size: the height and width to bring images to; None to leave them, which then must have one size.
        crop: to get there, scale the shorter side and cut the longer one; False to stretch.
        channels: 1 for grey, 3 for RGB; None for what the first image has.

    Raises:
        DataError: names the image that cannot be read, or that has another size.
    """
    from PIL import Image

    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
    if size is not None and not 1 <= size <= 2**14:
        raise DataError(f"size must be from 1 to {2**14} pixels, got {size}")

    def image(i: int):
        try:
            return read(i)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's for files that are no images, or are damaged
            raise DataError(f"cannot read the image {names[i]}: {error}") from None

    first = image(0)
    channels = channels or (1 if Image.getmodebase(first.mode) == "L" else 3)
    width, height = first.size if size is None else (size, size)

    def pixels(i: int) -> torch.Tensor:
        found = _fit(eight_bits(image(i), channels), size, crop)
        if found.size != (width, height):
            raise DataError(
                f"the image {names[i]} has {found.size[0]}x{found.size[1]} pixels, and others {width}x{height}: "
                "give a size"
            )
        flat = torch.frombuffer(bytearray(found.tobytes()), dtype=torch.uint8)
        return flat.view(height, width, channels).movedim(2, 0)

    def make(rows: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(_threads.map(pixels, rows.tolist())))

    return Rows(make, len(names), (channels, height, width), keep=True)


def _fit(image, size: int | None, crop: bool):
    from PIL import Image, ImageOps

    if size is None:
        return image
    if crop:
        return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def eight_bits(image, channels: int):
    """A Pillow image as grey (1 channel) or RGB (3). 16-bit grey is scaled: Pillow's own conversion clips it."""
    image = image.point(lambda level: level / 256).convert("L") if image.mode.startswith("I") else image
    return image.convert("L" if channels == 1 else "RGB")
