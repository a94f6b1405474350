"""Data sets by name, from torchvision and Hugging Face's datasets, where these are installed."""

from __future__ import annotations

import inspect

import torch

from vaefast.data.images import decoded
from vaefast.data.split import DataError, Split, hold_out


def torchvision(name: str, *, root: str = "data", download: bool = False, **options) -> Split:
    """`torchvision.datasets.<name>`, its training and test parts.

    Args:
        root: the folder of its files.
        download: get them there first.
        options: as for `images.decoded`.

    Raises:
        DataError: without torchvision, for a name that it does not have, or files that are not there.
    """
    try:
        from torchvision import datasets
    except ImportError:
        raise DataError(f"torchvision:{name} needs the package torchvision: pip install torchvision") from None
    make = getattr(datasets, name, None)
    if not inspect.isclass(make):
        raise DataError(f"torchvision has no data set {name!r}")
    takes = inspect.signature(make).parameters
    sides = [{"train": True}, {"train": False}] if "train" in takes else [{"split": "train"}, {"split": "test"}]
    if "download" in takes:
        sides = [{**side, "download": download} for side in sides]
    try:
        parts = [make(root, **side) for side in sides]
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise DataError(f"torchvision:{name} in {root!r}: {error} (download=true gets the files)") from None
    found: list = []
    for part, side in zip(parts, ("train", "test"), strict=True):
        labels = getattr(part, "targets", None)
        names = [f"{name} {side} {i}" for i in range(len(part))]
        found += [
            decoded(lambda i, part=part: part[i][0], names, **options),
            None if labels is None else torch.as_tensor(labels, dtype=torch.int64),
        ]
    return Split(*found)


def hugging_face(
    name: str, *, config: str | None = None, image: str | None = None, held_out: float = 0.1, **options
) -> Split:
    """A data set of images of `datasets.load_dataset`: its parts train and test (or validation), where it has them.

    Args:
        config: its configuration.
        image: the column of images; None for the first that holds any.
        held_out: the share to hold out where there is one part only.
        options: as for `images.decoded`.

    Raises:
        DataError: without the package, for a data set that cannot be loaded, or one without images.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"hf:{name} needs the package datasets: pip install datasets") from None
    try:
        parts = datasets.load_dataset(name, config)
    except Exception as error:  # of many kinds: the network's, the hub's, the script's
        raise DataError(f"hf:{name}: {error}") from error
    train = parts["train"] if "train" in parts else next(iter(parts.values()))
    test = next((parts[side] for side in ("test", "validation") if side in parts and parts[side] is not train), None)
    columns = [c for c, kind in train.features.items() if isinstance(kind, datasets.Image) and image in (None, c)]
    if not columns:
        asked = "images" if image is None else f"images in a column {image!r}"
        raise DataError(f"hf:{name} has no {asked}; its columns are {', '.join(train.features)}")
    sides = [_side(name, part, columns[0], options) for part in (train, test) if part is not None]
    return hold_out(*sides[0], held_out) if test is None else Split(*sides[0], *sides[1])


def _side(name: str, part, column: str, options: dict):
    names = [f"{name} {i}" for i in range(len(part))]
    labels = torch.tensor(part["label"], dtype=torch.int64) if "label" in part.features else None
    return decoded(lambda i: part[i][column], names, **options), labels
