"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def kernels():
    """Skips where the CPU kernels are not built."""
    from stdetr.ops import backend

    if backend("cpu").name != "cpu":
        pytest.skip(f"CPU kernels are not in use: {backend('cpu').reason}")
