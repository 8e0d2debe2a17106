"""Which implementation of the attention op runs: the kernels of ``stdetr_ops`` or the PyTorch reference.

The libraries are loaded once, when this module is imported: their operators must exist before anything is compiled or
exported.  ``STDETR_OPS_BACKEND=reference`` or ``use_backend("reference")`` switches them off (tests, ONNX export).
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from stdetr.ops.registration import register_operators

CHOICES = ("auto", "reference", "kernels")
_VARIABLE = "STDETR_OPS_BACKEND"
# The version of stdetr-ops that defines the operators called here.
OPS_VERSION = "0.3.0"


@dataclass(frozen=True)
class Backend:
    """``name`` is reference, cpu or cuda; ``reason`` says why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def _checked(choice: str, source: str) -> str:
    if choice not in CHOICES:
        near = difflib.get_close_matches(choice, CHOICES, n=1, cutoff=0.0)[0]
        raise ValueError(f"{source} must be one of {', '.join(CHOICES)}, got {choice!r}; did you mean {near!r}?")
    return choice


def _load() -> dict[str, Backend]:
    """Load the installed libraries; returns the backend of each device type."""
    try:
        import stdetr_ops
    except ModuleNotFoundError:
        missing = Backend("reference", "stdetr-ops is not installed; build it with: make ops")
        return {"cpu": missing, "cuda": missing}
    if stdetr_ops.__version__ != OPS_VERSION:
        other = f"stdetr-ops {stdetr_ops.__version__} is installed, but this stdetr needs {OPS_VERSION}; run: make ops"
        return {part: Backend("reference", other) for part in ("cpu", "cuda")}
    backends: dict[str, Backend] = {}
    for part in ("cpu", "cuda"):
        if part == "cuda" and torch.version.cuda is None:
            backends[part] = Backend("reference", "this torch was built without CUDA")
            continue
        try:
            stdetr_ops.load(part)
        except stdetr_ops.LibraryError as error:
            backends[part] = Backend("reference", str(error))
            continue
        detail = f"stdetr-ops {stdetr_ops.__version__}"
        if part == "cpu":
            register_operators()
            try:
                detail += f", {stdetr_ops.cpu_isa()}"
            except stdetr_ops.LibraryError as error:
                raise ValueError(f"STDETR_CPU_ISA={os.environ.get('STDETR_CPU_ISA')}: {error}") from error
        backends[part] = Backend(part, detail)
    return backends


_available = _load()
_choice = _checked(os.environ.get(_VARIABLE, "auto"), _VARIABLE)
_told = False


def backend(device: torch.device | str | None = None) -> Backend:
    """The implementation used for tensors on ``device``, and why (None: the GPU where there is one, else the CPU)."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.device(device).type
    if _choice == "reference":
        return Backend("reference", "selected by use_backend or STDETR_OPS_BACKEND")
    return _available.get(kind, Backend("reference", f"no kernels for {kind} tensors"))


@contextmanager
def use_backend(choice: str) -> Iterator[None]:
    """Runs the block with ``choice``: auto, reference, or kernels (which fails where there are none).

    Applies to the whole process.  Raises ValueError for another name.
    """
    global _choice
    before, _choice = _choice, _checked(choice, "backend")
    try:
        yield
    finally:
        _choice = before


def use_kernels(kind: str) -> bool:
    """Whether tensors on device type ``kind`` go to the kernels.  Warns once when the kernels are missing."""
    if _choice == "reference" or torch.onnx.is_in_onnx_export():
        return False
    have = kind in _available and _available[kind].name != "reference"
    if not have and not torch.compiler.is_compiling():
        if _choice == "kernels":
            raise ValueError(f"backend=kernels, but {kind} has none: {backend(kind).reason}")
        if kind in _available:
            _tell(kind)
    return have


def _tell(kind: str) -> None:
    global _told
    if _told:
        return
    _told = True
    warnings.warn(f"the attention op runs as its PyTorch reference: {backend(kind).reason}", stacklevel=4)
