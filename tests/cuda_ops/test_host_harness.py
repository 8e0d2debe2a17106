"""The harness itself: arithmetic of the shim, and that it notices what it is there to notice."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch
from harness import build
from harness.host import Schedule, backward, forward, host_library
from kernel_cases import Size, answer, error, make

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


def test_half_and_bfloat16_round_as_torch_does() -> None:
    library = host_library()
    for name in ("stdetr_half", "stdetr_bfloat16"):
        getattr(library, name).argtypes = [ctypes.c_float]
        getattr(library, name).restype = ctypes.c_uint16
    library.stdetr_from_half.argtypes = [ctypes.c_uint16]
    library.stdetr_from_half.restype = ctypes.c_float
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(400, generator=generator) * torch.logspace(-9, 6, 400)
    edges = [
        0.0,
        -0.0,
        65504.0,
        65519.99,
        65520.0,
        1e30,
        float("inf"),
        2.0**-24,
        2.0**-25,
        1.00048828125,
        1.00146484375,
    ]
    numbers = torch.cat([numbers, torch.tensor(edges), -torch.tensor(edges)])
    for dtype, name in ((torch.float16, "stdetr_half"), (torch.bfloat16, "stdetr_bfloat16")):
        wanted = numbers.to(dtype).view(torch.int16).tolist()
        found = [getattr(library, name)(float(number)) for number in numbers]
        assert [bits & 0xFFFF for bits in wanted] == found
    for bits in (*range(0, 0x7C00, 97), 0x0001, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0x8001, 0xFC00):
        wanted = float(torch.tensor([bits], dtype=torch.int32).to(torch.int16).view(torch.float16))
        assert library.stdetr_from_half(bits) == wanted


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 7, 16, 31, 80, 641, 65537, 2**31 - 1])
def test_fast_division_is_exact(divisor: int) -> None:
    library = host_library()
    numbers = {0, 1, divisor - 1, divisor, divisor + 1, 12345, 2**31 - 1, 2**31 - 2, 7 * divisor, 7 * divisor - 1}
    for number in sorted(number for number in numbers if 0 <= number < 2**31):
        assert library.stdetr_divide(ctypes.c_uint32(divisor), ctypes.c_uint32(number)) == number // divisor


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_a_missing_warp_barrier_shows(order: str) -> None:
    """Without __syncwarp between preparing points and reading them, lanes read records that are still poison."""
    inputs = make("plain", Size(queries=5, points=5), torch.float32)
    wanted, _ = answer(inputs)
    schedule = Schedule(split_points=1, split_frames=1, order=order)
    assert error(forward(inputs, schedule)[0], wanted) < 1e-5
    with pytest.raises(RuntimeError, match="misaligned read"):
        forward(inputs, replace(schedule, ignore_warp_barriers=True))


@pytest.mark.parametrize(("mode", "order"), [("plain", "descending"), ("fused", "ascending")])
def test_a_missing_block_barrier_shows(mode: str, order: str) -> None:
    """The level table is read before it is written, or the sums of a query's second warp are."""
    inputs = make(mode, Size(queries=5), torch.float32)
    wanted, _ = answer(inputs)
    schedule = Schedule(split_points=4, split_frames=4, order=order)  # a query has several warps
    assert error(forward(inputs, schedule)[0], wanted) < 1e-5
    broken, _ = forward(inputs, replace(schedule, ignore_block_barriers=True))
    assert error(broken, wanted) > 1e-3


def test_too_much_shared_memory_is_refused() -> None:
    inputs = make("plain", Size(), torch.float32)
    with pytest.raises(RuntimeError, match="shared memory"):
        forward(inputs, Schedule(shared_bytes=1024))


def test_impossible_schedules_and_sizes_are_refused() -> None:
    inputs = make("plain", Size(), torch.float32)
    with pytest.raises(RuntimeError, match="split_points"):
        forward(inputs, Schedule(split_points=3))
    with pytest.raises(RuntimeError, match="split_points"):
        forward(inputs, Schedule(split_points=64))
    grad = torch.randn(2, 7, 64)
    with pytest.raises(RuntimeError, match="coarse levels"):
        backward(inputs, grad, Schedule(coarse_levels=3, shared_bytes=44 * 1024))
    many = make("plain", Size(levels=65, queries=1, batch=1, heads=1, points=1, channels=4), torch.float32)
    with pytest.raises(RuntimeError, match="65 levels"):
        forward(many)
