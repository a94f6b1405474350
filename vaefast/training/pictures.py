"""Pictures of a run, as the bytes of PNG files."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vaefast import checkpoint
from vaefast.nn import unit

_GAP = 2  # pixels between the images of a grid
_SCALE = 2


def grid(images: torch.Tensor, columns: int) -> bytes:
    """Images [N, C, H, W], C = 1 or 3, levels in [0, 1] or uint8, row by row on a white ground."""
    from PIL import Image

    levels = (unit(images).clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    count, channels, height, width = levels.shape
    rows = -(-count // columns)
    sheet = torch.full((channels, rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP), 255).to(torch.uint8)
    for i, image in enumerate(levels):
        top, left = (_GAP + n * (size + _GAP) for n, size in zip(divmod(i, columns), (height, width), strict=True))
        sheet[:, top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.movedim(0, -1).squeeze(-1).numpy())
    picture = picture.resize((_SCALE * picture.width, _SCALE * picture.height), 0)
    return checkpoint.content(lambda file: picture.save(file, "png"))


def reconstructions(images: torch.Tensor, reconstructed: torch.Tensor, columns: int) -> bytes:
    """A grid whose rows alternate: originals, and below them their reconstructions. Both [N, C, H, W]."""
    blank = reconstructed.new_ones(-len(images) % columns, *images.shape[1:])  # so that no row holds both
    images, reconstructed = (torch.cat([x.to(blank), blank]) for x in (unit(images), reconstructed))
    pairs = zip(images.split(columns), reconstructed.split(columns), strict=True)
    return grid(torch.cat([row.to(reconstructed) for pair in pairs for row in pair]), columns)


def curves(history: Sequence[dict[str, dict[str, float]]]) -> bytes:
    """Each loss part by epoch, training and held-out, from a Trainer's history."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    parts = list(history[0]["train"])
    figure = Figure(figsize=(4 * len(parts), 3.2), layout="constrained")
    epochs = range(1, len(history) + 1)
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        for split in history[0]:
            if part in history[0][split]:  # a critic's are of the training alone
                axes.plot(epochs, [row[split].get(part) for row in history], label=split)
        axes.set(title=part, xlabel="epoch", ylabel="nats per sample")
        axes.grid(alpha=0.3)
        axes.legend()
    return checkpoint.content(lambda file: figure.savefig(file, format="png", dpi=120))
