"""Where and with what a measurement was made: no host name, no path, nothing but what explains a number."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import benchmarks
import vaefast
from vaefast.info import cpu_name

ROOT = Path(__file__).parents[1]


def machine(device: str) -> dict:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"cpu": cpu_name(), "cores": cores, "arch": platform.machine(), "system": platform.system()}
    facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
        }
    return facts


def slug(device: str) -> str:
    """The name of the machine's results: the processor that did the work, with its vectors, since some virtual machines
    call processors of several generations alike."""
    facts = machine(device)
    name = facts["gpu"] if device == "cuda" else f"{facts['cpu']} {facts['cores']} cores {facts['cpu_capability']}"
    return f"{device}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"


def versions() -> dict:
    try:
        import triton
    except ImportError:  # torch's CPU wheel brings none
        triton = None
    return {
        "vaefast": vaefast.__version__,
        "torch": torch.__version__,
        "triton": triton and triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def commit() -> dict:
    """The commit measured and whether the working tree differs from it; VAEFAST_COMMIT names it for a bare copy."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        # results of an earlier run do not change what this one measures
        changes = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": os.environ.get("VAEFAST_COMMIT", "unknown"), "dirty": None}


def measured(device: str) -> dict:
    """What every stored result begins with."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "machine": machine(device),
        "versions": versions(),
        **commit(),
        "date": now.strftime("%Y-%m-%dT%H:%MZ"),
    }


def environment() -> dict:
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE"),
        "keeps_freed_memory": benchmarks.keeps_freed_memory,
        "transparent_hugepage": re.search(r"\[(\w+)\]", pages.read_text())[1] if pages.exists() else None,
        "VAEFAST_BACKEND": os.environ.get("VAEFAST_BACKEND"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
