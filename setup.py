"""Builds the one compiled module, vaefast._C, with ninja. It holds no PyTorch header, so it serves every torch.

VAEFAST_BUILD = auto (default): CPU kernels where a C++ compiler works, CUDA kernels where nvcc works; what cannot be
                built is left out and named.
                cpu | cuda: these kernels, or the build fails.
                none: no compiled module.
VAEFAST_CUDA_ARCHS: compute capabilities, default "80;90;100".
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# -Wno-…: vector types in calls that are inlined; a false alarm of g++ 12; OpenMP pragmas where there is no OpenMP
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-unknown-pragmas"]
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", *WARNINGS]
# noise: no multiply-add may be contracted, and a square root that can set errno does not vectorise
EXACT = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# The vectors are written out: looking for more of them gains nothing, and crashes g++ 12 on the longest densities.
# Unasked, g++ for x86 does not move independent instructions between those that wait: worth 5 to 10 %.
EXPLICIT = ["-fno-tree-slp-vectorize", "-fschedule-insns"]
# But not at the price of registers, where there are 16: worth 2 to 10 %. clang does not know the word.
SIXTEEN_REGISTERS = ["-fsched-pressure"]
# csrc/cpu/*.cpp are compiled once per instruction set; the module picks one at run time
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mf16c", "-mfma"],
    "avx512": [
        "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mf16c", "-mfma",
        "-mprefer-vector-width=512",
    ],
}  # fmt: skip


class UnavailableError(Exception):
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


def largest_first(folder: str, pattern: str) -> list[Path]:
    return sorted((ROOT / "csrc" / folder).glob(pattern), key=lambda path: (-path.stat().st_size, path.name))


def say(text: str) -> None:
    print(f"vaefast: {text}", file=sys.stderr)


def escaped(path: Path) -> str:
    """A path as a build file spells it."""
    return str(path).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


class Ninja:
    """The build file: one rule per compiler, one edge per object."""

    def __init__(self):
        self.lines: list[str] = []
        self.objects: list[Path] = []

    def rule(self, name: str, command: str) -> None:
        depfile = ["  depfile = $out.d", "  deps = gcc"] if "$out.d" in command else []
        self.lines += [f"rule {name}", f"  command = {command}", *depfile]

    def compile(self, rule: str, source: str, output: Path, flags: list[str]) -> None:
        path = escaped(ROOT / "csrc" / source)
        self.lines += [f"build {escaped(output)}: {rule} {path}", f"  flags = {' '.join(map(shlex.quote, flags))}"]
        self.objects.append(output)


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        wanted = os.environ.get("VAEFAST_BUILD", "auto")
        if wanted not in ("auto", "cpu", "cuda", "none"):
            raise SystemExit(f"VAEFAST_BUILD must be auto, cpu, cuda or none, got {wanted!r}")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        in_place = ROOT / "vaefast" / target.name
        for stale in {target, in_place} if self.editable() else {target}:
            stale.unlink(missing_ok=True)
        parts = {"auto": ["cuda", "cpu"], "cuda": ["cuda"], "cpu": ["cpu"], "none": []}[wanted]
        for part in parts:
            try:
                return self.build(target, with_cuda=part == "cuda")
            except UnavailableError as error:
                if wanted != "auto":
                    raise SystemExit(f"VAEFAST_BUILD={wanted}: {error}") from error
                say(f"left out the {part.upper()} kernels: {error}")
        say("no compiled module: the pure-PyTorch reference runs instead")
        return None

    def editable(self) -> bool:
        return bool(self.inplace or self.editable_mode)

    def build(self, target: Path, with_cuda: bool) -> None:
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        ninja = Ninja()
        cxx = os.environ.get("CXX") or ("c++" if shutil.which("c++") else "g++")
        if shutil.which(cxx) is None:
            raise UnavailableError(f"no C++ compiler ({cxx})")
        sources = f"-I{ROOT / 'csrc'}"
        include = [f"-isystem{sysconfig.get_path('include')}", f"-isystem{self.pybind11()}", sources]
        openmp = ["-fopenmp"] if works([cxx, "-fopenmp"], "#include <omp.h>\n", ".cpp") else []
        ninja.rule("cxx", f"{cxx} $flags -MMD -MF $out.d -c $in -o $out")
        # the longest first, so that no core waits at the end
        nvcc, cuda = self.cuda(ninja, folder) if with_cuda else (None, None)
        built = []
        for name, flags in self.instruction_sets(cxx).items():
            define = [f"-DVAEFAST_ISA={name}"]
            flags = [*COMMON, *EXACT, *EXPLICIT, *openmp, *flags, *define, sources]
            for source in largest_first("cpu", "*.cpp"):
                ninja.compile("cxx", f"cpu/{source.name}", folder / f"{source.stem}_{name}.o", flags)
            built.append(name)
        defines = [f"-DVAEFAST_HAS_{name.upper()}" for name in [*built, *(["cuda"] if with_cuda else [])]]
        facts = {"compiler": self.version(cxx), "openmp": bool(openmp), "instruction_sets": built, "cuda": cuda}
        # a Python literal, read back by `vaefast info`
        (folder / "build_facts.h").write_text(f'#define VAEFAST_BUILD_FACTS R"facts({facts!r})facts"\n')
        ninja.compile("cxx", "module.cpp", folder / "module.o", [*COMMON, *openmp, *include, *defines, f"-I{folder}"])
        output = folder / target.name
        if with_cuda:
            link = [nvcc, "-shared", "-cudart", "static", "-Xlinker", "-s", *(f"-Xcompiler {f}" for f in openmp)]
        elif sys.platform == "darwin":
            link = [cxx, "-bundle", "-undefined", "dynamic_lookup", *openmp]
        else:
            link = [cxx, "-shared", "-Wl,-s", *openmp]
        ninja.rule("link", f"{' '.join(link)} $in -o $out")
        ninja.lines.append(f"build {escaped(output)}: link {' '.join(map(escaped, ninja.objects))}")
        (folder / "build.ninja").write_text("\n".join(ninja.lines) + "\n")
        run = subprocess.run([self.ninja(), "-C", str(folder)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise UnavailableError(f"the compiler failed:\n{run.stdout}{run.stderr}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(output, target)
        say(f"built vaefast._C: {facts}")

    def instruction_sets(self, cxx: str) -> dict[str, list[str]]:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return {"baseline": []}
        sets = {n: f for n, f in INSTRUCTION_SETS.items() if works([cxx, *f], "#include <immintrin.h>\n", ".cpp")}
        spare = SIXTEEN_REGISTERS if works([cxx, *SIXTEEN_REGISTERS], "", ".cpp") else []
        return {n: f if n == "avx512" else [*f, *spare] for n, f in sets.items()}

    def cuda(self, ninja: Ninja, folder: Path) -> tuple[str, dict]:
        nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
        if not Path(nvcc).exists():
            raise UnavailableError("no nvcc")
        archs = os.environ.get("VAEFAST_CUDA_ARCHS", "80;90;100").replace(",", ";").split(";")
        archs = sorted(map(str.strip, archs), key=lambda arch: int(arch.rstrip("af")))
        # One front end for all: nothing of ours is new since the first, and its PTX serves what comes after the last.
        targets = ",".join([*(f"sm_{a}" for a in archs), f"compute_{archs[0]}"])
        code = [f"-gencode=arch=compute_{archs[0]},code=[{targets}]", "--threads=0", "-Xfatbin=-compress-all"]
        if not works([nvcc, *code], "__global__ void probe() {}\n", ".cu"):
            raise UnavailableError(f"{nvcc} does not compile for {', '.join(archs)}")
        ninja.rule("nvcc", f"{nvcc} $flags -MD -MF $out.d -c $in -o $out")
        flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{ROOT / 'csrc'}", *code]
        for source in largest_first("cuda", "*.cu"):
            ninja.compile("nvcc", f"cuda/{source.name}", folder / f"{source.stem}_cuda.o", flags)
        return nvcc, {"nvcc": self.version(nvcc), "architectures": archs}

    def pybind11(self) -> str:
        try:
            import pybind11
        except ImportError:  # a machine with torch and no network: torch ships pybind11's headers
            spec = importlib.util.find_spec("torch")
            bundled = Path(spec.origin).parent / "include" if spec else Path()
            if not (bundled / "pybind11").is_dir():
                raise UnavailableError("no pybind11") from None
            return str(bundled)
        return pybind11.get_include()

    def ninja(self) -> str:
        try:
            import ninja

            return str(Path(ninja.BIN_DIR, "ninja"))
        except ImportError:
            found = shutil.which("ninja")
            if found is None:
                raise UnavailableError("no ninja") from None
            return found

    def version(self, tool: str) -> str:
        lines = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
        return next((line for line in lines if "release" in line), lines[0] if lines else tool).strip()


setup(
    ext_modules=[Extension("vaefast._C", sources=[], optional=True)],
    cmdclass={"build_ext": BuildExtension},
)
