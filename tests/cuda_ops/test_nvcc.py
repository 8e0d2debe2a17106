"""The kernels compile for sm_80, sm_90 and PTX, and none of them spills registers.  No GPU is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import build
from harness.build import KernelReport

needs_nvcc = pytest.mark.skipif(build.nvcc() is None, reason="no nvcc: install the CUDA toolkit or set CUDA_HOME")
SOURCES = build.kernel_sources()
STORAGE = {"kernels_bf16": "13__nv_bfloat16", "kernels_f16": "6__half", "kernels_f32": "f", "kernels_f64": "d"}

LOG = """ptxas info    : Compiling entry function '_Zhot' for 'sm_90'
ptxas info    : Function properties for _Zhot
    40 bytes stack frame, 16 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 40 bytes cumulative stack size
ptxas info    : Compiling entry function '_Zcold' for 'sm_80'
ptxas info    : Function properties for _Zcold
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 0 barriers
"""


def test_the_log_of_ptxas_is_understood() -> None:
    assert build.parse_ptxas(LOG) == [
        KernelReport("_Zhot", "sm_90", 64, 40, 16, 28),
        KernelReport("_Zcold", "sm_80", 18, 0, 0, 0),
    ]


def test_there_is_a_source_for_each_storage_type() -> None:
    assert {source.stem for source in SOURCES} == {*STORAGE, "run"}


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_compiles_without_spills(source: Path) -> None:
    made, log = build.compile_for_device(source)
    kernels = build.parse_ptxas(log)
    assert made.stat().st_size > 0
    if source.stem == "run":  # host code only
        assert not kernels
        return
    assert {kernel.architecture for kernel in kernels} == {"sm_80", "sm_90"}
    spilling = [kernel for kernel in kernels if kernel.spill_stores or kernel.spill_loads]
    assert not spilling
    storage = STORAGE[source.stem]
    forward = [kernel for kernel in kernels if f"forward_kernelI{storage}" in kernel.name]
    assert len(forward) >= 10  # five rules, two architectures
    hot = [kernel for kernel in forward if "ELi32E" in kernel.name]  # D = 32 at compile time
    assert bool(hot) == (source.stem != "kernels_f64")
    # Three blocks of 256 threads fit on a processor's 65536 registers.
    assert all(kernel.registers <= 80 for kernel in hot)


@needs_nvcc
@pytest.mark.slow
def test_machine_code_and_ptx_are_in_the_object() -> None:
    """The object holds images for sm_80 and sm_90, and PTX that later processors compile."""
    made, _ = build.compile_for_device(next(source for source in SOURCES if source.stem == "kernels_f64"))
    assert {"sm_80", "sm_90", "compute_90"} <= build.images(made)
