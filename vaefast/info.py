"""What runs here, and why not what does not: `vaefast.info()`, and the text of `vaefast info`."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import torch

from vaefast import _backends
from vaefast.ops._define import TABLE

DEVICE_TYPES = ("cpu", "cuda")


def versions() -> dict[str, str | None]:
    """Of the software, with the machine's names; triton and gpu are None where there is none."""
    import vaefast

    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "vaefast": vaefast.__version__,
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "gpu": ", ".join(gpus) or None,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def info() -> dict:
    """What `vaefast info` shows, as plain data.

    Returns:
        versions: of vaefast, torch, triton, python, and the names of platform, cpu and gpu.
        build: what the compiled module was built with, and the instruction set it runs; None where there is none.
        not_built: why there is none, else None.
        asked: the backend asked for by name (`use_backend`, VAEFAST_BACKEND), else None.
        ops: {op: {device type: {"chosen": backend, or None where the one asked for cannot run it,
            "why_not": {backend: None where it can run the op, else the reason}}}}.
    """
    from vaefast import _extension

    return {
        "versions": versions(),
        "build": _extension.facts(),
        "not_built": _extension.reason(),
        "asked": _backends.asked(),
        "ops": {name: {kind: _choice(op.density, kind) for kind in DEVICE_TYPES} for name, op in TABLE.items()},
    }


def _choice(density: str, device_type: str) -> dict:
    why_not = {backend: _backends.why_not(backend, density, device_type) for backend in _backends.NAMES}
    try:
        chosen = _backends.choose(density, device_type)
    except _backends.BackendError:
        chosen = None
    return {"chosen": chosen, "why_not": why_not}


def text(facts: dict) -> str:
    """The result of `info` for people."""
    v, build = facts["versions"], facts["build"]
    lines = [
        f"vaefast {v['vaefast']}, torch {v['torch']}, triton {v['triton'] or 'not installed'}, Python {v['python']}",
        f"machine   {v['platform']}; {v['cpu']}; GPU: {v['gpu'] or 'none'}",
        f"compiled  {facts['not_built'] if build is None else _build_text(build)}",
        f"backend   {facts['asked'] + ', asked for by name' if facts['asked'] else 'automatic'}",
    ]
    for device_type in DEVICE_TYPES:
        absent = " (no GPU here; what one would run)" if device_type == "cuda" and v["gpu"] is None else ""
        lines += ["", f"on {device_type} tensors{absent}", *_table(facts["ops"], device_type)]
    return "\n".join(lines)


def _build_text(build: dict) -> str:
    cuda = build["cuda"]
    return "; ".join(
        [
            f"{build['compiler']}, {'with' if build['openmp'] else 'without'} OpenMP",
            f"instruction sets {', '.join(build['instruction_sets'])} (here: {build['instruction_set']})",
            "no CUDA kernels" if cuda is None else f"{cuda['nvcc']} for sm_{', sm_'.join(cuda['architectures'])}",
        ]
    )


def _table(ops: dict, device_type: str) -> list[str]:
    """A row for each op, a column for each backend: used, could, or the number of the reason below."""
    reasons: list[str] = []

    def cell(choice: dict, backend: str) -> str:
        reason = choice["why_not"][backend]
        if reason is None:
            return "used" if choice["chosen"] == backend else "could"
        if reason not in reasons:
            reasons.append(reason)
        return f"no [{reasons.index(reason) + 1}]"

    width = max(map(len, ops))
    header = "".join(f"{backend:>11}" for backend in _backends.NAMES)
    rows = [
        f"{name:<{width}}" + "".join(f"{cell(choices[device_type], backend):>11}" for backend in _backends.NAMES)
        for name, choices in ops.items()
    ]
    return [" " * width + header, *rows, *[f"[{i}] {reason}" for i, reason in enumerate(reasons, 1)]]
