"""Compiles the kernels' source for the host, and for the GPU's instruction sets, without a GPU.

Both commands work on ``cuda_ops/csrc/cuda`` as it stands.  Results are kept in ``cuda_ops/build`` under a hash of the
sources and of the command, so that a second run costs nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "cuda"
HARNESS = ROOT / "harness"
STORE = ROOT / "build"
HOST_FLAGS = ("-std=c++17", "-O1", "-g0", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


def kernel_sources() -> list[Path]:
    """The translation units that hold kernels, one a storage type, and the choice between them."""
    return sorted(KERNELS.glob("*.cu"))


def compiler() -> str | None:
    """The host's C++ compiler, or None."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    found = shutil.which("nvcc")
    candidates += [Path(found)] if found else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((str(path) for path in candidates if path.exists()), None)


def _fingerprint(folders: tuple[Path, ...], *parts: str) -> str:
    """Of what the kernels' translation units can include from ``folders``, and of the command."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.iterdir()):
            # csrc/cuda/library.cpp meets torch, not the kernels.
            if path.suffix in {".cu", ".cuh", ".h"} or (folder == HARNESS and path.suffix == ".cpp"):
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> str:
    """Runs a compiler; its messages (both streams).  RuntimeError with them if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\nfailed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def host_library(extra_flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The kernels as a host library.  FileNotFoundError without a C++ compiler."""
    cxx = compiler()
    if cxx is None:
        raise FileNotFoundError("no C++ compiler found: install g++ or set CXX")
    flags = [*HOST_FLAGS, *extra_flags, "-DSTDETR_HOST_HARNESS", f"-I{HARNESS}", f"-I{KERNELS}"]
    target = STORE / f"host-{_fingerprint((KERNELS, HARNESS), cxx, *flags)}" / "libstdetr_host.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            objects = []
            for source in [*kernel_sources(), HARNESS / "fibers.cpp", HARNESS / "host_api.cpp"]:
                objects.append(str(Path(folder) / f"{source.stem}.o"))
                _run([cxx, "-x", "c++", *flags, "-c", str(source), "-o", objects[-1]])
            linked = Path(folder) / target.name
            _run([cxx, "-shared", "-o", str(linked), *objects])
            linked.replace(target)
    return ctypes.CDLL(str(target))


@dataclass(frozen=True)
class KernelReport:
    """What ``ptxas -v`` says of one kernel."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int


_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\S+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def parse_ptxas(log: str) -> list[KernelReport]:
    """The kernels that a ``-Xptxas -v`` log names."""
    return [
        KernelReport(
            match["name"],
            match["arch"],
            int(match["registers"]),
            int(match["stack"]),
            int(match["stores"]),
            int(match["loads"]),
        )
        for match in _ENTRY.finditer(log)
    ]


def device_flags() -> list[str]:
    """Machine code for sm_80 and sm_90, and PTX for later processors."""
    return [
        "-std=c++17",
        "-O3",
        "--expt-relaxed-constexpr",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    ]


def compile_for_device(source: Path) -> tuple[Path, str]:
    """One translation unit as an object for sm_80, sm_90 and PTX: the file and the ``ptxas -v`` log.

    FileNotFoundError without nvcc.
    """
    compile_with = nvcc()
    if compile_with is None:
        raise FileNotFoundError("no nvcc found: install the CUDA toolkit or set CUDA_HOME")
    flags = [*device_flags(), "-Xptxas", "-v", "-Xcompiler", "-fPIC", f"-I{KERNELS}"]
    folder = STORE / f"device-{_fingerprint((KERNELS,), compile_with, *flags)}"
    target, log = folder / f"{source.stem}.o", folder / f"{source.stem}.log"
    if not (target.exists() and log.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / target.name
            messages = _run([compile_with, *flags, "-c", str(source), "-o", str(made)])
            log.write_text(messages)
            made.replace(target)
    return target, log.read_text()


def images(made: Path) -> set[str]:
    """What a compiled object holds for the GPU, such as ``{"sm_80", "sm_90", "compute_90"}`` (machine code and PTX).

    Read from the fat binary's own headers: magic, version, header size, size; then one header per image, with its kind
    (1 = PTX, 2 = machine code) and architecture.
    """
    data = made.read_bytes()
    start = data.find(0xBA55ED50.to_bytes(4, "little"))
    if start < 0:
        return set()
    header, size = struct.unpack_from("<HQ", data, start + 6)
    at, end = start + header, start + header + size
    found = set()
    while at < end:
        kind, _, image_header, image_size = struct.unpack_from("<HHIQ", data, at)
        (architecture,) = struct.unpack_from("<I", data, at + 28)
        found.add(f"{'compute' if kind == 1 else 'sm'}_{architecture}")
        at += image_header + image_size
    return found
