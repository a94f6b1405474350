"""The compiled CPU walk beyond this machine: other compilers, and aarch64 where a cross-compiler and qemu are."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from vaefast.reference import gaussian, noise

ROOT = Path(__file__).parents[1]
SEED = (81985529216486895, 30064771077)
ROWS, COLS = 5, 50
COMPILERS = {  # name: (compiler and options, what runs the program)
    "g++": (["g++"], []),
    "clang++": (["clang++"], []),
    "aarch64": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64"]),
}


@pytest.mark.parametrize("name", COMPILERS)
def test_walks_compile_without_warnings_and_makes_the_same_bits(name, tmp_path):
    compiler, runner = COMPILERS[name]
    if shutil.which(compiler[0]) is None or (runner and shutil.which(runner[0]) is None):
        pytest.skip(f"no {compiler[0]}" + (f" or no {runner[0]}" if runner else ""))
    flags = "-std=c++17 -O2 -Wall -Wextra -Werror -Wno-psabi -Wno-unknown-pragmas -ffp-contract=off -fno-math-errno"
    sources = map(str, [ROOT / "tests/cpu/draw.cpp", *sorted((ROOT / "csrc/cpu").glob("*.cpp"))])
    program = str(tmp_path / "draw")
    subprocess.run(
        [*compiler, *flags.split(), "-DVAEFAST_ISA=baseline", f"-I{ROOT / 'csrc'}", *sources, "-o", program], check=True
    )
    run = subprocess.run([*runner, program, *map(str, SEED)], capture_output=True, text=True, check=True)
    words = run.stdout.split()

    eps = noise.standard_normal(torch.tensor(SEED), (ROWS, COLS))
    size = ROWS * COLS
    assert [int(w) for w in words[:size]] == [b & 0xFFFFFFFF for b in eps.view(torch.int32).flatten().tolist()]

    index = torch.arange(size, dtype=torch.float32).reshape(ROWS, COLS)
    mu, logvar = (index / 100 - 1).double(), (1 - index / 80).double()
    z, kl = gaussian.rsample_kl(mu, logvar, eps.double(), 1, -math.inf, math.inf)
    got = torch.tensor([float(w) for w in words[size:]], dtype=torch.float64)
    torch.testing.assert_close(got[:size].view(ROWS, COLS), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got[size:], kl, rtol=1e-6, atol=0)
