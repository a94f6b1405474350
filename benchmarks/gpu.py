"""The one command for a machine with an NVIDIA GPU: build, test, measure, report.

python -m benchmarks.gpu [--output FOLDER] [--quick] [--rehearse]

It needs this checkout, Python with torch, triton, setuptools, ninja, pytest and pytest-benchmark (hypothesis for some
tests, matplotlib for the plot), a C++ compiler and nvcc; no network, and it installs nothing. pybind11 may be missing:
torch brings its headers. Every step runs even if one before it failed (without a compiled module the Triton kernels are
still tested and measured); the summary at the end tells, and so does the exit status.

Results go to FOLDER (default benchmarks/results): the JSON, its PNG, gpu-report.md, and gpu.log with all output.
VAEFAST_COMMIT names the commit where the checkout travelled without its .git.

--rehearse goes through the same steps on a machine without a GPU: it builds into a temporary folder, the tests of the
GPU skip themselves, the benchmarks run quick and on the CPU, and nothing stays.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import facts

ROOT = facts.ROOT


@contextlib.contextmanager
def importable_kernels() -> Iterator[None]:
    """vaefast.kernels as an install would place it: for the time of the run, vaefast/kernels links to kernels/.

    An editable install maps the two by itself, and then nothing is linked. The link (ignored by git) changes neither
    the environment nor sys.path, and every process that starts in the checkout sees it.
    """
    command = [
        sys.executable,
        "-c",
        "import importlib.util as u; raise SystemExit(u.find_spec('vaefast.kernels') is None)",
    ]
    link = ROOT / "vaefast" / "kernels"
    if subprocess.run(command, cwd=ROOT, check=False).returncode == 0:
        yield
        return
    link.symlink_to(Path("..", "kernels"), target_is_directory=True)
    try:
        yield
    finally:
        link.unlink()


class Steps:
    """Commands run one after another from the checkout, their output shown and kept in one log."""

    def __init__(self, log: Path, environment: dict[str, str]):
        self.log, self.environment = log, {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self.done: list[tuple[str, int, float]] = []

    def run(self, name: str, *command: str, save: Path | None = None) -> None:
        """Run it; with `save`, its standard output is also kept there."""
        started = time.monotonic()
        self.say(f"\n=== {name}: {shlex.join(command)}\n")
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        output = []
        for line in process.stdout:
            output.append(line)
            self.say(line)
        if save is not None:
            save.write_text("".join(output))
        self.done.append((name, process.wait(), time.monotonic() - started))

    def say(self, text: str) -> None:
        print(text, end="", flush=True)
        with self.log.open("a") as log:
            log.write(text)

    def summary(self) -> int:
        self.say("\n=== summary\n")
        for name, status, seconds in self.done:
            self.say(f"{'ok' if status == 0 else f'FAILED ({status})':12} {name} ({seconds:.0f} s)\n")
        return int(any(status for _, status, _ in self.done))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="a few rounds of each benchmark")
    parser.add_argument("--rehearse", action="store_true", help="the same steps without a GPU; nothing stays")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("PyTorch sees no NVIDIA GPU here; --rehearse goes through the steps without one")
    with contextlib.ExitStack() as stack:
        python = sys.executable
        build = [python, "setup.py", "build_ext"]
        if options.rehearse:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            device, quick, environment = "cpu", True, {}
            build += ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
            print("Rehearsal: on a GPU machine the build is in place, and the benchmarks run with --device cuda.")
        else:
            folder, device, quick = options.output.resolve(), "cuda", options.quick
            major, minor = torch.cuda.get_device_capability()
            # this machine's GPU only: a third of the time that a release takes
            environment = {"VAEFAST_BUILD": "cuda", "VAEFAST_CUDA_ARCHS": f"{major}{minor}"}
            build += ["--inplace"]
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(importable_kernels())
        steps = Steps(folder / "gpu.log", environment)
        results = folder / f"{facts.slug(device)}.json"
        steps.run("build", *build)
        steps.run("info", python, "-m", "vaefast", "info")
        steps.run("tests", python, "-m", "pytest", "-m", "gpu", "tests")
        run = ["-m", "benchmarks.run", "--device", device, "--output", str(results)]
        steps.run("benchmarks", python, *run, *["--quick"] * quick)
        steps.run("report", python, "-m", "benchmarks.report", str(results), save=folder / "gpu-report.md")
        return steps.summary()


if __name__ == "__main__":
    sys.exit(main())
