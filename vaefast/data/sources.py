"""One name for all kinds of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from vaefast import _options
from vaefast.data import arrays, idx, images, named
from vaefast.data.digits import digits
from vaefast.data.split import DataError, Split, hold_out, limited
from vaefast.data.sprites import Sprites

_NAMED = {"torchvision": named.torchvision, "hf": named.hugging_face}
_FILES = {".npy": arrays.npy, ".npz": arrays.npz, ".h5ad": arrays.h5ad}


def load(spec: str, *, held_out: float = 0.1, limit: int | None = None, **options) -> Split:
    """Data to train on and data held out.

    Args:
        spec: "digits"; "sprites"; a folder of images, with classes as folders in it, or of MNIST's idx files; an idx
            file, plain or gzipped; a .npy, .npz or .h5ad file; "torchvision:NAME"; "hf:NAME".
        held_out: the share to hold out, of data that does not come in two parts.
        limit: train on so many samples at most, the same ones every time.
        options: of the kind: size, crop and channels of images (`images.decoded`), key of .npz, layer and labels of
            .h5ad, root and download of torchvision, config and image of hf.

    Raises:
        DataError: for data that is not there or cannot be read, parts that do not belong together, a package that is
            missing, or an option that this kind does not take.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}")
    found = _load(spec, held_out, options)
    if isinstance(found, (torch.Tensor, images.Rows)):
        found = (found, None)
    split = found if isinstance(found, Split) else hold_out(*found, held_out)
    _check(spec, split)
    return split if limit is None else limited(split, limit)


def _check(spec: str, split: Split) -> None:
    """Refuse parts that are empty, or do not belong together."""
    for what, samples, labels in (("to train on", *split[:2]), ("held out", *split[2:])):
        if len(samples) == 0:
            raise DataError(f"{spec} has no samples {what}")
        if labels is not None and len(labels) != len(samples):
            raise DataError(f"{spec}: there are {len(labels)} labels of {len(samples)} samples {what}")
    train, test = (tuple(samples.shape[1:]) for samples in (split.train, split.test))
    if train != test:
        raise DataError(f"{spec}: the samples to train on have the shape {train}, and those held out {test}")


def _load(spec: str, held_out: float, options: dict):
    kind, _, name = spec.partition(":")
    if spec == "digits":
        return _call(spec, digits, options)
    if spec == "sprites":
        return _call(spec, _sprites, options)
    if kind in _NAMED and name:
        more = {"held_out": held_out} if kind == "hf" else {}
        return _call(spec, _NAMED[kind], options, name, also=images.decoded, **more)
    path = Path(spec)
    if not path.exists():
        raise DataError(
            f"there is no data {spec!r}: no such file or folder, and not digits, sprites, torchvision:… or hf:…"
        )
    if path.is_dir():
        found = idx.folder(path)
        return _call(spec, images.folder, options, path, also=images.decoded) if found is None else found
    return _call(spec, _FILES.get(path.suffix, idx.images), options, path)


def _sprites() -> tuple[Sprites, torch.Tensor]:
    sprites = Sprites()
    return sprites, sprites.factors(torch.arange(len(sprites)))


def _call(spec: str, function: Callable, options: dict, *arguments, also: Callable | None = None, **more):
    """function(*arguments, **options), after a look at the options' names."""
    there_are = {}
    for each in (function, also, load):
        there_are |= {} if each is None else _options.taken(each, keyword_only=True)
    try:
        _options.check(f"data {spec!r}", options, there_are)
    except TypeError as error:
        raise DataError(str(error)) from None
    return function(*arguments, **options, **more)
