"""What the pages of studies are made of: numbers with intervals over seeds, lines of tables, images as text."""

from __future__ import annotations

import base64
import math
import statistics
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch

from vaefast import checkpoint

_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # 97.5 % quantile by number of values


def write(path: Path, page: str, pictures: dict[str, bytes]) -> None:
    """A page, and beside it the pictures that it shows."""
    for name, content in pictures.items():
        checkpoint.write(path.with_name(name), content)
    checkpoint.write(path, page.encode())
    print(f"written: {path}", file=sys.stderr)


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def number(value: float, digits: int = 3) -> str:
    """So many digits, and never an exponent."""
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0
    return f"{value:.{places}f}"


def half(values: list[float]) -> float:
    """Half the 95 % interval of the mean (Student's t)."""
    quantile = _T[max(n for n in _T if n <= max(len(values), 2))]
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def sign(gaps: list[float]) -> int:
    """1 or -1 where every seed's gap has this sign and the 95 % interval of their mean leaves out 0; otherwise, and of
    a single seed, 0."""
    if len(gaps) < 2 or min(gaps) * max(gaps) <= 0 or abs(statistics.fmean(gaps)) <= half(gaps):
        return 0
    return 1 if gaps[0] > 0 else -1


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and half its 95 % interval; of two values or one, themselves; of equal ones, their value."""
    if len(values) < 3 or len(set(values)) == 1:
        return " / ".join(number(v, digits) for v in dict.fromkeys(values))
    return f"{number(statistics.fmean(values), digits)} ± {number(half(values), 2)}"


def png(figure) -> bytes:
    return checkpoint.content(lambda file: figure.savefig(file, format="png", dpi=110))


def strip(ax, text: str, width: int) -> None:
    """Draw a row of images that `packed` made."""
    ax.imshow(unpacked(text, width).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set(xticks=[], yticks=[])


def packed(images: torch.Tensor) -> str:
    """uint8 images [N, 1, H, W] in a row [H, N W], as text that JSON can hold."""
    return base64.b64encode(zlib.compress(torch.cat(list(images[:, 0]), 1).numpy().tobytes(), 9)).decode()


def unpacked(text: str, width: int) -> torch.Tensor:
    """The row of images again, [H, width]."""
    row = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=torch.uint8)
    return row.view(-1, width)
