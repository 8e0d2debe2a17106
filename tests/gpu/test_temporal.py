"""The temporal CUDA kernels against float64 and against the composition, with outputs poisoned beforehand.

Shape legend: see conftest.py; R rows of the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gpu_calls import FORWARD, RETURNED, backward, check, forward
from kernel_cases import Size, error, log_sum_exp, make, random_grad_out
from torch import Tensor

from stdetr.ops import st_deform_attn_temporal
from stdetr.ops.temporal import use_composition, use_temporal_kernel

NAMES = RETURNED["temporal"]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", FORWARD)
@pytest.mark.parametrize("reference_size", [2, 4])
def test_dtypes(reference_size: int, dtype: torch.dtype, deterministic: bool) -> None:
    size = Size(frames=4, queries=37, heads=8, points=4, reference_size=reference_size, ratios=True)
    check(make("temporal", size, dtype, seed=1), deterministic)


@pytest.mark.parametrize("channels", [1, 5, 8, 16, 24, 36, 64, 128, 264])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels(channels: int, dtype: torch.dtype) -> None:
    check(make("temporal", Size(channels=channels, queries=13), dtype, seed=channels))


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("points", [2, 3, 5, 67])
def test_levels_and_points(levels: int, points: int) -> None:
    check(make("temporal", Size(levels=levels, points=points, queries=17), torch.float32, seed=levels + 7 * points))


@pytest.mark.parametrize("rows", [0, 2, 30, 256])
@pytest.mark.parametrize("frames", [None, 1, 7])
def test_rows_and_frames(rows: int, frames: int | None) -> None:
    """At 256 rows the sums of the tables do not fit in shared memory."""
    check(make("temporal", Size(rows=rows, frames=frames, queries=19), torch.float32, seed=2))


@pytest.mark.parametrize("reference_size", [2, 4])
def test_many_queries(reference_size: int) -> None:
    """Enough queries, a prime number, for one group of lanes per query, several turns per block and the coarse pass."""
    size = Size(batch=2, clip=2, queries=20011, heads=8, levels=4, points=4, frames=3, reference_size=reference_size)
    check(make("temporal", size, torch.float32, seed=5))
    check(make("temporal", size, torch.bfloat16, seed=5))


@pytest.mark.parametrize("levels", ["0", "1", "4"])
def test_coarse_levels_by_variable(levels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STDETR_COARSE_LEVELS", levels)
    check(make("temporal", Size(queries=4001, heads=4, levels=4), torch.float32, seed=6))


def test_what_does_not_count() -> None:
    """Locations that are not numbers or far away, and queries with all frames masked."""
    inputs = make("temporal", Size(queries=11, frames=3), torch.float32, seed=8)
    bad = inputs.locations.clone()
    bad.view(-1, 2)[0, 0] = torch.nan
    bad.view(-1, 2)[5] = torch.inf
    bad.view(-1, 2)[9] = 1e30
    check(replace(inputs, locations=bad))
    assert inputs.frame_index is not None
    inputs = replace(inputs, frame_index=torch.full_like(inputs.frame_index, -1))
    out, lse = forward(inputs)
    assert out.eq(0).all()
    assert lse is not None
    assert lse.eq(-torch.inf).all()
    found = backward(inputs, random_grad_out(inputs))
    assert all(getattr(found, name).eq(0).all() for name in NAMES)


def test_distances_that_are_not_numbers() -> None:
    inputs = make("temporal", Size(queries=11, frames=3), torch.float32, seed=9)
    assert inputs.dt is not None
    dt = inputs.dt.clone()
    dt[:, :3, 1], dt[:, 4, 0] = torch.nan, torch.inf
    inputs = replace(inputs, dt=dt)
    out, lse = forward(inputs)
    assert lse is not None
    assert out.isfinite().all()
    assert error(lse.cpu(), log_sum_exp(inputs)) < 1e-5
    found = backward(inputs, random_grad_out(inputs))
    assert all(getattr(found, name).isfinite().all() for name in NAMES)


def test_the_reference_gets_a_gradient_only_where_it_is_wanted() -> None:
    inputs = make("temporal", Size(queries=37, reference_size=4), torch.float32, seed=10)
    found = backward(inputs, random_grad_out(inputs), deterministic=True, reference_gradient=False)
    wanted = backward(inputs, random_grad_out(inputs), deterministic=True)
    assert found.reference is not None
    assert found.reference.eq(0).all()
    for name in NAMES:
        if name != "reference":
            assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize("axis", ["batch", "queries", "frames", "points"])
def test_empty(axis: str) -> None:
    inputs = make("temporal", Size(frames=2, mask=False), torch.float32)

    def cut(tensor: Tensor | None, position: int | None) -> Tensor | None:
        return tensor if tensor is None or position is None else tensor.narrow(position, 0, 0)

    # value, B,Q,... tensors, B,Q,F tensors, B,Q,H,L,K tensors, tables, frame_logits
    of_value, of_queries, of_frames, of_points, of_tables, of_logits = {
        "batch": (0, 0, 0, 0, None, 0),
        "queries": (None, 1, 1, 1, None, 1),
        "frames": (None, None, 2, None, None, 3),
        "points": (None, None, None, 4, 3, None),
    }[axis]
    places = {"value": of_value, "reference": of_frames, "dt": of_frames, "frame_index": of_frames}
    places |= dict.fromkeys(("locations", "velocity", "weights"), of_points if of_queries is None else of_queries)
    places |= dict.fromkeys(("offset_table", "logit_table"), of_tables) | {"frame_logits": of_logits}
    inputs = replace(inputs, **{name: cut(getattr(inputs, name), place) for name, place in places.items()})
    out, lse = forward(inputs)
    assert lse is not None
    assert out.eq(0).all()
    assert lse.eq(-torch.inf).all()
    found = backward(inputs, torch.zeros(out.shape))
    for name in NAMES:
        grad, given = getattr(found, name), getattr(inputs, name)
        assert grad.shape == given.shape, name
        assert grad.eq(0).all(), name


def test_the_kernel_agrees_with_the_composition() -> None:
    inputs = make("temporal", Size(queries=301, heads=8, points=4, frames=3, reference_size=4), torch.float32, seed=11)
    grad_out = random_grad_out(inputs).cuda()
    given = [getattr(inputs, name) for name in NAMES]
    assert inputs.dt is not None
    assert inputs.frame_index is not None
    # Python refuses an index beyond the clip, which the operator takes as masked.
    index = torch.where(inputs.frame_index < inputs.value.shape[1], inputs.frame_index, -1).cuda()
    dt, shapes = inputs.dt.cuda(), list(inputs.shapes)

    def run(context: Callable) -> list[Tensor]:
        leaves = [tensor.cuda().requires_grad_() for tensor in given]
        with context():
            options = {"frame_index": index, "frame_logits": leaves[-1]}
            out = st_deform_attn_temporal(leaves[0], shapes, *leaves[1:-1], dt=dt, **options)
            return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]

    for kernel, composed in zip(run(lambda: use_temporal_kernel("cuda")), run(use_composition), strict=True):
        assert error(kernel.cpu(), composed.cpu()) < 1e-4


def test_memory_does_not_grow_with_the_frames_sampled() -> None:
    """Beside what has one number or two a frame and query: reference, distance and frame number."""
    peaks = {}
    for frames in (2, 8):
        inputs = make("temporal", Size(batch=1, queries=20011, heads=8, points=4, frames=frames), torch.float32)
        grad_out = random_grad_out(inputs)
        backward(inputs, grad_out, reference_gradient=False)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        backward(inputs, grad_out, reference_gradient=False)
        peaks[frames] = torch.cuda.max_memory_allocated() - before
    one_frame = 20011 * 8 * 3 * 4 * 4  # bytes of a frame's logits
    assert peaks[8] - peaks[2] < one_frame
