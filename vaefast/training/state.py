"""What resuming needs, in one file that nothing executes: tensors as safetensors, the rest as JSON in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from vaefast import checkpoint

_PLAIN = (bool, int, float, str, type(None))


def write(path: str | os.PathLike, value: object, metadata: dict[str, str] | None = None) -> None:
    """Replace the file at `path` by `value`: dicts, lists and tuples, nested, of tensors, numbers, strings and None.

    Every bit is kept, and so are strides. In one step, as `checkpoint.write`; the folder is made if it is not there.

    Raises:
        TypeError: for a value of another kind. OSError: if it cannot be written; the old file is intact then.
    """
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.dumps(_pack(value, tensors, "state"))
    content = save(tensors, {**(metadata or {}), "skeleton": skeleton})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(path, content)


def read(path: str | os.PathLike) -> tuple[object, dict[str, str]]:
    """(value, metadata) that `write` was given, tensors on the CPU.

    Raises:
        OSError, ValueError: if there is no such file, or it is not whole.
    """
    tensors, metadata = checkpoint.read(path)
    try:
        skeleton = json.loads(metadata.pop("skeleton"))
        return _unpack(skeleton, tensors), metadata
    except (KeyError, json.JSONDecodeError):
        raise ValueError(f"{path} is not the state of a training run") from None


def _pack(value, tensors: dict[str, torch.Tensor], where: str):
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        copy = value.detach().to("cpu", copy=True)  # no two may share memory
        tensors[name] = copy.contiguous()
        # torch's fused optimizers take a moment's numbers in the order in which its weight's lie in memory
        return {"tensor": [name, *copy.stride()]}
    if isinstance(value, dict):  # as pairs, for keys that are no strings
        return {"dict": [[_pack(k, tensors, where), _pack(v, tensors, f"{where}.{k}")] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(v, tensors, f"{where}.{i}") for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if type(value) not in _PLAIN:
        raise TypeError(f"{where} must be a tensor, a number, a string, None or a collection of them, got {value!r}")
    return value


def _unpack(value, tensors: dict[str, torch.Tensor]):
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        name, *stride = content
        return torch.empty_strided(tensors[name].shape, stride, dtype=tensors[name].dtype).copy_(tensors[name])
    if kind == "tuple":
        return tuple(_unpack(v, tensors) for v in content)
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}


def generators(device: torch.device) -> list[torch.Tensor]:
    """The states of PyTorch's default generators: the CPU's, and that of `device` if it is a GPU."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_generators(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
