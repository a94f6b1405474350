"""What the pages of studies are made of: numbers with intervals over seeds, lines of tables, images as text."""

from __future__ import annotations

import base64
import io
import math
import statistics
import zlib

import torch

_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # 97.5 % quantile by number of values


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def number(value: float, digits: int = 3) -> str:
    """So many digits, and never an exponent."""
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0
    return f"{value:.{min(places, digits)}f}"


def half(values: list[float]) -> float:
    """Half the 95 % interval of the mean (Student's t)."""
    quantile = _T[max(n for n in _T if n <= max(len(values), 2))]
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and half its 95 % interval; of two values or one, themselves."""
    if len(values) < 3:
        return " / ".join(number(v, digits) for v in values)
    return f"{number(statistics.fmean(values), digits)} ± {number(half(values), 2)}"


def png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def packed(images: torch.Tensor) -> str:
    """uint8 images [N, 1, H, W] in a row [H, N W], as text that JSON can hold."""
    return base64.b64encode(zlib.compress(torch.cat(list(images[:, 0]), 1).numpy().tobytes(), 9)).decode()


def unpacked(text: str, width: int) -> torch.Tensor:
    """The row of images again, [H, width]."""
    row = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=torch.uint8)
    return row.view(-1, width)
