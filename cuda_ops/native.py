"""Compiles the two libraries of stdetr-ops with the compilers that the machine has.

``_C_cpu``: one object for each instruction set, chosen at run time.  ``_C_cuda``: nvcc, where it is found and torch has
CUDA.  Objects are kept in ``cuda_ops/build/objects`` under a hash of sources, command and compiler, so that a second
build costs nothing.

Environment: ``CXX`` the compiler; ``STDETR_OPS_CUDA`` = auto | 0 | 1 (1: fail where the CUDA part cannot be built);
``STDETR_OPS_JOBS`` parallel compilations.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CPU, CUDA = ROOT / "csrc" / "cpu", ROOT / "csrc" / "cuda"
# Built for the interface of torch 2.11: the libraries load in every torch from there on.
TARGET_VERSION = (2, 11)
TARGET = "-DTORCH_TARGET_VERSION=0x{:02X}{:02X}000000000000".format(*TARGET_VERSION)
SHARED_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
# NaN and infinity keep their meaning; only errno and traps, which nobody reads, are given up for vectorisation.
KERNEL_FLAGS = ("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
ISA_FLAGS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        *("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ),
}


class BuildError(RuntimeError):
    """A compiler refused the source."""


@dataclass
class Report:
    """What was built, and the reason for what was not; stored beside the libraries as ``build.json``."""

    torch: str = ""
    compiler: str = ""
    nvcc: str = ""
    isas: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    messages = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\nfailed with exit code {done.returncode}:\n{messages}")
    if messages:
        print(messages, file=sys.stderr)


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    # nvcc says the release in the last lines, g++ and clang in the first.
    wanted = [line for line in lines if "release" in line] or lines[:1]
    return wanted[0].strip() if wanted else compiler


def find_compiler() -> str | None:
    """The C++ compiler, or None."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((found for found in map(shutil.which, names) if found), None)


def find_nvcc() -> str | None:
    """The CUDA compiler, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    names = [str(Path(home) / "bin" / "nvcc")] if home else []
    return next((found for found in map(shutil.which, [*names, "nvcc", "/usr/local/cuda/bin/nvcc"]) if found), None)


def toolkit_include(nvcc: str) -> Path:
    """The folder of ``cuda_runtime_api.h``.  ``nvcc`` may be a wrapper script, so it is queried first."""
    done = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    tops = [line.split("=", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("#$ TOP=")]
    here = [line.split("=", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("#$ _HERE_=")]
    homes = [*map(Path, tops), *(Path(path).parent for path in here), Path(nvcc).resolve().parent.parent]
    for home in homes:
        for folder in (home / "include", *sorted(home.glob("targets/*/include"))):
            if (folder / "cuda_runtime_api.h").is_file():
                return folder
    raise BuildError(f"{nvcc} was found, but no cuda_runtime_api.h near {', '.join(map(str, homes))}; set CUDA_HOME")


def _torch_root() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "stdetr-ops is built against the torch of the environment, and there is none: install torch>=2.11, then\n"
            "    pip install --no-build-isolation --no-deps ./cuda_ops"
        )
    return Path(spec.origin).parent


def _source_hash(source: Path) -> str:
    """Of the file and of every header that it could include: its folder's and the common ones."""
    headers = [*source.parent.iterdir(), *(ROOT / "csrc" / "common").iterdir()]
    digest = hashlib.sha256()
    for path in [source, *sorted(path for path in headers if path.suffix in {".h", ".cuh"})]:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Builder:
    """Compiles and links; ``objects`` is the folder where objects are kept, ``namespace`` holds the operators."""

    def __init__(self, objects: Path | None = None, namespace: str = "stdetr") -> None:
        self.objects = objects or ROOT / "build" / "objects"
        self.jobs = max(1, int(os.environ.get("STDETR_OPS_JOBS") or os.cpu_count() or 1))
        self.torch = _torch_root()
        self._torch_version = (self.torch / "version.py").read_text(encoding="utf-8")
        self.torch_flags = (TARGET, f"-DSTDETR_NAMESPACE={namespace}", "-isystem", str(self.torch / "include"))

    def compile(self, command: Sequence[str], source: Path) -> Path:
        """The object of ``source``, compiled unless an equal one is kept."""
        parts = [_source_hash(source), self._torch_version, _version(command[0]), *command, source.name]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        name = f"{source.parent.name}-{source.stem}"
        target = self.objects / f"{name}-{key}.o"
        if not target.exists():
            self.objects.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}.partial")
            try:
                _run([*command, "-c", str(source), "-o", str(partial)])
                for outdated in self.objects.glob(f"{name}-*.o"):
                    outdated.unlink(missing_ok=True)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        return target

    def compile_all(self, work: Sequence[tuple[Sequence[str], Path]]) -> list[str]:
        with ThreadPoolExecutor(self.jobs) as pool:
            return [str(made) for made in pool.map(lambda item: self.compile(*item), work)]

    def _link(self, command: Sequence[str], objects: Sequence[str], target: Path, libraries: Sequence[str]) -> None:
        have = [name for name in libraries if any((self.torch / "lib").glob(f"lib{name}.*"))]
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        _run([*command, "-shared", "-o", str(partial), *objects, f"-L{self.torch / 'lib'}", *(f"-l{n}" for n in have)])
        partial.replace(target)

    def cpu(self, compiler: str, target: Path, report: Report) -> None:
        """Builds ``_C_cpu``."""
        x86 = platform.machine().lower() in {"x86_64", "amd64"}
        common = [compiler, *SHARED_FLAGS, *(["-DSTDETR_X86"] if x86 else [])]
        work: list[tuple[Sequence[str], Path]] = []
        for isa, flags in ISA_FLAGS.items():
            if isa == "baseline" or x86:
                work.append(([*common, *KERNEL_FLAGS, *flags], CPU / f"kernels_{isa}.cpp"))
                report.isas.append(isa)
        work += [(common, CPU / "select.cpp"), ([*common, *self.torch_flags], CPU / "library.cpp")]
        self._link([compiler], self.compile_all(work), target, ("torch", "torch_cpu", "c10"))

    def cuda(self, compiler: str, nvcc: str, target: Path) -> None:
        """Builds ``_C_cuda`` from every .cu and .cpp of csrc/cuda."""
        # The harness compiles for the device and keeps the objects: its tests read the ptxas log of what is shipped.
        spec = importlib.util.spec_from_file_location("stdetr_ops_harness_build", ROOT / "harness" / "build.py")
        assert spec is not None and spec.loader is not None
        harness = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = harness
        spec.loader.exec_module(harness)
        include = toolkit_include(nvcc)
        extra = [*self.torch_flags, "-DUSE_CUDA", f"-I{CUDA}", "-isystem", str(include)]
        work = [([compiler, *SHARED_FLAGS, *extra], source) for source in sorted(CUDA.glob("*.cpp"))]
        objects = self.compile_all(work)
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                made = list(pool.map(harness.compile_for_device, sorted(CUDA.glob("*.cu"))))
        except RuntimeError as error:
            raise BuildError(str(error)) from error
        objects += [str(target) for target, _ in made]
        self._link([nvcc, "-cudart", "static"], objects, target, ("torch", "torch_cpu", "torch_cuda", "c10"))


def _has_cuda(torch_root: Path) -> bool:
    return any((torch_root / "lib").glob("libtorch_cuda.*"))


def build(folder: Path) -> Report:
    """Builds what can be built into ``folder``.  Raises BuildError when a compiler that is there refuses the source."""
    report = Report()
    compiler = find_compiler()
    if compiler is None:
        reason = "no C++ compiler found (install g++ or set CXX)"
        report.missing = {"cpu": reason, "cuda": reason}
        return report
    builder = Builder()
    report.torch = next(
        (
            line.split("=", 1)[1].strip(" '\"")
            for line in builder._torch_version.splitlines()
            if "__version__ =" in line
        ),
        "",
    )
    report.compiler = _version(compiler)
    builder.cpu(compiler, folder / "_C_cpu.so", report)
    asked = os.environ.get("STDETR_OPS_CUDA", "auto")
    if asked not in {"auto", "0", "1"}:
        raise SystemExit(f"STDETR_OPS_CUDA must be auto, 0 or 1, got {asked!r}")
    nvcc = find_nvcc()
    if asked == "0":
        report.missing["cuda"] = "switched off by STDETR_OPS_CUDA=0"
    elif nvcc is None:
        report.missing["cuda"] = "no nvcc found (install the CUDA toolkit or set CUDA_HOME)"
    elif not _has_cuda(builder.torch):
        report.missing["cuda"] = "the environment's torch was built without CUDA"
    elif not any(CUDA.glob("*.cu")):
        report.missing["cuda"] = "csrc/cuda holds no source"
    else:
        report.nvcc = _version(nvcc)
        try:
            builder.cuda(compiler, nvcc, folder / "_C_cuda.so")
        except BuildError as error:
            if asked == "1":
                raise
            # The CPU part stands; the report keeps the reason, and `stdetr doctor` shows it.
            print(error, file=sys.stderr)
            lines = str(error).splitlines()
            wrong = next((line.strip() for line in lines if "error" in line), lines[0])
            report.missing["cuda"] = f"the build with {nvcc} failed: {wrong}"
    if asked == "1" and "cuda" in report.missing:
        raise BuildError(f"STDETR_OPS_CUDA=1, but the CUDA part cannot be built: {report.missing['cuda']}")
    return report
