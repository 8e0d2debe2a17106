"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

# suite=op is a part of stdetr-ops, which an environment without a C++ compiler lacks.
collect_ignore = [] if find_spec("stdetr_ops") else ["test_op.py"]


@pytest.fixture
def kernels():
    """Skips where the CPU kernels are not built."""
    from stdetr.ops import backend

    if backend("cpu").name != "cpu":
        pytest.skip(f"CPU kernels are not in use: {backend('cpu').reason}")
