"""Kernels of spatio-temporal deformable attention: finds and loads the libraries that were built.

The operators appear as ``torch.ops.stdetr.*`` (schemas: csrc/common/SCHEMA.md).  ``stdetr.ops`` is the public face:
it checks arguments and adds fake kernels, autograd and autocast.
"""

from __future__ import annotations

import ctypes
import json
from functools import cache
from pathlib import Path
from typing import Any

__version__ = "0.3.0"
_HERE = Path(__file__).resolve().parent


class LibraryError(RuntimeError):
    """A library was not built or does not load; the text says why."""


def build_info() -> dict[str, Any]:
    """What the build wrote: torch, compilers, instruction sets, and the reason for each library that is missing."""
    path = _HERE / "build.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def library(part: str) -> Path:
    """The library file of ``part`` ("cpu" or "cuda").  Raises LibraryError with the build's reason."""
    path = _HERE / f"_C_{part}.so"
    if not path.exists():
        reason = build_info().get("missing", {}).get(part, "the installation holds no such library")
        raise LibraryError(f"the {part} library was not built: {reason}")
    return path


@cache
def load(part: str) -> Path:
    """Registers the operators of ``part``; "cuda" loads "cpu" first, which defines the schemas.

    Raises LibraryError when the library was not built or the dynamic linker refuses it.
    """
    import torch

    if part == "cuda":
        load("cpu")
    path = library(part)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise LibraryError(f"the {part} library does not load: {error}") from error
    return path


def cpu_isa() -> str:
    """The instruction set in use: avx512, avx2 or baseline.  ``STDETR_CPU_ISA`` chooses another one."""
    handle = ctypes.CDLL(str(load("cpu")))
    handle.stdetr_cpu_isa.restype = ctypes.c_char_p
    name = handle.stdetr_cpu_isa()
    if name is None:
        raise LibraryError("STDETR_CPU_ISA asks for an instruction set that this processor does not have")
    return name.decode()
