"""What a machine without a GPU can tell about ``make gpu-check``, and the CUDA library as it is packaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
KINDS = ("", "fused_", "continuous_", "temporal_")
OPERATORS = [f"stdetr::st_deform_attn_{kind}{pass_}" for kind in KINDS for pass_ in ("forward", "backward")]


def test_the_script_parses_and_has_every_step():
    assert subprocess.run(["sh", "-n", str(SCRIPT)], check=False).returncode == 0
    text = SCRIPT.read_text()
    steps = ["./cuda_ops", "pytest -m gpu", "memcheck racecheck initcheck", "bench suite=op device=cuda output="]
    assert [step for step in steps if step not in text] == []
    assert sorted(steps, key=text.index) == steps


def test_without_a_gpu_it_fails_in_one_line():
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["sh", str(SCRIPT)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: torch sees no CUDA device; 'stdetr doctor' tells why\n"


def test_the_packaged_cuda_library_loads_and_implements_the_operators():
    """Loading needs torch with CUDA, not a GPU."""
    stdetr_ops = pytest.importorskip("stdetr_ops")
    try:
        path = stdetr_ops.load("cuda")
    except stdetr_ops.LibraryError as error:
        pytest.skip(str(error))
    assert path.name == "_C_cuda.so"
    for name in OPERATORS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), name
