"""What several commands read from their user: runs, images, numbers; and the error that names what is wrong."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from vaefast import sampling
from vaefast.data.images import SUFFIXES, eight_bits, read
from vaefast.runs import Run

RUN_NEEDS = {"PIL": "pillow", "safetensors": "safetensors", "mlxtend": "mlxtend"}  # by import name, the packages


class CommandError(Exception):
    """What went wrong, in one line; `code` is the exit code: 2 for bad input, 1 for a command that failed."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


def need(what: str, modules: dict[str, str]) -> None:
    """Refuse where a module is missing; `modules`: {import name: package}.

    Raises:
        CommandError: names the packages and the command that installs them.
    """
    missing = [package for name, package in modules.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f'{what} needs {", ".join(missing)}: pip install "vaefast[train]"')


def add_run(parser: argparse.ArgumentParser) -> None:
    """The argument RUN."""
    parser.add_argument("run", metavar="RUN", help="the folder that `vaefast train` made, such as runs/digits")


def opened(folder: str, what: str) -> Run:
    """The run of which `what` is made; refuses as `need` and `Run` do."""
    need(what, RUN_NEEDS)
    return Run(folder)


def at_least(low: int, high: int | None = None):
    """An argparse type: a whole number from `low` on, to `high` where there is one."""

    def whole(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        if high is not None and value > high:
            raise argparse.ArgumentTypeError(f"must be at most {high}, got {value}")
        return value

    whole.__name__ = "whole number"
    return whole


def positive(text: str) -> float:
    """An argparse type: a number above 0, below infinity."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


positive.__name__ = "number"


def images(paths: Sequence[str], data_shape: Sequence[int], resize: bool) -> torch.Tensor:
    """Image files, and those directly in folders, as uint8 [N, C, H, W] of a model's `data_shape` (C, H, W).

    Grey or colour is the model's; another size is refused, or scaled (bicubic) with `resize`.

    Raises:
        CommandError: for what is missing, no image, or of another size.
    """
    import numpy as np
    from PIL import UnidentifiedImageError

    channels, height, width = data_shape
    files = [file for path in paths for file in _files(Path(path))]
    found = []
    for file in files:
        try:
            picture = eight_bits(read(file), channels)
        except UnidentifiedImageError:
            raise CommandError(f"{file} is not an image that Pillow can read") from None
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's for damaged files
            raise CommandError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
        if picture.size != (width, height):
            if not resize:
                size = "x".join(map(str, picture.size))
                raise CommandError(f"{file} is {size}, but the model takes {width}x{height}; --resize scales it")
            picture = picture.resize((width, height))
        found.append(torch.from_numpy(np.array(picture)).view(height, width, channels).movedim(-1, 0))
    return torch.stack(found)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise CommandError(f"there is no {path}")
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise CommandError(f"the folder {path} holds no images ({', '.join(SUFFIXES)})")
    return found


def make_folder(path: str | os.PathLike) -> Path:
    """`path`, made with its parents if it is not there.

    Raises:
        CommandError: if it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make the folder {path}: {error.strerror}") from None
    return Path(path)


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """The option --sampler."""
    parser.add_argument(
        "--sampler",
        choices=sampling.CHOICES,
        metavar="NAME",
        help=f"where latents come from: {sampling.PRIOR}, the model's own; or, fitted to the training data first, "
        f"{', '.join(sampling.NAMES)} (what the run was trained with, {sampling.PRIOR} by default)",
    )


def fitted_sampler(run: Run, name: str, seed: int) -> sampling.Sampler | None:
    """The sampler of --sampler, fitted to what the run was trained on; None for the model's own prior.

    Raises:
        CommandError: for one that is not meant for this model or this data.
    """
    try:
        return run.sampler(name, seed)
    except (TypeError, ValueError) as error:
        raise CommandError(f"--sampler {name}: {error}") from None
