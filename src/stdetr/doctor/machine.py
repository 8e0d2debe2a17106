"""Python, processors, devices, compilers and disks."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from stdetr.doctor.check import Check

GIGA = 1024**3
LOW_DISK_GB = 5.0
LOW_SHARED_MEMORY_GB = 0.5
PYTHON_RANGE = ((3, 10), (3, 14))


def check_python(version: tuple[int, int] | None = None) -> Check:
    """The interpreter, against the versions the project supports."""
    running = version or sys.version_info[:2]
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if PYTHON_RANGE[0] <= running < PYTHON_RANGE[1]:
        return Check("python", "ok", f"{text} ({sys.prefix})")
    return Check("python", "broken", text, "use Python 3.10 to 3.13: make PYTHON=python3.12 env")


def check_devices() -> Iterator[Check]:
    """CUDA devices, and whether the driver runs this build of torch."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            capability = f"{device.major}.{device.minor}"
            text = f"{device.name}, {device.total_memory / GIGA:.0f} GB, compute capability {capability}"
            yield Check(f"cuda:{index}", "ok", text)
    elif torch.version.cuda is None:
        yield Check("cuda", "note", "this torch is built for the CPU only; runs use the CPU")
    elif shutil.which("nvidia-smi") is None:
        yield Check(
            "cuda", "note", f"no NVIDIA driver here (torch is built for CUDA {torch.version.cuda}); runs use the CPU"
        )
    else:
        fix = f"a driver for CUDA {torch.version.cuda}, or CUDA_VISIBLE_DEVICES naming a device; see nvidia-smi"
        yield Check("cuda", "note", "a driver is installed but torch sees no device; runs use the CPU", fix)


def check_compiler() -> Iterator[Check]:
    """What building the kernels needs; without it the reference runs."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    if compiler is None:
        yield Check("c++ compiler", "note", "none: the op runs as its PyTorch reference", "install g++, then: make ops")
    else:
        yield Check("c++ compiler", "ok", f"{_first_line(compiler, '--version', '')} ({compiler})")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))
    if nvcc is None:
        yield Check("nvcc", "note", "none: CUDA kernels cannot be built here")
    else:
        yield Check("nvcc", "ok", f"{_first_line(nvcc, '--version', 'release')} ({nvcc})")


def check_disk(folders: Mapping[str, str]) -> Iterator[Check]:
    """Free space where data and outputs go, and the shared memory that data workers use."""
    for name, folder in folders.items():
        existing = Path(folder).resolve()
        while not existing.exists():
            existing = existing.parent
        if not os.access(existing, os.W_OK):
            yield Check(f"{name} folder", "broken", f"{folder} cannot be written", f"another folder: paths.{name}=...")
            continue
        free = shutil.disk_usage(existing).free / GIGA
        low = free < LOW_DISK_GB
        fix = f"free some space, or another folder: paths.{name}=..." if low else ""
        yield Check(f"{name} folder", "note" if low else "ok", f"{folder}, {free:.1f} GB free", fix)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total / GIGA
        low = size < LOW_SHARED_MEMORY_GB
        fix = "docker run --shm-size=8g, or data.loader.num_workers=0" if low else ""
        yield Check("shared memory", "note" if low else "ok", f"{size:.1f} GB for data workers", fix)


def _first_line(program: str, argument: str, word: str) -> str:
    result = subprocess.run([program, argument], capture_output=True, text=True, timeout=20, check=False)
    return next((line for line in result.stdout.splitlines() if line.strip() and word in line), "version unknown")
