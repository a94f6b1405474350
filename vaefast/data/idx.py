"""idx files, the format of MNIST and Fashion-MNIST, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from vaefast.data.split import DataError, Split

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")


def read(path: Path) -> torch.Tensor:
    """The array in an idx file: two zero bytes, a type, the number of dimensions, their sizes, then the numbers, all
    big-endian.

    Raises:
        DataError: for a file that is no idx file, or is cut off.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path} is damaged: {error}") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise DataError(f"{path} is not an idx file: it begins with {content[:4].hex(' ')}")
    start = 4 + 4 * content[3]
    kind = np.dtype(_TYPES[content[2]])
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if len(content) >= start else ()
    expected = start + math.prod(shape) * kind.itemsize
    if len(content) != expected:
        raise DataError(f"{path} is damaged: {expected} bytes are due, and {len(content)} are there")
    array = np.frombuffer(content, kind, offset=start).reshape(shape)
    return torch.from_numpy(array.astype(kind.newbyteorder("=")))


def images(path: Path) -> torch.Tensor:
    """Grey images [N, 1, H, W] of an idx file with three dimensions; other arrays [N, ...] as they are. Bytes stay
    uint8, other numbers become float32.

    Raises:
        DataError: for an array of fewer than two dimensions, and as `read` does.
    """
    found = read(path)
    if found.ndim < 2:
        raise DataError(f"{path} must hold an array [N, ...], one sample per row, got shape {tuple(found.shape)}")
    found = found if found.dtype == torch.uint8 else found.float()
    return found[:, None] if found.ndim == 3 else found


def folder(path: Path) -> Split | None:
    """What MNIST's four files hold (train-images…, train-labels…, t10k-images…, t10k-labels…), None if there are none.

    Raises:
        DataError: for files that are missing or damaged.
    """
    found = {part: sorted(p for p in path.glob(f"{part}*") if p.is_file()) for part in _PARTS}
    if not any(found.values()):
        return None
    for part, files in found.items():
        if not files:
            raise DataError(f"{path} has idx files, but no {part}*")
    return Split(*(read(files[0]).long() if "labels" in part else images(files[0]) for part, files in found.items()))
