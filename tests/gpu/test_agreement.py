"""The CUDA kernels against float64, with outputs poisoned beforehand.

Shape legend: see conftest.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_calls import FORWARD, backward, check, forward
from kernel_cases import Size, answer, error, make, random_grad_out
from torch import Tensor

MODES = ("plain", "fused")


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", FORWARD)
@pytest.mark.parametrize("mode", MODES)
def test_dtypes(mode: str, dtype: torch.dtype, deterministic: bool) -> None:
    check(make(mode, Size(frames=4, queries=37, heads=8, points=4), dtype, seed=1), deterministic)


@pytest.mark.parametrize("channels", [1, 5, 8, 16, 24, 36, 64, 128, 264])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels(channels: int, dtype: torch.dtype) -> None:
    for mode in MODES:
        check(make(mode, Size(channels=channels, queries=13), dtype, seed=channels))


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("points", [1, 2, 3, 4, 5])
def test_levels_and_points(levels: int, points: int) -> None:
    for mode in MODES:
        check(make(mode, Size(levels=levels, points=points, queries=17), torch.float32, seed=levels + 7 * points))


@pytest.mark.parametrize("reference_size", [2, 4])
@pytest.mark.parametrize("ratios", [False, True])
def test_references(reference_size: int, ratios: bool) -> None:
    check(make("fused", Size(reference_size=reference_size, ratios=ratios, frames=5), torch.float32, seed=4))


@pytest.mark.parametrize("mode", MODES)
def test_many_queries(mode: str) -> None:
    """Enough queries, a prime number, for one group of lanes per query and for the coarse pass."""
    size = Size(batch=2, clip=2, queries=10007, heads=8, channels=32, levels=4, points=4)
    check(make(mode, size, torch.float32, seed=5))
    check(make(mode, size, torch.bfloat16, seed=5))


@pytest.mark.parametrize("levels", ["0", "1", "4"])
def test_coarse_levels_by_variable(levels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STDETR_COARSE_LEVELS", levels)
    check(make("fused", Size(queries=4001, heads=4, levels=4), torch.float32, seed=6))


@pytest.mark.parametrize("mode", MODES)
def test_locations_that_are_not_numbers(mode: str) -> None:
    inputs = make(mode, Size(queries=11), torch.float32, seed=8)
    bad = inputs.locations.clone()
    bad.view(-1, 2)[0, 0] = torch.nan
    bad.view(-1, 2)[5] = torch.inf
    check(replace(inputs, locations=bad))


def test_all_frames_masked() -> None:
    inputs = make("fused", Size(frames=3), torch.bfloat16, seed=9)
    assert inputs.frame_index is not None
    inputs = replace(inputs, frame_index=torch.full_like(inputs.frame_index, -1))
    out, lse = forward(inputs)
    assert out.eq(0).all()
    assert lse is not None
    assert lse.eq(-torch.inf).all()
    found = backward(inputs, random_grad_out(inputs))
    assert all(getattr(found, name).eq(0).all() for name in ("value", "locations", "weights", "reference"))


@pytest.mark.parametrize("axis", ["batch", "queries", "points", "clip"])
def test_empty(axis: str) -> None:
    size = replace(Size(mask=False), **{axis: 1})
    inputs = make("plain", size, torch.float32)
    where = {"batch": (0, 0, 0), "queries": (None, 1, 1), "points": (None, 5, 5), "clip": (1, 3, 3)}[axis]

    def cut(tensor: Tensor, position: int | None) -> Tensor:
        return tensor if position is None else tensor.narrow(position, 0, 0)

    inputs = replace(
        inputs,
        value=cut(inputs.value, where[0]),
        locations=cut(inputs.locations, where[1]),
        weights=cut(inputs.weights, where[2]),
    )
    out, _ = forward(inputs)
    assert out.eq(0).all()
    found = backward(inputs, torch.zeros(out.shape))
    assert found.value.shape == inputs.value.shape
    assert found.value.eq(0).all()


def test_strided_and_misaligned_inputs() -> None:
    inputs = make("plain", Size(channels=16), torch.bfloat16, seed=10)
    wanted, _ = answer(inputs)
    value = inputs.value.cuda()
    storage = torch.empty(value.numel() + 1, dtype=value.dtype, device="cuda")
    shifted = storage[1:].view(value.shape)
    shifted.copy_(value)
    assert shifted.data_ptr() % 16 != 0
    strided = value.transpose(3, 4).contiguous().transpose(3, 4)
    shapes = [size for pair in inputs.shapes for size in pair]
    for variant in (shifted, strided):
        out = torch.ops.stdetr.st_deform_attn_forward(
            variant, inputs.locations.cuda(), inputs.weights.cuda(), None, shapes
        )
        assert error(out.cpu(), wanted) < 1e-2


def test_more_than_2_31_elements() -> None:
    """value of 2^31 + elements: the last clip's samples come from the last bytes."""
    free, _ = torch.cuda.mem_get_info()
    batch, clip, side, heads, channels = 5, 4, 458, 16, 32
    count = batch * clip * side * side * heads * channels
    assert count > 2**31
    if free < 3 * count:
        pytest.skip(f"needs {3 * count / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} GiB are free")
    value = torch.zeros(batch, clip, side * side, heads, channels, dtype=torch.bfloat16, device="cuda")
    value[-1, -1, -1, -1] = 3.0
    locations = torch.full((batch, 1, heads, clip, 1, 1, 2), (side - 0.5) / side, device="cuda")
    weights = torch.ones(locations.shape[:-1], device="cuda")
    out = torch.ops.stdetr.st_deform_attn_forward(value, locations, weights, None, [side, side])
    wanted = torch.zeros_like(out)
    wanted.view(batch, 1, heads, channels)[-1, :, -1] = 3.0
    assert torch.allclose(out, wanted, atol=1e-2)
    if free > 12 * count:
        grad = torch.zeros_like(out)
        grad.view(batch, 1, heads, channels)[-1, :, -1] = 1.0
        grad_value, _, _ = torch.ops.stdetr.st_deform_attn_backward(
            grad, value, locations, weights, None, [side, side], False
        )
        assert torch.allclose(grad_value[-1, :, -1, -1].float(), torch.ones(clip, channels, device="cuda"), atol=1e-2)
        grad_value[-1, :, -1, -1] = 0
        assert grad_value.abs().max() < 1e-2
