"""Tests that need a GPU; skipped with the reason where there is none or the CUDA library is not built.

Shape legend
    B clips    T frames    S tokens of a frame    H heads    D channels per head    Q queries    F sampled frames
    L levels   K points
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# Problems and their float64 answers are those of the host harness.
sys.path.append(str(ROOT / "cuda_ops"))  # last: its stdetr_ops holds no libraries
sys.path.insert(0, str(ROOT / "tests" / "cuda_ops"))
sys.path.insert(0, str(Path(__file__).resolve().parent))


def _reason_to_skip() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device"
    from stdetr.ops import backend

    found = backend("cuda")
    return None if found.name == "cuda" else f"no CUDA kernels: {found.reason}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).resolve().parent
    reason = None
    asked = False
    for item in items:
        if here not in Path(str(item.fspath)).resolve().parents:
            continue
        if not asked:
            reason, asked = _reason_to_skip(), True
        item.add_marker(pytest.mark.gpu)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
