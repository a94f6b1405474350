"""Builds the one compiled module, vaefast._C, with ninja. It holds no PyTorch header, so it serves every torch.

VAEFAST_BUILD = auto (default): CPU kernels where a C++ compiler works, CUDA kernels where nvcc works; what cannot be
                built is left out and named.
                cpu | cuda: these kernels, or the build fails.
                none: no compiled module.
VAEFAST_CUDA_ARCHS: compute capabilities, default "80;90;100".
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized"]
# noise: no multiply-add may be contracted, and a square root that can set errno does not vectorise
EXACT = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# csrc/cpu/rows.cpp is compiled once per instruction set; the module picks one at run time
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mf16c", "-mfma"],
    "avx512": [
        "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mf16c", "-mfma",
        "-mprefer-vector-width=512",
    ],
}  # fmt: skip


class Unavailable(Exception):
    """A part that cannot be built on this machine, and why."""


def works(command: list[str], source: str, suffix: str) -> bool:
    """Whether `command` compiles `source`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"probe{suffix}")
        path.write_text(source)
        run = subprocess.run(
            [*command, "-c", str(path), "-o", str(Path(folder, "probe.o"))], capture_output=True, check=False
        )
        return run.returncode == 0


class Ninja:
    """The build file: one rule per compiler, one edge per object."""

    def __init__(self):
        self.lines: list[str] = []
        self.objects: list[Path] = []

    def rule(self, name: str, command: str) -> None:
        depfile = ["  depfile = $out.d", "  deps = gcc"] if "$out.d" in command else []
        self.lines += [f"rule {name}", f"  command = {command}", *depfile]

    def compile(self, rule: str, source: str, output: Path, flags: list[str]) -> None:
        path = str(ROOT / "csrc" / source).replace(":", "$:").replace(" ", "$ ")
        target = str(output).replace(":", "$:").replace(" ", "$ ")
        self.lines += [f"build {target}: {rule} {path}", f"  flags = {' '.join(flags)}"]
        self.objects.append(output)


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        wanted = os.environ.get("VAEFAST_BUILD", "auto")
        if wanted not in ("auto", "cpu", "cuda", "none"):
            raise SystemExit(f"VAEFAST_BUILD must be auto, cpu, cuda or none, got {wanted!r}")
        self.stale_target().unlink(missing_ok=True)
        if wanted == "none":
            return self.say("VAEFAST_BUILD=none: no compiled module; the reference path runs everywhere")
        try:
            self.build(["cpu", "cuda"] if wanted in ("auto", "cuda") else ["cpu"])
        except (Unavailable, subprocess.CalledProcessError) as error:
            if wanted != "auto":
                raise SystemExit(f"VAEFAST_BUILD={wanted}: {error}") from error
            self.say(f"left out the CUDA kernels: {error}")
            try:
                self.build(["cpu"])
            except (Unavailable, subprocess.CalledProcessError) as error:
                self.say(f"left out the compiled module, the reference path runs instead: {error}")

    def say(self, text: str) -> None:
        print(f"vaefast: {text}", file=sys.stderr)

    def target(self) -> Path:
        return Path(self.get_ext_fullpath("vaefast._C"))

    def stale_target(self) -> Path:
        # an editable install writes beside the sources, where an older build would be picked up
        return self.target().resolve() if not self.inplace else ROOT / "vaefast" / self.target().name

    def build(self, parts: list[str]) -> None:
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        ninja = Ninja()
        cxx = os.environ.get("CXX") or ("c++" if shutil.which("c++") else "g++")
        if shutil.which(cxx) is None:
            raise Unavailable(f"no C++ compiler ({cxx})")
        include = [f"-isystem{sysconfig.get_path('include')}", f"-isystem{self.pybind11()}", f"-I{ROOT / 'csrc'}"]
        openmp = next((f for f in (["-fopenmp"],) if works([cxx, *f], "int main() {}\n#include <omp.h>", ".cpp")), [])
        ninja.rule("cxx", f"{cxx} $flags -MMD -MF $out.d -c $in -o $out")
        built = []
        for name, flags in self.instruction_sets(cxx).items():
            define = [f"-DVAEFAST_ISA={name}"]
            ninja.compile("cxx", "cpu/rows.cpp", folder / f"rows_{name}.o", [*COMMON, *EXACT, *openmp, *flags, *define])
            ninja.lines[-1] += f" {include[-1]}"
            built.append(name)
        defines = [f"-DVAEFAST_HAS_{name.upper()}" for name in built]
        link = [*openmp]
        facts = {"compiler": self.version(cxx), "openmp": bool(openmp), "instruction_sets": built, "cuda": None}
        if "cuda" in parts:
            facts["cuda"] = self.cuda(ninja, folder, link)
            defines.append("-DVAEFAST_HAS_CUDA")
        # a Python literal, read back by `vaefast info`
        (folder / "build_facts.h").write_text(f'#define VAEFAST_BUILD_FACTS R"facts({repr(facts)})facts"\n')
        ninja.compile("cxx", "module.cpp", folder / "module.o", [*COMMON, *openmp, *include, *defines, f"-I{folder}"])
        output = folder / self.target().name
        shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-Wl,-s"]
        ninja.rule("link", f"{cxx} {' '.join(shared)} $in -o $out {' '.join(link)}")
        ninja.lines.append(f"build {output}: link {' '.join(map(str, ninja.objects))}")
        (folder / "build.ninja").write_text("\n".join(ninja.lines) + "\n")
        run = subprocess.run([self.ninja(), "-C", str(folder)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise Unavailable(f"the compiler failed:\n{run.stdout}{run.stderr}")
        final = self.stale_target()
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(output, final)
        self.say(f"built vaefast._C: {facts}")

    def instruction_sets(self, cxx: str) -> dict[str, list[str]]:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return {"baseline": []}
        return {n: f for n, f in INSTRUCTION_SETS.items() if works([cxx, *f], "#include <immintrin.h>\n", ".cpp")}

    def cuda(self, ninja: Ninja, folder: Path, link: list[str]) -> dict:
        nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
        if not Path(nvcc).exists():
            raise Unavailable("no nvcc")
        archs = os.environ.get("VAEFAST_CUDA_ARCHS", "80;90;100").replace(",", ";").split(";")
        code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        code.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")  # and what comes after
        if not works([nvcc, *code], "__global__ void probe() {}\n", ".cu"):
            raise Unavailable(f"{nvcc} does not compile for {', '.join(archs)}")
        ninja.rule("nvcc", f"{nvcc} $flags -MD -MF $out.d -c $in -o $out")
        flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{ROOT / 'csrc'}", *code]
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            ninja.compile("nvcc", f"cuda/{source.name}", folder / f"{source.stem}_cuda.o", flags)
        libraries = Path(nvcc).resolve().parents[1]
        library = next((p for p in libraries.glob("**/libcudart_static.a")), None)
        if library is None:
            raise Unavailable("no libcudart_static.a beside nvcc")
        link += [str(library), "-ldl", "-lrt", "-lpthread"]
        return {"nvcc": self.version(nvcc), "architectures": archs}

    def pybind11(self) -> str:
        try:
            import pybind11

            return pybind11.get_include()
        except ImportError:  # a machine with torch and no network: torch ships pybind11's headers
            import torch.utils.cpp_extension as cpp

            return next(p for p in cpp.include_paths() if Path(p, "pybind11").is_dir())

    def ninja(self) -> str:
        try:
            import ninja

            return str(Path(ninja.BIN_DIR, "ninja"))
        except ImportError:
            found = shutil.which("ninja")
            if found is None:
                raise Unavailable("no ninja") from None
            return found

    def version(self, tool: str) -> str:
        lines = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
        return next((line for line in lines if "release" in line), lines[0] if lines else tool).strip()


setup(
    ext_modules=[Extension("vaefast._C", sources=[], optional=True)],
    cmdclass={"build_ext": BuildExtension},
)
