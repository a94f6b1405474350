"""Files that are either the old ones or the new ones, never half of one."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch


def write(path: str | os.PathLike, content: bytes) -> None:
    """Replace the file at `path` in one step: a crash, at any moment, leaves the old content or the new.

    Written beside it, flushed to the disk, renamed over it, and the rename flushed too.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file did not fit
        raise
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def content(save: Callable[[BinaryIO], object]) -> bytes:
    """What `save` writes to the file that it is given."""
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def write_json(path: str | os.PathLike, value: object) -> None:
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def save(path: str | os.PathLike, model: torch.nn.Module, metadata: dict[str, str] | None = None) -> None:
    """The model's state dict, and text that goes with it, as safetensors, written in one step."""
    from safetensors.torch import save as to_bytes

    write(path, to_bytes({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, metadata))


def read(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(state dict, metadata) that `save` wrote, on the CPU. Nothing in the file is executed.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
